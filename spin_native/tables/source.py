"""What every format offers: a source of blocks of rows, and each block in the form that another format writes."""

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from spin_native.errors import InputError
from spin_native.tables.files import Given

BLOCK_CHARACTERS = 32 * 2**20  # a block ends here even if it has few rows


class Block(ABC):
    """Consecutive rows of one file.

    path: the file. first_row: the place of the block's first row in the file (from 0). n_rows: how many rows.
    """

    path: Path
    first_row: int
    n_rows: int

    @abstractmethod
    def values(self, column: str) -> list[Any]:
        """One column as Python values of the types they have in the file; None where a value is missing. CSV has only text."""

    @abstractmethod
    def json_lines(self) -> list[str]:
        """Each row as a JSON object, without its closing brace."""

    @abstractmethod
    def csv_cells(self) -> list[list[str | None]]:
        """Each row's cells for a CSV file, in the order of the source's names; None where a value is missing."""

    @abstractmethod
    def record_batch(self) -> Any:
        """The rows as a pyarrow.RecordBatch of the source's schema."""

    def csv_rows(self, delimiter: str) -> list[str] | None:
        """Each row as it is written in the file, if that is CSV with this delimiter; None otherwise."""
        return None

    def check_new(self, names: Collection[str]) -> None:  # noqa: B027 (CSV and Parquet have one list of columns)
        """InputError if a row already has one of these columns."""

    def place(self, row: int) -> str:
        """Words for one of the block's rows."""
        return f"{self.path}: row {self.first_row + row} (the first is 0)"


class Source(ABC):
    """A table in one file or several.

    files: in the order they are read. given: how the caller named them; label: how errors do. block_rows: most rows of a block.
    """

    format: ClassVar[str]

    def __init__(self, files: Sequence[Path], given: Given, block_rows: int) -> None:
        self.files, self.given, self.block_rows = list(files), given, block_rows
        self.label = str(given) if isinstance(given, (str, os.PathLike)) else ", ".join(map(str, given))[:200]

    def blocks(self, columns: Sequence[str] = ()) -> Iterator[Block]:
        """The rows with all their columns, some thousand rows at a time.

        columns: names of columns that the table must have.
        Raises InputError for a table without rows, for one that cannot be read, and for a missing column.
        """
        is_empty = True
        for block in self._blocks(columns):
            is_empty = False
            yield block
        if is_empty:
            raise InputError(f"{self.label}: has no rows")

    def check(self, columns: Sequence[str]) -> None:
        """InputError unless the table has rows and these columns. Reads no more than is needed to know it."""
        for _ in self.blocks(columns):
            return

    @abstractmethod
    def _blocks(self, columns: Sequence[str]) -> Iterator[Block]: ...

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all columns. JSONL is read once for it."""

    @abstractmethod
    def schema(self) -> Any:
        """The pyarrow.Schema of the table in a Parquet file. JSONL is read once for it."""

    def check_columns(self, names: Sequence[str], columns: Sequence[str]) -> None:
        """InputError unless each of these columns is among the table's names, once."""
        for column in columns:
            if column not in names:
                shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
                raise InputError(f"{self.label}: no column {column!r}; it has {shown}; name another column")
            if list(names).count(column) > 1:
                raise InputError(f"{self.label}: has several columns {column!r}; rename all but one")


def distinct(names: Sequence[str]) -> list[str]:
    """Names that differ: the second `a` becomes `a.1`, and so on, as pandas has it."""
    given, used = set(names), set[str]()
    result: list[str] = []
    for name in names:
        new, number = name, 0
        while new in used or (number and new in given):
            number += 1
            new = f"{name}.{number}"
        used.add(new)
        result.append(new)
    return result


def grouped(rows: Iterable[tuple[int, Any, str]], most: int) -> Iterator[list[tuple[int, Any, str]]]:
    """Rows (line number, values, text) in lists of at most `most`, with a bound on the characters of a list."""
    group: list[tuple[int, Any, str]] = []
    n_characters = 0
    for row in rows:
        group.append(row)
        n_characters += len(row[2])
        if len(group) == most or n_characters > BLOCK_CHARACTERS:
            yield group
            group, n_characters = [], 0
    if group:
        yield group
