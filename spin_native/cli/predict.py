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
from spin_native.classifier.exits import Exit
from spin_native.classifier.risk import is_answered
from spin_native.classifier.shift import ShiftWatch
from spin_native.cli.options import (
    as_json,
    base_option,
    delimiter_option,
    device_option,
    dtype_option,
    encoding_option,
    exit_option,
    file_path,
    one_pair,
    pair_column,
    pickle_option,
    separator_option,
    text_column,
    utf8_text,
)
from spin_native.errors import InputError
from spin_native.serving.predict import Predicted, abstention, predict_files
from spin_native.text.pairs import GivenText, parts
from spin_native.text.tokenizer import TruncationWarning

REJECTED = 3  # exit code: finished, but some rows had no text


@click.command()
@click.argument("classifier")
@click.argument("texts", nargs=-1, type=utf8_text)
@click.option("--in", "source", type=file_path, help="File of texts: CSV, JSONL or Parquet; or a folder, or a glob in quotes.")
@click.option("--out", type=file_path, help="File to write: the rows of --in with the predictions as new columns.")
@click.option("--overwrite", is_flag=True, help="Replace the file --out if it exists.")
@exit_option
@click.option("--abstain", is_flag=True, help="Answer only where the error promised by `calibrate --max-error` holds.")
@text_column
@pair_column
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
    abstain: bool,
    text: str,
    text_pair: str | None,
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
    it arrives. A classifier that was fitted on pairs takes two TEXTS: the first and the second text of one pair. A file (--in)
    is copied to another one (--out) with new columns: predicted_label and probability_<label>, or predicted_value; and
    exit_depth if texts can stop early. Several labels of one text are written with --separator between them. Rows without a
    text get empty columns, and the exit code is 3. With --abstain, texts that are not answered are printed as "-" (label null
    in JSON), or have an empty predicted_label and false in the column answered.
    """
    if bool(texts) == bool(source) or bool(source) != bool(out):
        raise click.UsageError("give either TEXTS, or --in FILE and --out FILE")
    if "-" in texts and len(texts) > 1:
        raise click.UsageError('"-" stands for the lines of standard input and cannot be given beside other texts')
    if texts and (overwrite or separator or delimiter is not None or (encoding is not None and texts != ("-",))):
        raise click.UsageError(
            "--overwrite, --separator, --delimiter and --encoding are for --in (--encoding also for -); leave them out"
        )
    if texts and text_pair is not None:
        raise click.UsageError("--text-pair names a column of --in; a classifier of pairs takes two TEXTS, one pair")
    if source and out:  # before the model is loaded
        table = tables.open_source(source, delimiter=delimiter, encoding=encoding)
        tables.check_output(out, overwrite, table)
        table.check(tables.text_columns(text, text_pair))
    clf = load_pretrained(classifier, base_model=base_model, dtype=dtype, device=device, allow_pickle=allow_pickle)
    if source and out:
        written = predict_files(
            clf,
            source,
            out,
            text=text,
            text_pair=text_pair,
            exit=exit_,
            abstain=abstain,
            overwrite=overwrite,
            separator=separator,
            delimiter=delimiter,
            encoding=encoding,
        )
        _report(written, source, tables.text_columns(text, text_pair))
        sys.exit(REJECTED if written.n_rejected else 0)
    rule = abstention(clf, abstain, exit_)
    if clf.pairs_:
        pair = one_pair(classifier, texts, ", or a file with two columns of texts (--in, --out, --text, --text-pair)")
        _report_unanswered(_print(clf, [pair], exit_, rule, as_json), 1)
    elif texts == ("-",):
        _print_lines(clf, encoding, exit_, rule, as_json)
    else:
        _report_unanswered(_print(clf, texts, exit_, rule, as_json), len(texts))


def _print(
    clf: SpinClassifier | SpinRegressor,
    texts: Sequence[GivenText],
    exit_: str | None,
    rule: Exit | None,
    as_json: bool,
    watch: ShiftWatch | None = None,
) -> int:
    """One line for each text or pair; how many were not answered.

    rule: the exit below whose confidence texts are not answered.
    """
    task, rows, n_unanswered = clf.task_, iter(texts), 0
    for outputs, depths in clf.output_blocks(texts, False, rule or exit_, watch):
        answered = [True] * len(outputs) if rule is None else is_answered(outputs, rule, task).tolist()
        n_unanswered += answered.count(False)
        for output, depth, is_given in zip(outputs, depths.tolist(), answered, strict=True):
            given = dict(zip(("text", "text_pair"), parts(next(rows)), strict=False))
            line = {**given, **task.described(output), "depth": depth}
            shown = task.shown(output)
            if rule is not None:
                answer = "labels" if "labels" in line else "label"
                line |= {answer: line[answer] if is_given else None, "answered": is_given}
                shown = shown if is_given else f"-\t{task.confidence(output[None])[0]:.4f}"
            click.echo(json.dumps(line, ensure_ascii=False) if as_json else "\t".join([shown, *given.values()]))
    return n_unanswered


def _print_lines(
    clf: SpinClassifier | SpinRegressor, encoding: str | None, exit_: str | None, rule: Exit | None, as_json: bool
) -> None:
    """One line for each line of standard input, as soon as it is there."""
    if sys.stdin is None:
        raise InputError("standard input is closed; give texts, or --in FILE and --out FILE")
    n_texts, n_unanswered, truncated_before, watch = 0, 0, clf.n_truncated_, clf.shift_watch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # one warning at the end
        for lines in tables.arriving_lines(cast(BufferedIOBase, sys.stdin.buffer), "standard input", encoding):
            n_unanswered += _print(clf, lines, exit_, rule, as_json, watch)
            n_texts += len(lines)
    if watch is not None:
        watch.finish()
    _report_unanswered(n_unanswered, n_texts)
    _warn_truncated(clf.n_truncated_ - truncated_before, n_texts)


def _report(written: Predicted, source: Path, columns: Sequence[str]) -> None:
    """What happened to the rows, on stderr."""
    named = " or ".join(map(repr, columns))
    for row in written.rejected_rows:
        click.echo(f"rejected: {source}: row {row} (the first is 0) has no text in column {named}", err=True)
    _warn_truncated(written.n_truncated, written.n_rows)
    _report_unanswered(written.n_unanswered, written.n_rows)
    rejected = f", {written.n_rejected} of them rejected" if written.n_rejected else ""
    click.echo(f"{written.n_rows} rows written to {written.out}{rejected}", err=True)


def _report_unanswered(n_unanswered: int, n_texts: int) -> None:
    if n_unanswered:
        click.echo(f"{n_unanswered} of {n_texts} texts were not answered", err=True)


def _warn_truncated(n_truncated: int, n_texts: int) -> None:
    if n_truncated:
        click.echo(f"warning: {n_truncated} of {n_texts} texts were longer than the base model can read and were cut", err=True)
