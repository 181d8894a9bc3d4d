"""Probabilities that mean what they say: temperature and prior shift from held-out scores, and how far off probabilities are.

Scores are those of a linear model on rows that it was not fitted on, [row, score]: one score for two classes (it speaks for the
second), otherwise one per class. Labels are the classes' places, 0, 1, ...
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq, minimize
from scipy.special import expit, log_expit, log_softmax, softmax

Array = np.ndarray

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
# Both fits see so many further rows whose labels are drawn from the model's own probabilities: with few rows, T stays near 1.
PRIOR_ROWS = 10.0
N_FOLDS = 5


def fit_temperature(scores: Float[Array, "row score"], labels: Int[Array, "row"]) -> float:
    """The T for which the probabilities of scores / T have the smallest log-loss (temperature scaling, Guo et al. 2017).

    The log-loss is convex in 1/T; its slope is solved for 0, between MIN_TEMPERATURE and MAX_TEMPERATURE. PRIOR_ROWS further
    rows pull T towards 1, and keep it finite where every row is right. Without rows T is 1.
    """
    if not len(labels):
        return 1.0
    scores = np.asarray(scores, np.float64)
    of_label = scores[:, 0] * labels if scores.shape[1] == 1 else scores[np.arange(len(labels)), labels]
    prior_weight = PRIOR_ROWS / len(labels)
    expected_before = _expected_score(scores, 1.0).sum()

    def slope(inverse: float) -> float:
        expected = _expected_score(scores, inverse).sum()
        return float(expected - of_label.sum() + prior_weight * (expected - expected_before))

    lowest, highest = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(lowest) >= 0:
        return MAX_TEMPERATURE if slope(highest) > 0 else 1.0  # a slope of 0 everywhere: T changes nothing
    if slope(highest) <= 0:
        return MIN_TEMPERATURE
    return 1 / brentq(slope, lowest, highest, xtol=1e-9)


def fit_prior_shift(
    scores: Float[Array, "row score"], labels: Int[Array, "row"], temperature: float = 1.0, seed: int = 0
) -> Float[Array, "score"]:
    """What to add to scores / temperature, per score, for the smallest log-loss; zeros where that does not hold on other rows.

    The shift is kept only if shifts fitted on N_FOLDS - 1 folds lower the log-loss of the rows in the remaining fold, in the
    mean by more than one standard error. Like the temperature, it is pulled towards "no change" by PRIOR_ROWS further rows.
    """
    scaled_scores = np.asarray(scores, np.float64) / temperature
    n_rows, n_scores = scaled_scores.shape
    if n_rows < 2 * N_FOLDS:
        return np.zeros(n_scores)
    fold_of = np.empty(n_rows, dtype=np.int64)
    fold_of[np.random.default_rng(seed).permutation(n_rows)] = np.arange(n_rows) % N_FOLDS
    gains = np.empty(n_rows)
    for fold in range(N_FOLDS):
        held_out = fold_of == fold
        shift = _shift(scaled_scores[~held_out], labels[~held_out])
        before, after = (_losses(scaled_scores[held_out] + by, labels[held_out]) for by in (0.0, shift))
        gains[held_out] = before - after
    is_better = gains.mean() > gains.std(ddof=1) / np.sqrt(n_rows)
    return _shift(scaled_scores, labels) if is_better else np.zeros(n_scores)


def log_loss(probabilities: Float[Array, "row class"], labels: Int[Array, "row"]) -> float:
    """The mean of -log(probability of the label), in nats; a probability of 0 counts as the smallest positive float64."""
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_label, np.finfo(np.float64).tiny)).mean())


class ReliabilityBin(NamedTuple):
    """The rows whose most probable class has a probability in (low, high]: how many, its mean, and how often it is right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability(probabilities: Float[Array, "row class"], labels: Int[Array, "row"], n_bins: int = 15) -> list[ReliabilityBin]:
    """Rows by the probability of their most probable class, in `n_bins` bins of equal width; empty bins are left out."""
    confidences, is_right = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.arange(n_bins + 1) / n_bins
    bin_of = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, n_bins - 1)
    bins = []
    for index in np.unique(bin_of).tolist():
        rows = bin_of == index
        low, high = float(edges[index]), float(edges[index + 1])
        bins.append(ReliabilityBin(low, high, int(rows.sum()), float(confidences[rows].mean()), float(is_right[rows].mean())))
    return bins


def ece(probabilities: Float[Array, "row class"], labels: Int[Array, "row"], n_bins: int = 15) -> float:
    """Expected calibration error of the most probable class: |accuracy - mean confidence| of each bin, weighted by its rows.

    Bins of equal width (low, high], as in Guo et al. 2017, equation 3.
    """
    bins = reliability(probabilities, labels, n_bins)
    return sum(row.n * abs(row.accuracy - row.confidence) for row in bins) / len(labels)


def _expected_score(scores: Float[Array, "row score"], inverse_temperature: float) -> Float[Array, "row"]:
    """The mean of a row's scores over the classes, each with its probability at this temperature."""
    if scores.shape[1] == 1:
        return scores[:, 0] * expit(inverse_temperature * scores[:, 0])
    return (scores * softmax(inverse_temperature * scores, axis=1)).sum(1)


def _losses(scores: Float[Array, "row score"], labels: Int[Array, "row"]) -> Float[Array, "row"]:
    """-log(probability of the label) of each row."""
    if scores.shape[1] == 1:
        return -log_expit(np.where(labels == 1, scores[:, 0], -scores[:, 0]))
    return -log_softmax(scores, axis=1)[np.arange(len(labels)), labels]


def _shift(scores: Float[Array, "row score"], labels: Int[Array, "row"]) -> Float[Array, "score"]:
    """The shift with the smallest log-loss on these rows and PRIOR_ROWS further ones; of several classes, with mean 0."""
    n_rows, n_scores = scores.shape
    weight = PRIOR_ROWS / n_rows
    if n_scores == 1:
        before, truth = expit(scores), labels[:, None].astype(np.float64)
        of: Callable[[Array], Array] = expit
    else:
        before, truth = softmax(scores, axis=1), np.eye(n_scores)[labels]
        of = _softmax
    wanted = (truth + weight * before).sum(0) / n_rows

    def loss_and_slope(shift: Array) -> tuple[float, Array]:
        shifted = scores + shift
        if n_scores == 1:
            log_partition = -log_expit(-shifted[:, 0])
        else:
            log_partition = shifted[:, 0] - log_softmax(shifted, axis=1)[:, 0]
        loss = (1 + weight) * log_partition.mean() - wanted @ shift
        return float(loss), (1 + weight) * of(shifted).mean(0) - wanted

    shift = minimize(loss_and_slope, np.zeros(n_scores), jac=True, method="L-BFGS-B", tol=1e-12).x
    return shift if n_scores == 1 else shift - shift.mean()


def _softmax(scores: Float[Array, "row class"]) -> Float[Array, "row class"]:
    return softmax(scores, axis=1)
