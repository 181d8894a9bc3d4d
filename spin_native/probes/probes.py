"""Linear probes: scikit-learn estimators that predict the label from one layer's pooled features."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from spin_native.given import is_missing, is_number, is_whole, plain, rows_of
from spin_native.probes.solver import Design, Logistic, Loss, Softmax, Solution, Squared, ridge_path, sparse_path

Array = np.ndarray
Probe = TypeVar("Probe", bound="_LinearModel")


class InputTypeError(InputError, TypeError):
    """An InputError where scikit-learn's users expect a TypeError, as for sparse features."""


def checked_targets(y: Any, what: str) -> Any:
    """Labels or values for scikit-learn; InputError, naming the row, for missing ones and those that it would change."""
    if isinstance(y, (str, bytes, Mapping, set, frozenset, Iterator)) or hasattr(y, "to_pylist"):
        y = list(rows_of(y, f"{what}: y", "label"))
    if y is None or (isinstance(y, np.ndarray) and y.dtype.kind in "iub") or getattr(y, "ndim", 1) != 1:
        return y
    try:
        values = y.tolist() if hasattr(y, "tolist") else list(y)
    except TypeError:
        return y  # no rows: scikit-learn says so
    for row, value in enumerate(map(plain, values)):
        if is_missing(value):
            raise InputError(f"{what}: y of row {row} is missing (got {value!r}); drop the row")
        if isinstance(value, str) is not isinstance(values[0], str):
            raise InputError(f"{what}: y is of two types, row 0 has {values[0]!r} and row {row} has {value!r}; expected one")
        if isinstance(value, str) and value.endswith("\0"):
            raise InputError(f"{what}: y of row {row} is {value!r}, and NumPy drops the NUL at its end; write it without")
        if isinstance(value, int) and not -(2**63) <= value < 2**63 and not isinstance(y, np.ndarray):
            raise InputError(f"{what}: y of row {row} is {value}, which does not fit 64 bits; write the labels as text")
    return y


def _has_columns(y: Any) -> bool:
    """Whether y is a dense matrix [row, label] of two labels or more, as an array, a table or a list of rows."""
    if isinstance(y, (list, tuple)):
        return len(y) > 0 and isinstance(y[0], (list, tuple, np.ndarray)) and len(y[0]) > 1
    shape: tuple[int, ...] = getattr(y, "shape", ())
    return len(shape) == 2 and shape[1] > 1 and not hasattr(y, "toarray")


