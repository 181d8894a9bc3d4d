"""`spin-native predict`: texts on the command line, or a file of them -> labels or values."""

import json
import sys
import warnings
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import click

from spin_native import tables
from spin_native.classifier.estimators import SpinClassifier, SpinRegressor, load_pretrained
from spin_native.cli.options import (
    as_json,
    base_option,
    delimiter_option,
    device_option,
    dtype_option,
    encoding_option,
    exit_option,
    file_path,
    pickle_option,
    separator_option,
    text_column,
    utf8_text,
)
from spin_native.errors import InputError
from spin_native.serving.predict import Predicted, predict_files
from spin_native.text.tokenizer import TruncationWarning

REJECTED = 3  # exit code: finished, but some rows had no text


@click.command()
@click.argument("classifier")
@click.argument("texts", nargs=-1, type=utf8_text)
@click.option("--in", "source", type=file_path, help="File of texts: CSV, JSONL or Parquet; or a folder, or a glob in quotes.")
@click.option("--out", type=file_path, help="File to write: the rows of --in with the predictions as new columns.")
@click.option("--overwrite", is_flag=True, help="Replace the file --out if it exists.")
@exit_option
@text_column
@separator_option
@delimiter_option
@encoding_option
@dtype_option
@base_option
@device_option
@pickle_option
@as_json
def predict(
    classifier: str,
    texts: tuple[str, ...],
    source: Path | None,
    out: Path | None,
    overwrite: bool,
    exit_: str | None,
    text: str,
    separator: str | None,
    delimiter: str | None,
    encoding: str | None,
    base_model: str | None,
    dtype: str | None,
    device: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Label TEXTS, or the rows of a file, with a saved CLASSIFIER. A regressor estimates a value instead.

    CLASSIFIER is a folder or a Hub name. TEXTS are printed with their label and its probability, one line each (with --json, as
    one JSON object each). If TEXTS is "-", each line of standard input is a text (an empty line is an empty text), labelled as
    it arrives. A file (--in) is copied to another one (--out) with new columns: predicted_label and probability_<label>, or
    predicted_value; and exit_depth if texts can stop early. Several labels of one text are written with --separator between
    them. Rows without a text get empty columns, and the exit code is 3.
    """
    if bool(texts) == bool(source) or bool(source) != bool(out):
        raise click.UsageError("give either TEXTS, or --in FILE and --out FILE")
    if "-" in texts and len(texts) > 1:
        raise click.UsageError('"-" stands for the lines of standard input and cannot be given beside other texts')
    if texts and (overwrite or separator or delimiter is not None or (encoding is not None and texts != ("-",))):
        raise click.UsageError(
            "--overwrite, --separator, --delimiter and --encoding are for --in (--encoding also for -); leave them out"
        )
    if source and out:  # before the model is loaded
        table = tables.open_source(source, delimiter=delimiter, encoding=encoding)
        tables.check_output(out, overwrite, table)
        table.check([text])
    clf = load_pretrained(classifier, base_model=base_model, dtype=dtype, device=device, allow_pickle=allow_pickle)
    if source and out:
        written = predict_files(
            clf,
            source,
            out,
            text=text,
            exit=exit_,
            overwrite=overwrite,
            separator=separator,
            delimiter=delimiter,
            encoding=encoding,
        )
        _report(written, source, text)
        sys.exit(REJECTED if written.n_rejected else 0)
    if texts == ("-",):
        _print_lines(clf, encoding, exit_, as_json)
    else:
        _print(clf, texts, exit_, as_json)


def _print(clf: SpinClassifier | SpinRegressor, texts: Sequence[str], exit_: str | None, as_json: bool) -> None:
    """One line for each text."""
    task, rows = clf.task_, iter(texts)
    for outputs, depths in clf.output_blocks(texts, False, exit_):
        for output, depth in zip(outputs, depths.tolist(), strict=True):
            line = {"text": next(rows), **task.described(output), "depth": depth}
            click.echo(json.dumps(line, ensure_ascii=False) if as_json else f"{task.shown(output)}\t{line['text']}")


def _print_lines(clf: SpinClassifier | SpinRegressor, encoding: str | None, exit_: str | None, as_json: bool) -> None:
    """One line for each line of standard input, as soon as it is there."""
    if sys.stdin is None:
        raise InputError("standard input is closed; give texts, or --in FILE and --out FILE")
    n_texts, truncated_before = 0, clf.n_truncated_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # one warning at the end
        for lines in tables.arriving_lines(cast(BufferedIOBase, sys.stdin.buffer), "standard input", encoding):
            _print(clf, lines, exit_, as_json)
            n_texts += len(lines)
    _warn_truncated(clf.n_truncated_ - truncated_before, n_texts)


def _report(written: Predicted, source: Path, text: str) -> None:
    """What happened to the rows, on stderr."""
    for row in written.rejected_rows:
        click.echo(f"rejected: {source}: row {row} (the first is 0) has no text in column {text!r}", err=True)
    _warn_truncated(written.n_truncated, written.n_rows)
    rejected = f", {written.n_rejected} of them rejected" if written.n_rejected else ""
    click.echo(f"{written.n_rows} rows written to {written.out}{rejected}", err=True)


def _warn_truncated(n_truncated: int, n_texts: int) -> None:
    if n_truncated:
        click.echo(f"warning: {n_truncated} of {n_texts} texts were longer than the base model can read and were cut", err=True)
