"""The probability above which a row has a label: chosen on held-out rows, one threshold per label."""

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import expit, logit

Array = np.ndarray
PRIOR_ROWS = 10.0  # so many rows speak for 1/2, beside the rows that have the label


def best_thresholds(
    truth: Shaped[Array, "row label"], probabilities: Float[Array, "row label"], prior_rows: float = PRIOR_ROWS
) -> Float[Array, "label"]:
    """For each label the threshold that maximises its F1 on held-out rows, drawn towards 1/2 where few rows have the label.

    truth: 0/1 or bool. probabilities: of rows that the model was not fitted on. A row has a label where its probability is
    above the threshold. The best one lies in the middle between two probabilities; of equally good ones the nearest to 1/2
    counts. With n rows that have the label, the threshold's logit is multiplied by n / (n + prior_rows). A label keeps 1/2
    where the result has a lower F1 than 1/2 has, and where no row has it.

    With calibrated probabilities the best threshold is half of the best F1, hence at most 1/2 (Lipton, Elkan & Narayanaswamy
    2014, "Optimal thresholding of classifiers to maximize F1 measure").
    """
    truth = np.asarray(truth, dtype=bool)
    return np.array([_best_threshold(t, p, prior_rows) for t, p in zip(truth.T, probabilities.T, strict=True)])


def _best_threshold(truth: Bool[Array, "row"], probabilities: Float[Array, "row"], prior_rows: float) -> float:
    """That of one label."""
    n_true = int(truth.sum())
    if n_true == 0:
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    f1 = 2 * np.cumsum(truth[order]) / (np.arange(1, len(order) + 1) + n_true)  # of the first rows, one or more
    middle = (ordered + np.append(ordered[1:], 0.0)) / 2  # between the last of them and the next row
    is_cut = ordered > np.append(ordered[1:], -np.inf)  # rows of equal probability are on the same side
    candidates = middle[is_cut & (f1 >= f1[is_cut].max() - 1e-12)]
    best = candidates[np.abs(candidates - 0.5).argmin()]
    best = np.clip(best, 1e-6, 1 - 1e-6)
    drawn = float(expit(logit(best) * n_true / (n_true + prior_rows)))

    def f1_above(threshold: float) -> float:
        predicted = probabilities > threshold
        return 2 * (predicted & truth).sum() / (predicted.sum() + n_true)

    return drawn if f1_above(drawn) >= f1_above(0.5) else 0.5
