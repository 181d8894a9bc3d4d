"""The training, validation and test rows of a fit: checked, and split where no validation rows are given."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from sklearn.model_selection import train_test_split

from spin_native.labels import Label, check_can_split, checked_labels, classes_of, encoded
from spin_native.text import checked_texts

TextsAndLabels = tuple[Iterable[str], Iterable[Any]]


@dataclass(frozen=True)
class LabelledRows:
    """Texts, and the place of each one's label among the classes."""

    texts: list[str]
    labels: Int[np.ndarray, "row"]


def labelled_rows(
    training: TextsAndLabels,
    validation: TextsAndLabels | None,
    test: TextsAndLabels | None,
    validation_share: float,
    seed: int,
) -> tuple[dict[str, LabelledRows], list[Label]]:
    """The parts by name ("training", "validation", and "test" if given), and the classes found in the training rows.

    Without validation rows, `validation_share` of the training rows is split off, by class. Raises InputError for whatever is
    no text or no label, one class, a class that cannot be split, and labels that the training rows do not have.
    """
    texts, labels = _checked(training, "training rows")
    classes = classes_of(labels, "training rows")
    rows = LabelledRows(texts, encoded(labels, classes, "training rows"))
    if validation is not None:
        parts = {"training": rows, "validation": _encoded(validation, classes, "validation rows")}
    else:
        check_can_split(labels, validation_share)
        split = train_test_split(np.arange(len(texts)), test_size=validation_share, stratify=labels, random_state=seed)
        parts = {name: _take(rows, chosen) for name, chosen in zip(("training", "validation"), split, strict=True)}
    if test is not None:
        parts["test"] = _encoded(test, classes, "test rows")
    return parts, classes


def _checked(given: TextsAndLabels, what: str) -> tuple[list[str], list[Label]]:
    texts = checked_texts(given[0], what)
    return texts, checked_labels(given[1], len(texts), what)


def _encoded(given: TextsAndLabels, classes: Sequence[Label], what: str) -> LabelledRows:
    texts, labels = _checked(given, what)
    return LabelledRows(texts, encoded(labels, classes, what))


def _take(rows: LabelledRows, chosen: Int[np.ndarray, "chosen"]) -> LabelledRows:
    return LabelledRows([rows.texts[row] for row in chosen], rows.labels[chosen])
