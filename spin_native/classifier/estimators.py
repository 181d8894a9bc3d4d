"""The estimators: texts and labels in, a classifier (or regressor) out that runs no more layers than it needs."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from jaxtyping import Float
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from spin_native.checkpoints import Location
from spin_native.classifier.base import SpinEstimator
from spin_native.classifier.exits import Exit, ExitBy, calibrate, check_calibration, rows_needed
from spin_native.classifier.options import DTYPES, name_of
from spin_native.classifier.risk import ErrorPromise, answered_only, bounded_error, check_error_calibration, is_answered
from spin_native.classifier.rows import evaluation_rows, warn_of_seen
from spin_native.classifier.saved import read_saved
from spin_native.classifier.splits import numbered_texts
from spin_native.classifier.tasks import Classes, LabelSets, TaskName
from spin_native.errors import InputError
from spin_native.given import is_number
from spin_native.text.pairs import GivenText

Array = np.ndarray
__all__ = ["DTYPES", "SpinClassifier", "SpinMultilabelClassifier", "SpinRegressor", "load_pretrained"]


class SpinClassifier(ClassifierMixin, SpinEstimator):
    __doc__ = f"""Classify texts, two classes or more. {SpinEstimator.__doc__}
    classes_: the labels, in the order of probabilities."""

    task: ClassVar[TaskName] = "classification"
    score = SpinEstimator.score  # not that of the mixin

    @property
    def classes_(self) -> Array:
        """The labels, in the order of probabilities."""
        check_is_fitted(self, "heads_")
        return cast(Classes, self.task_).classes

    def predict_proba(
        self, texts: str | Iterable[GivenText], progress: bool | None = False, *, exit: str | Exit | None = None
    ) -> Float[Array, "*row class"]:
        """Probability of each class, in the order of classes_; one row per text, or a single row for a single str.

        exit: when a row exits (see output_blocks).
        """
        probabilities, _ = self._outputs(texts, progress, exit)
        return probabilities[0] if self._is_one_row(texts) else probabilities

    def predict(
        self,
        texts: str | Iterable[GivenText],
        *,
        exit: str | Exit | None = None,
        return_depth: bool = False,
        abstain: bool | float | None = None,
    ) -> Any:
        """The most probable class of each text; a single label for a single str, or for one pair of texts, a
        tuple of two str.

        return_depth: with the depth of its exit. abstain: True, or the largest error to accept: answer only where the promise
        of calibrate(max_error=...) holds; texts that are not answered get None (in an object array). InputError if there is no
        promise, or one of a larger error.
        """
        if rule := self.abstention(abstain, exit):
            exit = rule
        probabilities, depths = self._outputs(texts, False, exit)
        labels = self.task_.answers(probabilities)
        if rule:
            labels = answered_only(labels, is_answered(probabilities, rule, self.task_))
        if self._is_one_row(texts):
            labels, depths = labels[0], depths[0]
        return (labels, depths) if return_depth else labels

    def abstention(self, abstain: bool | float | None, exit: str | Exit | None = None) -> Exit | None:
        """The exit of the promised error, below whose confidence rows are not answered; None where `abstain` is not asked for.

        abstain: as of `predict`. InputError if there is no promise, if it is of a larger error, or beside another `exit`.
        """
        if abstain is None or abstain is False:
            return None
        check_is_fitted(self, "heads_")
        if abstain is not True and not (is_number(abstain) and 0 < abstain < 1):
            raise InputError(f"abstain is {abstain!r}; expected True, or the largest error to accept, a share between 0 and 1")
        promise = self.promise_
        if not isinstance(promise, ErrorPromise):
            raise InputError(
                "abstain: no error is promised; calibrate with max_error first (--max-error), in the dtype that the base model "
                "runs in"
            )
        if abstain is not True and promise.max_error > abstain:
            raise InputError(
                f"abstain is {abstain}, and the promised error is {promise.max_error:g}; calibrate with max_error={abstain}"
            )
        if exit is not None and Exit.of(exit) != promise.exit:
            raise InputError(
                f"exit {exit} beside abstain: the promised error holds for exit {promise.exit} only; leave one of them out"
            )
        return promise.exit

    def calibrate(
        self,
        texts: Iterable[GivenText],
        labels: Iterable[Any],
        *,
        max_accuracy_drop: float | None = None,
        max_error: float | None = None,
        confidence: float = 0.95,
        by: ExitBy = "confidence",
    ) -> "SpinClassifier":
        """Let rows exit as early as the promise allows: sets exit_ and promise_, which are saved.

        texts, labels: rows that neither fit nor its validation saw; a text that occurs several times counts once. The promise
        holds with `confidence` on rows like these, as long as the base model runs in the same dtype. It is one of two:

        max_accuracy_drop (.01, if neither is given): accuracy drops by at most so much against the deepest head. by: rows exit
            by the "confidence" of a head, or by "patience". Needs a classifier that was fitted with `exits`.
        max_error: of the rows that `predict(abstain=True)` answers, at most so many are wrong (see `risk.bounded_error`). Rows
            exit at the first head that is confident enough to answer; a row for which no head is, is not answered.

        Raises InputError for unusable rows and settings, and if no threshold keeps max_error; the classifier is then as before.
        LeakWarning for texts that fit saw, where they are known: in the session of the fit.
        """
        check_is_fitted(self, "heads_")
        if max_error is not None:
            return self._calibrate_error(texts, labels, max_accuracy_drop, max_error, confidence, by)
        max_accuracy_drop = 0.01 if max_accuracy_drop is None else max_accuracy_drop
        if len(self.heads_) < 2:
            raise InputError("calibrate: there is one head only; fit with exits='all' (--exits all), or with a list of depths")
        check_calibration(by, max_accuracy_drop, confidence)
        rows = evaluation_rows(self.task_, texts, labels, "rows to calibrate on")
        with rows.named_in_errors():
            outputs = self._deployed.all_outputs(rows.texts)
        text_of = numbered_texts(rows.texts)
        dtype, task = self._deployed.dtype, self.task_
        promise = calibrate(outputs, rows.labels, by, max_accuracy_drop, confidence, text_of, dtype, task)
        needed, n_texts = rows_needed(max_accuracy_drop, confidence), int(text_of.max()) + 1
        if n_texts < needed:
            repeated = "" if n_texts == len(rows.texts) else f" ({n_texts} different texts)"
            warnings.warn(
                f"{len(rows.texts)} rows are too few to promise a drop of at most {max_accuracy_drop:g} with confidence "
                f"{confidence:g}{repeated}: every row runs to depth {self.depth_}; calibrate on {needed} rows or more",
                stacklevel=2,
            )
        else:
            warn_of_seen(rows, self._seen)
        self.exit_, self.promise_ = promise.exit, promise
        return self

    def _calibrate_error(
        self,
        texts: Iterable[GivenText],
        labels: Iterable[Any],
        max_accuracy_drop: float | None,
        max_error: float,
        confidence: float,
        by: ExitBy,
    ) -> "SpinClassifier":
        if max_accuracy_drop is not None or by != "confidence":
            other = f"max_accuracy_drop={max_accuracy_drop}" if max_accuracy_drop is not None else f"by={by!r}"
            raise InputError(f"calibrate: max_error={max_error} beside {other}; a bounded error needs max_error alone")
        check_error_calibration(max_error, confidence)
        rows = evaluation_rows(self.task_, texts, labels, "rows to calibrate on")
        with rows.named_in_errors():
            outputs = self._deployed.all_outputs(rows.texts)
        text_of, dtype = numbered_texts(rows.texts), self._deployed.dtype
        promise = bounded_error(outputs, rows.labels, max_error, confidence, text_of, dtype, reads=self.task_)
        warn_of_seen(rows, self._seen)
        self.exit_, self.promise_ = promise.exit, promise
        return self


class SpinMultilabelClassifier(SpinClassifier):
    __doc__ = f"""Give each text any number of labels, also none. {SpinEstimator.__doc__}
    labels (of fit, score and calibrate): a list, tuple or set of labels per text, all str or all int; or an array or DataFrame
    [text, label] of 0 and 1, whose columns are the labels (of an array 0, 1, ...). Every label has a logistic score of its own,
    and all are fitted at once, with one C. metric: "micro_f1", "macro_f1" or "subset_accuracy", the share of the texts whose
    whole set is right, which is what calibrate calls accuracy. A text exits by confidence when every label has a probability of
    at least that much, or at most 1 minus that; and by patience when the whole set stays the same.
    classes_: the labels, sorted, in the order of probabilities. thresholds_: a text has the labels above theirs."""

    task = "multilabel"

    @property
    def classes_(self) -> Array:
        """The labels, in the order of probabilities."""
        check_is_fitted(self, "heads_")
        return cast(LabelSets, self.task_).labels

    @property
    def thresholds_(self) -> Float[Array, "label"]:
        """The probability above which a text has a label, in the order of classes_.

        A fit with head="best" or "dense" takes the best ones for the held-out probabilities at depth_ (see best_thresholds), or
        keeps 1/2 if those do not raise the metric there. So does every row of depth_curve_, layer_curve_ and baselines_, for
        its own model: validation scores are those of the rows that chose the thresholds. The published heads keep 1/2.
        """
        check_is_fitted(self, "heads_")
        return cast(LabelSets, self.task_).thresholds.copy()

    def set_thresholds(self, thresholds: Sequence[float] | Float[Array, "label"]) -> "SpinMultilabelClassifier":
        """Give each label another threshold, 0 to 1, in the order of classes_ (see best_thresholds); it is saved.

        The answers change, so an earlier calibration no longer holds: exit_ is at depth_ again, and promise_ is None.
        """
        check_is_fitted(self, "heads_")
        task = cast(LabelSets, self.task_).with_thresholds(thresholds)
        self.heads_ = {depth: replace(head, task=task) for depth, head in self.heads_.items()}
        return self

    def predict_proba(
        self, texts: str | Iterable[GivenText], progress: bool | None = False, *, exit: str | Exit | None = None
    ) -> Float[Array, "*row label"]:
        """Probability of each label, in the order of classes_; one row per text, or a single row for a single str.

        The labels are independent: a row does not sum to 1. exit: when a row exits (see output_blocks).
        """
        return super().predict_proba(texts, progress, exit=exit)

    def predict(
        self,
        texts: str | Iterable[GivenText],
        *,
        exit: str | Exit | None = None,
        return_depth: bool = False,
        abstain: bool | float | None = None,
    ) -> Any:
        """A tuple of labels for each text, in an array of objects; a single tuple for a single text or pair.

        As 0/1 [text, label]: predict_proba(texts) > thresholds_. return_depth: with the depth of each text's exit. abstain: as
        of SpinClassifier.predict; an answer is wrong unless the whole set is right, and texts without an answer get None.
        """
        return super().predict(texts, exit=exit, return_depth=return_depth, abstain=abstain)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label, tags.classifier_tags.multi_class = True, False
        return tags


class SpinRegressor(RegressorMixin, SpinEstimator):
    __doc__ = f"Estimate a value for each text. {SpinEstimator.__doc__}"

    task = "regression"
    score = SpinEstimator.score  # not that of the mixin

    def predict(self, texts: str | Iterable[GivenText], *, exit: str | Exit | None = None) -> Any:
        """The value of each text; a single float for a single str."""
        values = self.task_.answers(self._outputs(texts, False, exit)[0])
        return float(values[0]) if self._is_one_row(texts) else values


KINDS: tuple[type[SpinEstimator], ...] = (SpinClassifier, SpinMultilabelClassifier, SpinRegressor)
ESTIMATORS: dict[str, type[SpinEstimator]] = {kind.task: kind for kind in KINDS}


def load_pretrained(name: str | Path, *, revision: str | None = None, **where: Any) -> SpinClassifier | SpinRegressor:
    """A saved classifier, multilabel classifier or regressor; arguments as of from_pretrained."""
    read = read_saved(Location(name_of(name, "classifier"), revision, "classifier"))
    return ESTIMATORS.get(read.task or "", SpinClassifier)._restored(read, **where)
