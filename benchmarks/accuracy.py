"""What the method gains on real data: final-layer baseline, and every head at every depth, over seeds.

    python benchmarks/accuracy.py [sst2 ...] [--heads refit frozen weighted] [--mixing best] [--seeds 0 1 2 3 4] [--model NAME]

The data sets are folders with train.csv, test.csv and perhaps dev.csv or val.csv beside the repository (../shared/data), and
not part of it. Validation chooses everything (pooling, cut, C, depth); what it chose (the baseline, too; no perceptron) is
fitted once more on training and validation rows together; the test rows are read for the table and nothing else. Features are
extracted once, and every layer's probes are fitted once for all heads; "weighted" is given what SIREN publishes, a
share .9 of the absolute weights. Seed 0 is the split as given; the others shuffle training and validation rows together and cut
them anew at the same sizes (the solvers draw nothing at random; perceptrons do). Texts of the test rows are removed from the
others. The last line is JSON.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from machine import environment
from sklearn.model_selection import train_test_split

import spin_native as sn
from spin_native.classifier.curves import baseline
from spin_native.classifier.estimators import SpinClassifier, SpinRegressor
from spin_native.classifier.exits import shallowest_within
from spin_native.classifier.integrate import integrate
from spin_native.classifier.parts import ExtractedPart as Part
from spin_native.classifier.settings import Settings
from spin_native.classifier.sparsify import sparsify
from spin_native.classifier.tasks import Classes, Values
from spin_native.cli.demo import demo_weights
from spin_native.probes.importance import importance
from spin_native.tables import read_labelled

DATA = Path(__file__).parents[2] / "shared" / "data"


class Task(NamedTuple):
    folder: str
    label: str
    metric: str


TASKS = {
    "sst2": Task("sst2", "label", "accuracy"),
    "edos": Task("edos", "label", "macro_f1"),
    "edos_category": Task("edos", "label_category", "macro_f1"),
    "imdb_small": Task("imdb_small", "label", "accuracy"),
    "tweet_emotion": Task("tweet_emotion", "label", "macro_f1"),
    "tweet_valence": Task("tweet_valence", "label", "pearson"),
}


class Data(NamedTuple):
    """All rows' features, and which rows are which."""

    part: Part
    n_train: int
    n_validation: int
    test: np.ndarray
    n_layers: int


def load(task: Task, model: str, poolings: tuple[str, ...]) -> Data:
    """Extract everything once; rows are training, validation and test rows in this order."""
    folder = DATA / task.folder
    names = [name for name in ("train", "dev", "val", "test") if (folder / f"{name}.csv").exists()]
    parts = {name: read_labelled(folder / f"{name}.csv", "text", task.label) for name in names}
    tested = set(parts["test"][0])
    rows = {n: [r for r in zip(*p, strict=True) if n == "test" or r[0] not in tested] for n, p in parts.items()}
    n_rest = sum(len(rows[name]) for name in names[:-1])
    n_train = len(rows["train"]) if len(names) == 3 else int(0.8 * n_rest)
    texts = [text for name in names for text, _ in rows[name]]
    raw = [label for name in names for _, label in rows[name]]
    labels = np.array(raw, dtype=float) if task.metric == "pearson" else np.unique(raw, return_inverse=True)[1]
    loaded, tokenizer = sn.load_model(model), sn.load_tokenizer(model)
    features = sn.extract(loaded, tokenizer, texts, sites=("activation", "hidden"), poolings=poolings)
    test = np.arange(n_rest, len(texts))
    return Data(Part(labels, features), n_train, n_rest - n_train, test, loaded.config.n_layers)


def split(data: Data, seed: int) -> tuple[Part, Part, Part]:
    rows = np.arange(data.n_train + data.n_validation)
    if seed == 0 and data.part.labels.dtype.kind != "f":
        train, validation = rows[: data.n_train], rows[data.n_train :]
    else:
        classes = None if data.part.labels.dtype.kind == "f" else data.part.labels[rows]
        train, validation = train_test_split(rows, test_size=data.n_validation, stratify=classes, random_state=seed)
    return data.part.only(np.sort(train)), data.part.only(np.sort(validation)), data.part.only(data.test)


