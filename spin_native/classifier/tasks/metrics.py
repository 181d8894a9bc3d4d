"""Metrics of one class per row, quick enough for a bootstrap and a search that call them thousands of times."""

import numpy as np
from jaxtyping import Int

Array = np.ndarray


def accuracy(truth: Int[Array, "row"], predicted: Int[Array, "row"]) -> float:
    """The share of right predictions."""
    return float((truth == predicted).mean())


def macro_f1(truth: Int[Array, "row"], predicted: Int[Array, "row"]) -> float:
    """The mean F1 of the classes that are true or predicted anywhere; 0 for a class without a right prediction.

    As scikit-learn's f1_score(average="macro", zero_division=0).
    """
    n_classes = int(max(truth.max(initial=-1), predicted.max(initial=-1))) + 1
    right = np.bincount(truth[truth == predicted], minlength=n_classes)
    total = np.bincount(truth, minlength=n_classes) + np.bincount(predicted, minlength=n_classes)
    present = total > 0
    return float((2 * right[present] / total[present]).mean()) if present.any() else 0.0
