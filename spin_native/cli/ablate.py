"""`spin-native ablate`: a saved classifier and a file of texts -> how its answers change when neurons are changed."""

import json
from pathlib import Path
from typing import Any, get_args

import click

from spin_native import tables
from spin_native.analyses.ablation import How
from spin_native.analyses.ablation_effects import AblationEffects
from spin_native.classifier.estimators import load_pretrained
from spin_native.cli import render
from spin_native.cli.options import (
    Utf8Text,
    as_json,
    base_option,
    delimiter_option,
    device_option,
    dtype_option,
    encoding_option,
    exit_option,
    file_path,
    pickle_option,
    text_column,
)
from spin_native.errors import InputError
from spin_native.given import is_whole

WHICH = {"chosen": "chosen", "random": "random", "least": "least important"}


class NeuronsType(click.ParamType):
    """ "salient", a number, or LAYER:NEURON pairs separated by commas."""

    name = "neurons"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "salient|N|LAYER:NEURON,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "salient":
            return None
        if is_whole(value) or isinstance(value, dict):
            return value
        try:
            if ":" not in value:
                return int(value)
            neurons: dict[int, list[int]] = {}
            for pair in value.split(","):
                layer, neuron = map(int, pair.split(":"))
                neurons.setdefault(layer, []).append(neuron)
            return neurons
        except ValueError:
            return self.fail(f"{value!r} is none of: salient, a number, or pairs such as 3:17,3:20,5:1", param, ctx)


@click.command()
@click.argument("classifier")
@click.argument("data", type=file_path)
@text_column
@click.option("--label", type=Utf8Text(), help="Column that holds the labels, for scores.  [default: no scores]")
@delimiter_option
@encoding_option
@click.option(
    "--neurons",
    type=NeuronsType(),
    default="salient",
    show_default=True,
    help="All neurons that the classifier reads, its N most important ones, or neurons by number.",
)
@click.option(
    "--how",
    type=click.Choice(get_args(How)),
    default="zero",
    show_default=True,
    help="Set neurons to 0 or to their mean, add noise, or take values from random tokens of other texts.",
)
@click.option("--values-from", type=file_path, help="File of texts for --how mean and resample, with the same text column.")
@click.option("--noise", type=float, help="Standard deviation for --how noise.  [default: 0.1]")
@click.option("--draws", default=20, show_default=True, help="How many sets of random neurons to compare with.")
@click.option("--seed", default=0, show_default=True, help="Of random neurons, noise and resampling.")
@click.option("--out", type=file_path, help="CSV, JSONL or Parquet file to write: one row per run.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@exit_option
@dtype_option
@base_option
@device_option
@pickle_option
@as_json
def ablate(
    classifier: str,
    data: Path,
    text: str,
    label: str | None,
    delimiter: str | None,
    encoding: str | None,
    how: How,
    values_from: Path | None,
    noise: float | None,
    draws: int,
    out: Path | None,
    overwrite: bool,
    exit_: str | None,
    base_model: str | None,
    dtype: str | None,
    device: str,
    allow_pickle: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Change neurons of a saved CLASSIFIER's base model, and compare its answers for the texts in DATA.

    CLASSIFIER is a folder or a Hub name, DATA a CSV, JSONL or Parquet file. As many random neurons, and as many of the least
    important ones, are changed for comparison. Prints the effects; --out writes one row per run. Texts never stop early
    unless --exit is given.
    """
    if values_from is not None and how not in ("mean", "resample"):
        raise InputError(f"--values-from has no effect on --how {how}; leave it out, or ablate by mean or resample")
    if noise is not None and how != "noise":
        raise InputError(f"--noise has no effect on --how {how}; leave it out, or ablate by noise")
    if noise is not None:
        settings["noise"] = noise
    read = {"delimiter": delimiter, "encoding": encoding}
    if out is not None:
        tables.check_output(out, overwrite)
    tables.open_source(data, **read).check([text] if label is None else [text, label])  # before the model is loaded
    others = None if values_from is None else _texts(values_from, text, read)
    clf = load_pretrained(classifier, base_model=base_model, dtype=dtype, device=device, allow_pickle=allow_pickle)
    labels = None
    if label is None:
        texts = _texts(data, text, read)
    else:
        texts, labels = tables.read_labelled(data, text, label, labels_as=clf.task_.label_type, **read)
    effects = clf.ablate(texts, labels, how=how, values_from=others, n_draws=draws, exit=exit_, progress=None, **settings)
    if out is not None:
        effects.per_run().write(out, overwrite=overwrite)
    click.echo(json.dumps(_described(effects), ensure_ascii=False) if as_json else _shown(effects))


def _texts(path: Path, text: str, read: dict[str, Any]) -> list[str]:
    return [value for block in tables.open_source(path, **read).blocks([text]) for value in block.values(text)]


def _described(effects: AblationEffects) -> dict[str, Any]:
    """The summary and the settings, for JSON."""
    return {"effects": effects.summary().to_table().to_pylist(), "settings": dict(effects.metadata)}


def _shown(effects: AblationEffects) -> str:
    """The summary for a terminal."""
    known, n_rows = effects.metadata, effects.shape[1]
    n_neurons = sum(map(len, known["neurons"].values()))
    lines = [f"{n_neurons} neurons in {len(known['neurons'])} layers, changed by {known['how']!r}, on {n_rows} texts"]
    if "score" in known:
        lines.append(f"{known['score']} before: {known['score_before']:.4f}")
    rows = [
        [WHICH[row["which"]], row["measure"].replace("_", " "), row["n_draws"], row["mean"], row["low"], row["high"]]
        for row in effects.summary().to_table().to_pylist()
    ]
    header = ("neurons", "measure", "draws", "mean", "2.5 %", "97.5 %")
    return "\n".join([*lines, "", render.table(header, rows), "", "2.5 % and 97.5 %: percentiles of the draws."])
