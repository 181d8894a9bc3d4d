"""The stated rules of conversion between CSV, JSONL and Parquet, read anew and without spin_native.

`meaning` says what the files of a run hold, `expected` what must come out in another format, `written` what did come out, with
outside readers: json, pyarrow, and for CSV a reader of a few lines (the csv module cannot tell an empty cell from a quoted one)
that must agree with the csv module.
"""

import base64
import datetime
import gzip
import io
import json
import re
import zlib
import zoneinfo
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from odd_arrow import SECOND
from odd_tables import OddFiles

TEXT = "text"
STRINGS = [getattr(pa, name)() for name in ("string", "large_string", "string_view") if hasattr(pa, name)]
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


class Refused(Exception):
    """By the rules, these files cannot be copied: one InputError is right, and nothing else."""


class Number(str):
    """A JSON number as it is written; NaN and Infinity, too."""


class Pairs(list):
    """A JSON object's members, in order: (key, value)."""


@dataclass
class OneOf:
    """Several forms of one value are right."""

    forms: list[Any]


@dataclass
class Meaning:
    """What the files of one run hold.

    names: of the columns; for JSONL in order of first appearance. rows: the cells of each row, in the order of names; for JSONL
    the members of each object. lines: of JSONL, as written. table: of Parquet. doubts: why an InputError is right, too.
    delimiter: of CSV, if it was given. is_tabbed: .tsv.
    """

    format: str
    names: list[str] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    table: pa.Table | None = None
    doubts: list[str] = field(default_factory=list)
    delimiter: str | None = None
    is_tabbed: bool = False

    @property
    def texts(self) -> list[Any]:
        """The text of each row, or None."""
        if self.table is not None:
            column = self.table.column(self.names.index(TEXT))
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            return column.to_pylist() if kind in STRINGS else [None] * len(column)
        if self.format == "JSONL":
            values = [dict(pairs).get(TEXT) for pairs in self.rows]
            return [value if type(value) is str and not has_lone_surrogate(value) else None for value in values]
        return [row[self.names.index(TEXT)] for row in self.rows]


def meaning(odd: OddFiles, new_names: Collection[str]) -> Meaning:
    """What the files hold; Refused if they cannot be read, have no rows, no single text column, or one of the new columns."""
    read = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}.get(odd.ending.removesuffix(".gz"), _read_jsonl)
    got = read(odd)
    got.is_tabbed = ".tsv" in odd.ending
    if not got.rows:
        raise Refused("no rows")
    if got.names.count(TEXT) != 1:
        raise Refused(f"{got.names.count(TEXT)} columns {TEXT!r}")
    if set(new_names) & set(got.names):
        raise Refused("already has a new column")
    return got


def _contents(odd: OddFiles) -> list[bytes]:
    if not odd.ending.endswith(".gz"):
        return list(odd.files.values())
    try:
        return [gzip.decompress(content) for content in odd.files.values()]
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"not gzip: {error}") from error


# CSV.


def _read_csv(odd: OddFiles) -> Meaning:
    got = Meaning("CSV", delimiter=odd.delimiter)
    for content in _contents(odd):
        try:
            text = content.decode(odd.encoding or "utf-8").removeprefix("\ufeff")
        except (UnicodeError, LookupError) as error:
            raise Refused(f"wrong encoding: {error}") from error
        if "\0" in text:
            got.doubts.append("NUL in a CSV")
        rows = split_csv(text, odd.delimiter or ("\t" if ".tsv" in odd.ending else ","))
        if len(rows) < 2 and len(odd.files) > 1:
            got.doubts.append("one of several files is empty")
        if not rows:
            continue
        header = [name or "" for name in rows[0]]
        if not got.names:
            got.names = header
        if any(len(row) != len(header) for row in rows):
            raise Refused("rows of unequal length")
        if header != got.names:
            got.doubts.append("columns in another order")
            if sorted(header) != sorted(got.names) or len(set(header)) < len(header):
                raise Refused("files with other columns")
        order = range(len(header)) if header == got.names else [header.index(name) for name in got.names]
        got.rows += [[row[place] for place in order] for row in rows[1:]]
    return got


