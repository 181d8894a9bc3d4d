"""`spin-native extract`: a base model and a file of texts -> a store of pooled activations."""

from pathlib import Path
from typing import Any, get_args

import click

import spin_native as sn
from spin_native import tables
from spin_native.classifier.estimators import DTYPES
from spin_native.cli.options import Several, device_option, file_path, pickle_option, revision_option, text_column
from spin_native.features.extract import Site
from spin_native.features.pooling import Pooling
from spin_native.features.store import FeatureDtype


@click.command()
@click.argument("model")
@click.argument("data", type=file_path)
@text_column
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
    out: Path,
    depth: int | None,
    model_dtype: str,
    revision: str | None,
    device: str,
    allow_pickle: bool,
    **features: Any,
) -> None:
    """Store MODEL's pooled activations of the texts in DATA.

    MODEL is a folder or a Hub name, DATA a CSV, JSONL or Parquet file. Writes a folder (--out), which
    `sn.ActivationStore(folder)` reads in Python. A list is written with commas: --sites activation,hidden.
    """
    loaded = sn.load_model(model, depth, dtype=DTYPES[model_dtype], device=device, revision=revision, allow_pickle=allow_pickle)
    tokenizer = sn.load_tokenizer(model, revision=revision)
    texts = (value for block in tables.read_blocks(data, [text]) for value in block[text].to_pylist())
    stored = sn.extract(loaded, tokenizer, texts, store=out, **features)
    click.echo(f"{stored.n_rows} rows, {len(stored.widths)} arrays in {out}", err=True)
