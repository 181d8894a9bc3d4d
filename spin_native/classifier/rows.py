"""The training, validation and test rows of a fit: checked, and split where no validation rows are given."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped
from sklearn.model_selection import train_test_split

from spin_native.classifier.labels import (
    Label,
    check_all_there,
    check_can_split,
    checked_labels,
    checked_values,
    classes_of,
    encoded,
)
from spin_native.errors import InputError, LeakWarning
from spin_native.text.tokenizer import checked_texts

TextsAndLabels = tuple[Iterable[str], Iterable[Any]]


@dataclass(frozen=True)
class LabelledRows:
    """Texts, and the place of each one's label among the classes, or its value."""

    texts: list[str]
    labels: Shaped[np.ndarray, "row"]

    def take(self, chosen: Int[np.ndarray, "chosen"]) -> "LabelledRows":
        return LabelledRows([self.texts[row] for row in chosen], self.labels[chosen])


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
        parts = {name: rows.take(chosen) for name, chosen in zip(("training", "validation"), split, strict=True)}
        check_all_there(parts["training"].labels, len(classes), "training rows after the split")
    if test is not None:
        parts["test"] = _encoded(test, classes, "test rows")
    _warn_of_leaks(parts, validation is not None)
    return parts, classes


def valued_rows(
    training: TextsAndLabels,
    validation: TextsAndLabels | None,
    test: TextsAndLabels | None,
    validation_share: float,
    seed: int,
) -> dict[str, LabelledRows]:
    """`labelled_rows` for a regression: the labels are values. InputError for values that are all the same."""
    rows = _valued(training, "training rows")
    if len(rows.texts) < 4 or np.ptp(rows.labels) == 0:
        raise InputError(
            f"training rows: {len(rows.texts)} rows with {len(set(rows.labels.tolist()))} values; expected 4 or more "
            "rows whose values differ"
        )
    if validation is not None:
        parts = {"training": rows, "validation": _valued(validation, "validation rows")}
    else:
        if not 0 < validation_share < 1:
            raise InputError(f"validation_share is {validation_share}; expected a share between 0 and 1")
        n_validation = int(np.ceil(validation_share * len(rows.texts)))
        if n_validation > len(rows.texts) - 2:
            raise InputError(
                f"{len(rows.texts)} rows are too few to split off {validation_share:.0%} for validation and keep two; add "
                "rows, or give validation rows of your own"
            )
        split = train_test_split(np.arange(len(rows.texts)), test_size=validation_share, random_state=seed)
        parts = {name: rows.take(chosen) for name, chosen in zip(("training", "validation"), split, strict=True)}
        if np.ptp(parts["training"].labels) == 0:
            raise InputError("training rows: after the split all values are the same; add rows, or take another seed")
    if test is not None:
        parts["test"] = _valued(test, "test rows")
    _warn_of_leaks(parts, validation is not None)
    return parts


def _warn_of_leaks(parts: dict[str, LabelledRows], has_own_validation: bool) -> None:
    """Texts of the test (or given validation) rows that stand among the training rows as well."""
    for held_out, *others in (("test", "training", "validation"), ("validation", "training")):
        if held_out not in parts or (held_out == "validation" and not has_own_validation):
            continue
        seen = {text for other in others for text in parts[other].texts}
        shared = [row for row, text in enumerate(parts[held_out].texts) if text in seen]
        if shared:
            warnings.warn(
                f"{len(shared)} of {len(parts[held_out].texts)} {held_out} rows stand among the {' or '.join(others)} rows, "
                f"too (the first is row {shared[0]}): scores there are too good; remove them from one side",
                LeakWarning,
                stacklevel=4,
            )


def _valued(given: TextsAndLabels, what: str) -> LabelledRows:
    texts = checked_texts(given[0], what)
    return LabelledRows(texts, checked_values(given[1], len(texts), what))


def _checked(given: TextsAndLabels, what: str) -> tuple[list[str], list[Label]]:
    texts = checked_texts(given[0], what)
    return texts, checked_labels(given[1], len(texts), what)


def _encoded(given: TextsAndLabels, classes: Sequence[Label], what: str) -> LabelledRows:
    texts, labels = _checked(given, what)
    return LabelledRows(texts, encoded(labels, classes, what))
