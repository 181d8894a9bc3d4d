"""Whether the file that came out holds what the rules in table_rules.py say; read with csv, json and pyarrow."""

import csv
import gzip
import io
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
from odd_arrow import UNKNOWN_ZONE
from table_rules import (
    Meaning,
    Number,
    OneOf,
    Pairs,
    Refused,
    check_objects,
    form,
    has_lone_surrogate,
    parse,
    read_parquet,
    split_csv,
    suffixed,
)

ARROW_TYPES = {pa.string(): str, pa.int64(): int, pa.bool_(): bool, pa.float64(): float}
New = dict[str, list[Any]]  # new columns of str, int, bool or float, with None


def check(got: Meaning, new: New, out: Path) -> None:
    """AssertionError if `out` does not hold what was read, with the new columns."""
    {"CSV": _check_csv, "JSONL": _check_jsonl, "Parquet": _check_parquet}[format_of(out)](got, new, out)


def format_of(out: Path) -> str:
    return "CSV" if {".csv", ".tsv"} & {*out.suffixes} else "Parquet" if out.suffix == ".parquet" else "JSONL"


def check_values(got: Meaning, blocks: Sequence[Any]) -> None:
    """AssertionError if the blocks of a source give other values, or of other types, than the files hold."""
    for place, name in enumerate(got.names):
        if got.names.count(name) > 1:
            continue
        if got.format == "Parquet":
            try:
                want = got.table.column(place).to_pylist()
            except (ValueError, OverflowError):
                continue  # a date, or a zone, that Python does not have
        elif got.format == "CSV":
            want = [row[place] for row in got.rows]
        else:
            want = [_plain(dict(pairs).get(name)) for pairs in got.rows]
        assert repr([value for block in blocks for value in block.values(name)]) == repr(want), name


