"""The importance of each neuron of a layer, from a probe's weights or from the features, and the choice of salient neurons.

An importance is 0 or more. A Cut chooses the salient neurons, most important first; between equal importances the lower index
comes first, and a neuron of importance 0 is never salient.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from numbers import Integral
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped
from sklearn.feature_selection import f_classif, f_regression

from spin_native.errors import InputError

Array = np.ndarray
Weighting = Literal["squared", "l2", "absolute"]
CutBy = Literal["eta", "top_k", "top_share"]
N_BINS = 10  # for mutual_information: bins with equal counts
BLOCK_SIZE = 2**21  # numbers of a block of columns: 16 MiB as float64
COUNTED_ROWS = 1024  # at a time: a product that fits the caches, and little memory beside the features


# Importance from a probe's weights [output, neuron].

WEIGHTINGS: dict[Weighting, Callable[[Array], Array]] = {
    "squared": lambda weights: np.square(weights).sum(0),  # SPIN (arXiv 2311.15983, section 3.2)
    "l2": lambda weights: np.sqrt(np.square(weights).sum(0)),  # Liu: the norm of a neuron's outgoing weights
    "absolute": lambda weights: np.abs(weights).sum(0),  # SIREN, the successor of SPIN
}


def importance(weights: Float[Array, "output neuron"], weighting: Weighting = "squared") -> Float[Array, "neuron"]:
    """One importance per neuron from its weights w_k to the outputs k.

    weighting: "squared", sum_k w_k^2; "l2", its square root; "absolute", sum_k |w_k|.
    """
    return WEIGHTINGS[weighting](np.asarray(weights, np.float64))


# Importance from features [row, neuron] and labels 0, 1, ... (or float values for a regression), without a probe.


def class_mean_difference(features: Float32[Array, "row neuron"], labels: Int[Array, "row"]) -> Float[Array, "neuron"]:
    """The distance between two classes' mean activations, summed over all pairs of classes.

    Called "probeless" by Antverg & Belinkov 2022, "On the pitfalls of analyzing individual neurons in language models".
    """
    means = [features[labels == label].mean(0, dtype=np.float64) for label in np.unique(labels)]
    return np.sum([np.abs(one - other) for one, other in combinations(means, 2)], axis=0)


def f_statistic(features: Float32[Array, "row neuron"], labels: Shaped[Array, "row"]) -> Float[Array, "neuron"]:
    """The F statistic of each neuron alone: ANOVA over classes, or of a linear regression for values.

    A constant neuron gets 0; an infinite statistic (no variance within the classes) becomes the largest float64.
    """
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scikit-learn warns about constant neurons
        statistic, _ = (f_regression if labels.dtype.kind == "f" else f_classif)(features.astype(np.float64), labels)
    return np.nan_to_num(statistic, nan=0.0, posinf=np.finfo(np.float64).max)


def mutual_information(features: Float32[Array, "row neuron"], labels: Shaped[Array, "row"]) -> Float[Array, "neuron"]:
    """The mutual information of label and activation, in nats: sum p(a, y) log(p(a, y) / (p(a) p(y))).

    Activations, and values in place of labels, are cut into at most N_BINS bins of equal counts.
    """
    class_index = _bins(labels[:, None])[:, 0] if labels.dtype.kind == "f" else np.unique(labels, return_inverse=True)[1]
    one_hot = np.eye(class_index.max() + 1)[class_index]  # [row, class]
    bins = _bins(features)
    joint = np.stack([one_hot.T @ (bins == b) for b in range(N_BINS)]) / len(labels)  # [bin, class, neuron]
    independent = joint.sum(0, keepdims=True) * joint.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(np.nansum(joint * np.log(joint / independent), axis=(0, 1)), 0.0)


def predictivity(features: Float32[Array, "row neuron"], labels: Int[Array, "row"]) -> Float[Array, "neuron"]:
    """How much better than chance "more active than on average" predicts the label: max(accuracy, 1 - accuracy) - 1/2.

    With more than two classes each class is compared with the rest by balanced accuracy, and the best one counts. A constant
    neuron gets 0. From Wang et al. 2022, "Finding skill neurons in pre-trained transformer-based language models", without
    their prompts. `analyses.skill_neurons` measures the same with the average of other rows, and per class.
    """
    classes, class_index = np.unique(labels, return_inverse=True)
    n_above = count_above(features, features.mean(0, dtype=np.float64), class_index, len(classes))
    return np.abs(subtask_accuracy(n_above, np.bincount(class_index)) - 0.5).max(0)


def count_above(
    activation: Shaped[Array, "row *neuron"],
    baseline: Float[Array, "*neuron"],
    class_index: Int[Array, "row"],
    n_classes: int,
) -> Int[Array, "class *neuron"]:
    """How many rows of each class have each neuron above its baseline."""
    counts = np.zeros((n_classes, baseline.size), np.int64)
    for start in range(0, len(activation), COUNTED_ROWS):
        rows = slice(start, start + COUNTED_ROWS)
        above = (activation[rows] > baseline).reshape(-1, baseline.size).astype(np.float32)
        one_hot = np.eye(n_classes, dtype=np.float32)[:, class_index[rows]]
        counts += (one_hot @ above).astype(np.int64)  # a product is faster than a sum per class, and exact up to 2^24 rows
    return counts.reshape(n_classes, *baseline.shape)


def subtask_accuracy(
    n_above: Shaped[Array, "class *neuron"], n_rows: Int[Array, "class"], balanced: bool = False
) -> Float[Array, "subtask *neuron"]:
    """The accuracy of "this neuron is above its baseline" as the answer to binary subtasks (Wang et al. 2022, section 3.2).

    Of two classes: the second against the first. Of more: each class against the rest, by balanced accuracy.
    n_above: how many rows of each class are above the baseline. n_rows: rows of each class. balanced: take balanced accuracy
    for two classes, too. A neuron with the same answer for all rows gets 1/2: else it would profit from unequal class counts.
    """
    rows = n_rows.reshape(-1, *[1] * (n_above.ndim - 1))
    if len(n_rows) == 2 and not balanced:
        accuracy = (n_above[1:] + rows[:1] - n_above[:1]) / n_rows.sum()
    else:
        of_rest = (n_above.sum(0, keepdims=True) - n_above) / (n_rows.sum() - rows)
        accuracy = ((n_above / rows + 1 - of_rest) / 2)[len(n_rows) == 2 :]
    total = n_above.sum(0)
    return np.where((total == 0) | (total == n_rows.sum()), 0.5, accuracy)


def intersection_over_union(features: Float32[Array, "row neuron"], labels: Shaped[Array, "row"]) -> Float[Array, "neuron"]:
    """How well the rows in which a neuron is on coincide with the rows of a class: |on and class| / |on or class|, 0 to 1.

    A neuron is on above its mean over the rows and off below it. The largest value over the classes counts, of the on rows or
    of the off rows, so that the neuron's sign does not matter. A constant neuron gets 0. Chance is not 0 and is larger for a
    frequent class. InputError for labels of one class.

    From Mu & Andreas 2020, "Compositional explanations of neurons": on above 0 behind a ReLU (their language experiments), on
    rows only. The mean is 0 for the standardised features of a classifier. NeuroX (`iou_probe.py`) ranks by
    `average_precision` under this name.
    """
    of_class = _one_hot(labels)  # [row, class]
    means = features.mean(0, dtype=np.float64)
    best = np.zeros(features.shape[1])
    for active in (features > means, features < means):
        both = of_class.T @ active  # [class, neuron]
        either = of_class.sum(0)[:, None] + active.sum(0) - both
        best = np.maximum(best, (both / either).max(0))
    return np.where(np.ptp(features, axis=0) > 0, best, 0.0)


def average_precision(features: Float32[Array, "row neuron"], labels: Shaped[Array, "row"]) -> Float[Array, "neuron"]:
    """How well a neuron's activation alone retrieves the rows of a class: its average precision, 0 to 1.

    For the rows from the most to the least active, the precision at each row of the class is averaged; rows of equal activation
    count together. The largest value over the classes counts, of the activation or of its negative. A constant neuron gets 0.
    Chance is a class's share of the rows. InputError for labels of one class.

    What NeuroX computes as IoU (`iou_probe.py`), there for one class and one sign, after it sets activations of an absolute
    value below a chosen threshold to 0 (here no threshold).
    """
    of_class, best = _one_hot(labels), np.zeros(features.shape[1])
    for columns in _column_blocks(features):
        for sign in (1, -1):
            values = sign * features[:, columns]
            order = np.argsort(-values, axis=0)
            ordered = np.take_along_axis(values, order, axis=0)
            # The last row of each group of equal values: the precision is known there, for all of the group.
            is_last = np.vstack([ordered[1:] != ordered[:-1], np.ones((1, ordered.shape[1]), bool)])
            place = np.where(is_last, np.arange(len(ordered))[:, None], len(ordered))
            last = np.minimum.accumulate(place[::-1], axis=0)[::-1]
            for one in of_class.T:
                hits = one[order]  # [row, neuron]
                precision = np.take_along_axis(np.cumsum(hits, axis=0), last, axis=0) / (last + 1)
                best[columns] = np.maximum(best[columns], (hits * precision).sum(0) / one.sum())
    return np.where(np.ptp(features, axis=0) > 0, best, 0.0)


def gaussian(features: Float32[Array, "row neuron"], labels: Shaped[Array, "row"]) -> Float[Array, "neuron"]:
    """The mutual information of label and activation, in nats, where the activation is normally distributed in each class.

    H(y) - H(y | a), with H(y | a) the mean of -log p(y | a) over the rows; p(y | a) is Gaussian naive Bayes on this neuron
    alone: maximum-likelihood means and variances, and 1e-9 of the neuron's variance added to each (as scikit-learn's
    GaussianNB). An estimate below 0 becomes 0; a constant neuron gets 0. InputError for labels of one class.

    From Torroba Hennigen et al. 2020, "Intrinsic probing through dimension selection", and NeuroX (`gaussian_probe.py`). Both
    add neurons greedily to one multivariate Gaussian, with a prior on its covariance. This is the criterion of their first
    step for every neuron alone: two neurons that say the same both rank high here.
    """
    of_class = _one_hot(labels)
    share = of_class.mean(0)
    information = np.zeros(features.shape[1])
    for columns in _column_blocks(features):
        values = features[:, columns].astype(np.float64)
        varies = np.ptp(values, axis=0) > 0
        values = values[:, varies]
        log_joint = []
        for one, prior in zip(of_class.T, share, strict=True):
            own = values[one > 0]
            variance = own.var(0) + 1e-9 * values.var(0)
            log_density = -0.5 * (np.log(2 * np.pi * variance) + (values - own.mean(0)) ** 2 / variance)
            log_joint.append(np.log(prior) + log_density)  # [row, neuron]
        of_truth = sum(one[:, None] * joint for one, joint in zip(of_class.T, log_joint, strict=True))
        conditional_entropy = (np.logaddexp.reduce(log_joint, axis=0) - of_truth).mean(0)
        block = np.zeros(len(varies))
        block[varies] = np.maximum(-(share * np.log(share)).sum() - conditional_entropy, 0.0)
        information[columns] = block
    return information


def _one_hot(labels: Shaped[Array, "row"]) -> Float[Array, "row class"]:
    """1 in the column of each row's class, 0 elsewhere; InputError for fewer than two classes."""
    classes, class_index = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        got = f"every row has the label {classes.tolist()[0]!r}" if len(classes) else "no rows"
        raise InputError(f"labels: {got}; expected at least two classes")
    return np.eye(len(classes))[class_index]