def split_csv(text: str, delimiter: str) -> list[list[str | None]]:
    """The rows of a CSV without its blank lines; a cell with nothing in it, not even quotes, is None."""
    rows: list[list[str | None]] = []
    place, row = 0, []
    bare = re.compile(f"[^\r\n{re.escape(delimiter)}]*")
    quoted = re.compile('"((?:[^"]|"")*)"')
    while place < len(text) or row:
        inside = quoted.match(text, place)
        if text[place : place + 1] == '"' and not inside:
            raise Refused("a quote that never closes")
        cell = inside or bare.match(text, place)
        row.append(inside[1].replace('""', '"') if inside else cell[0] or None)
        place = cell.end()
        end = re.compile("\r\n|\r|\n|$").match(text, place)
        if text[place : place + 1] == delimiter:
            place += 1
        elif end and (end[0] or place == len(text)):
            if row != [None]:
                rows.append(row)
            place, row = end.end(), []
        else:
            raise Refused("text after a closing quote")
    return rows


# JSONL.


def parse(text: str) -> Any:
    """JSON with numbers as they are written and objects as pairs."""
    return json.loads(text, object_pairs_hook=Pairs, parse_int=Number, parse_float=Number, parse_constant=Number)


def _read_jsonl(odd: OddFiles) -> Meaning:
    got = Meaning("JSONL")
    for content in _contents(odd):
        try:
            lines = content.decode(odd.encoding or "utf-8").removeprefix("\ufeff").split("\n")
        except (UnicodeError, LookupError) as error:
            raise Refused(f"wrong encoding: {error}") from error
        if len(odd.files) > 1 and not any(line.strip() for line in lines):
            got.doubts.append("one of several files is empty")
        for line in (line.removesuffix("\r") for line in lines):
            if not line.strip():
                got.doubts += ["a line of odd spaces"] if line.strip(" \t\r") else []
                continue
            if line.strip() != line.strip(" \t\r"):
                got.doubts.append("odd spaces around an object")
            if len(line) > 4300 or "[" * 200 in line:
                got.doubts.append("a very long number, or deep nesting")
            try:
                pairs = parse(line.strip())
            except ValueError as error:
                raise Refused(f"not JSON: {error}") from error
            except RecursionError:
                raise Refused("nested too deeply") from None
            if not isinstance(pairs, Pairs):
                raise Refused("not an object")
            keys = [key for key, _ in pairs]
            if keys.count(TEXT) > 1:
                raise Refused("two texts in one object")
            got.names += [key for key in dict.fromkeys(keys) if key not in got.names]
            got.rows.append(pairs)
            got.lines.append(line)
    return got


def has_lone_surrogate(value: Any) -> bool:
    return isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value)


def check_objects(got: Meaning) -> None:
    """Refused if JSON objects do not make a table."""
    for pairs in got.rows:
        if len({key for key, _ in pairs}) < len(pairs):
            raise Refused("a key twice in one object")
    if any(map(has_lone_surrogate, got.names)):
        raise Refused("half an emoji in a key")
    if any(_repeats_a_key(value) for pairs in got.rows for _, value in pairs):
        got.doubts.append("a key twice inside a value")


def _repeats_a_key(value: Any) -> bool:
    if isinstance(value, Pairs):
        return len({key for key, _ in value}) < len(value) or any(_repeats_a_key(inner) for _, inner in value)
    return isinstance(value, list) and any(map(_repeats_a_key, value))


# Parquet.


def _read_parquet(odd: OddFiles) -> Meaning:
    try:
        tables = [read_parquet(io.BytesIO(content)) for content in odd.files.values()]
    except (pa.ArrowException, OSError) as error:
        raise Refused(f"not Parquet: {error}") from error
    table = pa.concat_tables(tables)
    doubts = ["one of several files is empty"] if len(tables) > 1 and not all(map(len, tables)) else []
    if TEXT in table.column_names and table.schema.types[table.column_names.index(TEXT)] not in STRINGS:
        doubts.append("a column of texts that are no texts")
    return Meaning("Parquet", list(table.column_names), list(range(len(table))), table=table, doubts=doubts)


def read_parquet(file: Any) -> pa.Table:
    """All of a Parquet file; pyarrow.parquet.read_table cannot read two columns of one name."""
    with pyarrow.parquet.ParquetFile(file) as opened:
        return opened.read()


