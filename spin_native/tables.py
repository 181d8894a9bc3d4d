"""CSV, JSONL and Parquet files: read block by block, and written whole or not at all."""

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

from spin_native.disk import PARTIAL, flush
from spin_native.errors import InputError

BLOCK_ROWS = 8192
FORMATS = {".csv": "CSV", ".jsonl": "JSONL", ".ndjson": "JSONL", ".parquet": "Parquet"}  # by the ending of the file's name


def read_labelled(path: Path, text: str, label: str) -> tuple[list[str], list[Any]]:
    """All texts and labels of a file, in two lists of the same length.

    text, label: names of their columns. CSV labels that are all whole numbers are returned as int.
    Raises InputError, naming the row, for a missing text or label and for a text that is not a string; and as read_blocks does.
    """
    texts: list[str] = []
    labels: list[Any] = []
    for block in read_blocks(path, (text, label)):
        texts += block[text].to_pylist()
        labels += block[label].to_pylist()
    if _format_of(path) == "CSV":  # a CSV has only text: a missing label may be written as NaN, and numbers are digits
        labels = [None if value is None or value.lower() == "nan" else value for value in labels]
        if all(value is not None and re.fullmatch(r"-?\d+", value) for value in labels):
            labels = [int(value) for value in labels]
    for column, values in ((text, texts), (label, labels)):
        for row, value in enumerate(values):
            is_missing = value is None or value != value  # NaN differs from itself
            if is_missing or (column == text and not isinstance(value, str)):
                got = "no value" if is_missing else f"{value!r} ({type(value).__name__})"
                expected = "a text" if column == text else "a label"
                raise InputError(
                    f"{path}: row {row} (the first is 0) has {got} in column {column!r}; expected {expected}: fix or remove it"
                )
    return texts, labels


def read_blocks(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The file's rows with all their columns, a few thousand rows at a time.

    columns: names of columns that the file must have. Every CSV column is text; an empty CSV field without quotes is null.
    Raises InputError for a file that does not exist, has no rows, cannot be read or is of an unknown format, and for a missing
    column.
    """
    file_format = _format_of(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    n_rows = 0
    try:
        for block in READERS[file_format](path):
            for column in columns:
                if column not in block.column_names:
                    raise InputError(
                        f"{path}: no column {column!r}; it has {', '.join(map(repr, block.column_names))}; name another column"
                    )
            n_rows += block.num_rows
            yield block
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as {file_format} ({str(error).splitlines()[0]})") from error
    if not n_rows:
        raise InputError(f"{path}: has no rows")


def _format_of(path: Path) -> str:
    """CSV, JSONL or Parquet, by the name's ending; InputError for another ending."""
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise InputError(f"{path}: unknown file format; expected a name that ends in {', '.join(FORMATS)}") from None


def _read_csv(path: Path) -> Iterator[pa.Table]:
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


def _read_jsonl(path: Path) -> Iterator[pa.Table]:
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
                    raise InputError(f"{path}: line {number} is not a JSON object; expected one object per line")
                rows.append(row)
            if rows:
                names = dict.fromkeys(name for row in rows for name in row)
                yield pa.table({name: _array(row.get(name) for row in rows) for name in names})


def _array(values: Iterable[Any]) -> pa.Array:
    """One column of JSON values. If their types differ, each is stored as JSON text, so that a later check can name its row."""
    listed = list(values)
    try:
        return pa.array(listed)
    except pa.ArrowException:
        return pa.array([value if value is None or isinstance(value, str) else json.dumps(value) for value in listed])


def _read_parquet(path: Path) -> Iterator[pa.Table]:
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(BLOCK_ROWS):
            yield pa.Table.from_batches([batch])


READERS = {"CSV": _read_csv, "JSONL": _read_jsonl, "Parquet": _read_parquet}


class Writer(Protocol):
    """Writes blocks of rows to one file."""

    def __init__(self, path: Path) -> None: ...
    def write(self, block: pa.Table) -> None: ...
    def close(self) -> None: ...


def check_output(path: Path, overwrite: bool) -> None:
    """InputError if the file's format is unknown, or if the file exists and may not be replaced."""
    _format_of(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path}: already exists; choose another name, or allow it to be replaced (--overwrite)")


@contextmanager
def open_writer(path: Path, overwrite: bool) -> Iterator[Writer]:
    """A writer for a CSV, JSONL or Parquet file, which appears under its name only when all of it is written.

    Inside the `with` block the rows go to a partial file, which is deleted after an error.
    Raises InputError as check_output does, and if the file cannot be written.
    """
    check_output(path, overwrite)
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = WRITERS[_format_of(path)](partial)
        try:
            yield writer
        finally:
            writer.close()
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)
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
