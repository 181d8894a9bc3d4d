"""`spin-native neurons`: a saved classifier -> its salient neurons and their weights."""

import json

import click

from spin_native.classifier.estimators import SpinClassifier, load_pretrained
from spin_native.cli import render
from spin_native.cli.options import as_json, base_option, pickle_option


@click.command()
@click.argument("classifier")
@click.option("--top", default=5, show_default=True, help="How many neurons to print per layer.")
@base_option
@pickle_option
@as_json
def neurons(classifier: str, top: int, base_model: str | None, allow_pickle: bool, as_json: bool) -> None:
    """List the salient neurons of a CLASSIFIER, layer by layer, with their weights.

    CLASSIFIER is a folder or a Hub name. Prints the neurons with the largest weights of every layer (with --json, all of them).
    A weight applies to the standardised activation of its neuron. Writes no file.
    """
    clf = load_pretrained(classifier, base_model=base_model, allow_pickle=allow_pickle)
    weights = clf.neuron_weights()
    if as_json:
        labels = clf.classes_.tolist() if isinstance(clf, SpinClassifier) else []
        click.echo(json.dumps({"labels": labels, "outputs": clf.output_names(), "neurons": weights}))
    else:
        click.echo(render.neurons(weights, clf.output_names(), top))
