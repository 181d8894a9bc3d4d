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
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from tqdm.auto import tqdm

from spin_native.checkpoints import load_model, load_tokenizer
from spin_native.classifier import DTYPES, SpinClassifier
from spin_native.cli import demo as demo_run
from spin_native.cli import doctor as doctor_run
from spin_native.cli import render, tables
from spin_native.errors import InputError
from spin_native.extract import Site, extract
from spin_native.integration import METRICS
from spin_native.labels import checked_labels, encoded
from spin_native.parity import verify_parity
from spin_native.pooling import Pooling
from spin_native.store import FeatureDtype
from spin_native.text import TruncationWarning
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


@cli.command()
@click.argument("data", type=file_path)
@text_column
@label_column
@click.option("--validation", type=file_path, help="File of validation rows; without one, a share of DATA is split off.")
@click.option("--test", type=file_path, help="File of test rows, scored once.")
@click.option("--model", required=True, help="Base model: a folder, or a Hub name.")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--depth", default="best", show_default=True, help="Layers to run: a number, 'best' (by validation), or 'all'.")
@click.option("--tolerance", default=0.0, show_default=True, help="Take the shallowest depth this close to the best score.")
@click.option("--metric", type=click.Choice(list(METRICS)), default="accuracy", show_default=True)
@click.option("--site", type=click.Choice(get_args(Site)), default="activation", show_default=True)
@click.option(
    "--pooling",
    "poolings",
    type=click.Choice(get_args(Pooling)),
    multiple=True,
    default=("mean", "max"),
    show_default=True,
    help="May be given several times; validation chooses one.",
)
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
    validation: Path | None,
    test: Path | None,
    depth: str,
    store: Path | None,
    no_baseline: bool,
    out: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a classifier on the labelled texts in DATA (CSV, JSONL or Parquet)."""
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]) and not (out / "spin_classifier.json").exists():
        raise InputError(f"{out}: already there and no classifier; choose another folder for --out")
    inputs = {"validation": validation, "test": test}
    held_out = {name: tables.read_labelled(path, text, label) for name, path in inputs.items() if path is not None}
    clf = SpinClassifier(depth=_depth(depth), baseline=not no_baseline, **settings)  # type: ignore[arg-type]
    clf.fit(*tables.read_labelled(data, text, label), **held_out, store=store)  # type: ignore[arg-type]
    clf.save_pretrained(out)
    if as_json:
        rows = {"baseline": clf.baseline_ and clf.baseline_._asdict(), "depth_curve": [r._asdict() for r in clf.depth_curve_]}
        click.echo(json.dumps({"depth": clf.depth_, "metric": clf.metric, **rows, "seconds": clf.seconds_, "out": str(out)}))
    else:
        click.echo(render.curve(clf))
    timing = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in clf.seconds_.items())
    click.echo(f"depth {clf.depth_} saved to {out}; {timing}; peak memory {_peak_memory_mb():.0f} MB", err=True)


@cli.command()
@click.argument("classifier")
@click.argument("texts", nargs=-1)
@click.option("--in", "source", type=file_path, help="File of texts (CSV, JSONL, Parquet).")
@click.option("--out", type=file_path, help="File for the same rows with predicted_label and probability columns.")
@click.option("--overwrite", is_flag=True, help="Replace the output file if it is there.")
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
    text: str,
    base_model: str | None,
    dtype: str | None,
    device: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Label TEXTS, or the rows of a file (--in, --out), with a saved CLASSIFIER."""
    if bool(texts) == bool(source) or bool(source) != bool(out):
        raise click.UsageError("give TEXTS, or --in FILE with --out FILE")
    if source and out and out.exists() and source.exists() and out.samefile(source):
        raise InputError(f"{out}: is the input itself; choose another name for --out")
    clf = SpinClassifier.from_pretrained(
        classifier, base_model=base_model, dtype=dtype, device=device, allow_pickle=allow_pickle
    )
    if source and out:
        sys.exit(_predict_file(clf, source, out, overwrite, text))
    for given, probabilities in zip(texts, clf.predict_proba(texts), strict=True):
        row = _named(clf, probabilities)
        label = clf.classes_[probabilities.argmax()].item()
        if as_json:
            click.echo(json.dumps({"text": given, "label": label, "probabilities": row}, ensure_ascii=False))
        else:
            click.echo(f"{label}\t{probabilities.max():.4f}\t{given}")


