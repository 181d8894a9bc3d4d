"""Values as text: JSON values and CSV cells."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

from spin_native.given import is_unicode

EXACT = 2**53  # a float holds every whole number below this size
JSON_TEXT = {"spin_native": "json"}  # metadata of a Parquet column that holds JSON values as text
NON_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}

json_text: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False).encode


def new_json(value: Any) -> str:
    """A new column's value in JSON, where NaN and infinity are null."""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "null"
    return json_text(value)


def new_cell(value: Any) -> str | None:
    """A new column's value for a CSV cell."""
    if value is None or isinstance(value, str):
        return value
    return float_cell(repr(value)) if isinstance(value, float) else json_text(value)


def holds_json_text(field: Any) -> bool:
    """Whether a field of an Arrow schema is marked with JSON_TEXT."""
    return (field.metadata or {}).get(b"spin_native") == b"json"


def float_cell(text: str) -> str:
    """A float's repr, with JSON's and JavaScript's names for what is not finite."""
    return NON_FINITE.get(text, text)


def csv_quoting(delimiter: str) -> Callable[[str | None], str]:
    """A function that writes one cell: an empty text as "", so that it differs from a missing value, which is nothing."""
    needs_quotes = re.compile(f'[{re.escape(delimiter)}"\r\n\ufeff]').search

    def quoted(cell: str | None) -> str:
        if not cell:
            return "" if cell is None else '""'
        return '"' + cell.replace('"', '""') + '"' if needs_quotes(cell) else cell

    return quoted


def unwritable(cell: str | None) -> str | None:
    """Why a text cannot be in a CSV file; None if it can."""
    if cell is None:
        return None
    if "\0" in cell:
        return "a NUL character"
    return None if is_unicode(cell) else "half a character (a lone surrogate)"
