"""Labelled rows: texts and labels (one or several of each row), each checked as the type it has in the file."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from spin_native.errors import InputError
from spin_native.given import is_unicode
from spin_native.tables.source import Block, Source
from spin_native.tables.texts import EXACT

WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,3999})(\.0)?").fullmatch  # as Python and pandas write it: 007 is no such number
SEPARATOR = "|"  # between several labels of one cell
INDICATORS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}  # in lower case
NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.ASCII).fullmatch


def labelled_rows(
    source: Source, text: str, label: str, labels_as: type | None, text_pair: str | None = None
) -> tuple[list[Any], list[Any]]:
    """All texts and labels of a table, as `tables.read_labelled` describes it."""
    texts: list[Any] = []
    labels: list[Any] = []
    starts: list[int] = []
    places: list[Callable[[int], str]] = []
    for block in source.blocks((*text_columns(text, text_pair), label)):
        starts.append(len(texts))
        places.append(block.place)
        texts += checked_texts(block, text, text_pair)
        of_block = block.values(label)
        if source.format == "CSV":  # it has only text, where NaN stands for a missing number
            of_block = [None if value is not None and value.lower() == "nan" else value for value in of_block]
        labels += _checked(block, label, of_block, "a label", object)

    def place(row: int) -> str:
        block = bisect_right(starts, row) - 1
        return places[block](row - starts[block])

    if source.format == "CSV":
        return texts, _from_text(labels, label, labels_as, place)
    labels = _whole_floats_as_int(labels) if labels_as in (None, int) else labels
    return texts, labels if labels_as is None else [_as_known(value, labels_as) for value in labels]


def label_set_rows(
    source: Source,
    text: str,
    columns: Sequence[str],
    separator: str,
    labels_as: type | None,
    text_pair: str | None = None,
) -> tuple[list[Any], list[list[Any]]]:
    """All texts and lists of labels of a table, as `tables.read_label_sets` describes it."""
    if not separator:
        raise InputError("the separator between labels is empty; expected one character or more, such as '|'")
    texts: list[Any] = []
    rows: list[list[Any]] = []
    for block in source.blocks((*text_columns(text, text_pair), *columns)):
        texts += checked_texts(block, text, text_pair)
        if len(columns) == 1:
            rows += _label_lists(block, columns[0], separator, source.format == "CSV")
        else:
            indicators = [_indicators(block, column) for column in columns]
            rows += [[name for name, has in zip(columns, row, strict=True) if has] for row in zip(*indicators, strict=True)]
    if labels_as is None and source.format == "CSV" and all(WHOLE(label) for row in rows for label in row):
        labels_as = int
    return texts, rows if labels_as is None else [[_as_known(label, labels_as) for label in row] for row in rows]


def _label_lists(block: Block, column: str, separator: str, is_csv: bool) -> list[list[Any]]:
    """The labels in each cell of one column."""
    lists = []
    for row, value in enumerate(block.values(column)):
        if is_csv and value is None:
            value = ""
        labels = [part.strip() for part in value.split(separator)] if isinstance(value, str) else value
        if isinstance(value, str) and not value.strip():
            labels = []
        if not isinstance(labels, list):
            got = "no value" if value is None else f"{value!r:.60} ({type(value).__name__})"
            raise InputError(
                f"{block.place(row)} has {got} in column {column!r}; expected a list of labels, or text with {separator!r} "
                "between them: fix or remove it"
            )
        if isinstance(value, str) and "" in labels:
            raise InputError(
                f"{block.place(row)} has {value!r:.60} in column {column!r}, with an empty label beside a {separator!r}; "
                "remove the separator, or choose another one"
            )
        lists.append(labels)
    return lists


def _indicators(block: Block, column: str) -> list[bool]:
    """Whether each row has the label that a 0/1 column is named for."""
    has_label = []
    for row, value in enumerate(block.values(column)):
        has = INDICATORS.get(str(value).lower())
        if has is None:
            got = "no value" if value is None else f"{value!r:.60}"
            raise InputError(f"{block.place(row)} has {got} in column {column!r}; expected 0 or 1: fix or remove it")
        has_label.append(has)
    return has_label


def text_columns(text: str, text_pair: str | None) -> list[str]:
    """The columns that hold the texts: one, or for pairs two different ones."""
    if text == text_pair:
        raise InputError(f"column {text!r} is named for the first and the second text of a pair; name two columns")
    return [text] if text_pair is None else [text, text_pair]


def checked_texts(block: Block, column: str, pair_column: str | None = None) -> list[Any]:
    """A block's texts, or with `pair_column` its pairs; InputError, naming the row, for a value that is missing or no text."""
    texts, *seconds = (_checked(block, name, block.values(name), "a text", str) for name in text_columns(column, pair_column))
    return list(zip(texts, *seconds, strict=True)) if seconds else texts


def _checked(block: Block, column: str, values: list[Any], expected: str, kind: type) -> list[Any]:
    for row, value in enumerate(values):
        if value is None or (isinstance(value, float) and value != value):
            got = "no value"
        elif not isinstance(value, kind):
            got = f"{value!r:.60} ({type(value).__name__})"
        elif isinstance(value, str) and not value.isascii() and not is_unicode(value):
            got = f"half a character (a lone surrogate) in {value!r:.60}"
        else:
            continue
        raise InputError(f"{block.place(row)} has {got} in column {column!r}; expected {expected}: fix or remove it")
    return values


def _from_text(labels: list[str], column: str, labels_as: type | None, place: Callable[[int], str]) -> list[Any]:
    """The labels of a CSV file, which are text, as the type they stand for."""
    if labels_as is None:
        labels_as = int if all(map(WHOLE, labels)) else str
    if labels_as not in READERS:
        return labels
    read, expected = READERS[labels_as]
    values = []
    for row, label in enumerate(labels):
        value = read(label)
        if value is None:
            raise InputError(
                f"{place(row)} has {label!r:.60} in column {column!r}; expected {expected}, as the known labels are"
            )
        values.append(value)
    return values


def _as_known(value: Any, labels_as: type) -> Any:
    """A label of a typed file as the type of the known labels, where it is written as one: "7" is 7 beside numbers."""
    if labels_as is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and labels_as in READERS:
        read = READERS[labels_as][0](value)
        return value if read is None else read
    return value


def _int(text: str) -> int | None:
    return int(text.removesuffix(".0")) if WHOLE(text) else None


def _float(text: str) -> float | None:
    return float(text) if NUMBER(text) else None


def _bool(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text.lower())


READERS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (_int, "a whole number"),
    float: (_float, "a number"),
    bool: (_bool, "True or False"),
}


def _whole_floats_as_int(labels: list[Any]) -> list[Any]:
    """Whole floats as int if all labels are whole numbers: pandas writes them for a column of int with gaps."""
    if all(type(v) is int or (type(v) is float and v.is_integer() and abs(v) < EXACT) for v in labels):
        return [int(value) for value in labels]
    return labels