def _predict_file(clf: SpinClassifier, source: Path, out: Path, overwrite: bool, text: str) -> int:
    """Stream the rows through; the exit code says whether some had to be rejected."""
    names = [f"probability_{label}" for label in clf.classes_]
    n_rows = n_rejected = 0
    with (
        tables.writer(out, overwrite) as writer,
        tqdm(unit=" rows", disable=None) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", TruncationWarning)  # said once, at the end, not for every block
        for block in tables.blocks(source, [text]):
            if taken := [name for name in ("predicted_label", *names) if name in block.column_names]:
                raise InputError(f"{source}: already has a column {taken[0]!r}; rename it first")
            texts = block[text].to_pylist()
            usable = [row for row, value in enumerate(texts) if isinstance(value, str)]
            probabilities = np.full((len(texts), len(clf.classes_)), np.nan)
            if usable:
                probabilities[usable] = clf.predict_proba([texts[row] for row in usable])
            rejected = np.isnan(probabilities[:, 0])
            for row in np.flatnonzero(rejected)[: max(0, SHOWN_REJECTS - n_rejected)]:
                click.echo(f"rejected: {source}: row {n_rows + row} (the first is 0) has no text in column {text!r}", err=True)
            labels = [
                None if missing else clf.classes_[p.argmax()].item() for missing, p in zip(rejected, probabilities, strict=True)
            ]
            block = block.append_column("predicted_label", pa.array(labels, pa.array(clf.classes_.tolist()).type))
            for index, name in enumerate(names):
                block = block.append_column(name, pa.array(probabilities[:, index], mask=rejected))
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


@cli.command()
@click.argument("classifier")
@click.argument("data", type=file_path)
@text_column
@label_column
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
    base_model: str | None,
    dtype: str | None,
    device: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Score a saved CLASSIFIER on the labelled rows in DATA."""
    clf = SpinClassifier.from_pretrained(
        classifier, base_model=base_model, dtype=dtype, device=device, allow_pickle=allow_pickle
    )
    texts, labels = tables.read_labelled(data, text, label)
    classes = clf.classes_.tolist()
    truth = encoded(checked_labels(labels, len(texts), str(data)), classes, str(data))
    predicted = clf.predict_proba(texts).argmax(1)
    confusion = confusion_matrix(truth, predicted, labels=range(len(classes)))
    result = {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, labels=range(len(classes)), average="macro", zero_division=0)),
        "confusion": confusion.tolist(),
        "labels": classes,
        "rows": len(texts),
    }
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    click.echo(f"rows {len(texts)}  accuracy {result['accuracy']:.4f}  macro-F1 {result['macro_f1']:.4f}\n")
    lines = [[str(name), *row] for name, row in zip(classes, confusion.tolist(), strict=True)]
    click.echo(render.table(["true \\ predicted", *map(str, classes)], lines))


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
    clf = SpinClassifier.from_pretrained(classifier, base_model=base_model, allow_pickle=allow_pickle)
    weights = clf.neuron_weights()
    if as_json:
        click.echo(json.dumps({"labels": clf.classes_.tolist(), "outputs": clf.output_names(), "neurons": weights}))
        return
    header = ["layer", "neuron", *(f"weight for {name}" for name in clf.output_names())]
    for layer, chosen in clf.salient_neurons_.items():
        click.echo(f"layer {layer}: {len(chosen)} salient neurons")
        strongest = sorted((w for w in weights if w["layer"] == layer), key=lambda w: -np.abs(w["weights"]).max())[:top]
        click.echo(render.table(header, [[w["layer"], w["neuron"], *w["weights"]] for w in strongest]) + "\n")


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


def _named(clf: SpinClassifier, probabilities: np.ndarray) -> dict[str, float]:
    return {str(label): float(p) for label, p in zip(clf.classes_, probabilities, strict=True)}


def _peak_memory_mb() -> float:
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