def _plain(value: Any) -> Any:
    """A JSON value as json.loads gives it."""
    if isinstance(value, Number):
        return int(value) if is_whole(value) else float(value)
    if isinstance(value, Pairs):
        return {key: _plain(inner) for key, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def refuse(got: Meaning, out: Path) -> None:
    """Refused if what was read has no form in the format of `out`; what makes it doubtful is added to its doubts."""
    out_format = format_of(out)
    if got.format == "JSONL" and out_format != "JSONL":
        check_objects(got)
    if out_format == "CSV" and r"\x00" in repr((got.names, _cells(got))):
        got.doubts.append("NUL in a CSV")
    if got.format == "Parquet" and out_format == "JSONL":
        _forms(got, "json")
    if got.format == "Parquet" and out_format != "Parquet" and UNKNOWN_ZONE in str(got.table.schema):
        got.doubts.append("no such time zone")


def _bytes(out: Path) -> bytes:
    return gzip.decompress(out.read_bytes()) if out.suffix == ".gz" else out.read_bytes()


def _rows(columns: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    return list(zip(*columns, strict=True))


def _forms(got: Meaning, mode: str) -> list[tuple[Any, ...]]:
    """The rows of a Parquet file as JSON values."""
    assert got.table is not None
    return _rows([[form(scalar, got.doubts, mode) for scalar in column] for column in got.table.columns])


# CSV.


def _cells(got: Meaning) -> list[Any]:
    """The rows for a CSV: what each cell must hold."""
    if got.format == "CSV":
        return got.rows
    if got.format == "Parquet":
        return _forms(got, "cell")
    cells = [[pairs.get(name) for name in got.names] for pairs in map(dict, got.rows)]
    if any(has_lone_surrogate(value) for row in cells for value in row):
        raise Refused("half an emoji")
    return [[str(value) if isinstance(value, Number) else value for value in row] for row in cells]


def _check_csv(got: Meaning, new: New, out: Path) -> None:
    text = _bytes(out).decode()
    is_tabbed = ".tsv" in out.suffixes
    delimiter = (got.delimiter if is_tabbed == got.is_tabbed else None) or ("\t" if is_tabbed else ",")
    header, *rows = split_csv(text, delimiter)
    by_csv = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    assert [[cell or "" for cell in row] for row in (header, *rows)] == [row for row in by_csv if row]
    assert [name or "" for name in header] == [*got.names, *new]
    for want, predicted, row in zip(_cells(got), _rows(list(new.values())), rows, strict=True):
        for name, value, cell in zip(
            (*got.names, *new), (*want, *(_new_value(value, True) for value in predicted)), row, strict=True
        ):
            assert _same_cell(value, cell), (name, value, cell)


def _new_value(value: Any, is_cell: bool) -> Any:
    """A new column's value as a JSON value; NaN and infinity have a form in CSV alone."""
    if type(value) is float and not math.isfinite(value):
        return Number("NaN" if value != value else "Infinity" if value > 0 else "-Infinity") if is_cell else None
    return Number(repr(value)) if type(value) in (int, float) else value


def _same_cell(want: Any, cell: str | None) -> bool:
    if isinstance(want, OneOf):
        return any(_same_cell(form, cell) for form in want.forms)
    if want is None or cell is None:
        return want is cell
    if isinstance(want, bool):
        return cell == str(want).lower()
    if isinstance(want, list):
        return same(want, parse(cell))
    return cell == want or (isinstance(want, Number) and same(want, Number(cell)))


# JSONL.


def _check_jsonl(got: Meaning, new: New, out: Path) -> None:
    text = _bytes(out).decode()
    assert text.endswith("\n")
    lines = text[:-1].split("\n")
    columns = [[_new_value(value, is_cell=False) for value in values] for values in new.values()]
    added = [Pairs(zip(new, values, strict=True)) for values in _rows(columns)]
    rows = got.rows
    if got.format == "JSONL":
        for line, before in zip(lines, got.lines, strict=True):
            kept = before.strip()[:-1].rstrip()  # without the last brace
            assert line.strip().startswith(kept)
    else:
        cells = got.rows if got.format == "CSV" else _forms(got, "json")
        rows = [Pairs(zip(suffixed(got.names), values, strict=True)) for values in cells]
    for line, want, predicted in zip(lines, rows, added, strict=True):
        assert same([*want, *predicted], [*parse(line)]), (want, predicted, line)


def same(want: Any, got: Any) -> bool:
    """Whether two JSON values (of table_rules.parse) are equal: 1 is not 1.0, and members are in order."""
    if isinstance(want, OneOf):
        return any(same(form, got) for form in want.forms)
    if isinstance(want, Number):
        return isinstance(got, Number) and (str(want) == str(got) or _same_number(want, got))
    if isinstance(want, (list, tuple)):
        is_alike = isinstance(got, (list, tuple)) and isinstance(want, Pairs) == isinstance(got, Pairs)
        return is_alike and len(want) == len(got) and all(map(same, want, got))
    return type(want) is type(got) and want == got


def is_whole(number: str) -> bool:
    return re.fullmatch(r"-?\d+", number) is not None


def _same_number(want: str, got: str) -> bool:
    if is_whole(want) != is_whole(got) or re.search("[^-+.0-9eE]", want + got):
        return False
    return Decimal(want) == Decimal(got) and (is_whole(want) or want.startswith("-") == got.startswith("-"))


# Parquet.


def _check_parquet(got: Meaning, new: New, out: Path) -> None:
    table = read_parquet(out)
    assert len(table) == len(got.rows)
    n_columns = len(got.names)
    assert table.column_names == [*(got.names if got.format == "Parquet" else suffixed(got.names)), *new]
    for column, (name, values) in zip(table.columns[n_columns:], new.items(), strict=True):
        kinds = {type(value) for value in values if value is not None}
        assert (
            len(kinds) == 0
            or column.type == {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}[kinds.pop()]
        )
        assert repr(column.to_pylist()) == repr([*values]), name
    if got.format == "Parquet":
        _check_passed_through(got.table, table.select(range(n_columns)))
        return
    for place, name in enumerate(got.names):
        values = [dict(row).get(name) if got.format == "JSONL" else row[place] for row in got.rows]
        kind, convert = _column_kind(values)
        assert table.schema.field(place).type == kind, (name, values)
        written = table.column(place).to_pylist()
        if convert is None:  # JSON text
            assert table.schema.field(place).metadata[b"spin_native"] == b"json"
            assert same(values, [None if value is None else parse(value) for value in written]), (values, written)
        else:
            assert repr(written) == repr([None if value is None else convert(value) for value in values])


def _column_kind(values: list[Any]) -> tuple[pa.DataType, Any]:
    """The type of a column of JSON values, and how they are read; None: as JSON text."""
    there = [value for value in values if value is not None]
    if all(isinstance(value, str) and not isinstance(value, Number) and not has_lone_surrogate(value) for value in there):
        return pa.string(), str
    if all(isinstance(value, bool) for value in there):
        return pa.bool_(), bool
    if all(isinstance(value, Number) for value in there):
        whole = [int(value[:30]) for value in there if is_whole(value)]  # 30 digits are far too many
        is_held = [math.isfinite(float(value)) or "N" in value or "I" in value for value in there]
        if len(whole) == len(there) and all(-(2**63) <= value < 2**63 for value in whole):
            return pa.int64(), int
        if all(is_held) and len(whole) < len(there) and all(abs(value) < 2**53 for value in whole):
            return pa.float64(), lambda value: float(int(value) if is_whole(value) else value)
    return pa.string(), None


def _check_passed_through(before: pa.Table | None, after: pa.Table) -> None:
    """Parquet to Parquet: types, nullability, metadata, values."""
    assert before is not None
    for old, now in zip(before.schema, after.schema, strict=True):
        assert now.equals(old, check_metadata=True), (old, now)
    assert (before.schema.metadata or {}).items() <= (after.schema.metadata or {}).items()
    for old, now in zip(before.columns, after.columns, strict=True):
        if not old.equals(now):  # NaN differs from itself, and two dictionaries may have one meaning
            assert [form(scalar, [], "exact") for scalar in old] == [form(scalar, [], "exact") for scalar in now]
