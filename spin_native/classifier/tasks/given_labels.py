"""Several labels per row as callers give them: lists of labels, or a 0/1 array or table [row, label]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from spin_native.errors import InputError
from spin_native.given import is_missing, is_unicode, plain, rows_of

Array = np.ndarray
Label = str | int


@dataclass(frozen=True)
class GivenLabelSets:
    """labels: all that occur (of an array: all columns), sorted. rows: the labels of each row."""

    labels: list[Label]
    rows: list[list[Label]]

    def encoded(self, known: Sequence[Label], what: str) -> Bool[Array, "row label"]:
        """Whether each row has each of the known labels; InputError, naming the row, for a label that is not known."""
        place = {label: index for index, label in enumerate(known)}
        encoded = np.zeros((len(self.rows), len(known)), dtype=bool)
        for row, labels in enumerate(self.rows):
            for label in labels:
                if label not in place:
                    raise InputError(f"{what}: row {row} has the label {label!r}; known are {', '.join(map(repr, known))}")
                encoded[row, place[label]] = True
        return encoded


def given_label_sets(labels: Any, n_texts: int, what: str) -> GivenLabelSets:
    """Labels in either form, checked; InputError, naming the row, for anything else."""
    shape = getattr(labels, "shape", None)
    given = _of_matrix(labels, what) if isinstance(shape, tuple) and len(shape) == 2 else _of_rows(labels, what)
    if len(given.rows) != n_texts:
        raise InputError(f"{what}: {n_texts} texts but {len(given.rows)} rows of labels; expected one per text")
    return given


def _of_matrix(given: Any, what: str) -> GivenLabelSets:
    """A 0/1 array or table [row, label]; the columns of a table name the labels, those of an array are 0, 1, ..."""
    if hasattr(given, "column_names") and hasattr(given, "to_pandas"):  # an Arrow table
        given = given.to_pandas()
    columns = getattr(given, "columns", None)
    names = list(range(given.shape[1])) if columns is None else [plain(name) for name in columns]
    for place, name in enumerate(names):
        _check_label(name, f"{what}: column {place}")
    if len({type(name) for name in names}) > 1 or len(set(names)) < len(names):
        raise InputError(f"{what}: the columns are {names}; expected different names, all text or all whole numbers")
    dense = given.toarray() if hasattr(given, "toarray") else given.to_numpy() if columns is not None else given
    values = np.asarray(dense)
    with np.errstate(invalid="ignore"):
        is_indicator = np.isin(values, (0, 1)) if values.dtype.kind in "biuf" else _are_indicators(values)
    if not is_indicator.all():
        row, place = np.argwhere(~is_indicator)[0].tolist()
        raise InputError(
            f"{what}: row {row} has {plain(values[row, place])!r} in the column of label {names[place]!r}; expected 0 or 1 "
            "(or pass one list of labels per row)"
        )
    order = sorted(range(len(names)), key=lambda place: names[place])
    rows = [[names[place] for place in order if row[place]] for row in values.astype(bool).tolist()]
    return GivenLabelSets([names[place] for place in order], rows)


def _are_indicators(values: Array) -> Bool[Array, "row label"]:
    """Whether each object is a 0, 1, False or True."""
    checked = [[isinstance(plain(v), (int, float)) and plain(v) in (0, 1) for v in row] for row in values]
    return np.array(checked, dtype=bool).reshape(values.shape)


def _of_rows(given: Any, what: str) -> GivenLabelSets:
    """One collection of labels per row."""
    rows, first = [], None
    for row, labels in enumerate(rows_of(given, f"labels of the {what}", "list of labels")):
        rows.append(checked := _checked_row(plain(labels), row, what))
        for label in checked:
            first = label if first is None else first
            if type(label) is not type(first):
                raise InputError(
                    f"{what}: labels are of two types, the first is {first!r} and row {row} has {label!r}; expected one type"
                )
    return GivenLabelSets(sorted({label for labels in rows for label in labels}), rows)


def _checked_row(labels: Any, row: int, what: str) -> list[Label]:
    """The labels of one row as Python values."""
    if not isinstance(labels, (list, tuple, set, frozenset, np.ndarray)):
        kind = "is missing" if is_missing(labels) else f"are one {type(labels).__name__}, {labels!r:.60}"
        raise InputError(f"{what}: the labels of row {row} {kind}; expected a list of labels, [] for none")
    checked: list[Label] = []
    for label in labels:
        value = plain(label)
        if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
            value = int(value)
        _check_label(value, f"{what}: row {row}")
        checked.append(int(value) if isinstance(value, int) else value)
    if len(set(checked)) < len(checked):
        twice = next(label for label in checked if checked.count(label) > 1)
        raise InputError(
            f"{what}: row {row} has the label {twice!r} twice; name it once (pass 0/1 columns as an array: np.array(labels))"
        )
    return checked


def _check_label(label: Any, where: str) -> None:
    """InputError unless it is a text or a whole number."""
    if not isinstance(label, (str, int)) or isinstance(label, bool):
        raise InputError(f"{where} has the label {label!r} ({type(label).__name__}); expected text or a whole number")
    if isinstance(label, str) and not is_unicode(label):
        raise InputError(f"{where} has a label that holds half a character (a lone surrogate): read the file as UTF-8")
