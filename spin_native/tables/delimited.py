"""CSV: rows with their own text beside their cells, so that a row can be written as it was."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spin_native.errors import InputError
from spin_native.tables.files import MAX_CELL, MAX_LINE, Given, default_delimiter, lines_of, unreadable
from spin_native.tables.source import Block, Source, distinct, grouped
from spin_native.tables.texts import json_text

Record = tuple[int, list[str], str]  # its first line's number, its cells, its own text


def checked_delimiter(delimiter: str | None, path: Path) -> str:
    """The character between cells (None: as the file's name says); InputError for what is no such character."""
    if delimiter is None:
        return default_delimiter(path)
    delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise InputError(f"delimiter {delimiter!r} cannot be used; expected one character such as ; or |, or the word tab")
    return delimiter


class CsvSource(Source):
    """CSV files. All must have the same columns; their order may differ if no name is there twice."""

    format = "CSV"

    def __init__(self, files: Sequence[Path], given: Given, block_rows: int, delimiter: str, encoding: str) -> None:
        super().__init__(files, given, block_rows)
        self.delimiter, self.encoding = delimiter, encoding
        self._header: tuple[Path, list[str], str] | None = None

    def header(self) -> tuple[Path | None, list[str], str]:
        """The first header: its file, its names and its own text. No names if all files are empty."""
        if self._header is None:
            for path in self.files:
                for _, names, text in records(path, self.delimiter, self.encoding):
                    self._header = path, names, text
                    return self._header
            return None, [], ""
        return self._header

    def names(self) -> list[str]:
        return self.header()[1]

    def schema(self) -> Any:
        import pyarrow as pa

        return pa.schema([(name, pa.string()) for name in distinct(self.names())])

    def _blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        _, names, _ = self.header()
        if not names:
            return
        other = re.search("[;\t|,]", names[0]) if len(names) == 1 else None
        if other and not set(columns) <= {names[0]}:
            given = "tab" if other[0] == "\t" else f"'{other[0]}'"
            raise InputError(f"{self.label}: its only column is {names[0][:80]!r}; is this the delimiter? --delimiter {given}")
        self.check_columns(names, columns)
        for path in self.files:
            yield from self._blocks_of(path)

    def _blocks_of(self, path: Path) -> Iterator[Block]:
        lines = records(path, self.delimiter, self.encoding)
        header = next(lines, None)
        if header is None:
            return
        order = self._order(path, header[1])
        first_row = 0
        for group in grouped(self._checked(path, lines, len(header[1]), order), self.block_rows):
            block = CsvBlock(self, path, first_row, group, has_own_texts=order is None)
            yield block
            first_row += block.n_rows

    def _checked(
        self, path: Path, lines: Iterator[Record], width: int, order: list[int] | None
    ) -> Iterator[tuple[int, list[str | None], str]]:
        """The records with None for missing cells, in the table's order of columns."""
        for line, cells, text in lines:
            if len(cells) != width:
                raise unreadable(
                    path,
                    f"line {line} has {len(cells)} cells, the header has {width}; fix the row (a cell with {self.delimiter!r} "
                    "in it needs quotes)",
                )
            row: list[str | None] = _with_missing(cells, text, self.delimiter) if "" in cells else [*cells]
            yield line, row if order is None else [row[place] for place in order], text

    def _order(self, path: Path, header: list[str]) -> list[int] | None:
        """Where each of the table's columns is in this file; None if the header is the table's own."""
        first, names, _ = self.header()
        if header == names:
            return None
        if sorted(header) != sorted(names) or len(set(names)) < len(names):
            differing = [name for name in [*names, *header] if header.count(name) != names.count(name)]
            which = f"see {differing[0]!r}" if differing else "several have the same name, and another order"
            raise InputError(f"{path}: has other columns than {first} ({which}); give files with the same columns")
        return [header.index(name) for name in names]


class CsvBlock(Block):
    """Rows of a CSV file. has_own_texts: whether the rows' texts have the table's order of columns."""

    def __init__(
        self,
        source: CsvSource,
        path: Path,
        first_row: int,
        group: Sequence[tuple[int, list[str | None], str]],
        has_own_texts: bool,
    ) -> None:
        self.path, self.first_row, self.n_rows, self._source = path, first_row, len(group), source
        self._rows = [row for _, row, _ in group]
        self._texts = [text for _, _, text in group] if has_own_texts else None

    def values(self, column: str) -> list[Any]:
        place = self._source.names().index(column)
        return [row[place] for row in self._rows]

    def json_lines(self) -> list[str]:
        starts = [f"{json_text(name)}: " for name in distinct(self._source.names())]
        return [
            "{" + ", ".join([start + json_text(cell) for start, cell in zip(starts, row, strict=True)]) for row in self._rows
        ]

    def csv_cells(self) -> list[list[str | None]]:
        return self._rows

    def csv_rows(self, delimiter: str) -> list[str] | None:
        return self._texts if delimiter == self._source.delimiter else None

    def record_batch(self) -> Any:
        import pyarrow as pa

        schema = self._source.schema()
        columns = [pa.array(column, pa.string()) for column in zip(*self._rows, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=schema)


def records(path: Path, delimiter: str, encoding: str) -> Iterator[Record]:
    """The records of a CSV file, the header first, without blank lines.

    Raises InputError for what is no CSV: a quote that is not closed, text after a closing quote, a NUL, a cell above MAX_CELL.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))  # of the whole process; it is only raised
    lines: list[str] = []  # of the record that is being read

    def read() -> Iterator[str]:
        n_characters = 0
        for line in lines_of(path, encoding, newline=""):
            n_characters = n_characters + len(line) if lines else len(line)
            lines.append(line)
            if n_characters > MAX_LINE:
                raise csv.Error("field larger than field limit")
            yield line

    reader = csv.reader(read(), delimiter=delimiter, strict=True)
    while True:
        lines.clear()
        first_line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _no_record(path, first_line, reader.line_num, "".join(lines), delimiter, str(error)) from error
        text = lines[0] if len(lines) == 1 else "".join(lines)
        if "\0" in text:
            raise _no_record(path, first_line, first_line, text, delimiter, "NUL")
        if cells:
            yield first_line, cells, text


def _no_record(path: Path, first_line: int, last_line: int, text: str, delimiter: str, reason: str) -> InputError:
    """The error for a record that csv cannot read. text: what was read of it."""
    *_, start = starts(text, delimiter)
    line = first_line + len(re.findall("\r\n|\r|\n", text[:start]))
    if "unexpected end" in reason:
        return unreadable(path, f"the quote that opens a cell in line {line} never closes; close it, or double it")
    if "NUL" in reason:  # Python 3.10 refuses it itself
        return unreadable(path, f"line {last_line} holds a NUL byte; is the file damaged, or in UTF-16?")
    if "field limit" in reason:
        hint = "; does its quote close?" if text.startswith('"', start) else ""
        return unreadable(path, f"the cell that begins in line {line} has more than {MAX_CELL} characters{hint}")
    return unreadable(path, f"line {last_line}: {reason}; put cells with quotes in quotes, and double those inside")


def _with_missing(cells: list[str], text: str, delimiter: str) -> list[str | None]:
    """None for the cells that are empty without quotes."""
    if '""' not in text:
        return [cell or None for cell in cells]
    return [
        cell if cell or text.startswith('"', start) else None
        for cell, start in zip(cells, starts(text, delimiter), strict=True)
    ]


def starts(text: str, delimiter: str) -> Iterator[int]:
    """Where each cell of a record begins. The last one is the cell that is not closed, if there is one."""
    at = 0
    while True:
        yield at
        if text.startswith('"', at):
            while (at := text.find('"', at + 1)) >= 0 and text.startswith('"', at + 1):
                at += 1
            if at < 0:
                return
        at = text.find(delimiter, at)
        if at < 0:
            return
        at += 1
