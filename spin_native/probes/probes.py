"""Linear probes: what one layer's pooled features say about the label. scikit-learn estimators over `solver`."""

import warnings
from collections.abc import Sequence
from copy import copy
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from spin_native.errors import InputError
from spin_native.probes.solver import Design, Logistic, Loss, Softmax, Solution, Squared, ridge_path, sparse_path

Array = np.ndarray
Probe = TypeVar("Probe", bound="_LinearModel")


class _LinearModel(BaseEstimator):
    """What both probes share: the penalty, the path over C, and what is learnt."""

    coef_: Float[Array, "output feature"]
    intercept_: Float[Array, "output"]
    n_features_in_: int

    def __init__(self, C: float | int = 1.0, l1_ratio: float | int = 1.0, tol: float = 1e-8, max_iter: int = 200) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.tol = tol
        self.max_iter = max_iter

    def fit(self: Probe, X: Shaped[Array, "row feature"], y: Any, sample_weight: Any = None) -> Probe:
        """Fit to rows of features and their labels; `sample_weight`: how often each row counts.

        ConvergenceWarning if `max_iter` was not enough for `tol`.
        """
        is_numeric = isinstance(self, RegressorMixin)
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), multi_output=is_numeric, y_numeric=is_numeric)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        loss = self._loss(y)
        (solution,) = self._solve(Design([X]), loss, weights, [self.C])
        self._learn(solution)
        self._warn_unless_converged()
        return self

    def fit_path(
        self: Probe, design: Design | Shaped[Array, "row feature"], y: Shaped[Array, "row *output"], Cs: Sequence[float | int]
    ) -> list[Probe]:
        """A fitted probe for every C, solved together, without a warning: `converged_` says whether each one is.

        design: the rows' features: an array, or blocks of one that may be larger than memory.
        """
        design = design if isinstance(design, Design) else Design([design])
        blank = clone(self)
        loss = blank._loss(np.asarray(y))  # it learns what the outputs stand for
        ascending = np.sort(Cs).tolist()
        probes = {}
        for C, solution in zip(ascending, self._solve(design, loss, np.ones(len(y)), ascending), strict=True):
            probes[C] = probe = copy(blank)
            probe.C, probe.n_features_in_ = C, design.n_features
            probe._learn(solution)
        return [probes[C] for C in Cs]

    @classmethod
    def from_weights(
        cls: type[Probe],
        coef: Float[Array, "output feature"],
        intercept: Float[Array, "output"],
        **settings: float | int | None,
    ) -> Probe:
        """A fitted probe from known weights; classes are 0, 1, ..."""
        probe = cls(**settings)  # type: ignore[arg-type]
        probe.coef_, probe.intercept_, probe.n_features_in_ = coef, intercept, coef.shape[1]
        probe._name_outputs(len(intercept))
        return probe

    def through(self: Probe, below: Float[Array, "feature below"]) -> Probe:
        """The same outputs, told of what the features are a linear map of: features = x below^T."""
        probe = copy(self)
        probe.coef_, probe.n_features_in_ = self.coef_ @ below, below.shape[1]
        return probe

    def only(self: Probe, columns: Int[Array, "column"]) -> Probe:
        """The same outputs, where all other columns' weights are 0."""
        probe = copy(self)
        probe.coef_, probe.n_features_in_ = self.coef_[:, columns], len(columns)
        return probe

    def _name_outputs(self, n_outputs: int) -> None:
        """What is learnt of the labels alone, where they are the usual ones."""
        raise NotImplementedError

    def _loss(self, y: Array) -> Loss:
        raise NotImplementedError

    def _solve(self, design: Design, loss: Loss, weights: Array, Cs: Sequence[float | int]) -> list[Solution]:
        for name, value, is_right, expected in (
            ("C", Cs, all(0 < C < np.inf for C in Cs), "positive"),
            ("l1_ratio", self.l1_ratio, 0 <= self.l1_ratio <= 1, "from 0 (L2) to 1 (L1)"),
            ("tol", self.tol, self.tol > 0, "positive"),
            ("max_iter", self.max_iter, self.max_iter >= 1, "1 or more"),
        ):
            if not is_right:
                raise InputError(f"{type(self).__name__}: {name} is {value}; expected {expected}")
        named: dict[str, Any] = {"tol": self.tol, "max_iter": self.max_iter}
        row_weights = torch.from_numpy(weights)
        with torch.inference_mode():
            if self.l1_ratio == 0:
                return ridge_path(design, loss, row_weights, Cs, **named)
            return list(sparse_path(design, loss, row_weights, Cs, l1=self.l1_ratio, l2=1 - self.l1_ratio, **named))

    def _learn(self, solution: Solution) -> None:
        self.coef_, self.intercept_ = solution.weights.T.copy(), solution.intercepts
        self.n_iter_, self.dual_gap_ = solution.n_iter, solution.gap
        self.converged_ = solution.gap <= self.tol

    def _warn_unless_converged(self) -> None:
        if not self.converged_:
            warnings.warn(
                f"{type(self).__name__}: after {self.n_iter_} iterations the objective may be a share of {self.dual_gap_:.1e} "
                f"above its minimum (tol is {self.tol:.1e}); scale the features, lower C, or raise max_iter",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _scores(self, X: Shaped[Array, "row feature"]) -> Float[Array, "row output"]:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return X @ self.coef_.T.astype(X.dtype) + self.intercept_


def probabilities(scores: Float[Array, "row output"]) -> Float[Array, "row class"]:
    """Of each class, from one score per row (two classes) or one per class."""
    return np.concatenate([expit(-scores), expit(scores)], axis=1) if scores.shape[1] == 1 else softmax(scores, axis=1)


class LogisticProbe(ClassifierMixin, _LinearModel):
    """Logistic regression, binary or multinomial.

    Minimises C * sum of sample_weight * log-loss + l1_ratio * |w|_1 + (1 - l1_ratio) / 2 * |w|_2^2 (scikit-learn 1.9's
    convention: 1 is L1, 0 is L2) with free intercepts. It wants features of similar scale; the probe does not scale.

    C: inverse strength of the penalty. tol: where to stop: duality gap over objective, a bound on how far the objective may
    be above its minimum. max_iter: rounds of Newton steps before a ConvergenceWarning; the last only measures the gap.

    After fit: classes_ [class], coef_ [output, feature] and intercept_ [output] (one output for two classes, else one per
    class), n_iter_, dual_gap_ (over the objective), converged_.
    """

    classes_: Array

    def _loss(self, y: Array) -> Loss:
        check_classification_targets(y)
        self.classes_, place = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"LogisticProbe: y holds one class, {self.classes_[0]!r}; expected at least two")
        if len(self.classes_) == 2:
            return Logistic(torch.from_numpy(place.astype(np.float64)[:, None]))
        return Softmax(torch.nn.functional.one_hot(torch.from_numpy(place)).double())

    def _name_outputs(self, n_outputs: int) -> None:
        self.classes_ = np.arange(max(2, n_outputs))

    def decision_function(self, X: Shaped[Array, "row feature"]) -> Float[Array, "row *output"]:
        """X w + b: one column per output; for two classes one value per row, positive for classes_[1]."""
        scores = self._scores(X)
        return scores[:, 0] if len(self.coef_) == 1 else scores

    def predict_proba(self, X: Shaped[Array, "row feature"]) -> Float[Array, "row class"]:
        """Probability of each class, in the order of classes_."""
        return probabilities(self._scores(X))

    def predict(self, X: Shaped[Array, "row feature"]) -> Shaped[Array, "row"]:
        """The most probable class of each row."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]


class LinearProbe(RegressorMixin, _LinearModel):
    """Linear regression on one value or several: the squared loss.

    Minimises C * sum of sample_weight * (y - x w - b)^2 / 2 + l1_ratio * |w|_1 + (1 - l1_ratio) / 2 * |w|_2^2 with free
    intercepts. C, l1_ratio, tol, max_iter and what is learnt: as LogisticProbe, one output per value.
    """

    def _loss(self, y: Array) -> Loss:
        self._is_flat = y.ndim == 1
        targets = np.asarray(y, np.float64).reshape(len(y), -1)
        # Around 0, and exactly there where they are constant: an objective of large targets would hide in their rounding.
        targets, self._offset = targets - targets[0], targets[0].copy()
        centre = targets.mean(0)
        self._offset += centre
        return Squared(torch.from_numpy(targets - centre))

    def _learn(self, solution: Solution) -> None:
        super()._learn(solution)
        self.intercept_ = self.intercept_ + self._offset

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _name_outputs(self, n_outputs: int) -> None:
        self._is_flat = n_outputs == 1

    def predict(self, X: Shaped[Array, "row feature"]) -> Float[Array, "row *output"]:
        """The value, or values, of each row."""
        scores = self._scores(X)
        return scores[:, 0] if self._is_flat else scores
