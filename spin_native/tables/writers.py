"""Writing a table: the rows of a source, with new columns, in the format that the file's name says."""

import gzip
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from spin_native.errors import InputError
from spin_native.tables.delimited import CsvSource
from spin_native.tables.files import FORMATS, default_delimiter, ending_of
from spin_native.tables.source import Block, Source, distinct
from spin_native.tables.texts import csv_quoting, json_text, new_cell, new_json, unwritable


class Writer(ABC):
    """Writes blocks of rows to one file. out: the name that the file will have."""

    def __init__(self, out: Path, new: Mapping[str, type]) -> None:
        self._out, self._new = out, dict(new)

    def write(self, block: Block, new: Mapping[str, Sequence[Any]]) -> None:
        """Add rows. new: the values of each new column, a list or an array; None where a value is missing.

        Raises InputError if a row already has one of the new columns, or cannot be written.
        """
        block.check_new(self._new)
        try:
            self._write(block, {name: _listed(new[name]) for name in self._new})
        except OSError as error:
            raise InputError(f"{self._out}: could not be written ({error.strerror or error})") from error
        except RecursionError as error:
            raise InputError(f"{block.path}: a row has too many lists or objects inside each other") from error

    @abstractmethod
    def _write(self, block: Block, new: dict[str, list[Any]]) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Write what is still in memory. Raises OSError."""

    def abandon(self) -> None:
        """Close the file after an error."""
        with suppress(Exception):
            self.close()


def _listed(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def writer_for(out: Path, partial: Path, source: Source, new: Mapping[str, type]) -> Writer:
    """A writer that puts the rows of `source`, with new columns, at `partial`; `out` says the format."""
    file_format = FORMATS[ending_of(out)]
    if not new:
        raise InputError(f"{out}: no new columns; expected one or more")
    if file_format == source.format == "JSONL":
        return JsonlWriter(out, partial, new)  # each row is checked on its own
    names = source.schema().names if file_format == "Parquet" else source.names()
    for name in new:
        if name in names or (file_format == "JSONL" and name in distinct(names)):
            raise InputError(f"{source.label}: already has a column {name!r}; rename that column first")
    if file_format == "JSONL":
        return JsonlWriter(out, partial, new)
    return CsvWriter(out, partial, source, new) if file_format == "CSV" else ParquetWriter(out, partial, source, new)


class TextFile:
    """UTF-8 in a file, packed if the name that it will have ends in .gz."""

    def __init__(self, out: Path, partial: Path) -> None:
        self._file = partial.open("wb")
        self._packed: gzip.GzipFile | None = None
        if out.name.lower().endswith(".gz"):
            self._packed = gzip.GzipFile("", "wb", 6, self._file, mtime=0)

    def write(self, content: bytes) -> None:
        (self._packed or self._file).write(content)

    def close(self) -> None:
        try:
            if self._packed is not None:
                self._packed.close()
        finally:
            self._file.close()


class JsonlWriter(Writer):
    def __init__(self, out: Path, partial: Path, new: Mapping[str, type]) -> None:
        super().__init__(out, new)
        self._file = TextFile(out, partial)

    def _write(self, block: Block, new: dict[str, list[Any]]) -> None:
        columns = [[f"{json_text(name)}: {new_json(value)}" for value in values] for name, values in new.items()]
        lines = []
        for line, members in zip(block.json_lines(), zip(*columns, strict=True), strict=True):
            comma = "" if line.rstrip().endswith("{") else ", "
            lines.append(f"{line}{comma}{', '.join(members)}}}\n")
        self._file.write("".join(lines).encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        self._file.close()


class CsvWriter(Writer):
    def __init__(self, out: Path, partial: Path, source: Source, new: Mapping[str, type]) -> None:
        super().__init__(out, new)
        is_same_kind = isinstance(source, CsvSource) and default_delimiter(source.files[0]) == default_delimiter(out)
        self._delimiter = source.delimiter if is_same_kind else default_delimiter(out)  # type: ignore[attr-defined]
        self._quoted = csv_quoting(self._delimiter)
        self._names = source.names()
        for name in self._names:
            if reason := unwritable(name):
                raise InputError(f"{source.label}: the column {name!r} has {reason} in its name; write to a .jsonl file")
        self._file = TextFile(out, partial)
        own = source.header()[2] if isinstance(source, CsvSource) and source.delimiter == self._delimiter else None
        header = self._delimiter.join(map(self._quoted, self._names)) if own is None else own
        self._file.write(self._extended(header, list(map(self._quoted, new))).encode())

    def _write(self, block: Block, new: dict[str, list[Any]]) -> None:
        rows = block.csv_rows(self._delimiter)
        if rows is None:
            rows = [self._delimiter.join(map(self._quoted, cells)) for cells in block.csv_cells()]
        columns = [[self._quoted(new_cell(value)) for value in values] for values in new.values()]
        text = "".join([self._extended(row, cells) for row, cells in zip(rows, zip(*columns, strict=True), strict=True)])
        try:
            if "\0" in text:
                raise ValueError
            content = text.encode()
        except ValueError:  # also UnicodeEncodeError
            raise self._unwritable(block, new) from None
        self._file.write(content)

    def _extended(self, row: str, cells: Sequence[str]) -> str:
        """A row's text with more cells before its line ending."""
        body = row.rstrip("\r\n")
        return self._delimiter.join([body, *cells]) + (row[len(body) :] or "\n")

    def _unwritable(self, block: Block, new: dict[str, list[Any]]) -> InputError:
        for row, cells in enumerate(block.csv_cells()):
            added = [new_cell(values[row]) for values in new.values()]
            for name, cell in zip([*self._names, *new], [*cells, *added], strict=True):
                if reason := unwritable(cell):
                    return InputError(
                        f"{block.place(row)} has {reason} in column {name!r}, which CSV cannot hold; write to a .jsonl file"
                    )
        return InputError(f"{block.place(0)}: a row near here cannot be written as CSV; write to a .jsonl file")

    def close(self) -> None:
        self._file.close()


class ParquetWriter(Writer):
    def __init__(self, out: Path, partial: Path, source: Source, new: Mapping[str, type]) -> None:
        from spin_native.tables.parquet import ParquetFileWriter

        super().__init__(out, new)
        self._writer = ParquetFileWriter(partial, source.schema(), new)

    def _write(self, block: Block, new: dict[str, list[Any]]) -> None:
        self._writer.write(block, new)

    def close(self) -> None:
        self._writer.close()
