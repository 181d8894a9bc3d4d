"""The training, validation and test rows of a fit: checked, and split where no validation rows are given."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt64

from spin_native.classifier.splits import split
from spin_native.classifier.tasks import Task
from spin_native.errors import InputError, LeakWarning, TextError
from spin_native.given import checked_texts, rows_of

TextsAndLabels = tuple[Iterable[str], Iterable[Any]]


@dataclass(frozen=True)
class LabelledRows:
    """Texts and their encoded labels.

    what: their name in errors. numbers: the number of each row among those that the caller gave (None: they are all of them).
    """

    texts: list[str]
    labels: Shaped[np.ndarray, "row *label"]
    what: str = "rows"
    numbers: Int[np.ndarray, "row"] | None = None

    def take(self, rows: Int[np.ndarray, "chosen"]) -> "LabelledRows":
        """Some of the rows."""
        numbers = rows if self.numbers is None else self.numbers[rows]
        return LabelledRows([self.texts[row] for row in rows], self.labels[rows], self.what, numbers)

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
    validation_share: float,
    seed: int,
) -> tuple[Task, dict[str, LabelledRows]]:
    """The task that the training labels describe, and the rows by part: "training", "validation", and "test" if given.

    Without validation rows, `validation_share` of the training rows is split off, equal texts on one side. Raises InputError
    for texts and labels that cannot be used, naming the row. LeakWarning if a text is in two parts.
    """
    texts, labels = checked_texts(training[0], "training rows"), _kept(training[1])
    task = task_type.learn(labels, len(texts), "training rows")
    rows = LabelledRows(texts, task.encode(labels, len(texts), "training rows"), "training rows")
    leaks: list[str] = []
    if validation is not None:
        parts = {"training": rows, "validation": _encoded(task, validation, "validation rows")}
    else:
        *chosen, leaks = split(task, texts, rows.labels, validation_share, seed)
        parts = {name: rows.take(some) for name, some in zip(("training", "validation"), chosen, strict=True)}
    if test is not None:
        parts["test"] = _encoded(task, test, "test rows")
    for leak in [*leaks, *_leaks(parts, validation is not None)]:
        warnings.warn(leak, LeakWarning, stacklevel=3)
    return task, parts


def evaluation_rows(task: Task, texts: Iterable[str], labels: Iterable[Any], what: str) -> LabelledRows:
    """Labelled rows of a fitted task; `what` names them in errors. InputError where there are none."""
    listed = list(rows_of(texts, what))
    if not listed:
        raise InputError(f"{what}: no rows; expected labelled rows that fit did not see")
    return LabelledRows(checked_texts(listed, what), task.encode(labels, len(listed), what), what)


def digests(texts: Iterable[str]) -> UInt64[np.ndarray, "_"]:
    """One number of 64 bits per different text, in ascending order: enough to recognise a text, not to read it."""
    return np.array(sorted({_digest(text) for text in texts}), dtype=np.uint64)


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


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


def _kept(labels: Iterable[Any]) -> Iterable[Any]:
    """Labels that can be read twice: a stream is listed."""
    return list(labels) if isinstance(labels, Iterator) else labels


def _encoded(task: Task, given: TextsAndLabels, what: str) -> LabelledRows:
    texts, labels = checked_pair(given, what)
    listed = checked_texts(texts, what)
    return LabelledRows(listed, task.encode(labels, len(listed), what), what)


def _leaks(parts: Mapping[str, LabelledRows], has_own_validation: bool) -> Iterator[str]:
    """One sentence for the test rows, and for given validation rows, that are training rows, too."""
    for held_out, *others in (("test", "training", "validation"), ("validation", "training")):
        if held_out not in parts or (held_out == "validation" and not has_own_validation):
            continue
        seen = {text for other in others for text in parts[other].texts}
        shared = [row for row, text in enumerate(parts[held_out].texts) if text in seen]
        if shared:
            yield (
                f"{len(shared)} of {len(parts[held_out].texts)} {held_out} rows are among the {' or '.join(others)} rows, too "
                f"(the first is row {shared[0]}): scores there are too good; remove them from one side"
            )
