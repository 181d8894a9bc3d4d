"""pyarrow tables, which an analysis made, to CSV, JSONL and Parquet files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_native.errors import InputError
from spin_native.tables.files import FORMATS, default_delimiter, ending_of
from spin_native.tables.texts import csv_quoting, json_text
from spin_native.tables.writers import TextFile

if TYPE_CHECKING:
    import pyarrow as pa


class ArrowWriter:
    """Writes tables of one schema one after the other. out: the name that the file will have; partial: the name it has now."""

    def __init__(self, out: Path, partial: Path) -> None:
        self._out, self._partial = out, partial
        self._file: Any = None

    def write(self, table: pa.Table) -> None:
        """Add rows. Raises InputError where the file cannot hold a value."""
        if self._file is None:
            self._file = self._opened(table.schema)
        self._write(table)

    def close(self) -> None:
        """Raises InputError if nothing was written."""
        if self._file is None:
            raise InputError(f"{self._out}: there are no rows to write")
        self._file.close()

    def abandon(self) -> None:
        """Close the file after an error."""
        with suppress(Exception):
            self.close()

    def _opened(self, schema: pa.Schema) -> Any:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetWriter(self._partial, schema)

    def _write(self, table: pa.Table) -> None:
        self._file.write_table(table)


class ArrowTextWriter(ArrowWriter):
    def _opened(self, schema: pa.Schema) -> TextFile:
        file = TextFile(self._out, self._partial)
        if FORMATS[ending_of(self._out)] == "CSV":
            self._delimiter = default_delimiter(self._out)
            self._quoted = csv_quoting(self._delimiter)
            file.write((self._delimiter.join(map(self._quoted, schema.names)) + "\n").encode())
        return file

    def _write(self, table: pa.Table) -> None:
        for batch in table.to_batches():
            self._file.write("".join(self._lines(batch)).encode("utf-8", "backslashreplace"))

    def _lines(self, batch: pa.RecordBatch) -> list[str]:
        from spin_native.tables import arrow_texts

        if FORMATS[ending_of(self._out)] == "CSV":
            columns = [map(self._quoted, arrow_texts.csv_cells(column)) for column in batch.columns]
            return [self._delimiter.join(row) + "\n" for row in zip(*columns, strict=True)]
        names = list(map(json_text, batch.schema.names))
        rows = zip(*(arrow_texts.json_tokens(column) for column in batch.columns), strict=True)
        return ["{" + ", ".join(f"{name}: {value}" for name, value in zip(names, row, strict=True)) + "}\n" for row in rows]


def arrow_writer_for(out: Path, partial: Path) -> ArrowWriter:
    """A writer of the format that the name `out` says."""
    return ArrowWriter(out, partial) if FORMATS[ending_of(out)] == "Parquet" else ArrowTextWriter(out, partial)
