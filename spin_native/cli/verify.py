"""`spin-native verify`: a base model -> its differences from transformers."""

import json

import click

import spin_native as sn
from spin_native.cli import render
from spin_native.cli.options import as_json, pickle_option, revision_option
from spin_native.errors import InputError


@click.command()
@click.argument("model")
@revision_option
@pickle_option
@as_json
def verify(model: str, revision: str | None, allow_pickle: bool, as_json: bool) -> None:
    """Compare MODEL with transformers, layer by layer, in float64 and float32.

    MODEL is a folder or a Hub name. Needs the package transformers. Prints the largest error of every layer; the exit code is 1
    if one is too large. Writes no file.
    """
    errors = sn.verify_parity(model, revision=revision, allow_pickle=allow_pickle)
    if as_json:
        click.echo(json.dumps([error._asdict() for error in errors]))
    else:
        lines = [
            (e.dtype, e.layer, e.site, f"{e.largest:.1e}", f"{e.relative:.1e}", "ok" if e.passed else "TOO LARGE")
            for e in errors
        ]
        click.echo(render.table(("dtype", "layer", "site", "largest error", "relative error", ""), lines))
    if not all(error.passed for error in errors):
        worst = max(errors, key=lambda error: (not error.passed, error.relative))
        raise InputError(
            f"{model}: {worst.site} of layer {worst.layer} differs from transformers in {worst.dtype}; please report it"
        )