def settings_of(task: Task, head: str, mixing: str, seed: int, poolings: tuple[str, ...], labels: np.ndarray) -> Settings:
    kind = SpinRegressor if task.metric == "pearson" else SpinClassifier
    given: dict[str, Any] = {"head": head, "mixing": mixing, "metric": task.metric, "seed": seed, "poolings": poolings}
    if head == "weighted":  # as SIREN has it: one share of the absolute weights, nothing together
        given |= {"ranker": "absolute", "etas": (0.9,), "mixing": "apart"}
    else:
        given["final_rows"] = "all"
    return kind(**given)._settings(Values() if task.metric == "pearson" else Classes(np.unique(labels)))


def measure(name: str, given: argparse.Namespace, model: str) -> dict[str, Any]:
    """Fit on one data set and print its table."""
    task, poolings = TASKS[name], tuple(given.poolings)
    started = perf_counter()
    data = load(task, model, poolings)
    print(f"\n{name}: {data.n_train} + {data.n_validation} rows, test {len(data.test)}, {task.metric}", flush=True)
    print(f"  extracted in {perf_counter() - started:.0f} s", flush=True)
    found: dict[str, list[Any]] = {"baseline": []} | {head: [] for head in given.heads}
    for seed in given.seeds:
        train, validation, test = split(data, seed)
        started = perf_counter()
        settings = settings_of(task, "refit", given.mixing, seed, poolings, data.part.labels)
        layers = sparsify(train, validation, data.n_layers, settings, False)
        probed = perf_counter() - started
        found["baseline"].append(baseline(train, validation, test, data.n_layers, settings)[0]._asdict())
        for head in given.heads:
            started = perf_counter()
            settings = settings_of(task, head, given.mixing, seed, poolings, data.part.labels)
            ranked = {
                f: replace(layer, importance=importance(layer.probe.coef_, settings.ranker)) for f, layer in layers.items()
            }
            _, curve = integrate(ranked, train, validation, test, data.n_layers, settings, False)
            depth = shallowest_within({d: row.validation for d, row in curve.items()}, 0.0)
            row: dict[str, Any] = {"depth": depth, "test": curve[depth].test, "n_neurons": curve[depth].n_neurons}
            row |= {"curve": [line._asdict() for line in curve.values()]}
            row |= {"seconds": {"probe": probed, "integrate": perf_counter() - started}}
            found[head].append(row)
            shown = " ".join(f"{line.test:.3f}" for line in curve.values())
            base = found["baseline"][-1]["test"]
            print(
                f"  seed {seed} {head}: baseline {base:.4f}, chosen depth {depth} {row['test']:.4f}, depths {shown}; "
                f"probe {probed:.0f} s, integrate {row['seconds']['integrate']:.0f} s",
                flush=True,
            )
    for kind, rows in found.items():
        scores = [row["test"] for row in rows]
        print(
            f"  {kind}: test {np.mean(scores):.4f} +- {np.std(scores):.4f} ({min(scores):.4f} to {max(scores):.4f})", flush=True
        )
        if kind != "baseline":
            depths = np.array([[line["test"] for line in row["curve"]] for row in rows])
            shown = ", ".join(f"{m:.4f} +- {s:.4f}" for m, s in zip(depths.mean(0), depths.std(0), strict=True))
            print(f"    by depth: {shown}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", choices=[*TASKS, []], help="default: all of them")
    parser.add_argument("--heads", nargs="+", default=["refit", "frozen", "weighted"])
    parser.add_argument("--mixing", default="best", help="of refit and frozen heads")
    parser.add_argument("--poolings", nargs="+", default=["mean", "max"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--model", help="base model (default: the demo's all-MiniLM-L6-v2)")
    given = parser.parse_args()
    model = given.model or str(demo_weights())
    where = environment()
    results = {name: measure(name, given, model) for name in given.data or TASKS}
    print(json.dumps({"environment": where, "results": results}))


if __name__ == "__main__":
    main()
