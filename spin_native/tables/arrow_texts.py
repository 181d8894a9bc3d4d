"""Arrow values as text, for Parquet into JSONL or CSV. The forms are listed in the room's docstring."""

import base64
import math
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spin_native.tables.texts import NON_FINITE, float_cell, json_text

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def csv_cells(array: pa.Array) -> list[str | None]:
    """Each value as a cell; None for null."""
    array = _plain(array)
    if pa.types.is_nested(array.type):
        return [
            token if is_valid else None
            for token, is_valid in zip(json_tokens(array), array.is_valid().to_pylist(), strict=True)
        ]
    return _scalars(array)


def json_tokens(array: pa.Array) -> list[str]:
    """Each value as JSON; NaN and infinity are null."""
    array = _plain(array)
    of = array.type
    if pa.types.is_struct(of):
        return _structs(array)
    if pa.types.is_map(of):
        return [_map(value) for value in array]
    if pa.types.is_nested(of):
        return _lists(array)
    texts = _scalars(array)
    if pa.types.is_floating(of):
        return ["null" if text is None or text in NON_FINITE.values() else text for text in texts]
    if pa.types.is_integer(of) or pa.types.is_boolean(of) or pa.types.is_null(of):
        return [text or "null" for text in texts]
    return [json_text(text) for text in texts]


def _plain(array: pa.Array) -> pa.Array:
    """The values that a dictionary or an extension type stands for."""
    if isinstance(array, pa.ExtensionArray):
        return _plain(array.storage)
    return _plain(array.dictionary_decode()) if pa.types.is_dictionary(array.type) else array


def _structs(array: pa.Array) -> list[str]:
    starts = [f"{json_text(array.type.field(i).name)}: " for i in range(array.type.num_fields)]
    columns = [[start + token for token in json_tokens(child)] for start, child in zip(starts, array.flatten(), strict=True)]
    rows = zip(*columns, strict=True) if columns else [()] * len(array)
    valid = array.is_valid().to_pylist()
    return ["{" + ", ".join(row) + "}" if is_valid else "null" for row, is_valid in zip(rows, valid, strict=True)]


def _lists(array: pa.Array) -> list[str]:
    tokens = iter(json_tokens(array.flatten()))
    lengths = pc.list_value_length(array).to_pylist()
    return ["null" if length is None else "[" + ", ".join(islice(tokens, length)) + "]" for length in lengths]


def _map(value: Any) -> str:
    if not value.is_valid:
        return "null"
    keys, items = (json_tokens(child) for child in value.values.flatten())
    return "[" + ", ".join(f"[{key}, {item}]" for key, item in zip(keys, items, strict=True)) + "]"


def _scalars(array: pa.Array) -> list[str | None]:
    """Values that hold no others. ValueError where a type has no text form."""
    of = array.type
    if pa.types.is_null(of):
        return [None] * len(array)
    if _is_one_of(of, "string", "large_string", "string_view"):
        return array.to_pylist()
    if pa.types.is_boolean(of):
        return [value if value is None else str(value).lower() for value in array.to_pylist()]
    if pa.types.is_integer(of):
        return [value if value is None else str(value) for value in array.to_pylist()]
    if pa.types.is_floating(of):
        return _floats(array)
    if pa.types.is_decimal(of):
        return [value if value is None else format(value, "f") for value in array.to_pylist()]
    if _is_one_of(of, "binary", "large_binary", "fixed_size_binary", "binary_view"):
        return [value if value is None else base64.b64encode(value).decode() for value in array.to_pylist()]
    if pa.types.is_duration(of):
        unit = PER_SECOND[of.unit]
        return [value if value is None else _duration(value, unit) for value in array.cast(pa.int64()).to_pylist()]
    if pa.types.is_timestamp(of):
        return _timestamps(array)
    if pa.types.is_date(of) or pa.types.is_time(of):
        return [_checked(text) for text in array.cast(pa.string()).to_pylist()]
    raise ValueError("an unknown type")


def _is_one_of(of: pa.DataType, *kinds: str) -> bool:
    """Views are not known to pyarrow 15."""
    return any(getattr(pa.types, f"is_{kind}", lambda _: False)(of) for kind in kinds)


def _floats(array: pa.Array) -> list[str | None]:
    """The shortest text that reads back as the same number of this width."""
    numbers = array.to_numpy(zero_copy_only=False)  # null is NaN here
    texts = map(repr, numbers.tolist()) if array.type == pa.float64() else map(str, numbers)
    valid = array.is_valid().to_pylist()
    return [float_cell(text) if is_valid else None for text, is_valid in zip(texts, valid, strict=True)]


def _timestamps(array: pa.Array) -> list[str | None]:
    unit = PER_SECOND[array.type.unit]
    if array.type.tz is None:
        return [text and _checked(text).replace(" ", "T") for text in array.cast(pa.string()).to_pylist()]
    local = pc.local_timestamp(array)
    offsets = pc.subtract(local.cast(pa.int64()), array.cast(pa.int64())).to_pylist()
    texts = local.cast(pa.string()).to_pylist()
    return [
        text and _checked(text).replace(" ", "T") + _offset(offset // unit) for text, offset in zip(texts, offsets, strict=True)
    ]


def _checked(text: str | None) -> Any:
    """A date or time without a fraction that is zero. ValueError for what Arrow cannot write."""
    if text is None:
        return None
    if text.startswith("<"):
        raise ValueError(text.strip("<>"))
    whole, _, fraction = text.partition(".")
    return text if fraction.strip("0") else whole


def _offset(seconds: int) -> str:
    minutes, rest = divmod(abs(seconds), 60)
    shown = f"{'-' if seconds < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{shown}:{rest:02d}" if rest else shown


def _duration(value: int, unit: int) -> str:
    seconds, rest = divmod(abs(value), unit)
    fraction = f".{rest:0{round(math.log10(unit))}d}".rstrip("0") if rest else ""
    return f"{'-' if value < 0 else ''}PT{seconds}{fraction}S"
