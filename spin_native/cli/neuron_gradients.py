"""`spin-native neuron-gradients`: a language model and a file of prompts -> a table of neuron gradients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click

import spin_native as sn
from spin_native import tables
from spin_native.analyses.gradients import Convention, NeuronGradients
from spin_native.analyses.prompts import Position, Quantity
from spin_native.analyses.reductions import Reduce
from spin_native.analyses.results import write_metadata
from spin_native.classifier.estimators import DTYPES
from spin_native.cli.options import Several, device_option, file_path, pickle_option, revision_option, text_column
from spin_native.errors import InputError


@click.command(name="neuron-gradients")
@click.argument("model")
@click.argument("data", type=file_path)
@text_column
@click.option("--target", help="Column that holds the target word of each prompt.")
@click.option("--words", type=Several(str), help="Target words that all prompts share, instead of --target.")
@click.option("--out", type=file_path, required=True, help="CSV, JSONL or Parquet file to write.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@click.option(
    "--reduce",
    type=click.Choice(get_args(Reduce)),
    default="top",
    show_default=True,
    help="What to write: all gradients (none), the largest of every row and layer (top), means or a histogram over rows.",
)
@click.option("--top", type=int, help="How many neurons per row and layer --reduce top writes.  [default: 10]")
@click.option(
    "--of", type=click.Choice(get_args(Quantity)), default="probability", show_default=True, help="The output to follow."
)
@click.option(
    "--convention",
    type=click.Choice(get_args(Convention)),
    default="magnitude",
    show_default=True,
    help="Shift a neuron away from 0 (magnitude: NeurGrad), or upwards (additive: the plain gradient).",
)
@click.option(
    "--position",
    type=click.Choice(get_args(Position)),
    help="The probed token.  [default: the mask of a masked, the last of a causal language model]",
)
@click.option("--layers", type=Several(int), help="Layers to read.  [default: all]")
@click.option("--model-dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True, help="Number type.")
@revision_option
@device_option
@pickle_option
def neuron_gradients(
    model: str,
    data: Path,
    text: str,
    target: str | None,
    words: tuple[str, ...] | None,
    out: Path,
    overwrite: bool,
    model_dtype: str,
    revision: str | None,
    device: str,
    allow_pickle: bool,
    **settings: Any,
) -> None:
    """Write the gradient of MODEL's output by its neurons, for the prompts in DATA.

    MODEL is a folder or a Hub name, DATA a CSV, JSONL or Parquet file. The output is followed at one token of each prompt: the
    mask, written <mask> or [MASK] as the model's tokenizer spells it, or the last one. Give --target or --words.
    Writes one table (--out): a row per gradient.
    """
    if (target is None) == (words is None):
        raise InputError("give the target words either as a column (--target) or as a list for all prompts (--words)")
    tables.check_output(out, overwrite)
    prompts: list[str] = []
    targets: list[Any] = []
    for block in tables.open_source(data).blocks([text] if target is None else [text, target]):
        prompts += tables.checked_texts(block, text)
        targets += [list(words)] * block.n_rows if words is not None else block.values(str(target))
    dtype = DTYPES[model_dtype]
    loaded = sn.load_model(
        model, dtype=dtype, device=device, prepack="kernels", head=True, revision=revision, allow_pickle=allow_pickle
    )
    tokenizer = sn.load_tokenizer(model, revision=revision)
    with tables.open_arrow_writer(out, overwrite) as writer:
        n_rows = 0
        for result in results(loaded, tokenizer, prompts, targets, **settings):
            table = result.to_table()
            writer.write(table)
            n_rows += table.num_rows
    write_metadata(out, result.metadata)
    click.echo(f"{len(prompts)} prompts, {n_rows} rows in {out}", err=True)


def results(*asked: Any, reduce: Reduce, top: int | None, **settings: Any) -> Iterator[NeuronGradients]:
    """All gradients block by block, or one reduction of them."""
    if reduce == "none" and top is None:
        yield from sn.analyses.gradient_blocks(*asked, **settings)
    else:
        yield sn.analyses.neuron_gradients(*asked, reduce=reduce, top=top, **settings)
