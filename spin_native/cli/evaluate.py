"""`spin-native evaluate`: a saved classifier and labelled rows -> scores."""

import json
from pathlib import Path

import click
import numpy as np

from spin_native.classifier.estimators import load_pretrained
from spin_native.cli import render
from spin_native.cli.labelled import LabelledFiles
from spin_native.cli.options import (
    as_json,
    base_option,
    delimiter_option,
    device_option,
    dtype_option,
    encoding_option,
    exit_option,
    file_path,
    label_column,
    pair_column,
    pickle_option,
    separator_option,
    text_column,
)
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
@exit_option
@dtype_option
@base_option
@device_option
@pickle_option
@as_json
def evaluate(
    classifier: str,
    data: Path,
    text: str,
    text_pair: str | None,
    label: str,
    separator: str | None,
    delimiter: str | None,
    encoding: str | None,
    exit_: str | None,
    base_model: str | None,
    dtype: str | None,
    device: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Score a saved CLASSIFIER on the labelled texts in DATA.

    CLASSIFIER is a folder or a Hub name, DATA a CSV, JSONL or Parquet file (or a folder of them, or a glob in quotes). Prints
    accuracy, macro-F1, how far off the probabilities are (expected calibration error, log-loss) and the confusion matrix;
    --json adds the reliability of the probabilities in 15 bins. For several labels per text micro-F1, macro-F1, the share of
    the texts whose whole set is right, the label ranking average precision, and precision, recall and F1 of each label; for a
    regressor Pearson and Spearman correlation, mean squared and mean absolute error. Writes no file.
    """
    labelled = LabelledFiles(text, label, separator, delimiter, encoding, text_pair)
    labelled.check(data)  # before the model is loaded
    clf = load_pretrained(classifier, base_model=base_model, dtype=dtype, device=device, allow_pickle=allow_pickle)
    check_columns(clf, text_pair)
    texts, labels = labelled.read(data, clf.task, clf.task_.label_type)
    clf.task_.encode(labels, len(texts), str(data))  # refuse unusable labels before the model runs
    outputs = np.concatenate([outputs for outputs, _ in clf.output_blocks(texts, False, exit_)])
    result = clf.task_.evaluate(outputs, labels, str(data))
    click.echo(json.dumps(result, ensure_ascii=False) if as_json else render.scores(result))
