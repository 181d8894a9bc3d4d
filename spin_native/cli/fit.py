"""`spin-native fit`: a file of labelled texts -> a saved classifier or regressor."""

import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

import spin_native as sn
from spin_native.classifier.baselines import baselines_for_json
from spin_native.classifier.estimators import DTYPES
from spin_native.cli import render
from spin_native.cli.labelled import LabelledFiles
from spin_native.cli.options import (
    Decorator,
    GroupedCommand,
    OrWord,
    Several,
    as_json,
    delimiter_option,
    encoding_option,
    file_path,
    label_column,
    option,
    pair_column,
    separator_option,
    text_column,
)
from spin_native.errors import InputError
from spin_native.probes.importance import RANKERS, WEIGHTINGS

ESTIMATORS: dict[str, type[sn.SpinClassifier | sn.SpinRegressor]] = {
    "classification": sn.SpinClassifier,
    "multilabel": sn.SpinMultilabelClassifier,
    "regression": sn.SpinRegressor,
}
GROUPS = ("Data", "Model", "How deep", "Speed", "Research", "Output")
EXAMPLES = """
Examples:

\b
  spin-native fit train.csv --model roberta-base --test test.csv \\
      --exits all --out my-classifier
  spin-native fit scores.csv --task regression --label score \\
      --model gpt2 --poolings mean,last --depth 6 --out my-regressor
"""


def setting(name: str, group: str, help: str, *, flags: Sequence[str] = (), type: Any = None, **attributes: Any) -> Decorator:
    """An option that sets the estimator's parameter `name`. Its type and the default in its help are the estimator's own.

    flags: how it is written (default: --name). type: where the annotation alone does not say how to read the value.
    """
    if isinstance(default := inspect.signature(sn.SpinClassifier).parameters[name].default, tuple):
        default = ",".join(map(str, default))
    if not (default is None or isinstance(default, bool) or attributes.get("required")):
        help = f"{help}  [default: {default}]"
    if type is None:
        type = _option_type(get_type_hints(sn.SpinClassifier.__init__)[name])
    flags = flags or [f"--{name.replace('_', '-')}"]
    return option(*flags, name, group=group, type=type, help=help, default=None, **attributes)


