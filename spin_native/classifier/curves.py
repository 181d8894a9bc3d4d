"""What the heads compare with: the layer curve of single layers, and controls."""

from collections.abc import Mapping

import numpy as np

from spin_native.classifier.curve_rows import Controls, CurveRow
from spin_native.classifier.fitting import Rows, Standardizer
from spin_native.classifier.heads import Head, RefitHead
from spin_native.classifier.heads.refit import refit
from spin_native.classifier.parts import Neurons, Part
from spin_native.classifier.settings import Settings
from spin_native.classifier.sparsify import ProbedLayer, ProbedLayers
from spin_native.features.store import FeatureKey
from spin_native.probes.controls import bottom, control_task, random_neurons

Array = np.ndarray


def controls(head: Head, layers: ProbedLayers, train: Part, validation: Part, settings: Settings) -> Controls:
    """Refit on the head's neurons, and on the controls of the same sizes."""

    def score(neurons: Mapping[FeatureKey, Array], shuffle: bool = False) -> float:
        standardizer = Standardizer.join([layers[f].standardizer.take(chosen) for f, chosen in neurons.items()])
        rows = []
        for part in (train, validation):
            labels = control_task(part.labels, settings.seed) if shuffle else part.labels
            rows.append(Rows(standardizer(part.side_by_side(neurons)), labels, part.weights))
        return refit(rows[0], rows[1], settings)[1]

    sizes = {feature: len(chosen) for feature, chosen in head.neurons.items()}
    drawn = {f: random_control(layers[f], n, settings) for f, n in sizes.items()}
    least = {f: bottom(layers[f].importance, n) for f, n in sizes.items()}
    salient, shuffled = score(head.neurons), score(head.neurons, shuffle=True)
    return Controls(salient, score(drawn), score(least), shuffled, salient - shuffled)


def random_control(layer: ProbedLayer, n: int, settings: Settings) -> Array:
    """`n` random neurons of a layer; a smaller n draws some of a larger one's."""
    return random_neurons(len(layer.importance), n, settings.seed + layer.feature.layer)


def columns_of_heads(layers: ProbedLayers, settings: Settings, with_controls: bool) -> Neurons:
    """The neurons that heads and, perhaps, controls can read of each layer."""
    neurons = {}
    for feature, layer in layers.items():
        chosen = layer.widest(settings.cuts)
        if with_controls:
            n = len(chosen)
            chosen = np.union1d(chosen, np.union1d(random_control(layer, n, settings), bottom(layer.importance, n)))
        neurons[feature] = chosen
    return neurons


def columns_of_test(layers: ProbedLayers, settings: Settings) -> Neurons:
    """The neurons that heads and the layer curve can read of each layer."""
    return {feature: np.union1d(layer.widest(settings.cuts), layer.weighted) for feature, layer in layers.items()}


def layer_curve(layers: ProbedLayers, test: Part | None, settings: Settings) -> list[CurveRow]:
    """One probe on each single layer (Liu, figure 4); of several poolings the one that validation prefers."""
    best: dict[tuple[str, int], ProbedLayer] = {}
    for layer in layers.values():
        key = layer.feature.site, layer.feature.layer
        if key not in best or settings.worth(layer.score) > settings.worth(best[key].score):
            best[key] = layer
    rows = []
    for (site, index), layer in sorted(best.items()):
        used, tested = layer.weighted, None
        if test is not None:
            cut = settings.cuts[0]  # not applied here
            head = RefitHead(settings.task, cut, {layer.feature: used}, layer.standardizer.take(used), layer.probe.only(used))
            tested = settings.score(test.labels, head.predict(head.read(test)))
        rows.append(CurveRow(index + 1, layer.score, tested, len(used), layer.feature.pooling, None, layer.probe.C, site))
    return rows
