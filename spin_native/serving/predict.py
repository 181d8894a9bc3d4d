"""Predict a whole file: table in, table with the predictions out, block by block."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from spin_native import tables
from spin_native.classifier.estimators import SpinClassifier, SpinRegressor
from spin_native.classifier.exits import Exit
from spin_native.errors import InputError
from spin_native.text.tokenizer import TruncationWarning

LISTED_ROWS = 5  # how many rejected rows are listed by number


@dataclass(frozen=True)
class Predicted:
    """What `predict_files` wrote.

    out: the file. n_rows: rows written. n_rejected: rows without a text, whose new columns are empty. rejected_rows: numbers of
    the first of them (the file's first row is 0). n_truncated: texts that the base model could not read to their end.
    """

    out: Path
    n_rows: int
    n_rejected: int
    rejected_rows: tuple[int, ...]
    n_truncated: int


def predict_files(
    clf: SpinClassifier | SpinRegressor,
    source: str | Path,
    out: str | Path,
    *,
    text: str = "text",
    exit: str | Exit | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Predicted:
    """Write the rows of `source` to `out`, with the classifier's predictions as new columns.

    The files are CSV, JSONL or Parquet, by the ending of their names. A classifier adds `predicted_label` and one
    `probability_<label>` per class, a regressor adds `predicted_value`; if rows can stop at different depths, `exit_depth` is
    added, too. All other columns are copied. The rows are streamed: memory does not grow with the file.

    text: the column that holds the texts. A row without a text is rejected: its new columns are empty.
    exit: when a row stops, such as "fixed:4", "confidence:0.9" or "patience:2" (see Exit); None: as saved in the classifier.
    overwrite: replace `out` if it exists. It is replaced only after all rows are predicted; an error leaves it as it was.
    progress: show a bar on stderr (None: only on a terminal).

    Raises InputError if `source` cannot be read, has no column `text` or already has one of the new columns, and if `out` is
    `source`, exists (without `overwrite`) or cannot be written.
    """
    source, out = Path(source), Path(out)
    check_paths(source, out, overwrite)
    chosen = clf.exit_ if exit is None else Exit.parse(exit) if isinstance(exit, str) else exit
    truncated_before = clf.n_truncated_
    n_rows = n_rejected = 0
    rejected_rows: list[int] = []
    with (
        tables.open_writer(out, overwrite) as writer,
        tqdm(unit=" rows", disable=None if progress is None else not progress) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", TruncationWarning)  # counted in the result, instead of one warning per block
        for block in tables.read_blocks(source, [text]):
            texts = block[text].to_pylist()
            rejected = [row for row, value in enumerate(texts, n_rows) if not isinstance(value, str)]
            for name, column in _new_columns(clf, texts, chosen).items():
                if name in block.column_names:
                    raise InputError(f"{source}: already has a column {name!r}; rename that column first")
                block = block.append_column(name, column)
            writer.write(block)
            rejected_rows += rejected[: LISTED_ROWS - len(rejected_rows)]
            n_rejected += len(rejected)
            n_rows += len(texts)
            bar.update(len(texts))
    return Predicted(out, n_rows, n_rejected, tuple(rejected_rows), clf.n_truncated_ - truncated_before)


def check_paths(source: Path, out: Path, overwrite: bool) -> None:
    """InputError if `out` may not be written: it is `source` itself, it exists already, or its kind of file is unknown."""
    if out.exists() and source.exists() and out.samefile(source):
        raise InputError(f"{out}: this output file is the input itself; choose another name")
    tables.check_output(out, overwrite)


def _new_columns(clf: SpinClassifier | SpinRegressor, texts: Sequence[Any], exit_: Exit) -> dict[str, pa.Array]:
    """The columns to add to one block of rows; rows whose text is not a str get nulls."""
    usable = [row for row, value in enumerate(texts) if isinstance(value, str)]
    outputs_and_depths = list(clf.output_blocks([texts[row] for row in usable], False, exit_)) if usable else []
    # A block without any usable row still needs the columns' names and types.
    nothing = np.empty((0, clf.task_.n_outputs)), np.empty(0, dtype=np.int64)
    outputs, depths = (np.concatenate(parts) for parts in zip(nothing, *outputs_and_depths, strict=True))
    columns = clf.task_.columns(outputs)
    if exit_.by != "fixed":
        columns["exit_depth"] = depths
    position = np.full(len(texts), -1)  # of each row among the usable ones
    position[usable] = np.arange(len(usable))
    positions = pa.array(position, mask=position < 0)
    return {name: pa.array(values).take(positions) for name, values in columns.items()}
