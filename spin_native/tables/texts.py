"""Values as text: JSON values and CSV cells."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

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


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold a text. Half a character (a lone surrogate) it cannot: tweets cut at 140 units have some."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