def _column_blocks(features: Float32[Array, "row neuron"]) -> Iterator[slice]:
    """The columns in blocks that are small enough for several float64 copies of one."""
    width = max(1, BLOCK_SIZE // max(1, len(features)))
    return (slice(first, first + width) for first in range(0, features.shape[1], width))


def _bins(values: Shaped[Array, "row column"]) -> Int[Array, "row column"]:
    """The bin number of each value, 0 to N_BINS - 1, in its column's bins of equal counts; equal values share a bin."""
    edges = np.quantile(values, np.linspace(0, 1, N_BINS + 1)[1:-1], axis=0)
    return sum((values > edge).astype(np.int8) for edge in edges)


RANKERS: dict[str, Callable[..., Array]] = {
    "class_mean_difference": class_mean_difference,
    "f_statistic": f_statistic,
    "mutual_information": mutual_information,
    "predictivity": predictivity,
    "intersection_over_union": intersection_over_union,
    "average_precision": average_precision,
    "gaussian": gaussian,
}


# Cuts.


@dataclass(frozen=True)
class Cut:
    """How many of a layer's neurons are salient.

    by: "eta", the fewest neurons that hold the share `amount` of the layer's importance (SPIN); "top_k", the `amount` most
    important neurons; "top_share", the share `amount` of the layer's neurons, rounded up.
    amount: a share above 0 and at most 1; for "top_k" a whole number from 1. InputError for any other.
    """

    by: CutBy
    amount: float | int

    def __post_init__(self) -> None:
        if self.by == "top_k":
            is_whole = isinstance(self.amount, Integral) or (isinstance(self.amount, float) and self.amount.is_integer())
            if not (is_whole and self.amount >= 1):
                raise InputError(f"top_k is {self.amount}; expected a whole number of neurons, 1 or more")
        elif not 0 < self.amount <= 1:
            raise InputError(f"{self.by} is {self.amount}; expected a share above 0 and up to 1")

    def check_width(self, n_neurons: int) -> None:
        """InputError if `top_k` is more than the number of a layer's neurons."""
        if self.by == "top_k" and self.amount > n_neurons:
            raise InputError(f"top_k is {int(self.amount)}, a layer has {n_neurons} neurons; expected at most {n_neurons}")

    def __call__(self, importance: Float[Array, "neuron"]) -> Int[Array, "salient"]:
        """The indices of the salient neurons, ascending. InputError if `top_k` is more than the layer's neurons."""
        self.check_width(len(importance))
        order = np.argsort(-importance, kind="stable")
        if self.by == "top_k":
            n_salient = int(self.amount)
        elif self.by == "top_share":
            n_salient = int(np.ceil(self.amount * len(order) - 1e-9))  # 0.2 * 10 neurons is 2, whatever the rounding
        else:
            cumulative = np.cumsum(importance[order])
            # eta = 1 means every neuron with any importance; rounding in the sum must not drop one.
            n_salient = int(np.searchsorted(cumulative, self.amount * cumulative[-1])) + 1 if self.amount < 1 else len(order)
        return np.sort(order[: min(n_salient, np.count_nonzero(importance))])


def salient(importance: Float[Array, "neuron"], eta: float) -> Int[Array, "salient"]:
    """The fewest neurons, most important first, that hold the share `eta` of the importance; InputError unless 0 < eta <= 1."""
    return Cut("eta", eta)(importance)
