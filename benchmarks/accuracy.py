"""Test scores on real data: the baseline on the final layer, and every head at every depth, over several seeds.

    python benchmarks/accuracy.py [sst2 edos ...] [--model FOLDER] [--heads refit frozen weighted] [--seeds 0 1 2 3 4]
                                  [--dtype float32] [--mixing best] [--poolings mean max]

Needs ../shared/data beside the repository: folders with train.csv, test.csv and, where there is one, dev.csv or val.csv.
--model is a checkpoint folder or Hub name of any supported family; without it, all-MiniLM-L6-v2 of the demo is used.

Method: validation rows choose everything (poolings, cut, C, depth). The chosen linear heads and the baseline are then fitted
once more on training and validation rows together; the perceptron ("weighted") is not, because validation rows stop its
training. Test rows are scored for the table and choose nothing. Texts that are also test rows are removed from the other parts.
The baseline is an L2 regression on the pooled final hidden state. The head "weighted" uses the settings published for SIREN: a
share of 0.9 of the absolute weights, one pooling. Features are extracted once, and the probes of a seed are fitted once for all
heads. Seed 0 keeps the given split of a classification set; the other seeds shuffle training and validation rows and split
them again at the same sizes. Only this split and the perceptron are random. The last line is JSON.
"""

import argparse
from dataclasses import replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from inputs import DATA, demo_weights, read
from machine import environment, parser, print_json, share_of_limit
from sklearn.model_selection import train_test_split

import spin_native as sn

# The package's internals, so that one extraction and one set of probes serve all heads.
from spin_native.classifier.curves import baseline
from spin_native.classifier.integrate import integrate
from spin_native.classifier.options import DTYPES
from spin_native.classifier.parts import ExtractedPart
from spin_native.classifier.settings import Settings
from spin_native.classifier.sparsify import sparsify
from spin_native.classifier.tasks import Classes, Values
from spin_native.probes.importance import importance

HEADS = ("refit", "frozen", "weighted")


class Task(NamedTuple):
    folder: str
    label: str
    metric: str

    @property
    def is_regression(self) -> bool:
        return self.metric == "pearson"


TASKS = {
    "sst2": Task("sst2", "label", "accuracy"),
    "edos": Task("edos", "label", "macro_f1"),
    "edos_category": Task("edos", "label_category", "macro_f1"),
    "imdb_small": Task("imdb_small", "label", "accuracy"),
    "tweet_emotion": Task("tweet_emotion", "label", "macro_f1"),
    "tweet_valence": Task("tweet_valence", "label", "pearson"),
}


class Data(NamedTuple):
    """The features of all rows: n_train training rows, then n_validation, then the test rows."""

    part: ExtractedPart
    n_train: int
    n_validation: int
    test: np.ndarray
    n_layers: int
    seconds: float
    of_limit: float | None


def load(task: Task, given: argparse.Namespace) -> Data:
    """Read a data set and extract all features once."""
    names = [name for name in ("train", "dev", "val", "test") if (DATA / task.folder / f"{name}.csv").exists()]
    parts = {name: read(task.folder, name, task.label) for name in names}
    test_texts = set(parts["test"][0])
    rows = {
        name: [row for row in zip(*columns, strict=True) if name == "test" or row[0] not in test_texts]
        for name, columns in parts.items()
    }
    n_rest = sum(len(rows[name]) for name in names[:-1])
    n_train = len(rows["train"]) if len(names) == 3 else int(0.8 * n_rest)
    texts = [text for name in names for text, _ in rows[name]]
    raw = [label for name in names for _, label in rows[name]]
    labels = np.array(raw, dtype=float) if task.is_regression else np.unique(raw, return_inverse=True)[1]

    model, tokenizer = sn.load_model(given.model, dtype=DTYPES[given.dtype]), sn.load_tokenizer(given.model)
    started = perf_counter()
    features = sn.extract(model, tokenizer, texts, sites=("activation", "hidden"), poolings=tuple(given.poolings))
    seconds = perf_counter() - started
    of_limit = None
    if model.dtype in (torch.float32, torch.bfloat16):
        of_limit = share_of_limit(model.config, list(map(len, tokenizer.encode(texts).ids)), seconds, model.dtype)
    test = np.arange(n_rest, len(texts))
    return Data(ExtractedPart(labels, features), n_train, n_rest - n_train, test, model.config.n_layers, seconds, of_limit)


def split(data: Data, task: Task, seed: int) -> tuple[ExtractedPart, ExtractedPart, ExtractedPart]:
    """Training, validation and test rows of one seed."""
    rows = np.arange(data.n_train + data.n_validation)
    if seed == 0 and not task.is_regression:
        train, validation = rows[: data.n_train], rows[data.n_train :]
    else:
        classes = None if task.is_regression else data.part.labels[rows]
        train, validation = train_test_split(rows, test_size=data.n_validation, stratify=classes, random_state=seed)
    return data.part.only(np.sort(train)), data.part.only(np.sort(validation)), data.part.only(data.test)


