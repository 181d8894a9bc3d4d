"""Skill probes: which neurons' gradients tell the true label from the others, and how well a few of them predict it.

The gradients of every answer are compared with each other within a row: scores [row, label, neuron], as `skill_scores` makes
them from `neuron_gradients` with one target per answer. Source: Zhao et al. 2025, section on skill neurons.
"""

from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int, Shaped
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.utils.validation import check_is_fitted

from spin_native.analyses.results import Result
from spin_native.errors import InputError
from spin_native.given import is_whole
from spin_native.probes import LogisticProbe
from spin_native.probes.importance import f_statistic
from spin_native.probes.scaling import mean_and_scale

Array = np.ndarray
Probe = TypeVar("Probe", bound="SkillProbe")


def skill_scores(gradients: Result) -> Float[Array, "row label neuron"]:
    """The gradients of all layers side by side: neuron n of the i-th layer is column i * d_ffn + n."""
    gradient = gradients["gradient"]
    return gradient.reshape(*gradient.shape[:2], -1)


def activation_scores(gradients: Result) -> Float[Array, "row neuron"]:
    """The activations at the probed token, in the same columns as `skill_scores`."""
    activation = gradients["activation"][:, 0]
    return activation.reshape(len(activation), -1)


class SkillProbe(BaseEstimator):
    """What the probes share: a ranking of the neurons, and a prediction from the first `n_neurons` of it.

    After fit: importance_ [neuron]; ranking_, the neurons from the most important on (ties go to the lower index);
    neurons_, the `n_neurons` that predict.
    """

    importance_: Float[Array, "neuron"]
    ranking_: Int[Array, "neuron"]
    neurons_: Int[Array, "chosen"]

    def __init__(self, n_neurons: int = 256) -> None:
        self.n_neurons = n_neurons

    def fit(self: Probe, scores: Shaped[Array, "row *axes neuron"], truth: Any) -> Probe:
        """Rank the neurons. truth [row]: the true label of each row, from 0.

        Raises InputError for labels of one class, or outside the scores' labels.
        """
        truth = checked_truth(scores, truth)
        if not is_whole(self.n_neurons) or self.n_neurons < 1:
            raise InputError(f"{type(self).__name__}: n_neurons is {self.n_neurons!r}; expected 1 or more")
        self.importance_ = self._importance(scores, truth)
        self.ranking_ = np.argsort(-self.importance_, kind="stable")
        self.neurons_ = self.ranking_[: self.n_neurons]
        self._fit_chosen(scores[..., self.neurons_], truth)
        return self

    def predict(self, scores: Shaped[Array, "row *axes neuron"]) -> Int[Array, "row"]:
        """The predicted label of each row; a tie goes to the lower label."""
        check_is_fitted(self)
        return self._predict(scores[..., self.neurons_])

    def score(self, scores: Shaped[Array, "row *axes neuron"], truth: Any) -> float:
        """The accuracy."""
        return float(np.mean(self.predict(scores) == np.asarray(truth)))

    def _importance(self, scores: Array, truth: Int[Array, "row"]) -> Float[Array, "neuron"]:
        raise NotImplementedError

    def _fit_chosen(self, scores: Array, truth: Int[Array, "row"]) -> None:
        """Learn what the prediction needs beyond the ranking, from the chosen neurons' scores."""

    def _predict(self, scores: Array) -> Int[Array, "row"]:
        raise NotImplementedError


class PolarityProbe(SkillProbe):
    """Neurons whose gradient has another sign for the true label than for the others.

    Importance: |sum over rows of sign(g_true) minus the mean of sign(g_other)|; the sum's sign is the neuron's polarity.
    Prediction: the label with the largest sum of polarity times sign(g).
    """

    def _importance(self, scores: Float[Array, "row label neuron"], truth: Int[Array, "row"]) -> Float[Array, "neuron"]:
        total = np.zeros(scores.shape[-1])
        for row, label in zip(scores, truth, strict=True):  # row by row: the signs of all rows would double the memory
            sign = np.sign(row)
            total += sign[label] - np.delete(sign, label, axis=0).mean(0)
        self.polarity_ = np.sign(total)
        return np.abs(total)

    def _predict(self, scores: Float[Array, "row label neuron"]) -> Int[Array, "row"]:
        return (np.sign(scores) @ self.polarity_[self.neurons_]).argmax(1)


