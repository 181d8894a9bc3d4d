"""`spin-native extract`: a base model and a file of texts -> a store of pooled activations."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import click

import spin_native as sn
from spin_native import tables
from spin_native.classifier.estimators import DTYPES
from spin_native.cli.options import (
    Several,
    delimiter_option,
    device_option,
    encoding_option,
    file_path,
    pair_column,
    pickle_option,
    revision_option,
    text_column,
)
from spin_native.features.extract import Site
from spin_native.features.pooling import Pooling
from spin_native.features.spec import FeatureDtype


@click.command()
@click.argument("model")
@click.argument("data", type=file_path)
@text_column
@pair_column
@delimiter_option
@encoding_option
@click.option("--out", type=file_path, required=True, help="Folder for the store. Run the same command again to resume.")
@click.option(
    "--sites",
    type=Several(get_args(Site)),
    default="activation",
    show_default=True,
    help="What to read of a layer: neurons of its feed-forward network, or the state that enters it.",
)
@click.option(
    "--poolings",
    type=Several(get_args(Pooling)),
    default="mean,max",
    show_default=True,
    help="How to combine the tokens of a text.",
)
@click.option("--depth", type=int, help="Number of layers to run.  [default: all]")
@click.option(
    "--windows",
    type=Several(int),
    metavar="SIZE,STRIDE",
    help="Read long texts to their end, in windows of SIZE tokens that start STRIDE tokens apart.  [default: cut long texts]",
)
@click.option(
    "--dtype",
    type=click.Choice(get_args(FeatureDtype)),
    default="float32",
    show_default=True,
    help="Number type of the stored features.",
)
@click.option(
    "--model-dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True, help="Number type of the model."
)
@revision_option
@device_option
@pickle_option
def extract(
    model: str,
    data: Path,
    text: str,
    text_pair: str | None,
    delimiter: str | None,
    encoding: str | None,
    out: Path,
    depth: int | None,
    model_dtype: str,
    revision: str | None,
    device: str,
    allow_pickle: bool,
    **features: Any,
) -> None:
    """Store MODEL's pooled activations of the texts in DATA.

    MODEL is a folder or a Hub name, DATA a CSV, JSONL or Parquet file (or a folder of them, or a glob in quotes). Writes a
    folder (--out), which `sn.ActivationStore(folder)` reads in Python. A list is written with commas: --sites
    activation,hidden.
    """
    texts = _texts(tables.open_source(data, delimiter=delimiter, encoding=encoding), text, text_pair)
    loaded = sn.load_model(model, depth, dtype=DTYPES[model_dtype], device=device, revision=revision, allow_pickle=allow_pickle)
    tokenizer = sn.load_tokenizer(model, revision=revision)
    stored = sn.extract(loaded, tokenizer, texts, store=out, **features)
    click.echo(f"{stored.n_rows} rows, {len(stored.widths)} arrays in {out}", err=True)


def _texts(source: tables.Source, column: str, pair_column: str | None) -> Iterator[Any]:
    """The texts or pairs of a table. The first rows are read and checked at once: after a typo there is no store to delete."""
    columns = tables.text_columns(column, pair_column)
    source.check(columns)
    blocks = (tables.checked_texts(block, column, pair_column) for block in source.blocks(columns))
    return chain(next(blocks), chain.from_iterable(blocks))