def form(scalar: pa.Scalar, doubts: list[str], mode: str) -> Any:
    """The JSON value of an Arrow value.

    mode: "json"; "cell" for a whole CSV cell, where NaN and infinity have a form; "exact", where they always have one.
    """
    kind, is_type = scalar.type, pa.types
    if is_type.is_dictionary(kind):
        return form(scalar.value, doubts, mode)
    inner = "exact" if mode == "exact" else "json"
    if not scalar.is_valid or is_type.is_null(kind):
        return None
    if is_type.is_integer(kind):
        return Number(scalar.as_py())
    if is_type.is_floating(kind):
        value = kind.to_pandas_dtype()(scalar.as_py())
        if np.isfinite(value):
            return Number(str(value))
        return None if mode == "json" else Number("NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity")
    if is_type.is_decimal(kind):
        return format(scalar.as_py(), "f")
    if isinstance(scalar, (pa.BinaryScalar, pa.FixedSizeBinaryScalar)) and not isinstance(scalar, pa.StringScalar):
        return base64.b64encode(scalar.as_py()).decode()
    if is_type.is_temporal(kind):
        return _form_of_time(scalar, doubts)
    if is_type.is_map(kind):
        return [[form(pair[0], doubts, inner), form(pair[1], doubts, inner)] for pair in scalar.values]
    if isinstance(scalar, pa.ListScalar):
        return [form(value, doubts, inner) for value in scalar.values]
    if is_type.is_struct(kind):
        keys, values = (
            [member.name for member in kind],
            [form(scalar[place], doubts, inner) for place in range(kind.num_fields)],
        )
        if len(set(keys)) == len(keys) or mode == "exact":
            return Pairs(zip(keys, values, strict=True))
        doubts.append("a struct with one field twice")
        return OneOf([Pairs(zip(forms, values, strict=True)) for forms in (keys, suffixed(keys))])
    return scalar.as_py()


def _form_of_time(scalar: pa.Scalar, doubts: list[str]) -> Any:
    """Dates, times, timestamps and durations."""
    kind, value = scalar.type, scalar.value
    if pa.types.is_date(kind):
        days = value if kind == pa.date32() else value // 86_400_000
        return _iso(days * 86400, doubts)[0][0].removesuffix("T00:00:00")
    per_second = SECOND[kind.unit]
    if pa.types.is_duration(kind):
        seconds = abs(value) // per_second
        part = str(abs(value) % per_second).rjust(len(str(per_second)) - 1, "0").rstrip("0") if abs(value) % per_second else ""
        return f"{'-' * (value < 0)}PT{seconds}{'.' * bool(part)}{part}S"
    seconds, part = divmod(value, per_second)
    fraction = f".{str(part).rjust(len(str(per_second)) - 1, '0')}" if part else ""
    if pa.types.is_time(kind):
        return (datetime.datetime.min + datetime.timedelta(seconds=seconds)).time().isoformat() + fraction
    forms = [local + fraction + offset for local, offset in _iso(seconds, doubts, kind.tz)]
    return OneOf(forms) if len(forms) > 1 else forms[0]


def _iso(seconds: int, doubts: list[str], tz: str | None = None) -> list[tuple[str, str]]:
    """Date and time of day without a fraction, and the offset from UTC: the usual form, and other right ones."""
    try:
        zone = datetime.timezone.utc if tz is None else _zone(tz)
    except zoneinfo.ZoneInfoNotFoundError:
        zone = datetime.timezone.utc
    try:
        moment = EPOCH + datetime.timedelta(seconds=seconds)
        forms = [moment.astimezone(zone).isoformat()]
    except OverflowError:
        doubts.append("outside years 1 to 9999")
        return [(str(np.datetime64(seconds, "s")), "+00:00" if tz else "")]
    summer = moment.astimezone(zone).dst()
    if summer and moment.year > 2037:  # Arrow knows of no summer time so late: the same moment, an hour less on both sides
        winter = datetime.timezone(moment.astimezone(zone).utcoffset() - summer)
        forms.append(moment.astimezone(winter).isoformat())
    return [(form[:19], form[19:] if tz else "") for form in forms]


def _zone(tz: str) -> datetime.tzinfo:
    if tz[0] in "+-":
        return datetime.datetime.fromisoformat(f"2000-01-01T00:00:00{tz}").tzinfo
    return zoneinfo.ZoneInfo(tz)


def suffixed(names: list[str]) -> list[str]:
    """Names made distinct: the second `a` is `a.1`, or the next number that is free."""
    distinct: list[str] = []
    for name in names:
        if name in distinct:
            taken = {*names, *distinct}
            name = next(f"{name}.{number}" for number in range(1, 10**6) if f"{name}.{number}" not in taken)
        distinct.append(name)
    return distinct
