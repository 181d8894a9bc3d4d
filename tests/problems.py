"""Problems for the solver, its objective by hand, and marks for tests that take thousands of small steps."""

import numpy as np
import pytest
from sklearn.datasets import make_classification

# For tests of how a solve ends, which take thousands of small steps: the shape checks would more than double their time. Other
# tests run the same functions on every loss, penalty and precision with the checks on.
without_shape_checks = pytest.mark.usefixtures("unchecked")

nightly = pytest.mark.nightly


def data(n_classes=2, n_rows=250, n_features=40, dtype=np.float64):
    X, y = make_classification(n_rows, n_features, n_informative=10, n_classes=n_classes, random_state=0)
    return ((X - X.mean(0)) / X.std(0)).astype(dtype), y


def objective(X, y, coef, intercept, C, l1_ratio):
    """C * sum log-loss + penalty, by hand."""
    z = X.astype(np.float64) @ coef.T + intercept
    if len(coef) == 1:
        loss = np.logaddexp(0, np.where(y == 1, -z[:, 0], z[:, 0]))
    else:
        loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), y]
    return C * loss.sum() + l1_ratio * np.abs(coef).sum() + (1 - l1_ratio) / 2 * np.square(coef).sum()
