"""CSV, JSONL and Parquet files: read block by block, written whole or not at all."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from spin_native.errors import InputError

BLOCK_ROWS = 8192
KINDS = {".csv": "CSV", ".jsonl": "JSONL", ".ndjson": "JSONL", ".parquet": "Parquet"}


def read_labelled(path: Path, text: str, label: str) -> tuple[list[str], list[Any]]:
    """All texts and labels of a file; InputError, naming the row, for a missing one."""
    texts: list[str] = []
    labels: list[Any] = []
    for block in blocks(path, (text, label)):
        texts += block[text].to_pylist()
        labels += block[label].to_pylist()
    if KINDS[path.suffix.lower()] == "CSV":  # where a missing label may have been written as NaN, and numbers are text
        labels = [None if value is None or value.lower() == "nan" else value for value in labels]
        if all(value is not None and re.fullmatch(r"-?\d+", value) for value in labels):
            labels = [int(value) for value in labels]
    for column, values in ((text, texts), (label, labels)):
        for row, value in enumerate(values):
            missing = value is None or value != value  # NaN differs from itself
            if missing or (column == text and not isinstance(value, str)):
                got = "nothing" if missing else f"{value!r} ({type(value).__name__})"
                raise InputError(
                    f"{path}: row {row} (the first is 0) has {got} in column {column!r}; expected a value"
                    f"{', as text' if column == text else ''}: mend or drop the row"
                )
    return texts, labels


def blocks(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The file's rows, some thousands at a time, all columns; every CSV column is text, an empty unquoted field is missing.

    Raises InputError for a file that is not there, empty, unreadable or of unknown kind, and for a missing column.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: unknown kind of file; expected a name that ends in {', '.join(KINDS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    reader = {"CSV": _csv_blocks, "JSONL": _jsonl_blocks, "Parquet": _parquet_blocks}[kind]
    n_rows = 0
    try:
        for block in reader(path):
            for column in columns:
                if column not in block.column_names:
                    raise InputError(f"{path}: no column {column!r}; it has {', '.join(map(repr, block.column_names))}")
            n_rows += block.num_rows
            yield block
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as {kind} ({str(error).splitlines()[0]})") from error
    if not n_rows:
        raise InputError(f"{path}: holds no rows")


def _csv_blocks(path: Path) -> Iterator[pa.Table]:
    if not path.stat().st_size:
        return
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    header = pyarrow.csv.open_csv(path, parse_options=parse).schema.names
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    for batch in pyarrow.csv.open_csv(path, parse_options=parse, convert_options=convert):
        yield pa.Table.from_batches([batch])


def _jsonl_blocks(path: Path) -> Iterator[pa.Table]:
    with path.open(encoding="utf-8") as lines:
        numbered = enumerate(lines, 1)
        while part := list(islice(numbered, BLOCK_ROWS)):
            rows = []
            for number, line in part:
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}: line {number} is not JSON ({error})") from error
                if not isinstance(row, dict):
                    raise InputError(f"{path}: line {number} is no JSON object; expected one object per line")
                rows.append(row)
            if rows:
                names = dict.fromkeys(name for row in rows for name in row)
                yield pa.table({name: _column(row.get(name) for row in rows) for name in names})


def _column(values: Iterable[Any]) -> pa.Array:
    """One column; values of mixed types are kept as JSON text would show them, so that a check can name the odd one."""
    listed = list(values)
    try:
        return pa.array(listed)
    except pa.ArrowException:
        return pa.array([value if value is None or isinstance(value, str) else json.dumps(value) for value in listed])


def _parquet_blocks(path: Path) -> Iterator[pa.Table]:
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(BLOCK_ROWS):
            yield pa.Table.from_batches([batch])


class Writer(Protocol):
    def __init__(self, path: Path) -> None: ...
    def write(self, block: pa.Table) -> None: ...
    def close(self) -> None: ...


@contextmanager
def writer(path: Path, overwrite: bool) -> Iterator[Writer]:
    """A file that stands under its name only when all of it is written; InputError if it is there already."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: unknown kind of file; expected a name that ends in {', '.join(KINDS)}")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: already there; choose another name, or pass --overwrite")
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = WRITERS[kind](partial)
        try:
            yield opened
        finally:
            opened.close()
        os.replace(partial, path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: could not be written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


class _JsonlWriter:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, block: pa.Table) -> None:
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in block.to_pylist())

    def close(self) -> None:
        self._file.close()


class _CsvWriter:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pyarrow.csv.CSVWriter | None = None

    def write(self, block: pa.Table) -> None:
        if self._writer is None:
            self._writer = pyarrow.csv.CSVWriter(self._path, block.schema)
        self._writer.write(block)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _ParquetWriter:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pyarrow.parquet.ParquetWriter | None = None

    def write(self, block: pa.Table) -> None:
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._path, block.schema)
        self._writer.write_table(block)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


WRITERS: dict[str, type[Writer]] = {"CSV": _CsvWriter, "JSONL": _JsonlWriter, "Parquet": _ParquetWriter}
