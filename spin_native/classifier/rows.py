"""The training, validation and test rows of a fit: checked, and split where no validation rows are given."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt64

from spin_native.classifier.splits import split
from spin_native.classifier.tasks import Task
from spin_native.errors import InputError, LeakWarning, TextError
from spin_native.given import is_number, plain, rows_of
from spin_native.text.pairs import GivenText, OneKind, Text, checked_rows, text_digest

MAX_WEIGHT = 1e12  # sums of losses stay far from the largest float32
TextsAndLabels = tuple[Iterable[GivenText], Iterable[Any]]


@dataclass(frozen=True)
class LabelledRows:
    """Texts, or pairs of them, and their encoded labels.

    what: their name in errors. numbers: the number of each row among those that the caller gave (None: they are all of them).
    weights: how many times each row counts in a fit; None means once.
    """

    texts: list[Text]
    labels: Shaped[np.ndarray, "row *label"]
    what: str = "rows"
    numbers: Int[np.ndarray, "row"] | None = None
    weights: Float[np.ndarray, "row"] | None = None

    def take(self, rows: Int[np.ndarray, "chosen"]) -> "LabelledRows":
        """Some of the rows."""
        numbers = rows if self.numbers is None else self.numbers[rows]
        weights = None if self.weights is None else self.weights[rows]
        return LabelledRows([self.texts[row] for row in rows], self.labels[rows], self.what, numbers, weights)

    @property
    def are_pairs(self) -> bool:
        """Whether each row is a pair of texts."""
        return isinstance(self.texts[0], tuple)

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Errors about one of these texts name the row that the caller gave."""
        try:
            yield
        except TextError as error:
            row = error.row if self.numbers is None else int(self.numbers[error.row])
            raise error.of(self.what, row) from None


def labelled_parts(
    task_type: type[Task],
    training: TextsAndLabels,
    validation: TextsAndLabels | None,
    test: TextsAndLabels | None,
    validation_share: float | None,
    seed: int,
    sample_weight: Iterable[Any] | None = None,
) -> tuple[Task, dict[str, LabelledRows]]:
    """The task that the training labels describe, and the rows by part: "training", "validation", and "test" if given.

    Without validation rows, `validation_share` of the training rows is split off, equal texts on one side (None: nothing is).
    sample_weight: a weight for each training row, which goes where the row goes; given validation rows count once.

    Raises InputError for texts and labels that cannot be used, naming the row. LeakWarning if a text is in two parts.
    """
    texts, labels = checked_rows(training[0], "training rows"), _kept(training[1])
    task = task_type.learn(labels, len(texts), "training rows")
    weights = None if sample_weight is None else checked_weights(sample_weight, len(texts))
    rows = LabelledRows(texts, task.encode(labels, len(texts), "training rows"), "training rows", weights=weights)
    kind = OneKind(rows.are_pairs, "the training rows")
    leaks: list[str] = []
    if validation_share is None:
        parts = {"training": rows}
        task.check_training(rows.labels)
        if validation is None:  # to be cross-validated
            task.check_can_be_held_out(rows.labels)
    if validation is not None:
        parts = {"training": rows, "validation": _encoded(task, validation, "validation rows", kind)}
    elif validation_share is not None:
        *chosen, leaks = split(task, texts, rows.labels, validation_share, seed)
        parts = {name: rows.take(some) for name, some in zip(("training", "validation"), chosen, strict=True)}
    if test is not None:
        parts["test"] = _encoded(task, test, "test rows", kind)
    for leak in [*leaks, *_leaks(parts, validation is not None)]:
        warnings.warn(leak, LeakWarning, stacklevel=3)
    return task, parts


def evaluation_rows(task: Task, texts: Iterable[GivenText], labels: Iterable[Any], what: str) -> LabelledRows:
    """Labelled rows of a fitted task; `what` names them in errors. InputError where there are none."""
    listed = list(rows_of(texts, what))
    if not listed:
        raise InputError(f"{what}: no rows; expected labelled rows that fit did not see")
    return LabelledRows(checked_rows(listed, what), task.encode(labels, len(listed), what), what)


def digests(texts: Iterable[Text]) -> UInt64[np.ndarray, "_"]:
    """One number of 64 bits per different text or pair, in ascending order: enough to recognise a text, not to read it."""
    return np.array(sorted({_digest(text) for text in texts}), dtype=np.uint64)


def _digest(text: Text) -> int:
    return int.from_bytes(text_digest(text, 8), "little")


def warn_of_seen(rows: LabelledRows, seen: UInt64[np.ndarray, "_"] | None) -> None:
    """LeakWarning if some of the rows' texts are among those that fit saw. seen: their digests (None: not known)."""
    if seen is None:
        return
    known = set(seen.tolist())
    shared = [row for row, text in enumerate(rows.texts) if _digest(text) in known]
    if shared:
        warnings.warn(
            f"{len(shared)} of {len(rows.texts)} {rows.what} are among the rows that fit saw (the first is row {shared[0]}): "
            "accuracy there is too good, and so is the promise; calibrate on other rows",
            LeakWarning,
            stacklevel=3,
        )


def checked_pair(given: Any, what: str) -> TextsAndLabels:
    """(texts, labels); InputError for anything else."""
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise InputError(f"{what}: got a {type(given).__name__}; expected (texts, labels)")
    return given[0], given[1]


def checked_weights(sample_weight: Iterable[Any], n_rows: int) -> Float[np.ndarray, "row"]:
    """One weight per training row; InputError, naming the row, for what is no positive number."""
    weights = [plain(weight) for weight in rows_of(sample_weight, "sample_weight", "weight")]
    if len(weights) != n_rows:
        raise InputError(f"sample_weight: {n_rows} texts but {len(weights)} weights; expected one weight per text")
    for row, weight in enumerate(weights):
        if not is_number(weight) or not 0 < weight <= MAX_WEIGHT:
            raise InputError(
                f"sample_weight: the weight of row {row} is {weight!r}; expected a positive number, at most {MAX_WEIGHT:g}: "
                "drop rows that should not count"
            )
    return np.array(weights, dtype=np.float64)


def _kept(labels: Iterable[Any]) -> Iterable[Any]:
    """Labels that can be read twice: a stream is listed."""
    return list(labels) if isinstance(labels, Iterator) else labels


def _encoded(task: Task, given: TextsAndLabels, what: str, kind: OneKind) -> LabelledRows:
    texts, labels = checked_pair(given, what)
    listed = checked_rows(texts, what, kind)
    return LabelledRows(listed, task.encode(labels, len(listed), what), what)


def _leaks(parts: Mapping[str, LabelledRows], has_own_validation: bool) -> Iterator[str]:
    """One sentence for the test rows, and for given validation rows, that are training rows, too."""
    for held_out, *others in (("test", "training", "validation"), ("validation", "training")):
        if held_out not in parts or (held_out == "validation" and not has_own_validation):
            continue
        others = [other for other in others if other in parts]
        others = [other for other in others if other in parts]
        seen = {text for other in others for text in parts[other].texts}
        shared = [row for row, text in enumerate(parts[held_out].texts) if text in seen]
        if shared:
            yield (
                f"{len(shared)} of {len(parts[held_out].texts)} {held_out} rows are among the {' or '.join(others)} rows, too "
                f"(the first is row {shared[0]}): scores there are too good; remove them from one side"
            )
