"""JSONL: each line's own text beside its values, so that a row can be written as it was."""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from spin_native.errors import InputError
from spin_native.given import is_unicode
from spin_native.tables.files import Given, lines_of
from spin_native.tables.source import Block, Source, grouped
from spin_native.tables.texts import EXACT, JSON_TEXT, holds_json_text

WHITESPACE = " \t\r\n"

Row = dict[str, Any]


def _whole(digits: str) -> int | Decimal:
    """int() refuses numbers of more than 4300 digits."""
    return int(digits) if len(digits) < 4000 else Decimal(digits)


class JsonlSource(Source):
    """JSONL files: one JSON object per line. Rows may have other keys than the rows before them."""

    format = "JSONL"

    def __init__(self, files: Sequence[Path], given: Given, block_rows: int, encoding: str) -> None:
        super().__init__(files, given, block_rows)
        self._encoding = encoding
        self._names: list[str] | None = None
        self._schema: Any = None

    def _blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        missing, names = set(columns), dict[str, None]()
        n_rows = 0
        for path in self.files:
            first_row = 0
            for group in grouped(self._rows(path, columns), self.block_rows):
                block = JsonlBlock(self, path, first_row, group)
                if missing:
                    names.update(dict.fromkeys(name for row in block.rows for name in row))
                    missing -= names.keys()
                yield block
                first_row += block.n_rows
            n_rows += first_row
        if n_rows:
            self.check_columns(list(names) if missing else columns, columns)

    def check(self, columns: Sequence[str]) -> None:
        """A column is there if one row has it."""
        missing = set(columns)
        for path in self.files:
            for _, row, _ in self._rows(path, columns):
                missing -= row.keys()
                if not missing:
                    return
        super().check(columns)  # names what is missing

    def _rows(self, path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row, str]]:
        """Each line's number, values and text. columns: those that no row may have twice; None: all."""
        with_twice: list[tuple[Row, list[tuple[str, Any]]]] = []  # objects that have a key twice, inner ones first

        def row_of(pairs: list[tuple[str, Any]]) -> Row:
            row = dict(pairs)
            if len(row) < len(pairs):
                with_twice.append((row, pairs))
            return row

        decode = json.JSONDecoder(object_pairs_hook=row_of).decode
        decode_long = json.JSONDecoder(object_pairs_hook=row_of, parse_int=_whole).decode

        def decoded(text: str) -> Any:
            try:
                return decode(text)
            except json.JSONDecodeError:
                raise
            except ValueError:  # a number of thousands of digits
                return decode_long(text)

        for number, line in enumerate(lines_of(path, self._encoding, newline="\n"), 1):
            text = line.strip(WHITESPACE)
            if not text:
                continue
            try:
                row = decoded(text)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number} is not JSON ({error.msg} at character {error.colno})") from error
            except RecursionError as error:
                raise InputError(f"{path}: line {number} has too many lists or objects inside each other") from error
            if type(row) is not dict:
                raise InputError(f"{path}: line {number} is not a JSON object; expected one object per line")
            if with_twice:
                last, pairs = with_twice[-1]
                if last is row:  # not an object inside it
                    _check_keys(path, number, [name for name, _ in pairs], columns)
                with_twice.clear()
            yield number, row, text

    def names(self) -> list[str]:
        """Every key of every row, in order of first appearance. Reads all input once."""
        if self._names is None:
            names: dict[str, None] = {}
            for path in self.files:
                for number, row, _ in self._rows(path, None):
                    if not row.keys() <= names.keys():
                        _check_unicode(path, number, row)
                        names.update(dict.fromkeys(row))
            self._names = list(names)
        return self._names

    def _kinds(self) -> dict[str, set[str]]:
        """The kinds of every column's values. Reads all input once."""
        kinds: dict[str, set[str]] = {}
        for path in self.files:
            for number, row, text in self._rows(path, None):
                for name, value in row.items():
                    if name not in kinds:
                        _check_unicode(path, number, row)
                        kinds[name] = set()
                    if value is not None:
                        kinds[name].add(_kind_of(value, name, text))
        self._names = list(kinds)
        return kinds

    def schema(self) -> Any:
        import pyarrow as pa

        if self._schema is None:
            fields = []
            for name, kinds in self._kinds().items():
                if kinds <= {"string"}:
                    fields.append(pa.field(name, pa.string()))
                elif kinds == {"bool"}:
                    fields.append(pa.field(name, pa.bool_()))
                elif kinds <= {"exact", "int64"}:
                    fields.append(pa.field(name, pa.int64()))
                elif kinds <= {"exact", "float"}:
                    fields.append(pa.field(name, pa.float64()))
                else:
                    fields.append(pa.field(name, pa.string(), metadata=JSON_TEXT))
            self._schema = pa.schema(fields)
        return self._schema


