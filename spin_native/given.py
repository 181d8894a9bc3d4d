"""What callers give, checked where it comes in: rows in order, texts, missing values, numbers.

The rooms above ask here, so that a table, a matrix, a dict or one string is refused in the same words everywhere.
"""

import math
import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

from spin_native.errors import InputError, TextError

HUGE = 10**300  # a larger whole number is no float
# Missing values whose comparison with themselves gives no bool: pandas' NA, and a masked entry of a NumPy array.
MISSING_TYPES = ("NAType", "MaskedConstant")


def rows_of(given: object, what: str, one: str = "text") -> Iterable[Any]:
    """`given` itself (an Arrow array as Python values), to iterate over; InputError, naming what to pass, if it has no rows.

    Lists, tuples, 1-D arrays and tensors, Series, Arrow arrays and streams have rows. One string, a dict, a set, a table, a
    matrix and a single value do not. what: what they are, for the error. one: what each row holds, "text" or "label".
    """
    kind = type(given).__name__
    if isinstance(given, (str, bytes, bytearray)):
        raise InputError(f"{what}: got one {kind}; expected several {one}s, for example a list")
    if isinstance(given, Mapping):
        raise InputError(f"{what}: a {kind} has no rows; pass a list of {one}s, for example one of its values: d[{one!r}]")
    if isinstance(given, (set, frozenset)):
        raise InputError(f"{what}: a {kind} has no order, so its entries are no rows; pass a list of {one}s")
    if kind == "LazyFrame":  # polars': its iterator fails
        raise InputError(
            f"{what}: got a {kind}; expected one {one} per row: pass one column, for example df.collect()[{one!r}]"
        )
    shape = getattr(given, "shape", None)
    if isinstance(shape, tuple) and len(shape) != 1:
        raise InputError(
            f"{what}: got a {kind} of shape {list(shape)}; expected one {one} per row: {_column(given, shape, one)}"
        )
    if hasattr(given, "toarray"):  # SciPy's sparse arrays can have one axis
        raise InputError(f"{what}: got a sparse {kind}; expected one {one} per row: pass it dense, with .toarray()")
    if callable(to_pylist := getattr(given, "to_pylist", None)):
        return cast("list[Any]", to_pylist())
    try:
        iter(given)  # type: ignore[call-overload]
    except TypeError:
        raise InputError(f"{what}: got {_short(given)} ({kind}); expected several {one}s, for example a list") from None
    return cast("Iterable[Any]", given)


def _column(given: object, shape: tuple[int, ...], one: str) -> str:
    """What to pass instead of a table, a matrix or a 0-d array."""
    if not shape:
        return "pass it in a list"
    if hasattr(given, "columns") or hasattr(given, "column_names"):
        return f"pass one column, for example df[{one!r}]"
    if shape[1:] == (1,):
        return "pass its only column, for example with .ravel()"
    if one == "label":
        return "for one-hot rows pass .argmax(axis=1); several labels per row are for SpinMultilabelClassifier"
    return "pass the texts themselves, for example one column: X[:, 0]"


def plain(value: Any) -> Any:
    """A NumPy, torch or Arrow scalar as the Python value it holds; a subclass of str as str; other values as they are."""
    if isinstance(value, str):
        return str.__str__(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value.as_py() if hasattr(value, "as_py") else value


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, NaT, pandas' NA, a masked entry."""
    if value is None or type(value).__name__ in MISSING_TYPES:
        return True
    try:
        return bool(value != value)  # NaN and NaT differ from themselves
    except (TypeError, ValueError, ArithmeticError):  # an array, a signalling Decimal
        return False


def check_text(text: object, row: int) -> None:
    """InputError unless `text` is a str; names the row and what it holds instead."""
    if isinstance(text, str):
        return
    if is_missing(text):
        raise TextError(row, f"is missing (got {text!r}): drop the row, or give it a text")
    if isinstance(text, bytes):
        raise TextError(row, "is bytes; expected str: decode it, for example with .decode('utf-8')")
    raise TextError(row, f"is {type(text).__name__} ({_short(text)}); expected str")


def checked_texts(texts: Iterable[object], what: str) -> list[str]:
    """The texts as a list; InputError, naming the row, unless all are str that UTF-8 can hold and there is at least one."""
    listed = list(rows_of(texts, what))
    if not listed:
        raise InputError(f"{what}: no texts; expected at least one")
    for row, text in enumerate(listed):
        try:
            check_text(text, row)
        except TextError as error:
            raise error.of(what, row) from None
        if not is_unicode(text):
            raise TextError(row, "holds half a character (a lone surrogate): read the file as UTF-8").of(what, row)
    return listed


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: Python also holds halves of a character (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def path_of(given: object, what: str) -> Path:
    """A folder's name as a Path; InputError for anything else than a str or a Path."""
    if not isinstance(given, (str, os.PathLike)):
        raise InputError(f"{what} is {given!r}; expected the name of a folder, a str or a Path")
    return Path(given)


def is_whole(value: object) -> bool:
    """Whether a value is an integer, Python's or NumPy's. A bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a real number, Python's or NumPy's, and finite. A bool is none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return isinstance(value, Integral) or math.isfinite(value)


def numbers_of(given: object) -> list[Any] | None:
    """The numbers of a list, tuple, range, array or Series as Python's; None if it is none of these, or holds other values.

    An iterator is none of these: a parameter is read more than once.
    """
    try:
        values = [plain(value) for value in rows_of(given, "")] if given is not iter(given) else []  # type: ignore[call-overload]
    except (InputError, TypeError):
        return None
    is_all = all(isinstance(value, Real) and not isinstance(value, bool) and not _is_huge(value) for value in values)
    return values if values and is_all else None


def _is_huge(value: Real) -> bool:
    return isinstance(value, Integral) and not -HUGE < int(value) < HUGE


def _short(value: object) -> str:
    return str(value)[:40]
