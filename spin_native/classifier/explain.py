"""Which neurons spoke for an answer, and what weight each neuron has."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from spin_native.classifier.heads import Head

Array = np.ndarray


class Contribution(NamedTuple):
    """How much one neuron added to the predicted class's logit, or to the value."""

    layer: int
    neuron: int
    contribution: float
    site: str
    pooling: str


def contributions(head: Head, features: Float32[Array, "1 salient"], n_neurons: int) -> list[Contribution]:
    """The neurons that added most to the head's answer for one row, largest first.

    features: the row's raw features of the salient neurons.
    """
    score, sign = head.task.explained(head.output(features)[0])
    added = sign * head.contributions(features, score)
    places = head.places
    return [
        Contribution(places[i][0].layer, places[i][1], float(added[i]), places[i][0].site, places[i][0].pooling)
        for i in np.argsort(-added, kind="stable")[:n_neurons]
    ]


def neuron_weights(head: Head) -> list[dict[str, Any]]:
    """Every salient neuron with its weight for each of the task's `output_names`; InputError for a perceptron."""
    return [
        {"layer": feature.layer, "neuron": neuron, "site": feature.site, "pooling": feature.pooling, "weights": weights}
        for (feature, neuron), weights in zip(head.places, head.weights.T.tolist(), strict=True)
    ]


def salient_neurons(head: Head) -> dict[int, Array]:
    """Layer -> sorted neurons that the head reads under any pooling (FFN neurons, where it reads both sites)."""
    site = "activation" if "activation" in {feature.site for feature in head.neurons} else "hidden"
    neurons: dict[int, Array] = {}
    for feature, chosen in head.neurons.items():
        if feature.site == site and len(chosen):
            neurons[feature.layer] = np.union1d(neurons.get(feature.layer, chosen), chosen)
    return neurons
