"""`spin-native skill-neurons`: a base model and labelled texts -> a table of every neuron's predictivity."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

import spin_native as sn
from spin_native import tables
from spin_native.analyses.skills import SkillNeurons
from spin_native.classifier.estimators import DTYPES
from spin_native.cli import render
from spin_native.cli.options import (
    Several,
    delimiter_option,
    device_option,
    encoding_option,
    file_path,
    label_column,
    pickle_option,
    revision_option,
    text_column,
)
from spin_native.errors import InputError
from spin_native.features.pooling import Pooling
from spin_native.probes.importance import Cut


@click.command(name="skill-neurons")
@click.argument("model")
@click.argument("data", type=file_path)
@text_column
@label_column
@delimiter_option
@encoding_option
@click.option("--dev", type=file_path, help="File of the dev rows.  [default: a random fifth of DATA]")
@click.option("--out", type=file_path, required=True, help="CSV, JSONL or Parquet file to write.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@click.option(
    "--poolings",
    type=Several(get_args(Pooling)),
    default="mean",
    show_default=True,
    help="How to combine the tokens of a text. Of several, a neuron's best one counts.",
)
@click.option("--depth", type=int, help="Number of layers to run.  [default: all]")
@click.option(
    "--balanced", is_flag=True, help="Let each of two classes count the same, for unequal ones. More classes always do."
)
@click.option("--top", type=float, default=0.05, show_default=True, help="Share of each layer's neurons to print a line on.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random dev rows.")
@click.option("--model-dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True, help="Number type.")
@revision_option
@device_option
@pickle_option
def skill_neurons(
    model: str,
    data: Path,
    text: str,
    label: str,
    delimiter: str | None,
    encoding: str | None,
    dev: Path | None,
    out: Path,
    overwrite: bool,
    depth: int | None,
    top: float,
    seed: int,
    model_dtype: str,
    revision: str | None,
    device: str,
    allow_pickle: bool,
    **settings: Any,
) -> None:
    """Measure how well each neuron of MODEL alone predicts the labels in DATA.

    MODEL is a folder or a Hub name, DATA a CSV, JSONL or Parquet file (or a folder of them, or a glob in quotes). A neuron
    answers by being above its mean over the training rows; its predictivity is the accuracy of that answer, or of its opposite,
    on the dev rows (0.5 is chance). Writes one table (--out): a row per neuron. Prints the top share of every layer.
    """
    Cut("top_share", top)
    tables.check_output(out, overwrite)
    read = partial(tables.read_labelled, text=text, label=label, delimiter=delimiter, encoding=encoding)
    texts, labels = read(data)
    if dev is None:
        training, held_out = split(texts, labels, seed)
    else:
        training, held_out = (texts, labels), read(dev, labels_as=type(labels[0]))
    dtype = DTYPES[model_dtype]
    loaded = sn.load_model(model, depth, dtype=dtype, device=device, revision=revision, allow_pickle=allow_pickle)
    tokenizer = sn.load_tokenizer(model, revision=revision)
    skill = sn.analyses.text_skill_neurons(loaded, tokenizer, training, held_out, depth=depth, **settings)
    split_by = {"seed": seed} if dev is None else {"dev": str(dev)}
    skill = replace(skill, metadata={**skill.metadata, "data": str(data), **split_by})
    skill.write(out, overwrite=overwrite)
    click.echo(top_shares(skill, top))
    click.echo(f"{len(training[0])} training and {len(held_out[0])} dev rows, {np.prod(skill.shape)} rows in {out}", err=True)


Rows = tuple[list[str], list[Any]]


def split(texts: list[str], labels: list[Any], seed: int) -> tuple[Rows, Rows]:
    """Random training and dev rows: of each label, a fifth of its rows (at least one) are dev rows."""
    generator, is_dev = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in dict.fromkeys(labels):
        rows = np.array([row for row, value in enumerate(labels) if value == label])
        if len(rows) < 2:
            raise InputError(f"one row only has the label {label!r}; expected two or more, one of them a dev row")
        is_dev[generator.permutation(rows)[: max(1, len(rows) // 5)]] = True

    def part(chosen: np.ndarray) -> Rows:
        return [texts[row] for row in np.flatnonzero(chosen)], [labels[row] for row in np.flatnonzero(chosen)]

    return part(~is_dev), part(is_dev)


def top_shares(skill: SkillNeurons, share: float) -> str:
    """Per layer: the top share's size and predictivity, and its best neuron."""
    best = skill.over_trials().max(0)
    rows = []
    for place, (layer, chosen) in enumerate(skill.salient(share).items()):
        values = best[place][chosen]
        rows.append((layer, len(chosen), values.mean(), values.min(), int(chosen[values.argmax()]), values.max()))
    return render.table(("layer", f"top {share:.0%}", "mean predictivity", "least", "best neuron", "its predictivity"), rows)