def settings_of(data: Data, task: Task, head: str, seed: int, given: argparse.Namespace) -> Settings:
    estimator = sn.SpinRegressor if task.is_regression else sn.SpinClassifier
    options: dict[str, Any] = {"head": head, "mixing": given.mixing, "metric": task.metric, "seed": seed}
    options["poolings"] = tuple(given.poolings)
    if head == "weighted":
        options |= {"ranker": "absolute", "etas": (0.9,), "mixing": "apart"}
    else:
        options["final_rows"] = "all"
    return estimator(**options)._settings(Values() if task.is_regression else Classes(np.unique(data.part.labels)))


def measure_seed(data: Data, task: Task, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Baseline, probes and heads of one split: a record for each of "baseline", "probes" and the heads."""
    train, validation, test = split(data, task, seed)
    settings = settings_of(data, task, "refit", seed, given)
    started = perf_counter()
    layers = sparsify(train, validation, data.n_layers, settings, False)
    records: dict[str, Any] = {"probes": {"seconds": perf_counter() - started}}
    started = perf_counter()
    records["baseline"] = baseline(train, validation, test, data.n_layers, settings)[0]._asdict()
    records["baseline"]["seconds"] = perf_counter() - started
    for head in given.heads:
        started = perf_counter()
        settings = settings_of(data, task, head, seed, given)
        ranked = {
            feature: replace(layer, importance=importance(layer.probe.coef_, settings.ranker))
            for feature, layer in layers.items()
        }
        _, curve = integrate(ranked, train, validation, test, data.n_layers, settings, False)
        # The shallowest of the best; scores that differ by rounding are equal.
        best = max(row.validation for row in curve.values())
        depth = min(depth for depth, row in curve.items() if row.validation >= best - 1e-12)
        records[head] = {
            "depth": depth,
            "test": curve[depth].test,
            "n_neurons": curve[depth].n_neurons,
            "curve": [row._asdict() for row in curve.values()],
            "seconds": perf_counter() - started,
        }
    return records


def print_seed(seed: int, records: dict[str, Any], given: argparse.Namespace) -> None:
    base = records["baseline"]
    print(
        f"  seed {seed}: baseline {base['test']:.4f} ({base['seconds']:.1f} s), probes {records['probes']['seconds']:.1f} s",
        flush=True,
    )
    for head in given.heads:
        record = records[head]
        by_depth = " ".join(f"{row['depth']}: {row['test']:.4f}" for row in record["curve"])
        print(
            f"    {head}: chosen depth {record['depth']} with {record['n_neurons']} neurons, test {record['test']:.4f} "
            f"({record['test'] - base['test']:+.4f} against the baseline), {record['seconds']:.1f} s; by depth {by_depth}",
            flush=True,
        )


def print_means(seeds: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """Mean and standard deviation over the seeds, with smallest and largest."""
    print(f"  over {len(seeds)} seeds:")
    for name in ("baseline", *given.heads):
        scores = [records[name]["test"] for records in seeds]
        seconds = np.mean([records[name]["seconds"] for records in seeds])
        depth = np.mean([records[name]["depth"] for records in seeds])
        chosen = "" if name == "baseline" else f"mean chosen depth {depth:.1f}, "
        print(f"    {name}: {chosen}test {spread(scores)} ({min(scores):.4f} to {max(scores):.4f}), {seconds:.1f} s a seed")
        if name != "baseline":
            curves = [{row["depth"]: row["test"] for row in records[name]["curve"]} for records in seeds]
            depths = sorted(set.intersection(*map(set, curves)))
            print("      by depth: " + ", ".join(f"{d}: {spread([curve[d] for curve in curves])}" for d in depths))
    print(f"    probes: {np.mean([records['probes']['seconds'] for records in seeds]):.1f} s a seed", flush=True)


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} +- {np.std(values):.4f}"


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One data set over all seeds."""
    task = TASKS[name]
    data = load(task, given)
    print(
        f"\n{name}: {data.n_train} training, {data.n_validation} validation, {len(data.test)} test rows; {task.metric}; "
        f"{data.n_layers} layers extracted in {data.seconds:.0f} s"
        + ("" if data.of_limit is None else f", {data.of_limit:.2f} of the limit"),
        flush=True,
    )
    seeds = []
    for seed in given.seeds:
        seeds.append(measure_seed(data, task, seed, given))
        print_seed(seed, seeds[-1], given)
    print_means(seeds, given)
    results: dict[str, Any] = {kind: [records[kind] for records in seeds] for kind in ("probes", "baseline", *given.heads)}
    results |= {"metric": task.metric, "seeds": given.seeds}
    results["extraction"] = {"seconds": data.seconds, "of_limit": data.of_limit}
    return results


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("data", nargs="*", choices=[*TASKS, []], help="default: all of them")
    arguments.add_argument("--model", help="checkpoint folder or Hub name (default: the demo's all-MiniLM-L6-v2)")
    arguments.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    arguments.add_argument("--dtype", choices=DTYPES, default="float32", help="of the base model")
    arguments.add_argument("--mixing", choices=("apart", "together", "best"), default="best", help="of refit and frozen heads")
    arguments.add_argument("--poolings", nargs="+", choices=("mean", "max", "first", "last"), default=["mean", "max"])
    given = arguments.parse_args()
    given.model = given.model or str(demo_weights())
    where = environment()
    results = {name: measure(name, given) for name in given.data or TASKS}
    print_json(where | {"arguments": vars(given)}, results)


if __name__ == "__main__":
    main()
