"""`spin-native inspect`: a base model and one text -> its tokens, and the neurons that stand out at each."""

import json
from pathlib import Path

import click

import spin_native as sn
from spin_native.classifier.estimators import DTYPES
from spin_native.cli.options import as_json, device_option, file_path, pickle_option, revision_option
from spin_native.errors import InputError
from spin_native.inspection import Inspection, show


class NeuronAddress(click.ParamType):
    """A layer and a neuron of it: 3:117."""

    name = "L:I"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        layer, _, index = value.partition(":")
        if not (layer.isdecimal() and index.isdecimal()):
            self.fail(f"{value!r} is no neuron; expected its layer and its number, for example 3:117", param, ctx)
        return int(layer), int(index)


@click.command()
@click.argument("model")
@click.argument("text")
@click.option("--layer", type=int, help="List neurons of this layer only.  [default: all layers]")
@click.option("--token", help="List the neurons of this token only: a word of the text, or a position (from 0).")
@click.option("--neuron", "neurons", type=NeuronAddress(), multiple=True, help="Print this neuron at every token; repeatable.")
@click.option("--top", type=click.IntRange(1), help="How many neurons to list.  [default: 2 per token, 10 for --token]")
@click.option("--html", type=file_path, help="Also write an HTML page to this file.")
@click.option("--overwrite", is_flag=True, help="Replace the HTML file if it exists.")
@click.option(
    "--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True, help="Number type of the model."
)
@revision_option
@device_option
@pickle_option
@as_json
def inspect(
    model: str,
    text: str,
    layer: int | None,
    token: str | None,
    neurons: tuple[tuple[int, int], ...],
    top: int | None,
    html: Path | None,
    overwrite: bool,
    dtype: str,
    revision: str | None,
    device: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Show the tokens of one TEXT inside MODEL, and the neurons that stand out at each.

    MODEL is a folder or a Hub name. A neuron's score compares its activation at a token with that at the text's other tokens:
    the difference from their mean, in their standard deviations.
    """
    if html is not None and html.exists() and not overwrite:
        raise InputError(f"{html}: already exists; choose another name, or allow it to be replaced (--overwrite)")
    loaded = sn.load_model(model, dtype=DTYPES[dtype], device=device, revision=revision, allow_pickle=allow_pickle)
    seen = sn.inspect(loaded, sn.load_tokenizer(model, revision=revision), text)
    chosen = None if token is None else seen.position(int(token) if token.isdecimal() else token)
    n = top or (2 if chosen is None else 10)
    parts = []
    if as_json:
        parts.append(json.dumps(_content(seen, chosen, neurons, n, layer), ensure_ascii=False))
    else:
        if chosen is not None:
            parts.append(show.scores(seen.top(chosen, n, layer=layer)))
        if neurons:
            parts.append(show.neurons(seen, neurons))
    if html is not None:
        page = show.page(seen, seen.to_html(top or 2, layer=layer, neuron=neurons[0] if neurons else None))
        try:
            html.write_text(page, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{html}: cannot be written ({error.strerror}); choose another file") from error
    click.echo("\n\n".join(parts or [show.text(seen, n, layer)]))


def _content(
    seen: Inspection, chosen: int | None, neurons: tuple[tuple[int, int], ...], n: int, of_layer: int | None
) -> dict[str, object]:
    """What --json prints; of one token only where one was chosen."""
    content = seen.to_json(n, layer=of_layer)
    if chosen is not None:
        content["tokens"] = [content["tokens"][chosen]]
    content["neurons"] = [
        {"layer": layer, "neuron": index, "activations": seen.neuron(layer, index).tolist()} for layer, index in neurons
    ]
    return content
