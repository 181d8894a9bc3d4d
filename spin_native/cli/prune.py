"""`spin-native prune`: a model and a file of texts -> a smaller checkpoint, its FFNs cut to their most important neurons."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import click
import numpy as np

import spin_native as sn
from spin_native import tables
from spin_native.analyses.pruning import ByLayer, activation_means, checked_share, read_importance
from spin_native.analyses.pruning import prune as pruned
from spin_native.cli.options import (
    delimiter_option,
    device_option,
    encoding_option,
    file_path,
    label_column,
    pickle_option,
    revision_option,
    text_column,
)
from spin_native.disk import check_new_folder
from spin_native.errors import InputError
from spin_native.features.extract import Extractor
from spin_native.features.store import FeatureKey, Features
from spin_native.models import Transformer
from spin_native.probes.importance import predictivity
from spin_native.text.tokenizer import Tokenizer

By = Literal["activation", "predictivity"]


class Layers(click.ParamType):
    """Layers as numbers and ranges separated by commas: 0,3-11 is 0, 3, 4, ... 11."""

    name = "layers"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "LAYER|FIRST-LAST,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[range]:
        ranges = []
        for part in value.split(","):
            match = re.fullmatch(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*", part)
            if match is None:
                self.fail(f"{part!r} is no layer and no range of layers such as 3-11", param, ctx)
            ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
            if not ranges[-1]:
                self.fail(f"{part!r} runs backwards", param, ctx)
        return ranges


@click.command()
@click.argument("model")
@click.option("--data", type=file_path, required=True, help="CSV, JSONL or Parquet file of texts, to measure activations on.")
@text_column
@label_column
@delimiter_option
@encoding_option
@click.option("--keep", type=float, required=True, help="Share of each layer's neurons to keep, such as 0.02.")
@click.option("--layers", type=Layers(), help="Layers to prune, such as 3-11 or 0,2,4.  [default: all]")
@click.option(
    "--by",
    type=click.Choice(get_args(By)),
    help="What makes a neuron important: its mean absolute activation, or how well it predicts --label.  [default: activation]",
)
@click.option("--importance", type=file_path, help="Table of neurons (columns layer, neuron, importance) instead of --by.")
@click.option("--column", default="importance", show_default=True, help="Column of --importance that holds the importance.")
@click.option("--out", type=file_path, required=True, help="New folder for the smaller model.")
@click.option("--pad", is_flag=True, help="Fill all layers to one width with zero weights, so that transformers can load it.")
@revision_option
@device_option
@pickle_option
def prune(
    model: str,
    data: Path,
    text: str,
    label: str,
    delimiter: str | None,
    encoding: str | None,
    keep: float,
    layers: list[range] | None,
    by: By | None,
    importance: Path | None,
    column: str,
    out: Path,
    pad: bool,
    revision: str | None,
    device: str,
    allow_pickle: bool,
) -> None:
    """Cut MODEL's feed-forward networks to their most important neurons, and save the smaller model.

    MODEL is a folder or a Hub name. A dropped neuron is replaced by its mean activation on the texts of --data. Writes a folder
    (--out) that spin-native loads like any model. transformers loads it if all layers have one width: prune all layers, or
    give --pad.
    """
    if by is not None and importance is not None:
        raise InputError("--by and --importance both say which neurons are important; give one of them")
    checked_share(keep)
    check_new_folder(out)
    labels = None
    if by == "predictivity":
        texts, labels = tables.read_labelled(data, text, label, delimiter=delimiter, encoding=encoding)
    else:
        source = tables.open_source(data, delimiter=delimiter, encoding=encoding)
        texts = [one for block in source.blocks([text]) for one in tables.checked_texts(block, text)]
    loaded = sn.load_model(model, device=device, revision=revision, allow_pickle=allow_pickle)
    tokenizer = sn.load_tokenizer(model, revision=revision)
    listed = None if importance is None else read_importance(importance, loaded, column=column)
    chosen = sorted(listed) if listed is not None and layers is None else chosen_layers(layers, loaded)
    if listed is not None and (missing := [layer for layer in chosen if layer not in listed]):
        raise InputError(f"{importance}: lists no neuron of layer {missing[0]}; leave it out of --layers, or list its neurons")
    mean, measured = means_and_importance(loaded, tokenizer, texts, labels, chosen)
    values = measured if listed is None else {layer: listed[layer] for layer in chosen}
    result = pruned(loaded, importance=values, share=keep, mean=mean, tokenizer=tokenizer, out=out, pad=pad)
    n_before = sum(loaded.width("activation", layer) for layer in range(loaded.depth))
    n_after = n_before - sum(loaded.width("activation", layer) - len(neurons) for layer, neurons in result.kept.items())
    click.echo(f"{n_after} of {n_before} neurons kept, {len(result.kept)} layers pruned: {out}", err=True)


def chosen_layers(ranges: list[range] | None, model: Transformer) -> list[int]:
    """The layers to prune, ascending; InputError for one that the model does not have."""
    if ranges is None:
        return list(range(model.depth))
    last = max(layers[-1] for layers in ranges)
    if last >= model.depth:
        raise InputError(f"--layers: no layer {last}; the model has layers 0 to {model.depth - 1}")
    return sorted({layer for layers in ranges for layer in layers})


def means_and_importance(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], labels: Sequence[Any] | None, layers: Sequence[int]
) -> tuple[ByLayer | Features, ByLayer]:
    """The mean of each neuron and its importance: its mean absolute activation, or with labels its predictivity."""
    if labels is None:
        measured = activation_means(model, tokenizer, texts, layers=layers)
        return measured.mean, measured.absolute
    names, classes = np.unique([str(label) for label in labels], return_inverse=True)
    if len(names) < 2:
        raise InputError(f"labels: all rows have the label {str(names[0])!r}; expected two or more classes")
    features = Extractor(model, tokenizer, {FeatureKey("activation", "mean", layer): None for layer in layers}).run(texts)
    arrays = ((layer, features.array(site="activation", pooling="mean", layer=layer)) for layer in layers)
    return features, {layer: predictivity(array, classes) for layer, array in arrays}