def _option_type(annotation: Any) -> Any:
    """`float` -> float, `Literal[...]` -> a choice, `Sequence[...]` -> a list with commas; None in a union is left out."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    if isinstance(get_origin(annotation), type) and issubclass(get_origin(annotation), Sequence):
        (of,) = get_args(annotation)
        return Several(get_args(of) if get_origin(of) is Literal else of)
    return annotation


@click.command(cls=GroupedCommand, groups=GROUPS, epilog=EXAMPLES)
@click.argument("data", type=file_path)
@text_column
@pair_column
@label_column
@separator_option
@delimiter_option
@encoding_option
@option(
    "--task",
    group="Data",
    type=click.Choice(list(ESTIMATORS)),
    default="classification",
    show_default=True,
    help="Predict one class per text, any number of labels (multilabel), or a number.",
)
@option(
    "--validation",
    group="Data",
    type=file_path,
    help="File of validation rows. Without it, DATA is cross-validated (published heads: split).",
)
@setting("validation_share", "Data", "With a published head: share of DATA to split off for validation.")
@option("--test", group="Data", type=file_path, help="File of test rows. They are scored once and choose nothing.")
@setting("model", "Model", "Base model: a folder, or a Hub name.", type=str, required=True)
@setting("revision", "Model", "Branch, tag or commit of a Hub model.")
@setting("allow_pickle", "Model", "Also read pytorch_model.bin. Only for files you trust.", is_flag=True)
@setting(
    "head",
    "Model",
    "Kind of classifier: dense (a regression on all layers below the depth), best (of several dense ones), or a published one "
    "on salient neurons: refit (SPIN), frozen (Liu), weighted (SIREN).  [default: best; refit where a selection is asked for]",
)
@setting(
    "windows",
    "Model",
    "Read long texts to their end, in windows of SIZE tokens that start STRIDE tokens apart.  [default: cut long texts]",
    type=Several(int),
    metavar="SIZE,STRIDE",
)
@setting("metric", "Model", "Score that held-out rows compare.  [default: accuracy; multilabel micro_f1; regression pearson]")
@setting(
    "class_weight",
    "Model",
    "balanced: rows of rare classes count more, so that every class has the same total. For classes only.",
    type=click.Choice(["balanced"]),
)
@setting(
    "depth",
    "How deep",
    "Layers to run: a number, the best on held-out rows, or all.",
    type=OrWord(click.INT, "NUMBER", {"best": "best", "all": None}),
)
@setting(
    "tolerance",
    "How deep",
    "With --depth best: choose the shallowest depth whose score is this close to the best; one-se: within one standard error "
    "of it.  [default: one-se, but all layers with fewer than 150 rows of the rarest class; for published heads 0]",
    type=OrWord(click.FLOAT, "NUMBER", {"one-se": "one-se"}),
)
@setting(
    "exits",
    "How deep",
    "Earlier depths at which a text may stop, such as 2,4.",
    type=OrWord(Several(int), "NUMBER,...", {"all": "all"}),
)
@setting("sample", "Speed", "Choose what to read on this many rows, then extract only that for all rows.")
@option("--store", group="Speed", type=file_path, help="Folder for the features. A fit that was interrupted resumes from it.")
@setting(
    "baseline",
    "Speed",
    "Fit simple models on the same rows, for comparison (done by default).",
    flags=["--baseline/--no-baseline"],
)
@setting("dtype", "Speed", "Number type of the base model.", type=click.Choice(list(DTYPES)))
@setting("device", "Speed", "Where to run the base model: cpu, cuda, cuda:1.")
@setting("sites", "Research", "What to read of a layer: neurons of its feed-forward network, or the state that enters it.")
@setting("poolings", "Research", "How to combine the tokens of a text.")
@setting(
    "mixing",
    "Research",
    "Published heads: read one site and pooling per head (apart), all (together), or what validation prefers (best).",
)
@setting("scaling", "Research", "Scale each neuron to mean 0 and variance 1, or not.")
@setting("ranker", "Research", "Published heads: what makes a neuron important.", type=click.Choice([*WEIGHTINGS, *RANKERS]))
@setting(
    "etas",
    "Research",
    "Published heads: shares of the importance to keep. Validation chooses one.  [default: 0.2,0.4,0.6,0.8,0.9,1]",
    flags=["--etas", "--eta"],
)
@setting("top_k", "Research", "Published heads: numbers of neurons to keep per layer, instead of --etas.")
@setting("top_share", "Research", "Published heads: shares of each layer's neurons to keep, instead of --etas.")
@setting(
    "Cs",
    "Research",
    "Published heads: inverse strengths of the L1 penalty to try, for the layers' probes.  [default: set by the data]",
)
@setting("head_Cs", "Research", "Inverse strengths of the L2 penalty to try, for the heads.  [default: set by the data]")
@setting("phase_two", "Research", "Head frozen: rows that it learns from: rows its probes have seen, unseen ones, or both.")
@setting(
    "final_rows",
    "Research",
    "Rows of the last fit: training rows, or also the validation rows (all).  [default: all, unless --validation is given]",
)
@setting(
    "examples",
    "Output",
    "Keep which training rows excite the main neurons: their numbers (rows), also their texts (texts), or none.",
    type=OrWord(click.Choice(["rows", "texts"]), "rows|texts", {"none": None}),
)
@setting("seed", "Research", "Seed of every random choice.")
@option("--out", group="Output", type=file_path, required=True, help="Folder to save the classifier in.")
@as_json
@click.pass_context
def fit(
    ctx: click.Context,
    data: Path,
    text: str,
    text_pair: str | None,
    label: str,
    separator: str | None,
    delimiter: str | None,
    encoding: str | None,
    task: str,
    validation: Path | None,
    test: Path | None,
    store: Path | None,
    out: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train on the labelled texts in DATA, and save a classifier.

    Reads DATA: a CSV, JSONL or Parquet file (or a folder of them, or a glob in quotes) with a column of texts and a column of
    labels. If each row is a pair of texts, such as premise and hypothesis, --text-pair names the column of the second ones.
    Writes a folder (--out) for `predict`, `evaluate` and the other commands, and prints the score at every depth. A list is
    written with commas: --poolings mean,max.
    """
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]) and not (out / "spin_classifier.json").exists():
        raise InputError(f"{out}: already exists and is not a classifier; choose another folder for --out")
    # What the user did not give is left out: the estimator's own default counts.
    given = {name: value for name, value in settings.items() if ctx.get_parameter_source(name) != ParameterSource.DEFAULT}
    clf = ESTIMATORS[task](**given)
    files = {"validation": validation, "test": test}
    labelled = LabelledFiles(text, label, separator, delimiter, encoding, text_pair)
    for path in (data, *files.values()):  # before anything is read whole
        if path is not None:
            labelled.check(path)
    labels_as = float if task == "regression" else None
    texts, labels = labelled.read(data, task, labels_as)
    if task == "multilabel":
        labels_as = next((type(label) for row in labels for label in row), None)
    labels_as = labels_as or type(labels[0])  # what the training labels are, validation and test labels are, too
    held_out = {name: labelled.read(path, task, labels_as) for name, path in files.items() if path is not None}
    clf.fit(texts, labels, validation=held_out.get("validation"), test=held_out.get("test"), store=store)
    clf.save_pretrained(out)
    if as_json:
        click.echo(json.dumps({**_summary(clf), "out": str(out)}))
    else:
        click.echo(render.fitted(clf))
    timing = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in clf.seconds_.items())
    click.echo(f"depth {clf.depth_} saved to {out}; {timing}; peak memory {_peak_memory_mb():.0f} MB", err=True)


def _summary(clf: sn.SpinClassifier | sn.SpinRegressor) -> dict[str, Any]:
    """The curves, scores and times of a fit, for JSON."""
    return {
        "depth_curve": [row._asdict() for row in clf.depth_curve_],
        "layer_curve": [row._asdict() for row in clf.layer_curve_],
        "baselines": baselines_for_json(clf.baselines_),
        "beside_accuracy": clf.beside_accuracy_,
        "controls": clf.controls_ and clf.controls_._asdict(),
        "depth": clf.depth_,
        "metric": clf.metric_,
        "unconverged": clf.unconverged_,
        "seconds": clf.seconds_,
    }


def _peak_memory_mb() -> float:
    try:
        import resource  # Windows does not have it
    except ImportError:
        return float("nan")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
