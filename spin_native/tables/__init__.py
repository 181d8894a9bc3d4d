"""Tables in CSV, JSONL and Parquet files: read block by block, and written whole or not at all.

What is not ours passes through as it was. JSONL lines and CSV rows keep their own text, Parquet its schema; only the new
columns are added. Across formats values have one text form each:

- CSV: a cell that is empty without quotes is a missing value, `""` an empty text. All else is text.
- JSONL into CSV: numbers, lists and objects as they are written in the line; true and false; null and absent are missing.
- JSONL into Parquet, by column: true/false, int64, float64 or text if all values fit it exactly; if not, each value as JSON
  text, as it is written in the line, and the field's metadata says {"spin_native": "json"}: texts and labels are read from
  such a column as the values that they are.
- Parquet into text: 2024-01-31; 2024-01-31T12:30:00.500000+01:00 (a fraction of zero is left out); PT1.5S; decimals with all
  their digits; bytes in base64; floats with the fewest digits that read back as the same number; lists, structs and maps
  ([[key, value], ...]) as JSON. NaN and infinity are null in JSON; NaN, Infinity and -Infinity in CSV.

CSV is read with Python's csv module and JSONL with its json module, Parquet with pyarrow. DuckDB and Polars (a 170 MB runtime)
guess types and rewrite rows, so nothing could pass through; pyarrow's CSV reader loses a byte at some block boundaries.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from spin_native.disk import own_file
from spin_native.errors import InputError
from spin_native.tables.arrow_files import ArrowWriter, arrow_writer_for
from spin_native.tables.delimited import CsvSource, checked_delimiter
from spin_native.tables.files import FORMATS, Given, checked_encoding, ending_of, files_of, would_read
from spin_native.tables.jsonl import JsonlSource
from spin_native.tables.labels import SEPARATOR, checked_texts, label_set_rows, labelled_rows, text_columns
from spin_native.tables.source import Block, Source
from spin_native.tables.streams import arriving_lines
from spin_native.tables.writers import Writer, writer_for

BLOCK_ROWS = 8192
AnyWriter = TypeVar("AnyWriter", Writer, ArrowWriter)

__all__ = [
    "BLOCK_ROWS",
    "FORMATS",
    "SEPARATOR",
    "Block",
    "Given",
    "Source",
    "Writer",
    "arriving_lines",
    "check_output",
    "checked_texts",
    "open_arrow_writer",
    "open_source",
    "open_writer",
    "read_label_sets",
    "read_labelled",
    "text_columns",
]


def open_source(source: Given, *, delimiter: str | None = None, encoding: str | None = None) -> Source:
    """A table to read: a file, a folder, a glob, or a sequence of these, all of one format.

    The files of a folder or a glob are read in the order of their names.
    delimiter: what separates CSV cells, one character or "tab"; None: a tab in .tsv files, a comma in others.
    encoding: of CSV and JSONL files, as Python names it; None: UTF-8, with or without a byte order mark.
    Raises InputError for what is not there, for files of several or unknown formats, and for an option that does not fit them.
    """
    files = files_of(source)
    file_format = FORMATS[ending_of(files[0])]
    if file_format != "CSV" and delimiter is not None:
        raise InputError(f"{files[0]}: delimiter {delimiter!r} was given, but {file_format} has none; leave it out")
    if file_format == "Parquet":
        from spin_native.tables.parquet import ParquetSource

        if encoding is not None:
            raise InputError(f"{files[0]}: encoding {encoding!r} was given, but Parquet has none to choose; leave it out")
        return ParquetSource(files, source, BLOCK_ROWS)
    encoding = checked_encoding(encoding)
    if file_format == "JSONL":
        return JsonlSource(files, source, BLOCK_ROWS, encoding)
    return CsvSource(files, source, BLOCK_ROWS, checked_delimiter(delimiter, files[0]), encoding)


def read_labelled(
    source: Given,
    text: str,
    label: str,
    *,
    text_pair: str | None = None,
    labels_as: type | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> tuple[list[Any], list[Any]]:
    """All texts and labels of a table, in two lists of the same length.

    text, label: names of their columns. source, delimiter, encoding: as of `open_source`.
    text_pair: the column of second texts; each text of the list is then a pair, a tuple.
    labels_as: the type of the known labels: those of the classifier, or of the training rows. None: CSV labels are int if all
        are whole numbers as Python writes them (also 1.0, as pandas writes them in a column with gaps), else text as it is
        written. In JSONL and Parquet labels have their own types, but "7" is read as 7 where int is known, and 7 as "7" where
        str is; floats that are all whole are int unless labels_as is another type.
    Raises InputError, naming the row, for a missing text or label, for a text that is not a string, and for a CSV label that is
    not of this type; and as `open_source` and `Source.blocks` do.
    """
    return labelled_rows(open_source(source, delimiter=delimiter, encoding=encoding), text, label, labels_as, text_pair)


def read_label_sets(
    source: Given,
    text: str,
    labels: Sequence[str],
    *,
    text_pair: str | None = None,
    separator: str = SEPARATOR,
    labels_as: type | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> tuple[list[Any], list[list[Any]]]:
    """All texts of a table, and the list of labels of each.

    text_pair: the column of second texts; each text is then a pair of them, a tuple.
    labels: one column; each cell holds text with `separator` between the labels, or (in JSONL and Parquet) a list of labels.
        An empty text or list is no label; so is an empty cell of a CSV file, whether in quotes or not. Or several columns of 0
        and 1 (or true and false), each named as its label.
    labels_as: the type of the known labels, str or int. None: those of a CSV file are int if all of them are whole numbers as
        Python writes them; in JSONL and Parquet labels have their own types. With it, "7" is read as 7, or 7 as "7".
    Raises InputError, naming the row, for a missing text, a missing value of a typed file, a cell of another type, an empty
    label between separators, and a value of several columns that is no 0 or 1; and as `open_source` and `Source.blocks` do.
    """
    table = open_source(source, delimiter=delimiter, encoding=encoding)
    return label_set_rows(table, text, labels, separator, labels_as, text_pair)


def check_output(out: str | Path, overwrite: bool, source: Source | None = None) -> None:
    """InputError if a table may not be written here: its format is unknown, it exists, or it is part of `source`."""
    out = Path(out)
    ending_of(out)
    for path in () if source is None else source.files:
        if out.exists() and out.samefile(path):
            raise InputError(f"{out}: this output file is the input itself; choose another name")
    if source is not None and would_read(source.given, source.files, out):
        raise InputError(f"{out}: this output file would be part of the input {source.label}; choose another folder")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; expected the name of a file")
    if os.path.lexists(out) and not overwrite:
        raise InputError(f"{out}: already exists; choose another name, or allow it to be replaced (--overwrite)")


@contextmanager
def open_writer(out: str | Path, source: Source, new: Mapping[str, type], overwrite: bool = False) -> Iterator[Writer]:
    """A writer for the blocks of `source` with new columns, whose file appears under its name only when all of it is written.

    new: the names of the new columns, one or more, and the type of each: str, int, float or bool. Values may be None.
    JSONL that becomes CSV or Parquet is read once before, to know all its columns.
    Inside the `with` block the rows go to a hidden file of this run, which is deleted after an error. Of several runs into one
    output, the first to finish wins; with `overwrite`, the last.
    Raises InputError as check_output does; if the source already has one of the new columns; if the file cannot be written;
    and, without `overwrite`, if another run has written it in the meantime.
    """
    with _whole_file(out, overwrite, source, lambda out, partial: writer_for(out, partial, source, new)) as writer:
        yield writer


@contextmanager
def open_arrow_writer(out: str | Path, overwrite: bool = False) -> Iterator[ArrowWriter]:
    """A writer for pyarrow tables of one schema: a CSV, JSONL or Parquet file that appears when all of it is written.

    Raises InputError as `open_writer` does.
    """
    with _whole_file(out, overwrite, None, arrow_writer_for) as writer:
        yield writer


@contextmanager
def _whole_file(
    out: str | Path, overwrite: bool, source: Source | None, make: Callable[[Path, Path], AnyWriter]
) -> Iterator[AnyWriter]:
    """The writer that `make` makes of the output's name and of the name of this run's own file."""
    out = Path(out)
    check_output(out, overwrite, source)
    failed: BaseException | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: its folder could not be made ({error.strerror or error})") from error
    try:
        with own_file(out, overwrite) as partial:
            writer = make(out, partial)
            try:
                yield writer
            except BaseException as error:
                failed = error
                writer.abandon()
                raise
            writer.close()
    except OSError as error:
        if error is failed:  # not of writing
            raise
        raise InputError(f"{out}: could not be written ({error.strerror or error})") from error