class _LinearModel(BaseEstimator):
    """The parameters, fitting and prediction that both probes share."""

    coef_: Float[Array, "output feature"]
    intercept_: Float[Array, "output"]
    n_features_in_: int

    def __init__(self, C: float | int = 1.0, l1_ratio: float | int = 1.0, tol: float = 1e-8, max_iter: int = 200) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.tol = tol
        self.max_iter = max_iter

    def fit(self: Probe, X: Shaped[Array, "row feature"], y: Any, sample_weight: Any = None) -> Probe:
        """Fit to features X [row, feature] and labels or values y.

        sample_weight [row]: how many times each row counts, 0 or more; None means once.
        ConvergenceWarning if `max_iter` iterations were not enough to reach `tol`.
        InputError for an unusable parameter, a feature that is not finite, or labels of one class.
        """
        is_numeric = isinstance(self, RegressorMixin)
        with self._input_errors():
            y = checked_targets(y, type(self).__name__)
            is_matrix = is_numeric or _has_columns(y)
            X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), multi_output=is_matrix, y_numeric=is_numeric)
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            loss = self._loss(y)
        (solution,) = self._solve(Design([X]), loss, weights, [self.C])
        self._set_solution(solution)
        self._warn_unless_converged()
        return self

    def fit_path(
        self: Probe,
        design: Design | Shaped[Array, "row feature"],
        y: Shaped[Array, "row *output"],
        Cs: Sequence[float | int],
        sample_weight: Float[Array, "row"] | None = None,
    ) -> list[Probe]:
        """A fitted probe for each C, in the order of `Cs`; solving them together is faster than one by one.

        design: the features [row, feature] as an array, or a Design, whose blocks may be larger than memory.
        sample_weight: how many times each row counts, 0 or more; None means once.
        No ConvergenceWarning is given: check `converged_` of each probe.
        InputError as for `fit`.
        """
        design = design if isinstance(design, Design) else Design([design])
        unfitted = clone(self)
        loss = unfitted._loss(np.asarray(y))  # this also sets classes_, which the copies below take over
        with self._input_errors():
            like = np.empty((len(y), 0))
            weights = _check_sample_weight(sample_weight, like, dtype=np.float64, ensure_non_negative=True)
        ascending = np.sort(Cs).tolist()
        probes = {}
        for C, solution in zip(ascending, self._solve(design, loss, weights, ascending), strict=True):
            probes[C] = probe = copy(unfitted)
            probe.C, probe.n_features_in_ = C, design.n_features
            probe._set_solution(solution)
        return [probes[C] for C in Cs]

    @classmethod
    def from_weights(
        cls: type[Probe],
        coef: Float[Array, "output feature"],
        intercept: Float[Array, "output"],
        **settings: float | int | None,
    ) -> Probe:
        """A fitted probe with the given weights; `settings` are its parameters. The classes are 0, 1, ..."""
        probe = cls(**settings)  # type: ignore[arg-type]
        probe.coef_, probe.intercept_, probe.n_features_in_ = coef, intercept, coef.shape[1]
        probe._set_default_outputs(len(intercept))
        return probe

    def through(self: Probe, below: Float[Array, "feature below"]) -> Probe:
        """A probe on x that returns what this one returns on the features x below^T: its coef_ is coef_ @ below."""
        probe = copy(self)
        probe.coef_, probe.n_features_in_ = self.coef_ @ below, below.shape[1]
        return probe

    def only(self: Probe, columns: Int[Array, "column"]) -> Probe:
        """A probe on these columns alone, with their weights and the same intercepts; exact where all other weights are 0."""
        probe = copy(self)
        probe.coef_, probe.n_features_in_ = self.coef_[:, columns], len(columns)
        return probe

    def _set_default_outputs(self, n_outputs: int) -> None:
        """Set the attributes that depend on the labels alone, for a probe that is not fitted to labels."""
        raise NotImplementedError

    def _loss(self, y: Array) -> Loss:
        """The loss of the labels; also sets the attributes that depend on the labels alone."""
        raise NotImplementedError

    def _solve(self, design: Design, loss: Loss, weights: Array, Cs: Sequence[float | int]) -> list[Solution]:
        self._check_parameters(Cs)
        limits: dict[str, Any] = {"tol": self.tol, "max_iter": self.max_iter}
        Cs, l1 = [float(C) for C in Cs], float(self.l1_ratio)  # NumPy's numbers, as from np.linspace, do not mix with torch's
        row_weights = torch.from_numpy(weights)
        with torch.inference_mode():
            if l1 == 0:
                return ridge_path(design, loss, row_weights, Cs, **limits)
            return list(sparse_path(design, loss, row_weights, Cs, l1=l1, l2=1 - l1, **limits))

    def _check_parameters(self, Cs: Sequence[float | int]) -> None:
        l1_ratio, tol, max_iter = self.l1_ratio, self.tol, self.max_iter
        for name, value, is_valid, expected in (
            ("C", Cs, all(is_number(C) and C > 0 for C in Cs), "positive"),
            ("l1_ratio", l1_ratio, is_number(l1_ratio) and 0 <= l1_ratio <= 1, "from 0 (L2) to 1 (L1)"),
            ("tol", tol, is_number(tol) and tol > 0, "positive"),
            ("max_iter", max_iter, is_whole(max_iter) and max_iter >= 1, "1 or more, a whole number"),
        ):
            if not is_valid:
                raise InputError(f"{type(self).__name__}: {name} is {value}; expected {expected}")

    @contextmanager
    def _input_errors(self) -> Iterator[None]:
        """scikit-learn's errors about X and y as InputErrors, in one line."""
        try:
            yield
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            kind = InputTypeError if isinstance(error, TypeError) else InputError
            raise kind(f"{type(self).__name__}: {' '.join(str(error).split())}") from error

    def _set_solution(self, solution: Solution) -> None:
        self.coef_, self.intercept_ = solution.weights.T.copy(), solution.intercepts
        self.n_iter_, self.dual_gap_ = solution.n_iter, solution.gap
        self.converged_ = solution.gap <= self.tol

    def _warn_unless_converged(self) -> None:
        if not self.converged_:
            warnings.warn(
                f"{type(self).__name__}: not converged after {self.n_iter_} iterations: the duality gap is {self.dual_gap_:.1e}"
                f" of the objective, expected at most {self.tol:.1e}; standardise the features, lower C, or raise max_iter",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _scores(self, X: Shaped[Array, "row feature"]) -> Float[Array, "row output"]:
        check_is_fitted(self)
        with self._input_errors():
            X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return X @ self.coef_.T.astype(X.dtype) + self.intercept_


def probabilities(scores: Float[Array, "row output"]) -> Float[Array, "row class"]:
    """Class probabilities [row, class] from scores: the sigmoid of one score (two classes), or the softmax of one per class."""
    return np.concatenate([expit(-scores), expit(scores)], axis=1) if scores.shape[1] == 1 else softmax(scores, axis=1)


class LogisticProbe(ClassifierMixin, _LinearModel):
    """Logistic regression with an L1, L2 or elastic-net penalty, for two classes (binomial) or more (multinomial).

    y [row, label] of 0 and 1, with two labels or more, is several independent labels per row (multilabel): the loss is the sum
    of the labels' log-losses, and all labels share one C.

    Minimises, over weights w and intercepts b that are not penalised,

        C * sum_i sample_weight_i * log_loss_i(w, b) + l1_ratio * |w|_1 + (1 - l1_ratio) / 2 * |w|_2^2

    The features should have similar scales, because the penalty treats them alike; the probe does not scale them.

    C: inverse strength of the penalty. l1_ratio: 1 is L1, 0 is L2, between them elastic net (as in scikit-learn 1.9).
    tol: the fit stops when the duality gap is at most tol times the objective; the objective is then proven to be at most that
        share above its minimum.
    max_iter: Newton iterations before a ConvergenceWarning; the last one only measures the gap.

    After fit: classes_ [class] (multilabel: the labels' numbers 0, 1, ...); coef_ [output, feature] and intercept_ [output],
    with one output for two classes and otherwise one per class or label; multilabel_, whether outputs are labels; n_iter_;
    dual_gap_, the duality gap over the objective; converged_, whether dual_gap_ <= tol.
    """

    classes_: Array
    multilabel_ = False

    def _loss(self, y: Array) -> Loss:
        self.multilabel_ = y.ndim == 2
        if self.multilabel_:
            self.classes_ = np.arange(y.shape[1])
            return Logistic(torch.from_numpy(self._checked_indicators(y)))
        check_classification_targets(y)
        self.classes_, class_index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"LogisticProbe: y has one class, {self.classes_[0]!r}; expected at least two")
        if len(self.classes_) == 2:
            return Logistic(torch.from_numpy(class_index.astype(np.float64)[:, None]))
        return Softmax(torch.nn.functional.one_hot(torch.from_numpy(class_index)).double())

    def _checked_indicators(self, y: Shaped[Array, "row label"]) -> Float[Array, "row label"]:
        """y as float64; InputError unless it is 0 or 1, and each label has rows with it and rows without it."""
        is_indicator = (y == 0) | (y == 1)
        if not is_indicator.all():
            row, label = np.argwhere(~is_indicator)[0].tolist()
            raise InputError(
                f"{type(self).__name__}: y of row {row}, label {label} is {plain(y[row, label])!r}; expected 0 or 1"
            )
        constant = np.flatnonzero((y == y[:1]).all(0))
        if len(constant):
            raise InputError(
                f"{type(self).__name__}: label {constant[0]} of y is {int(y[0, constant[0]])} in every row; expected rows with "
                "it and rows without it: leave the label out"
            )
        return y.astype(np.float64)

    def _set_default_outputs(self, n_outputs: int) -> None:
        self.classes_ = np.arange(max(2, n_outputs))

    def decision_function(self, X: Shaped[Array, "row feature"]) -> Float[Array, "row *output"]:
        """X w + b: [row] for two classes, positive where classes_[1] is predicted; otherwise [row, class] or [row, label]."""
        scores = self._scores(X)
        return scores if self.multilabel_ or len(self.coef_) > 1 else scores[:, 0]

    def predict_proba(self, X: Shaped[Array, "row feature"]) -> Float[Array, "row class"]:
        """The probability of each class, in the order of classes_; multilabel: [row, label], each label's own probability."""
        scores = self._scores(X)
        return expit(scores) if self.multilabel_ else probabilities(scores)

    def predict(self, X: Shaped[Array, "row feature"]) -> Shaped[Array, "row *label"]:
        """The most probable class of each row; multilabel: [row, label], 1 where the label's probability is above 1/2, or 0."""
        scores = self.decision_function(X)
        if self.multilabel_:
            return (scores > 0).astype(np.int64)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MultilabelProbe(LogisticProbe):
    """A LogisticProbe whose outputs are independent labels, however many there are (also one): y is always [row, label]."""

    multilabel_ = True

    def _loss(self, y: Array) -> Loss:
        if y.ndim != 2:
            raise InputError(f"MultilabelProbe: y has shape {list(y.shape)}; expected [row, label], of 0 and 1")
        return super()._loss(y)

    def _set_default_outputs(self, n_outputs: int) -> None:
        self.classes_ = np.arange(n_outputs)


