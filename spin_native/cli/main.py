"""The commands of `spin-native`."""

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from spin_native import tables
from spin_native.checkpoints import load_model, load_tokenizer
from spin_native.classifier.estimators import DTYPES, SpinClassifier, SpinRegressor, load_pretrained
from spin_native.classifier.exits import Exit
from spin_native.classifier.settings import FinalRows, HeadName, Mixing, PhaseTwo
from spin_native.classifier.tasks import TASKS
from spin_native.cli import demo as demo_run
from spin_native.cli import doctor as doctor_run
from spin_native.cli import render
from spin_native.errors import InputError
from spin_native.features.extract import Site, extract
from spin_native.features.pooling import Pooling
from spin_native.features.store import FeatureDtype
from spin_native.parity import verify_parity
from spin_native.probes.importance import RANKERS, WEIGHTINGS
from spin_native.text.tokenizer import TruncationWarning
from spin_native.version import __version__

ERROR, REJECTED, INTERRUPTED = 1, 3, 130
SHOWN_REJECTS = 5

file_path = click.Path(path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
text_column = click.option("--text", default="text", show_default=True, help="Column that holds the texts.")
label_column = click.option("--label", default="label", show_default=True, help="Column that holds the labels.")
device_option = click.option("--device", default="cpu", show_default=True, help="Where to run the base model.")
pickle_option = click.option("--allow-pickle", is_flag=True, help="Also read a legacy pytorch_model.bin you trust.")
dtype_option = click.option(
    "--dtype", type=click.Choice(list(DTYPES)), help="How to run the base model (default: as it was fitted)."
)
base_option = click.option("--base-model", help="Where the classifier's base model is now, if it moved.")


@click.group()
@click.version_option(__version__)
def cli() -> None:
    """Read neurons out of language models, and classify texts with the salient ones."""


class Several(click.ParamType):
    """One value or more, with commas between; `of` is a type, or the choices there are."""

    name = "list"

    def __init__(self, of: type | Sequence[str]) -> None:
        self._of = click.types.convert_type(of) if isinstance(of, type) else click.Choice(of)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"{self._of.get_metavar(param, ctx) or self._of.name.upper()},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(self._of.convert(part.strip() if isinstance(part, str) else part, param, ctx) for part in parts)


@cli.command()
@click.argument("data", type=file_path)
@text_column
@label_column
@click.option("--task", type=click.Choice(list(TASKS)), default="classification", show_default=True)
@click.option("--validation", type=file_path, help="File of validation rows; without one, a share of DATA is split off.")
@click.option("--test", type=file_path, help="File of test rows, scored once.")
@click.option("--model", required=True, help="Base model: a folder, or a Hub name.")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--depth", default="best", show_default=True, help="Layers to run: a number, 'best' (by validation), or 'all'.")
@click.option("--tolerance", default=0.0, show_default=True, help="Take the shallowest depth this close to the best score.")
@click.option(
    "--metric",
    type=click.Choice([metric for task in TASKS.values() for metric in task.metrics]),
    help="What validation compares (default: accuracy; for a regression pearson).",
)
@click.option("--sites", type=Several(get_args(Site)), default="activation", show_default=True, help="What is read of a layer.")
@click.option("--poolings", type=Several(get_args(Pooling)), default="mean,max", show_default=True)
@click.option(
    "--mixing",
    type=click.Choice(get_args(Mixing)),
    default="best",
    show_default=True,
    help="One site and pooling per head, all of them in one, or what validation prefers.",
)
@click.option("--head", type=click.Choice(get_args(HeadName)), default="refit", show_default=True, help="SPIN, Liu, or SIREN.")
@click.option(
    "--phase-two", type=click.Choice(get_args(PhaseTwo)), default="seen", show_default=True, help="Rows for a frozen head."
)
@click.option(
    "--final-rows",
    type=click.Choice(get_args(FinalRows)),
    help="What linear heads are fitted on in the end: validation rows, too ('all'; default where they were split off), or not.",
)
@click.option(
    "--ranker",
    type=click.Choice([*WEIGHTINGS, *RANKERS]),
    default="squared",
    show_default=True,
    help="What makes a neuron important.",
)
@click.option("--eta", "etas", type=Several(float), help="Shares to keep (default: 0.2,0.4,0.6,0.8,0.9,1).")
@click.option("--top-k", type=Several(int), help="Neurons to keep of each layer, instead of --eta.")
@click.option("--top-share", type=Several(float), help="Share of each layer to keep, instead of --eta.")
@click.option("--sample", type=int, help="Probe and select on so many rows; of all rows extract the salient neurons only.")
@click.option("--exits", default=None, help="Depths that keep a head for rows that leave early: 2,4 or 'all'.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True)
@click.option("--store", type=file_path, help="Folder that keeps the features: an interrupted fit goes on where it was.")
@click.option("--no-baseline", is_flag=True, help="Leave out the baseline on the final hidden state.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=file_path, required=True, help="Folder for the classifier.")
@device_option
@pickle_option
@as_json
def fit(
    data: Path,
    text: str,
    label: str,
    task: str,
    validation: Path | None,
    test: Path | None,
    depth: str,
    exits: str | None,
    store: Path | None,
    no_baseline: bool,
    out: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train on the labelled texts in DATA (CSV, JSONL or Parquet)."""
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]) and not (out / "spin_classifier.json").exists():
        raise InputError(f"{out}: already there and no classifier; choose another folder for --out")
    inputs = {"validation": validation, "test": test}
    held_out = {name: tables.read_labelled(path, text, label) for name, path in inputs.items() if path is not None}
    kind = SpinRegressor if task == "regression" else SpinClassifier
    kept = exits if exits in (None, "all") else Several(int).convert(exits, None, None)
    clf = kind(depth=_depth(depth), exits=kept, baseline=not no_baseline, **settings)  # type: ignore[arg-type]
    clf.fit(*tables.read_labelled(data, text, label), **held_out, store=store)  # type: ignore[arg-type]
    clf.save_pretrained(out)
    if as_json:
        curves = {"depth_curve": clf.depth_curve_, "layer_curve": clf.layer_curve_}
        found: dict[str, Any] = {name: [row._asdict() for row in rows] for name, rows in curves.items()}
        found |= {name: one and one._asdict() for name, one in (("baseline", clf.baseline_), ("controls", clf.controls_))}
        found |= {"depth": clf.depth_, "metric": clf.metric_, "unconverged": clf.unconverged_, "seconds": clf.seconds_}
        click.echo(json.dumps({**found, "out": str(out)}))
    else:
        click.echo(render.curve(clf))
        click.echo("\nOne probe for each single layer:\n" + render.layers(clf))
        if clf.controls_ is not None:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in clf.controls_._asdict().items())
            click.echo(f"\nControls at depth {clf.depth_}, validation {clf.metric_}: {shown}")
    timing = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in clf.seconds_.items())
    click.echo(f"depth {clf.depth_} saved to {out}; {timing}; peak memory {_peak_memory_mb():.0f} MB", err=True)


@cli.command()
@click.argument("classifier")
@click.argument("data", type=file_path)
@text_column
@label_column
@click.option("--max-accuracy-drop", default=0.01, show_default=True, help="What rows may lose against the deepest head.")
@click.option("--confidence", default=0.95, show_default=True, help="How sure the promise is.")
@click.option("--by", type=click.Choice(["confidence", "patience"]), default="confidence", show_default=True)
@base_option
@device_option
@pickle_option
@as_json
def calibrate(
    classifier: str,
    data: Path,
    text: str,
    label: str,
    max_accuracy_drop: float,
    confidence: float,
    by: str,
    base_model: str | None,
    device: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Let rows leave a saved CLASSIFIER early: find out when, on labelled rows in DATA that fit did not see, and save it."""
    if not Path(classifier).is_dir():
        raise InputError(f"{classifier}: no folder; calibrate writes to the classifier, so save it to a folder first")
    clf = SpinClassifier.from_pretrained(classifier, base_model=base_model, device=device, allow_pickle=allow_pickle)
    clf.calibrate(
        *tables.read_labelled(data, text, label),
        max_accuracy_drop=max_accuracy_drop,
        confidence=confidence,
        by=by,  # type: ignore[arg-type]
    )
    clf.save_pretrained(classifier)
    promise = clf.promise_
    assert promise is not None
    if as_json:
        click.echo(json.dumps({**vars(promise), "exit": str(promise.exit)}))
        return
    click.echo(
        f"exit {promise.exit}: {promise.mean_depth:.2f} of {clf.depth_} layers per row; on {promise.n_rows} rows "
        f"{promise.n_harmed} right ones went wrong: with confidence {confidence:g} accuracy falls by at most "
        f"{max_accuracy_drop:g}"
    )


@cli.command()
@click.argument("classifier")
@click.argument("texts", nargs=-1)
@click.option("--in", "source", type=file_path, help="File of texts (CSV, JSONL, Parquet).")
@click.option("--out", type=file_path, help="File for the same rows with predicted_label and probability columns.")
@click.option("--overwrite", is_flag=True, help="Replace the output file if it is there.")
@click.option("--exit", "exit_", help="When a row stops: fixed:4, confidence:0.9, patience:2 (default: as saved).")
@text_column
@dtype_option
@base_option
@device_option
@pickle_option
@as_json
def predict(
    classifier: str,
    texts: tuple[str, ...],
    source: Path | None,
    out: Path | None,
    overwrite: bool,
    exit_: str | None,
    text: str,
    base_model: str | None,
    dtype: str | None,
    device: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Label TEXTS, or the rows of a file (--in, --out), with a saved CLASSIFIER (or estimate values, with a regressor)."""
    if bool(texts) == bool(source) or bool(source) != bool(out):
        raise click.UsageError("give TEXTS, or --in FILE with --out FILE")
    if source and out and out.exists() and source.exists() and out.samefile(source):
        raise InputError(f"{out}: is the input itself; choose another name for --out")
    clf = load_pretrained(classifier, base_model=base_model, dtype=dtype, device=device, allow_pickle=allow_pickle)
    way = clf.exit_ if exit_ is None else Exit.parse(exit_)
    if source and out:
        sys.exit(_predict_file(clf, source, out, overwrite, text, way))
    for outputs, depths in clf.output_blocks(texts, False, way):
        for given, found, depth in zip(texts, outputs, depths.tolist(), strict=True):
            row, shown = clf.task_.described(found), clf.task_.shown(found)
            click.echo(
                json.dumps({"text": given, **row, "depth": depth}, ensure_ascii=False) if as_json else f"{shown}\t{given}"
            )


def _predict_file(clf: SpinClassifier | SpinRegressor, source: Path, out: Path, overwrite: bool, text: str, way: Exit) -> int:
    """Stream the rows through; the exit code says whether some had to be rejected."""
    n_rows = n_rejected = 0
    with (
        tables.writer(out, overwrite) as writer,
        tqdm(unit=" rows", disable=None) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", TruncationWarning)  # said once, at the end, not for every block
        for block in tables.blocks(source, [text]):
            texts = block[text].to_pylist()
            rejected = np.array([not isinstance(value, str) for value in texts], dtype=bool)
            for row in np.flatnonzero(rejected)[: max(0, SHOWN_REJECTS - n_rejected)]:
                click.echo(f"rejected: {source}: row {n_rows + row} (the first is 0) has no text in column {text!r}", err=True)
            for name, column in _predicted(clf, texts, rejected, way).items():
                if name in block.column_names:
                    raise InputError(f"{source}: already has a column {name!r}; rename it first")
                block = block.append_column(name, column)
            writer.write(block)
            n_rows += len(texts)
            n_rejected += int(rejected.sum())
            bar.update(len(texts))
    if clf.n_truncated_:
        click.echo(
            f"warning: {clf.n_truncated_} of {n_rows} texts were longer than the base model holds and were cut", err=True
        )
    click.echo(f"{n_rows} rows written to {out}" + (f", {n_rejected} of them rejected" if n_rejected else ""), err=True)
    return REJECTED if n_rejected else 0


def _predicted(
    clf: SpinClassifier | SpinRegressor, texts: Sequence[Any], rejected: np.ndarray, way: Exit
) -> dict[str, pa.Array]:
    """The columns that prediction adds; empty where a row was rejected."""
    outputs, depths = np.zeros((len(texts), clf.task_.n_outputs)), np.zeros(len(texts), dtype=np.int64)
    usable = (~rejected).nonzero()[0].tolist()
    blocks = list(clf.output_blocks([texts[row] for row in usable], False, way)) if usable else []
    if blocks:
        outputs[usable], depths[usable] = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    columns = {name: pa.array(values, mask=rejected) for name, values in clf.task_.columns(outputs).items()}
    return columns if way.by == "fixed" else {**columns, "exit_depth": pa.array(depths, mask=rejected)}


@cli.command()
@click.argument("classifier")
@click.argument("data", type=file_path)
@text_column
@label_column
@click.option("--exit", "exit_", help="When a row stops: fixed:4, confidence:0.9, patience:2 (default: as saved).")
@dtype_option
@base_option
@device_option
@pickle_option
@as_json
def evaluate(
    classifier: str,
    data: Path,
    text: str,
    label: str,
    exit_: str | None,
    base_model: str | None,
    dtype: str | None,
    device: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Score a saved CLASSIFIER on the labelled rows in DATA."""
    clf = load_pretrained(classifier, base_model=base_model, dtype=dtype, device=device, allow_pickle=allow_pickle)
    texts, labels = tables.read_labelled(data, text, label)
    clf.task_.encode(labels, len(texts), str(data))  # refuse unusable labels before the model runs
    outputs = np.concatenate([outputs for outputs, _ in clf.output_blocks(texts, False, exit_)])
    result = clf.task_.evaluate(outputs, labels, str(data))
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    if "confusion" not in result:
        scores = "  ".join(f"{name} {value:.4f}" for name, value in result.items() if name != "rows")
        click.echo(f"rows {len(texts)}  {scores}")
        return
    click.echo(f"rows {len(texts)}  accuracy {result['accuracy']:.4f}  macro-F1 {result['macro_f1']:.4f}\n")
    lines = [[str(name), *row] for name, row in zip(result["labels"], result["confusion"], strict=True)]
    click.echo(render.table(["true \\ predicted", *map(str, result["labels"])], lines))


@cli.command(name="extract")
@click.argument("model")
@click.argument("data", type=file_path)
@text_column
@click.option("--out", type=file_path, required=True, help="Folder for the activation store; run again to go on.")
@click.option("--site", "sites", type=click.Choice(get_args(Site)), multiple=True, default=("activation",), show_default=True)
@click.option(
    "--pooling", "poolings", type=click.Choice(get_args(Pooling)), multiple=True, default=("mean", "max"), show_default=True
)
@click.option("--depth", type=int, help="Layers to run (default: all).")
@click.option(
    "--dtype", type=click.Choice(get_args(FeatureDtype)), default="float32", show_default=True, help="Of the kept features."
)
@click.option("--model-dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True, help="Of the model.")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@device_option
@pickle_option
def extract_command(
    model: str,
    data: Path,
    text: str,
    out: Path,
    sites: tuple[Site, ...],
    poolings: tuple[Pooling, ...],
    depth: int | None,
    dtype: FeatureDtype,
    model_dtype: str,
    revision: str | None,
    device: str,
    allow_pickle: bool,
) -> None:
    """Keep MODEL's pooled activations of the texts in DATA in a store."""
    loaded = load_model(model, depth, dtype=DTYPES[model_dtype], device=device, revision=revision, allow_pickle=allow_pickle)
    tokenizer = load_tokenizer(model, revision=revision)
    texts = (value for block in tables.blocks(data, [text]) for value in block[text].to_pylist())
    features = extract(loaded, tokenizer, texts, sites=sites, poolings=poolings, store=out, dtype=dtype)
    click.echo(f"{features.n_rows} rows, {len(features.widths)} arrays in {out}", err=True)


@cli.command()
@click.argument("classifier")
@click.option("--top", default=5, show_default=True, help="Neurons to show per layer.")
@base_option
@pickle_option
@as_json
def neurons(classifier: str, top: int, base_model: str | None, allow_pickle: bool, as_json: bool) -> None:
    """The salient neurons of a CLASSIFIER, per layer, with their weights."""
    clf = load_pretrained(classifier, base_model=base_model, allow_pickle=allow_pickle)
    weights = clf.neuron_weights()
    if as_json:
        click.echo(json.dumps({"labels": clf.task_.to_json(), "outputs": clf.output_names(), "neurons": weights}))
        return
    header = ["layer", "neuron", "site", "pooling", *(f"weight for {name}" for name in clf.output_names())]
    for layer in sorted({weight["layer"] for weight in weights}):
        chosen = [weight for weight in weights if weight["layer"] == layer]
        n_neurons = len({(weight["site"], weight["neuron"]) for weight in chosen})  # one may be read under several poolings
        click.echo(f"layer {layer}: {n_neurons} salient neurons")
        strongest = sorted(chosen, key=lambda w: -np.abs(w["weights"]).max())[:top]
        lines = [[w["layer"], w["neuron"], w["site"], w["pooling"], *w["weights"]] for w in strongest]
        click.echo(render.table(header, lines) + "\n")


@cli.command()
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@pickle_option
@as_json
def verify(model: str, revision: str | None, allow_pickle: bool, as_json: bool) -> None:
    """Compare MODEL with transformers, layer by layer, in float64 and float32."""
    errors = verify_parity(model, revision=revision, allow_pickle=allow_pickle)
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


@cli.command()
@as_json
def doctor(as_json: bool) -> None:
    """What this installation and this machine have."""
    found = doctor_run.examine()
    click.echo(json.dumps(found) if as_json else render.table(("what", "found"), [(k, str(v)) for k, v in found.items()]))


@cli.command()
@click.option("--model", help="Another base model: a folder, or a Hub name.")
@click.option("--out", type=file_path, default=Path("demo-classifier"), show_default=True, help="Folder for the classifier.")
@click.option("--seed", default=0, show_default=True)
def demo(model: str | None, out: Path, seed: int) -> None:
    """Train and try a classifier on the reviews that come with the package."""
    demo_run.run(model, out, seed)


def run(arguments: Sequence[str] | None = None) -> None:
    """The program: one line on stderr instead of a traceback, and the exit code."""
    warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
    try:
        cli.main(arguments, prog_name="spin-native", standalone_mode=False)
    except InputError as error:
        _stop(str(error), ERROR)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _stop("interrupted; what was finished is kept", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("SPIN_NATIVE_TRACEBACK"):
            raise
        _stop(f"unexpected {type(error).__name__}: {error} (set SPIN_NATIVE_TRACEBACK=1 to see where)", ERROR)


def _stop(message: str, code: int) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _depth(given: str) -> int | str | None:
    if given in ("best", "all"):
        return None if given == "all" else "best"
    if not given.lstrip("-").isdigit():
        raise click.UsageError(f"--depth is {given!r}; expected a number, 'best' or 'all'")
    return int(given)


def _peak_memory_mb() -> float:
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
