"""`spin-native calibrate`: labelled rows -> when a text may stop early."""

import json
from pathlib import Path
from typing import Literal

import click

import spin_native as sn
from spin_native.classifier.estimators import load_pretrained
from spin_native.classifier.risk import ErrorPromise
from spin_native.cli.labelled import LabelledFiles
from spin_native.cli.options import (
    as_json,
    base_option,
    delimiter_option,
    device_option,
    encoding_option,
    file_path,
    label_column,
    pair_column,
    pickle_option,
    separator_option,
    text_column,
)
from spin_native.errors import InputError
from spin_native.serving.predict import check_columns


@click.command()
@click.argument("classifier")
@click.argument("data", type=file_path)
@text_column
@pair_column
@label_column
@separator_option
@delimiter_option
@encoding_option
@click.option("--max-accuracy-drop", type=float, help="Largest loss of accuracy against the deepest head (default 0.01).")
@click.option("--max-error", type=float, help="Instead: largest share of wrong answers among the texts that are answered.")
@click.option("--confidence", default=0.95, show_default=True, help="Probability that this bound holds.")
@click.option(
    "--by",
    type=click.Choice(["confidence", "patience"]),
    default="confidence",
    show_default=True,
    help="Stop when the most probable class is probable enough, or when several heads agree.",
)
@base_option
@device_option
@pickle_option
@as_json
def calibrate(
    classifier: str,
    data: Path,
    text: str,
    text_pair: str | None,
    label: str,
    separator: str | None,
    delimiter: str | None,
    encoding: str | None,
    max_accuracy_drop: float | None,
    max_error: float | None,
    confidence: float,
    by: Literal["confidence", "patience"],
    base_model: str | None,
    device: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Let easy texts stop at an early layer, with a bound on the accuracy that this costs.

    Reads the folder CLASSIFIER, fitted with --exits, and DATA: a CSV, JSONL or Parquet file (or a folder of them, or a glob in
    quotes) of labelled texts that `fit` did not see. Prints the rule it chose and saves it in the folder, where `predict` uses
    it. With --max-error, texts that no head is confident enough about are not answered (`predict --abstain`), and the bound is
    on the error among the others; --exits are then not needed. With several labels per text, an answer is right where the whole
    set of labels is right.
    """
    if not Path(classifier).is_dir():
        raise InputError(f"{classifier}: not a folder; calibrate changes the classifier, so save it to a folder first")
    labelled = LabelledFiles(text, label, separator, delimiter, encoding, text_pair)
    labelled.check(data)  # before the model is loaded
    clf = load_pretrained(classifier, base_model=base_model, device=device, allow_pickle=allow_pickle)
    if not isinstance(clf, sn.SpinClassifier):
        raise InputError(f"{classifier}: its task is {clf.task!r}, where no text stops early; expected a classifier")
    check_columns(clf, text_pair)
    texts, labels = labelled.read(data, clf.task, clf.task_.label_type)
    clf.calibrate(texts, labels, max_accuracy_drop=max_accuracy_drop, max_error=max_error, confidence=confidence, by=by)
    clf.save_pretrained(classifier)
    promise = clf.promise_
    assert promise is not None
    if as_json:
        click.echo(json.dumps({**vars(promise), "exit": str(promise.exit)}))
        return
    if isinstance(promise, ErrorPromise):
        click.echo(
            f"exit {promise.exit}: {promise.mean_depth:.2f} of {clf.depth_} layers per text; of {promise.n_texts} different "
            f"texts that were tested, {promise.n_answered} are answered, {promise.n_wrong} of them wrongly; with confidence "
            f"{confidence:g}, at most {max_error:g} of the answers of predict --abstain are wrong"
        )
        return
    repeated = "" if promise.n_texts in (None, promise.n_rows) else f" ({promise.n_texts} different texts)"
    click.echo(
        f"exit {promise.exit}: {promise.mean_depth:.2f} of {clf.depth_} layers per text; of {promise.n_rows} rows{repeated}, "
        f"{promise.n_harmed} were right at the deepest head and are wrong now; with confidence {confidence:g}, accuracy drops "
        f"by at most {promise.max_accuracy_drop:g}"
    )