def _check_keys(path: Path, number: int, names: list[str], columns: Sequence[str] | None) -> None:
    for name in names if columns is None else columns:
        if names.count(name) > 1:
            raise InputError(f"{path}: line {number} has the key {name!r} twice; remove one of them")


def _check_unicode(path: Path, number: int, row: Row) -> None:
    for name in row:
        if not is_unicode(name):
            raise InputError(
                f"{path}: line {number} has the key {name!r}, which no column can be named; write to a .jsonl file"
            )


def _kind_of(value: Any, name: str, text: str) -> str:
    """What a Parquet column must be able to hold for one value of a row. text: the row's own."""
    if isinstance(value, str):
        return "string" if is_unicode(value) else "other"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "exact" if -EXACT < value < EXACT else "int64" if -(2**63) <= value < 2**63 else "other"
    if isinstance(value, float) and (not math.isinf(value) or members(text)[name][1].endswith("Infinity")):
        return "float"
    return "other"  # also a number such as 1e999, which is too large for a float


class JsonlBlock(Block):
    """Lines of a JSONL file."""

    def __init__(self, source: JsonlSource, path: Path, first_row: int, group: Sequence[tuple[int, Row, str]]) -> None:
        self.path, self.first_row, self.n_rows, self._source = path, first_row, len(group), source
        self.rows = [row for _, row, _ in group]
        self._texts = [text for _, _, text in group]

    def values(self, column: str) -> list[Any]:
        return [row.get(column) for row in self.rows]

    def json_lines(self) -> list[str]:
        return [text[:-1] for text in self._texts]

    def csv_cells(self) -> list[list[str | None]]:
        names = self._source.names()
        return [[cells.get(name) for name in names] for cells in self._cells(names)]

    def _cells(self, names: Collection[str]) -> Iterator[Mapping[str, str | None]]:
        """Each row's values as CSV cells. Numbers, lists and objects are as they are written in the line."""
        self._check_names(names)
        for row, text in zip(self.rows, self._texts, strict=True):
            kinds = set(map(type, row.values()))
            if kinds <= {str, type(None)}:
                yield row
            elif kinds.isdisjoint({list, dict}):
                values = NUMBERS_AS_TEXT(text)
                yield {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
            else:
                pairs = members(text)
                yield {name: value if value is None or isinstance(value, str) else raw for name, (value, raw) in pairs.items()}

    def _check_names(self, names: Collection[str]) -> None:
        known = set(names)
        for place, row in enumerate(self.rows):
            if not row.keys() <= known:
                raise InputError(f"{self.place(place)} has a new key: the file has changed while it was read; run again")

    def record_batch(self) -> Any:
        import pyarrow as pa

        schema = self._source.schema()
        self._check_names(schema.names)
        is_json = {field.name for field in schema if holds_json_text(field)}
        raw = [members(text) for text in self._texts] if is_json else []
        columns = []
        for field in schema:
            if field.name in is_json:
                values = [None if row.get(field.name) is None else raw[i][field.name][1] for i, row in enumerate(self.rows)]
            else:
                values = self.values(field.name)
            try:
                columns.append(pa.array(values, field.type))
            except (pa.ArrowException, OverflowError, TypeError) as error:
                raise InputError(f"{self.path}: column {field.name!r} has changed while it was read; run again") from error
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def check_new(self, names: Collection[str]) -> None:
        for place, row in enumerate(self.rows):
            for name in names:
                if name in row:
                    where = f"row {self.first_row + place}, the first is 0"
                    raise InputError(f"{self.path}: already has a column {name!r}; rename that column first ({where})")


NUMBERS_AS_TEXT = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str).decode
SKIP = re.compile(r"[ \t\r\n]*").match
DECODE = json.JSONDecoder(parse_int=_whole).raw_decode


def members(text: str) -> dict[str, tuple[Any, str]]:
    """Of a JSON object that is known to be valid: key -> its value, and the value as it is written."""

    def skip(at: int) -> int:
        return SKIP(text, at).end()  # type: ignore[union-attr]

    found: dict[str, tuple[Any, str]] = {}
    at = skip(skip(0) + 1)  # behind the brace
    while text[at] != "}":
        name, at = DECODE(text, at)
        at = skip(skip(at) + 1)  # behind the colon
        value, end = DECODE(text, at)
        found[name] = value, text[at:end]
        at = skip(end)
        at = skip(at + 1) if text[at] == "," else at
    return found
