"""`spin-native explain`: a saved classifier and texts -> what each word and each neuron added to the answer."""

import json
import os
import sys
from collections.abc import Sequence

import click

from spin_native.classifier.estimators import load_pretrained
from spin_native.cli.options import as_json, base_option, device_option, dtype_option, one_pair, pickle_option, utf8_text
from spin_native.text.pairs import Text


@click.command()
@click.argument("classifier")
@click.argument("texts", nargs=-1, type=utf8_text, required=True)
@click.option("--neurons", type=click.IntRange(1), default=5, show_default=True, help="How many neurons to print per text.")
@dtype_option
@base_option
@device_option
@pickle_option
@as_json
def explain(
    classifier: str,
    texts: tuple[str, ...],
    neurons: int,
    base_model: str | None,
    dtype: str | None,
    device: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Show which words of TEXTS, and which neurons, speak for the answer of a saved CLASSIFIER.

    CLASSIFIER is a folder or a Hub name. In a terminal the words that speak for the answer are red, those that speak against it
    blue; elsewhere, and where NO_COLOR is set, each word has a line with what it adds. What the words, the special tokens and
    the bias add is the logit of the predicted class, or the value. Below are the neurons that added most, with the numbers
    (from 0) of the training rows in which they are largest and smallest. With --json, one JSON object per text. The answer is
    that of the deepest head, also where `predict` lets a text stop earlier. A classifier that was fitted on pairs takes two
    TEXTS: the first and the second text of one pair. Writes no file.
    """
    clf = load_pretrained(classifier, base_model=base_model, dtype=dtype, device=device, allow_pickle=allow_pickle)
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    rows: Sequence[Text] = [one_pair(classifier, texts)] if clf.pairs_ else texts
    for number, text in enumerate(rows):
        explained = clf.explain(text, neurons)
        if as_json:
            click.echo(json.dumps(explained.to_dict(), ensure_ascii=False))
        else:
            click.echo("\n" * (number > 0) + explained.shown(color), color=color)