class LinearProbe(RegressorMixin, _LinearModel):
    """Linear regression of one or several values, with an L1 (lasso), L2 (ridge) or elastic-net penalty.

    Minimises, over weights w and intercepts b that are not penalised,

        C * sum_i sample_weight_i * (y_i - x_i w - b)^2 / 2 + l1_ratio * |w|_1 + (1 - l1_ratio) / 2 * |w|_2^2

    C, l1_ratio, tol, max_iter and the fitted attributes are those of LogisticProbe (without classes_), with one output per
    value.
    """

    def _loss(self, y: Array) -> Loss:
        self._is_flat = y.ndim == 1
        targets = np.asarray(y, np.float64).reshape(len(y), -1)
        # Targets are centred: a large offset would drown the objective in rounding error. Subtracting the first row before the
        # mean makes constant targets exactly 0.
        targets, self._offset = targets - targets[0], targets[0].copy()
        centre = targets.mean(0)
        self._offset += centre
        return Squared(torch.from_numpy(targets - centre))

    def _set_solution(self, solution: Solution) -> None:
        super()._set_solution(solution)
        self.intercept_ = self.intercept_ + self._offset

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _set_default_outputs(self, n_outputs: int) -> None:
        self._is_flat = n_outputs == 1

    def predict(self, X: Shaped[Array, "row feature"]) -> Float[Array, "row *output"]:
        """The predicted value of each row: [row] if y was, otherwise [row, output]."""
        scores = self._scores(X)
        return scores[:, 0] if self._is_flat else scores
