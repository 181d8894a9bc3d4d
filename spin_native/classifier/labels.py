"""Checking the labels of texts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int

from spin_native.errors import InputError

Label = str | int | bool


def checked_labels(labels: Iterable[Any], n_texts: int, what: str) -> list[Label]:
    """One str, int or bool per text, as plain Python values (numpy scalars and pandas Series are taken).

    Raises InputError for a missing label or one of another type (naming the row), mixed types, and a wrong number.
    """
    values = [label.item() if isinstance(label, np.generic) else label for label in labels]
    if len(values) != n_texts:
        raise InputError(f"{what}: {n_texts} texts but {len(values)} labels; expected one label per text")
    for row, label in enumerate(values):
        if label is None or label != label:  # NaN differs from itself
            raise InputError(f"{what}: the label of row {row} is missing (got {label!r}); drop the row, or label it")
        if not isinstance(label, (str, int)):
            raise InputError(
                f"{what}: the label of row {row} is {label!r} ({type(label).__name__}); expected text or a whole number"
            )
        if type(label) is not type(values[0]):
            raise InputError(
                f"{what}: labels are of two types, row 0 has {values[0]!r} and row {row} has {label!r}; expected one type"
            )
    return values


def checked_values(values: Iterable[Any], n_texts: int, what: str) -> Float64[np.ndarray, "row"]:
    """One finite number per text; InputError, naming the row, for anything else, and for a wrong number."""
    found = list(values)
    if len(found) != n_texts:
        raise InputError(f"{what}: {n_texts} texts but {len(found)} values; expected one value per text")
    numbers = np.empty(n_texts)
    for row, value in enumerate(found):
        try:
            numbers[row] = np.nan if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            numbers[row] = np.nan
        if not np.isfinite(numbers[row]):
            raise InputError(f"{what}: the value of row {row} is {value!r}; expected a finite number")
    return numbers


def classes_of(labels: Sequence[Label], what: str) -> list[Label]:
    """The different labels in sorted order; InputError unless there are at least two."""
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise InputError(
            f"{what}: "
            + (f"every row has the label {classes[0]!r}" if classes else "no rows")
            + "; expected at least two classes"
        )
    return classes


def encoded(labels: Sequence[Label], classes: Sequence[Label], what: str) -> Int[np.ndarray, "row"]:
    """Each label's place in `classes`; InputError, naming the row, for a label that is not there."""
    place = {label: index for index, label in enumerate(classes)}
    for row, label in enumerate(labels):
        if label not in place:
            raise InputError(f"{what}: row {row} has the label {label!r}; known are {', '.join(map(repr, classes))}")
    return np.array([place[label] for label in labels], dtype=np.int64)


def check_can_split(labels: Sequence[Label], validation_share: float) -> None:
    """InputError unless every class can stand in both parts of a split."""
    if not 0 < validation_share < 1:
        raise InputError(f"validation_share is {validation_share}; expected a share between 0 and 1")
    counts = Counter(labels)
    rarest = min(counts, key=lambda label: counts[label])
    n_validation = int(np.ceil(validation_share * len(labels)))
    if counts[rarest] < 2:
        raise InputError(
            f"class {rarest!r} has a single row: it cannot stand in both training and validation; add rows, drop the class, or "
            "give validation rows of your own"
        )
    if min(n_validation, len(labels) - n_validation) < len(counts):
        raise InputError(
            f"{len(labels)} rows are too few to split off {validation_share:.0%} for validation with each of the {len(counts)} "
            "classes in both parts; add rows, or give validation rows of your own"
        )


def check_all_there(labels: Int[np.ndarray, "row"], n_classes: int, what: str) -> None:
    """InputError unless every class has a row: of a rare class a split by class may leave none."""
    missing = np.setdiff1d(np.arange(n_classes), labels)
    if len(missing):
        raise InputError(
            f"{what}: of {len(labels)} rows none is of class number {missing[0]} (in sorted order, from 0), which is rare; "
            "take more rows, or add some of this class"
        )
