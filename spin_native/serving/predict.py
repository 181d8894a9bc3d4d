"""Predict a whole file: table in, table with the predictions out, block by block."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from spin_native import tables
from spin_native.classifier.estimators import SpinClassifier, SpinRegressor
from spin_native.classifier.exits import Exit
from spin_native.classifier.tasks import LabelSets, Task
from spin_native.errors import InputError
from spin_native.given import is_unicode
from spin_native.text.tokenizer import TruncationWarning

LABEL = "predicted_label"
ColumnsOf = Callable[[np.ndarray], dict[str, np.ndarray]]
LISTED_ROWS = 5  # how many rejected rows are listed by number


@dataclass(frozen=True)
class Predicted:
    """What `predict_files` wrote.

    out: the file. n_rows: rows written. n_rejected: rows without a text, whose new columns are empty. rejected_rows: numbers of
    the first of them (0 is the first row of all files together). n_truncated: texts that the base model could not read to
    their end.
    """

    out: Path
    n_rows: int
    n_rejected: int
    rejected_rows: tuple[int, ...]
    n_truncated: int


def predict_files(
    clf: SpinClassifier | SpinRegressor,
    source: tables.Given,
    out: str | Path,
    *,
    text: str = "text",
    exit: str | Exit | None = None,
    overwrite: bool = False,
    separator: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    progress: bool | None = None,
) -> Predicted:
    """Write the rows of `source` to `out`, with the classifier's predictions as new columns.

    The files are CSV, JSONL or Parquet, by the ending of their names (also .tsv, and .csv.gz and .jsonl.gz); `source` may be a
    folder, a glob or a sequence of files of one format. A classifier adds `predicted_label` and one `probability_<label>` per
    class or label, a regressor adds `predicted_value`; if rows can stop at different depths, `exit_depth` is added, too. All
    other columns are copied as they are (see `spin_native.tables`). The rows are streamed: memory does not grow with the file.

    text: the column that holds the texts. A row without a text (also a number, or half a character) is rejected: its new
        columns are empty.
    exit: when a row stops, such as "fixed:4", "confidence:0.9" or "patience:2" (see Exit); None: as saved in the classifier.
    overwrite: replace `out` if it exists. It is replaced only after all rows are predicted; an error leaves it as it was.
    separator: between the labels in `predicted_label` where a text has several ("" stands for none); None: "|". InputError for
        a classifier that gives one label, and for a label that holds the separator.
    delimiter: of CSV cells in `source`, one character or "tab". encoding: of CSV and JSONL files (None: UTF-8).
    progress: show a bar on stderr (None: only on a terminal).

    Raises InputError if `source` cannot be read, has no column `text` or already has one of the new columns, and if `out` is
    one of the files of `source`, exists (without `overwrite`), was written by another run meanwhile, or cannot be written.
    """
    table, out = tables.open_source(source, delimiter=delimiter, encoding=encoding), Path(out)
    tables.check_output(out, overwrite, table)
    table.check([text])
    new_columns_of = _columns_of(clf.task_, separator)
    chosen = Exit.of(clf.exit_ if exit is None else exit)
    truncated_before = clf.n_truncated_
    n_rows = n_rejected = 0
    rejected_rows: list[int] = []
    with (
        tables.open_writer(out, table, _new_types(clf, new_columns_of, chosen), overwrite) as writer,
        tqdm(unit=" rows", disable=None if progress is None else not progress) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", TruncationWarning)  # counted in the result, instead of one warning per block
        for block in table.blocks([text]):
            texts = block.values(text)
            is_usable = [_is_text(value) for value in texts]
            writer.write(block, _new_columns(clf, new_columns_of, texts, np.flatnonzero(is_usable).tolist(), chosen))
            rejected = [row for row, usable in enumerate(is_usable, n_rows) if not usable]
            rejected_rows += rejected[: LISTED_ROWS - len(rejected_rows)]
            n_rejected += len(rejected)
            n_rows += block.n_rows
            bar.update(block.n_rows)
    return Predicted(out, n_rows, n_rejected, tuple(rejected_rows), clf.n_truncated_ - truncated_before)


def _is_text(value: object) -> bool:
    """Half a character (a lone surrogate) has no tokens."""
    return isinstance(value, str) and (value.isascii() or is_unicode(value))


def _columns_of(task: Task, separator: str | None) -> ColumnsOf:
    """How outputs become columns; InputError for a separator that nothing would use."""
    if separator is None:
        return task.columns
    if not isinstance(task, LabelSets):
        raise InputError(f"separator {separator!r} is for several labels per text, and this is a {task.name}; leave it out")
    return partial(task.columns, separator=separator)


def _new_types(clf: SpinClassifier | SpinRegressor, columns_of: ColumnsOf, exit_: Exit) -> dict[str, type]:
    """The names of the new columns, and the types of their values."""
    columns = columns_of(np.empty((0, clf.task_.n_outputs)))
    types = {name: clf.task_.written_type if name == LABEL else float for name in columns}
    return types if exit_.by == "fixed" else {**types, "exit_depth": int}


def _new_columns(
    clf: SpinClassifier | SpinRegressor, columns_of: ColumnsOf, texts: Sequence[Any], usable: Sequence[int], exit_: Exit
) -> dict[str, list[Any]]:
    """The values to add to one block of rows: of the usable rows the predictions, of the others None."""
    columns: dict[str, list[Any]] = {name: [None] * len(texts) for name in _new_types(clf, columns_of, exit_)}
    position = 0
    for outputs, depths in clf.output_blocks([texts[row] for row in usable], False, exit_) if usable else ():
        rows = usable[position : position + len(outputs)]
        position += len(outputs)
        for name, values in {**columns_of(outputs), "exit_depth": depths}.items():
            if name in columns:
                for row, value in zip(rows, values.tolist(), strict=True):
                    columns[name][row] = value
    return columns
