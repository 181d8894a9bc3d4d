"""From a probe's weights, or from the features themselves, to the salient neurons of a layer.

A ranking gives every neuron an importance of 0 or more; a cut turns importances into a set of neurons. Equal importances are
taken by index, and a neuron of importance 0 is never salient.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped
from sklearn.feature_selection import f_classif, f_regression

from spin_native.errors import InputError

Array = np.ndarray
Weighting = Literal["squared", "l2", "absolute"]
CutBy = Literal["eta", "top_k", "top_share"]
N_BINS = 10  # of equal counts, for mutual information


# Importances from a probe's weights [output, neuron].

WEIGHTINGS: dict[Weighting, Callable[[Array], Array]] = {
    "squared": lambda weights: np.square(weights).sum(0),  # SPIN, section 3.2
    "l2": lambda weights: np.sqrt(np.square(weights).sum(0)),  # Liu: norm of a neuron's outgoing weights
    "absolute": lambda weights: np.abs(weights).sum(0),  # SIREN
}


def importance(weights: Float[Array, "output neuron"], weighting: Weighting = "squared") -> Float[Array, "neuron"]:
    """A neuron's outgoing weights as one number: "squared" (SPIN), "l2" (Liu) or "absolute" (SIREN), over all outputs."""
    return WEIGHTINGS[weighting](np.asarray(weights, np.float64))


# Importances from features [row, neuron] and labels 0, 1, ... (or values, for a regression), without a probe.


def class_mean_difference(features: Float32[Array, "row neuron"], labels: Int[Array, "row"]) -> Float[Array, "neuron"]:
    """Distances between the classes' mean activations, summed over pairs ("probeless", Antverg & Belinkov 2022)."""
    means = [features[labels == label].mean(0, dtype=np.float64) for label in np.unique(labels)]
    return np.sum([np.abs(one - other) for one, other in combinations(means, 2)], axis=0)


def f_statistic(features: Float32[Array, "row neuron"], labels: Shaped[Array, "row"]) -> Float[Array, "neuron"]:
    """Variance between the classes over variance within (ANOVA); for values, that of a linear regression on one neuron."""
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a constant neuron tells nothing: 0
        statistic, _ = (f_regression if labels.dtype.kind == "f" else f_classif)(features.astype(np.float64), labels)
    return np.nan_to_num(statistic, nan=0.0, posinf=np.finfo(np.float64).max)


def mutual_information(features: Float32[Array, "row neuron"], labels: Shaped[Array, "row"]) -> Float[Array, "neuron"]:
    """Mutual information of the label (or value) and the activation, each in at most N_BINS bins of equal counts; nats."""
    place = _bins(labels[:, None])[:, 0] if labels.dtype.kind == "f" else np.unique(labels, return_inverse=True)[1]
    of_class = np.eye(place.max() + 1)[place]  # [row, class]
    bins = _bins(features)
    joint = np.stack([of_class.T @ (bins == b) for b in range(N_BINS)]) / len(labels)  # [bin, class, neuron]
    independent = joint.sum(0, keepdims=True) * joint.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(np.nansum(joint * np.log(joint / independent), axis=(0, 1)), 0.0)


def predictivity(features: Float32[Array, "row neuron"], labels: Int[Array, "row"]) -> Float[Array, "neuron"]:
    """How well "more active than on average" predicts the label, above chance (skill neurons, Wang et al. 2022, prompt-free).

    max(accuracy, 1 - accuracy) - 1/2; of several classes each against the rest, by balanced accuracy, the best one.
    """
    above = features > features.mean(0, dtype=np.float64)
    found = np.zeros(features.shape[1])
    classes = np.unique(labels)
    for label in classes[1:] if len(classes) == 2 else classes:
        is_label = labels == label
        if len(classes) == 2:
            accuracy = (above == is_label[:, None]).mean(0)
        else:
            accuracy = (above[is_label].mean(0) + 1 - above[~is_label].mean(0)) / 2
        found = np.maximum(found, np.abs(accuracy - 0.5))
    return np.where(np.ptp(features, axis=0) > 0, found, 0.0)  # a constant neuron knows the rarer class by its rarity alone


def _bins(values: Shaped[Array, "row column"]) -> Int[Array, "row column"]:
    """Each value's place among N_BINS bins of equal counts; equal values share a bin."""
    edges = np.quantile(values, np.linspace(0, 1, N_BINS + 1)[1:-1], axis=0)
    return sum((values > edge).astype(np.int8) for edge in edges)


RANKERS: dict[str, Callable[..., Array]] = {
    "class_mean_difference": class_mean_difference,
    "f_statistic": f_statistic,
    "mutual_information": mutual_information,
    "predictivity": predictivity,
}


# Cuts.


@dataclass(frozen=True)
class Cut:
    """How many neurons of a layer are salient: those that hold a share `eta` of its importance, the `top_k`, or a `top_share`.

    amount: the share (above 0, at most 1), or the number of neurons (1 or more).
    """

    by: CutBy
    amount: float | int

    def __post_init__(self) -> None:
        if self.by == "top_k":
            if not (np.isfinite(self.amount) and self.amount >= 1 and self.amount == int(self.amount)):
                raise InputError(f"top_k is {self.amount}; expected a whole number of neurons, 1 or more")
        elif not 0 < self.amount <= 1:
            raise InputError(f"{self.by} is {self.amount}; expected a share above 0 and up to 1")

    def check_width(self, n_neurons: int) -> None:
        """InputError for a top_k that is more than a layer has."""
        if self.by == "top_k" and self.amount > n_neurons:
            raise InputError(f"top_k is {self.amount:g}, a layer has {n_neurons} neurons; expected no more than these")

    def __call__(self, importance: Float[Array, "neuron"]) -> Int[Array, "salient"]:
        """The salient neurons' indices, sorted. InputError for a top_k that is more than the layer has."""
        self.check_width(len(importance))
        order = np.argsort(-importance, kind="stable")
        if self.by == "top_k":
            n_kept = int(self.amount)
        elif self.by == "top_share":
            n_kept = int(np.ceil(self.amount * len(order) - 1e-9))
        else:
            reached = np.cumsum(importance[order])
            # At eta = 1 rounding must not decide: every neuron with any importance counts.
            n_kept = int(np.searchsorted(reached, self.amount * reached[-1])) + 1 if self.amount < 1 else len(order)
        return np.sort(order[: min(n_kept, np.count_nonzero(importance))])


def salient(importance: Float[Array, "neuron"], eta: float) -> Int[Array, "salient"]:
    """The fewest neurons, most important first, that hold `eta` of the total importance; InputError for eta outside (0, 1]."""
    return Cut("eta", eta)(importance)
