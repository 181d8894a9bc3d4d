"""Linear probes: what one layer's pooled features say about the label."""

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

Array = np.ndarray

# liblinear penalises the intercept as one more weight, over a constant feature of this value: at 10 the penalty on it is a
# hundredth of a weight's, and the solver still converges.
INTERCEPT_SCALING = 10.0


class LogisticProbe(ClassifierMixin, BaseEstimator):
    """Logistic regression, a scikit-learn estimator on 2-D arrays.

    Minimises C * sum of log-losses + penalty, the penalty being l1_ratio * |w|_1 + (1 - l1_ratio) / 2 * |w|_2^2 (scikit-learn
    1.9's convention: 1 is L1, 0 is L2). The intercept is free (at l1_ratio=1: nearly).

    With several classes the log-loss is the multinomial one; at l1_ratio=1 it is that of each class against the rest, and
    probabilities are the normalised sigmoids.

    It stands on scikit-learn's solvers: liblinear for L1, L-BFGS for L2, SAGA between. They want features of similar scale;
    the probe does not scale.

    C: inverse strength of the penalty. l1_ratio: 0 to 1. max_iter: passes before a ConvergenceWarning.
    random_state: seed of the solvers that visit rows or features in random order.

    After fit: classes_ [class], coef_ [output, feature] and intercept_ [output] (one output for two classes, else one per
    class), n_iter_.
    """

    def __init__(self, C: float = 1.0, l1_ratio: float = 1.0, max_iter: int = 1000, random_state: int = 0) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Shaped[Array, "row feature"], y: Shaped[Array, "row"]) -> "LogisticProbe":
        """Fit to rows of features and their labels (at least two classes)."""
        X, y = validate_data(self, X, y, dtype=(np.float32, np.float64))
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class, {self.classes_[0]!r}; expected at least two")
        if self.l1_ratio == 1 and len(self.classes_) > 2:
            fitted = [self._solver().fit(X, y == label) for label in self.classes_]
        else:
            fitted = [self._solver().fit(X, y)]
        self.coef_ = np.concatenate([solver.coef_ for solver in fitted])
        self.intercept_ = np.concatenate([solver.intercept_ for solver in fitted])
        self.n_iter_ = max(int(solver.n_iter_.max()) for solver in fitted)
        return self

    @classmethod
    def from_weights(
        cls, coef: Float[Array, "output feature"], intercept: Float[Array, "output"], **settings: float
    ) -> "LogisticProbe":
        """A fitted probe from known weights; its classes are 0, 1, ..."""
        probe = cls(**settings)  # type: ignore[arg-type]
        probe.coef_, probe.intercept_ = coef, intercept
        probe.classes_ = np.arange(max(2, len(intercept)))
        probe.n_features_in_ = coef.shape[1]
        return probe

    def decision_function(self, X: Shaped[Array, "row feature"]) -> Float[Array, "row *output"]:
        """X w + b: one column per output; for two classes one value per row, positive for classes_[1]."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float32, np.float64), reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.coef_) == 1 else scores

    def predict_proba(self, X: Shaped[Array, "row feature"]) -> Float[Array, "row class"]:
        """Probability of each class, in the order of classes_."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        if self.l1_ratio != 1:
            return softmax(scores, axis=1)
        return expit(scores) / expit(scores).sum(1, keepdims=True)

    def predict(self, X: Shaped[Array, "row feature"]) -> Shaped[Array, "row"]:
        """The most probable class of each row."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def _solver(self) -> LogisticRegression:
        named: dict[str, Any] = {"C": self.C, "l1_ratio": self.l1_ratio, "max_iter": self.max_iter}
        if self.l1_ratio == 0:
            return LogisticRegression(solver="lbfgs", **named)
        if self.l1_ratio == 1:
            named |= {"solver": "liblinear", "intercept_scaling": INTERCEPT_SCALING}
        else:
            named |= {"solver": "saga"}
        return LogisticRegression(random_state=self.random_state, **named)
