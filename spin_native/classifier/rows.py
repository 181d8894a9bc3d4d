"""The training, validation and test rows of a fit: checked, and split where no validation rows are given."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from spin_native.classifier.tasks import Task
from spin_native.errors import InputError, LeakWarning
from spin_native.text.tokenizer import checked_texts

TextsAndLabels = tuple[Iterable[str], Iterable[Any]]


@dataclass(frozen=True)
class LabelledRows:
    """Texts and their encoded labels."""

    texts: list[str]
    labels: Shaped[np.ndarray, "row"]

    def take(self, rows: Int[np.ndarray, "chosen"]) -> "LabelledRows":
        """Some of the rows."""
        return LabelledRows([self.texts[row] for row in rows], self.labels[rows])


def labelled_parts(
    task_type: type[Task],
    training: TextsAndLabels,
    validation: TextsAndLabels | None,
    test: TextsAndLabels | None,
    validation_share: float,
    seed: int,
) -> tuple[Task, dict[str, LabelledRows]]:
    """The task that the training labels describe, and the rows by part: "training", "validation", and "test" if given.

    Without validation rows, `validation_share` of the training rows is split off. Raises InputError for texts and labels that
    cannot be used, naming the row. LeakWarning if a text is in two parts.
    """
    texts, labels = checked_texts(training[0], "training rows"), list(training[1])
    task = task_type.learn(labels, len(texts), "training rows")
    rows = LabelledRows(texts, task.encode(labels, len(texts), "training rows"))
    if validation is not None:
        parts = {"training": rows, "validation": _encoded(task, validation, "validation rows")}
    else:
        split = task.split(rows.labels, validation_share, seed)
        parts = {name: rows.take(chosen) for name, chosen in zip(("training", "validation"), split, strict=True)}
    if test is not None:
        parts["test"] = _encoded(task, test, "test rows")
    _warn_of_leaks(parts, validation is not None)
    return task, parts


def evaluation_rows(task: Task, texts: Iterable[str], labels: Iterable[Any], what: str) -> LabelledRows:
    """Labelled rows of a fitted task; `what` names them in errors. InputError where there are none."""
    listed = list(texts)
    if not listed:
        raise InputError(f"{what}: no rows; expected labelled rows that fit did not see")
    return LabelledRows(listed, task.encode(labels, len(listed), what))


def _encoded(task: Task, given: TextsAndLabels, what: str) -> LabelledRows:
    texts = checked_texts(given[0], what)
    return LabelledRows(texts, task.encode(given[1], len(texts), what))


def _warn_of_leaks(parts: Mapping[str, LabelledRows], has_own_validation: bool) -> None:
    """Warn of texts of the test rows, or of given validation rows, that are training rows, too."""
    for held_out, *others in (("test", "training", "validation"), ("validation", "training")):
        if held_out not in parts or (held_out == "validation" and not has_own_validation):
            continue
        seen = {text for other in others for text in parts[other].texts}
        shared = [row for row, text in enumerate(parts[held_out].texts) if text in seen]
        if shared:
            warnings.warn(
                f"{len(shared)} of {len(parts[held_out].texts)} {held_out} rows are among the {' or '.join(others)} rows, too "
                f"(the first is row {shared[0]}): scores there are too good; remove them from one side",
                LeakWarning,
                stacklevel=4,
            )
