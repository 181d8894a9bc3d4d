"""Parquet, the only format that needs pyarrow: this module is imported when a file of it is read or written."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from spin_native.errors import InputError
from spin_native.tables import arrow_texts
from spin_native.tables.files import Given
from spin_native.tables.source import BLOCK_CHARACTERS, Block, Source, distinct
from spin_native.tables.texts import holds_json_text, json_text

UNREADABLE = (pa.ArrowException, ValueError, OverflowError)  # ValueError: also text that is not UTF-8
TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as Parquet ({' '.join(str(error).split())})") from error


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise OSError(" ".join(str(error).split())) from error


class ParquetSource(Source):
    """Parquet files. All must have the same columns of the same types; a column without any value fits every type."""

    format = "Parquet"

    def __init__(self, files: Sequence[Path], given: Given, block_rows: int) -> None:
        super().__init__(files, given, block_rows)
        self._schema: pa.Schema | None = None

    def schema(self) -> pa.Schema:
        if self._schema is None:
            schemas = []
            for path in self.files:
                with _reading(path), pa.parquet.ParquetFile(path) as file:
                    schemas.append(file.schema_arrow)
            self._schema = schemas[0]
            for path, schema in zip(self.files[1:], schemas[1:], strict=True):
                self._schema = self._unified(self._schema, schema, path)
        return self._schema

    def _unified(self, known: pa.Schema, schema: pa.Schema, path: Path) -> pa.Schema:
        if known.equals(schema):
            return known
        if sorted(known.names) != sorted(schema.names):
            odd = sorted(set(known.names) ^ set(schema.names)) or ["(a name that is there several times)"]
            raise InputError(f"{path}: has other columns than {self.files[0]} ({odd[0]!r}); give files with the same columns")
        try:
            return pa.unify_schemas([known, schema])
        except pa.ArrowException as error:
            raise InputError(
                f"{path}: has other types than {self.files[0]} ({' '.join(str(error).split())}); give files with the same types"
            ) from error

    def names(self) -> list[str]:
        return list(self.schema().names)

    def _blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        self.check_columns(self.names(), columns)
        for path in self.files:
            first_row = 0
            with _reading(path), pa.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(self._rows_per_batch(file)):
                    yield ParquetBlock(path, first_row, self._aligned(batch))
                    first_row += batch.num_rows

    def _rows_per_batch(self, file: pa.parquet.ParquetFile) -> int:
        """Fewer rows where they are long, so that memory is bounded."""
        groups = [file.metadata.row_group(place) for place in range(file.metadata.num_row_groups)]
        bytes_per_row = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
        return min(self.block_rows, max(BLOCK_CHARACTERS // max(bytes_per_row, 1), 1))

    def _aligned(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        schema = self.schema()
        if batch.schema.names == schema.names:
            columns = batch.columns
        else:
            columns = [batch.column(batch.schema.names.index(name)) for name in schema.names]
        columns = [
            column.cast(field.type) if pa.types.is_null(column.type) else column
            for column, field in zip(columns, schema, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)


class ParquetBlock(Block):
    """A batch of a Parquet file."""

    def __init__(self, path: Path, first_row: int, batch: pa.RecordBatch) -> None:
        self.path, self.first_row, self.n_rows, self._batch = path, first_row, batch.num_rows, batch

    def values(self, column: str) -> list[Any]:
        place = self._batch.schema.names.index(column)
        field = self._batch.schema.field(place)
        try:
            values: list[Any] = self._batch.column(place).to_pylist()
            if holds_json_text(field):
                with suppress(ValueError, RecursionError):  # the mark stands on other text: not by us
                    return [None if value is None else json.loads(value) for value in values]
            return values
        except UNREADABLE as error:
            raise InputError(f"{self.path}: column {column!r} cannot be read ({error})") from error

    def json_lines(self) -> list[str]:
        names = distinct(self._batch.schema.names)
        starts = [f"{json_text(name)}: " for name in names]
        columns = [
            [start + token for token in self._as_text(arrow_texts.json_tokens, name, column)]
            for start, name, column in zip(starts, names, self._batch.columns, strict=True)
        ]
        return ["{" + ", ".join(row) for row in zip(*columns, strict=True)]

    def csv_cells(self) -> list[list[str | None]]:
        named = zip(self._batch.schema.names, self._batch.columns, strict=True)
        columns = [self._as_text(arrow_texts.csv_cells, name, column) for name, column in named]
        return [list(row) for row in zip(*columns, strict=True)]

    def _as_text(self, convert: Any, name: str, column: pa.Array) -> list[Any]:
        try:
            return convert(column)
        except UNREADABLE as error:
            raise InputError(
                f"{self.path}: column {name!r} ({column.type}) has no text form ({' '.join(str(error).split())}); "
                "write to a .parquet file"
            ) from error

    def record_batch(self) -> pa.RecordBatch:
        return self._batch


class ParquetFileWriter:
    """Writes batches of one schema, with the new columns at the end."""

    def __init__(self, path: Path, schema: pa.Schema, new: Mapping[str, type]) -> None:
        self._new = [pa.field(name, TYPES[kind]) for name, kind in new.items()]
        self._schema = pa.schema([*schema, *self._new], metadata=schema.metadata)
        with _writing():
            self._writer = pa.parquet.ParquetWriter(path, self._schema)

    def write(self, block: Block, new: Mapping[str, Sequence[Any]]) -> None:
        columns = []
        for field in self._new:
            try:
                columns.append(pa.array(new[field.name], field.type))
            except (pa.ArrowException, OverflowError) as error:
                raise InputError(
                    f"column {field.name!r} does not fit {field.type} ({error}); write to a .jsonl file"
                ) from error
        batch = pa.RecordBatch.from_arrays([*block.record_batch().columns, *columns], schema=self._schema)
        with _writing():
            self._writer.write_batch(batch)

    def close(self) -> None:
        with _writing():
            self._writer.close()