class MagnitudeProbe(SkillProbe):
    """Neurons whose gradient is larger for the true label than for the others.

    Importance: how often g_true > g_other, over all rows and other labels; an equal pair counts one half.
    Prediction: every neuron votes for the label of its largest gradient, and the majority wins.
    """

    def _importance(self, scores: Float[Array, "row label neuron"], truth: Int[Array, "row"]) -> Float[Array, "neuron"]:
        return win_rate(scores, truth)

    def _predict(self, scores: Float[Array, "row label neuron"]) -> Int[Array, "row"]:
        votes = scores.argmax(1)  # [row, neuron]
        return np.stack([(votes == label).sum(1) for label in range(scores.shape[1])], 1).argmax(1)


class ForestProbe(SkillProbe):
    """A random forest on comparisons: for every pair of labels, which of the two has the larger gradient.

    It reads the `n_neurons` whose win rate (MagnitudeProbe's importance) is farthest from one half.
    """

    def __init__(self, n_neurons: int = 256, n_trees: int = 100, seed: int = 0) -> None:
        super().__init__(n_neurons)
        self.n_trees = n_trees
        self.seed = seed

    def _importance(self, scores: Float[Array, "row label neuron"], truth: Int[Array, "row"]) -> Float[Array, "neuron"]:
        return np.abs(win_rate(scores, truth) - 0.5)

    def _fit_chosen(self, scores: Float[Array, "row label neuron"], truth: Int[Array, "row"]) -> None:
        self.forest_ = RandomForestClassifier(self.n_trees, random_state=self.seed).fit(comparisons(scores), truth)

    def _predict(self, scores: Float[Array, "row label neuron"]) -> Int[Array, "row"]:
        return self.forest_.predict(comparisons(scores))


class ActivationProbe(SkillProbe):
    """The activation baseline: logistic regression on standardised activations [row, neuron], not on gradients.

    It reads the `n_neurons` with the largest F statistic. C: as in LogisticProbe, with an L2 penalty.
    """

    def __init__(self, n_neurons: int = 256, C: float = 0.01) -> None:
        super().__init__(n_neurons)
        self.C = C

    def _importance(self, scores: Float[Array, "row neuron"], truth: Int[Array, "row"]) -> Float[Array, "neuron"]:
        return f_statistic(scores.astype(np.float32), truth)

    def _fit_chosen(self, scores: Float[Array, "row neuron"], truth: Int[Array, "row"]) -> None:
        self.mean_, self.scale_ = (values.astype(scores.dtype) for values in mean_and_scale(scores))
        self.probe_ = LogisticProbe(C=self.C, l1_ratio=0).fit((scores - self.mean_) / self.scale_, truth)

    def _predict(self, scores: Float[Array, "row neuron"]) -> Int[Array, "row"]:
        return self.probe_.predict((scores - self.mean_) / self.scale_)


def win_rate(scores: Float[Array, "row label neuron"], truth: Int[Array, "row"]) -> Float[Array, "neuron"]:
    """How often a neuron's gradient is larger for the true label than for another one; an equal pair counts one half."""
    wins = np.zeros(scores.shape[-1])
    for row, label in zip(scores, truth, strict=True):
        others = np.delete(row, label, axis=0)
        wins += (row[label] > others).mean(0) + 0.5 * (row[label] == others).mean(0)
    return wins / len(scores)


def comparisons(scores: Float[Array, "row label neuron"]) -> Float[Array, "row comparison"]:
    """sign(g_l - g_m) for every pair of labels l < m and every neuron."""
    first, second = np.triu_indices(scores.shape[1], 1)
    return np.sign(scores[:, first] - scores[:, second]).reshape(len(scores), -1).astype(np.float32)


def checked_truth(scores: Shaped[Array, "row *axes neuron"], truth: Any) -> Int[Array, "row"]:
    """The true labels as an array; InputError unless there is one per row, of two classes or more, that the scores have."""
    truth = np.asarray(truth)
    n_labels = scores.shape[1] if scores.ndim == 3 else int(truth.max(initial=0)) + 1
    if truth.shape != (len(scores),) or truth.dtype.kind not in "iu" or truth.min() < 0 or truth.max() >= n_labels:
        raise InputError(
            f"truth is {truth[:5].tolist()}...; expected a label from 0 to {n_labels - 1} for each of {len(scores)} rows"
        )
    if len(np.unique(truth)) < 2:
        raise InputError(f"truth has one class, {truth[0]}, in all rows; expected at least two: shuffle the answers' order")
    return truth
