"""Predict a whole file: table in, table with the predictions out, block by block."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from spin_native import tables
from spin_native.classifier.estimators import SpinClassifier, SpinRegressor
from spin_native.classifier.exits import Exit
from spin_native.classifier.risk import answered_only, is_answered
from spin_native.classifier.shift import ShiftWatch
from spin_native.classifier.tasks import LabelSets, Task
from spin_native.errors import InputError
from spin_native.given import is_unicode
from spin_native.text.tokenizer import TruncationWarning

LABEL, ANSWERED = "predicted_label", "answered"
ColumnsOf = Callable[[np.ndarray], dict[str, np.ndarray]]
LISTED_ROWS = 5  # how many rejected rows are listed by number


@dataclass(frozen=True)
class Predicted:
    """What `predict_files` wrote.

    out: the file. n_rows: rows written. n_rejected: rows without a text, whose new columns are empty. rejected_rows: numbers of
    the first of them (0 is the first row of all files together). n_truncated: texts that the base model could not read to
    their end. n_unanswered: rows with a text whose label is empty, because the classifier abstained. n_shifted: texts in blocks
    of about 10,000 that differ from the texts of the fit (see ShiftWarning).
    """

    out: Path
    n_rows: int
    n_rejected: int
    rejected_rows: tuple[int, ...]
    n_truncated: int
    n_unanswered: int = 0
    n_shifted: int = 0


def predict_files(
    clf: SpinClassifier | SpinRegressor,
    source: tables.Given,
    out: str | Path,
    *,
    text: str = "text",
    text_pair: str | None = None,
    exit: str | Exit | None = None,
    abstain: bool | float | None = None,
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
    text_pair: for a classifier that was fitted on pairs the column of their second texts. A row without one of its two texts is
        rejected.
    exit: when a row stops, such as "fixed:4", "confidence:0.9" or "patience:2" (see Exit); None: as saved in the classifier.
    abstain: True, or the largest error to accept: answer only where the promise of calibrate(max_error=...) holds. The label of
        other rows is empty, their probabilities stay; the column `answered` tells them apart.
    overwrite: replace `out` if it exists. It is replaced only after all rows are predicted; an error leaves it as it was.
    separator: between the labels in `predicted_label` where a text has several ("" stands for none); None: "|". InputError for
        a classifier that gives one label, and for a label that holds the separator.
    delimiter: of CSV cells in `source`, one character or "tab". encoding: of CSV and JSONL files (None: UTF-8).
    progress: show a bar on stderr (None: only on a terminal).

    Raises InputError if `source` cannot be read, has no column `text` or `text_pair`, or already has one of the new columns; if
    `out` is one of the files of `source`, exists (without `overwrite`), was written by another run meanwhile, or cannot be
    written; if `text_pair` is missing for a classifier of pairs, or given for one of single texts; and for `abstain` without
    such a promise. ShiftWarning if texts differ from those of the fit.
    """
    table, out = tables.open_source(source, delimiter=delimiter, encoding=encoding), Path(out)
    tables.check_output(out, overwrite, table)
    columns = tables.text_columns(text, text_pair)
    table.check(columns)
    check_columns(clf, text_pair)
    rule = abstention(clf, abstain, exit)
    new = _NewColumns(clf, _columns_of(clf.task_, separator), rule or Exit.of(clf.exit_ if exit is None else exit), rule)
    truncated_before, watch = clf.n_truncated_, clf.shift_watch()
    n_rows = n_rejected = n_unanswered = 0
    rejected_rows: list[int] = []
    with (
        tables.open_writer(out, table, new.types, overwrite) as writer,
        tqdm(unit=" rows", disable=None if progress is None else not progress) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", TruncationWarning)  # counted in the result, instead of one warning per block
        for block in table.blocks(columns):
            parts = [block.values(column) for column in columns]
            texts = parts[0] if text_pair is None else list(zip(*parts, strict=True))
            is_usable = [all(map(_is_text, row)) for row in zip(*parts, strict=True)]
            added = new.of(texts, np.flatnonzero(is_usable).tolist(), watch)
            writer.write(block, added)
            n_unanswered += added.get(ANSWERED, []).count(False)
            rejected = [row for row, usable in enumerate(is_usable, n_rows) if not usable]
            rejected_rows += rejected[: LISTED_ROWS - len(rejected_rows)]
            n_rejected += len(rejected)
            n_rows += block.n_rows
            bar.update(block.n_rows)
    if watch is not None:
        watch.finish()
    n_truncated, n_shifted = clf.n_truncated_ - truncated_before, 0 if watch is None else watch.n_shifted
    return Predicted(out, n_rows, n_rejected, tuple(rejected_rows), n_truncated, n_unanswered, n_shifted)


def abstention(clf: SpinClassifier | SpinRegressor, abstain: bool | float | None, exit_: str | Exit | None) -> Exit | None:
    """The exit below whose confidence rows are not answered, if any; InputError for a regressor, and as of its method."""
    if isinstance(clf, SpinClassifier):
        return clf.abstention(abstain, exit_)
    if abstain:
        raise InputError("abstain: a regressor gives a value for every text; leave it out")
    return None


def check_columns(clf: SpinClassifier | SpinRegressor, text_pair: str | None) -> None:
    """InputError unless a column of second texts is named for a classifier of pairs, and none for one of single texts."""
    if clf.pairs_ and text_pair is None:
        raise InputError("the classifier was fitted on pairs of texts: name the column of the second texts (--text-pair)")
    if not clf.pairs_ and text_pair is not None:
        raise InputError(
            f"the classifier was fitted on single texts, but {text_pair!r} is named as the column of second texts: leave it out"
        )


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


@dataclass(frozen=True)
class _NewColumns:
    """The columns that predictions add to a table.

    columns_of: how outputs become columns. exit: when a row stops. rule: the exit below whose confidence rows are not answered;
    None: all rows are answered.
    """

    clf: SpinClassifier | SpinRegressor
    columns_of: ColumnsOf
    exit: Exit
    rule: Exit | None

    @cached_property
    def types(self) -> dict[str, type]:
        """The names of the new columns, and the types of their values."""
        task = self.clf.task_
        columns = self.columns_of(np.empty((0, task.n_outputs)))
        types = {name: task.written_type if name == LABEL else float for name in columns}
        types |= {} if self.exit.by == "fixed" else {"exit_depth": int}
        return types if self.rule is None else {**types, ANSWERED: bool}

    def of(self, texts: Sequence[Any], usable: Sequence[int], watch: ShiftWatch | None) -> dict[str, list[Any]]:
        """The values to add to one block of rows: of the usable rows the predictions, of the others None."""
        columns: dict[str, list[Any]] = {name: [None] * len(texts) for name in self.types}
        position = 0
        blocks = self.clf.output_blocks([texts[row] for row in usable], False, self.exit, watch) if usable else ()
        for outputs, depths in blocks:
            rows = usable[position : position + len(outputs)]
            position += len(outputs)
            new = {**self.columns_of(outputs), "exit_depth": depths}
            if self.rule is not None:
                new[ANSWERED] = is_answered(outputs, self.rule, self.clf.task_)
                new[LABEL] = answered_only(new[LABEL], new[ANSWERED])
            for name, values in new.items():
                if name in columns:
                    for row, value in zip(rows, values.tolist(), strict=True):
                        columns[name][row] = value
        return columns
