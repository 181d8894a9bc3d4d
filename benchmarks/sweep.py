"""The whole SPIN sweep, timed: 2 sites, 3 poolings, 5 C, 10 eta, every depth; and what leaving early saves and costs.

    python benchmarks/sweep.py [sweep exits xl] [--data sst2 edos] [--model NAME --depth 4]

Needs ../shared beside the repository. `sweep`: SST-2, seconds after extraction; --model: another base model than the demo's,
--depth: its first layers only, and what all of them would then cost (probes: in proportion to the layers; the heads of a depth:
in proportion to the layers below it). `exits`: on each data set a classifier with a head at every depth; accuracy against mean
depth for every policy; then 20 calibrations, each on a random half of the test rows with the other half to check the promise on
(accuracy falls by at most 1 point, confidence .95); and the wall-clock of `predict` at the promise against the fixed deepest
depth. `xl`: a fit in two stages on GPT2-XL shapes (random weights, bfloat16, 1,000 tweets, a sample of 200), and what it keeps
on disk for each row. The last line is JSON.
"""

import argparse
import json
import resource
import statistics
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from accuracy import DATA
from forward import random_model
from machine import environment

from spin_native.classifier.estimators import SpinClassifier
from spin_native.classifier.exits import Exit, calibrate, replay
from spin_native.cli.demo import demo_weights
from spin_native.tables import read_labelled

DROP, CONFIDENCE = 0.01, 0.95


def read(name: str, part: str) -> tuple[list[str], list[Any]]:
    return read_labelled(DATA / name / f"{part}.csv", "text", "label")


def measure_sweep(given: argparse.Namespace) -> dict[str, Any]:
    clf = SpinClassifier(
        given.model or str(demo_weights()),
        depth=given.depth or "best",
        baseline=given.depth is None,
        sites=("activation", "hidden"),
        mixing="apart",
        poolings=("mean", "max", "first"),
        etas=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        Cs=(0.003, 0.01, 0.03, 0.1, 0.3),
    )
    clf.fit(*read("sst2", "train"), validation=read("sst2", "dev"), test=read("sst2", "test"))
    row = {**clf.seconds_, "after_extraction": clf.seconds_["probe"] + clf.seconds_["integrate"]}
    row |= {"depth": clf.depth_, "test": clf.depth_curve_[clf.depth_ - 1].test}
    if given.depth:
        n_layers, n = clf.model_config_.n_layers, given.depth
        row |= {"all_layers": clf.seconds_["probe"] * n_layers / n}
        row["all_layers"] += clf.seconds_["integrate"] * n_layers * (n_layers + 1) / (n * (n + 1))
    print("sweep:", {key: round(value, 4) for key, value in row.items()}, flush=True)
    return row


def measure_xl(_given: argparse.Namespace) -> dict[str, Any]:
    texts, labels = read("tweet_emotion", "train")
    with TemporaryDirectory() as folder:
        weights, store = Path(folder) / "gpt2-xl", Path(folder) / "store"
        random_model("gpt2-xl", weights, tokenizer="gpt2")
        clf = SpinClassifier(str(weights), sample=200, dtype="bfloat16", depth=None, baseline=False, mixing="apart")
        clf.fit(texts[:1000], labels[:1000], store=store)
        sizes = {part.name: sum(file.stat().st_size for file in part.iterdir()) for part in store.iterdir()}
    row: dict[str, Any] = {
        "bytes_per_row_of_sample": sizes["training-sample"] / 200,
        "bytes_per_row": (sizes["training"] + sizes["validation"]) / 1000,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": clf.seconds_,
    }
    row["25k_rows_with_a_sample_of_2500"] = 25000 * row["bytes_per_row"] + 2500 * row["bytes_per_row_of_sample"]
    print("xl:", row, flush=True)
    return row


def measure_exits(given: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for name in given.data:
        train, dev, (texts, labels) = (read(name, part) for part in ("train", "dev", "test"))
        clf = SpinClassifier(str(demo_weights()), depth=None, exits="all", baseline=False, poolings=("mean",))
        clf.fit(*train, validation=dev)
        truth = np.searchsorted(clf.classes_, labels)
        every = clf._deployed.all_outputs(texts)
        right = {depth: p.argmax(1) == truth for depth, p in every.items()}
        deepest, rows = max(every), np.arange(len(truth))
        curves: dict[str, list[tuple[float, float]]] = {}
        policies = [Exit("fixed", depth) for depth in every]
        policies += [Exit("confidence", c) for c in (0.6, 0.7, 0.8, 0.9, 0.95, 0.99)]
        policies += [Exit("patience", patience) for patience in range(1, deepest)]
        for exit_ in policies:
            left = replay(exit_, every)
            accuracy = float(np.array([right[depth] for depth in sorted(every)])[left - 1, rows].mean())
            curves.setdefault(exit_.by, []).append((float(left.mean()), accuracy))
        print(f"\n{name}: (mean depth, accuracy)", flush=True)
        for by, points in curves.items():
            print(f"  {by}: " + ", ".join(f"({depth:.2f}, {accuracy:.4f})" for depth, accuracy in points), flush=True)
        calibrations = []
        for seed in range(20):
            order = np.random.default_rng(seed).permutation(len(truth))
            seen, unseen = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
            some = {depth: p[seen] for depth, p in every.items()}
            promise = calibrate(some, truth[seen], "confidence", DROP, CONFIDENCE)
            left = replay(promise.exit, {depth: p[unseen] for depth, p in every.items()})
            accuracy = np.array([right[depth][unseen] for depth in sorted(every)])[left - 1, np.arange(len(unseen))].mean()
            calibrations.append((str(promise.exit), float(left.mean()), float(right[deepest][unseen].mean() - accuracy)))
        drops = [drop for _, _, drop in calibrations]
        kept = sum(drop <= DROP for drop in drops)
        print(f"  promise kept in {kept} of 20; largest fall {max(drops):.4f}, mean {np.mean(drops):.4f}", flush=True)
        print(f"  mean depth {np.mean([depth for _, depth, _ in calibrations]):.2f} of {deepest}", flush=True)
        half = len(texts) // 2
        clf.calibrate(texts[:half], labels[:half], max_accuracy_drop=DROP, confidence=CONFIDENCE)
        rest = texts[half:]
        seconds: dict[str, list[float]] = {"fixed": [], "calibrated": []}
        for _ in range(4):
            for key, chosen in (("fixed", Exit()), ("calibrated", clf.exit_)):
                started = perf_counter()
                clf.predict(rest, exit=chosen)
                seconds[key].append(perf_counter() - started)
        speed = statistics.median(a / b for a, b in list(zip(seconds["fixed"], seconds["calibrated"], strict=True))[1:])
        left = clf.predict(rest, return_depth=True)[1].mean()
        print(f"  wall-clock: {speed:.2f} x at {clf.exit_}, mean depth {left:.2f} of {deepest}", flush=True)
        found[name] = {"curves": curves, "calibrations": calibrations, "kept": kept, "speed": speed, "mean_depth": float(left)}
    return found


SECTIONS = {"sweep": measure_sweep, "exits": measure_exits, "xl": measure_xl}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all of them")
    parser.add_argument("--data", nargs="+", default=["sst2", "edos"])
    parser.add_argument("--model")
    parser.add_argument("--depth", type=int)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of rows in two parts, which these data sets have
    where = environment()
    results = {section: SECTIONS[section](given) for section in given.sections or SECTIONS}
    print(json.dumps({"environment": where, "results": results}))


if __name__ == "__main__":
    main()
