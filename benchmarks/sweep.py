"""The whole SPIN sweep by the clock; what early exits save and cost; a fit on a sample with GPT2-XL's sizes.

    python benchmarks/sweep.py [sweep exits xl] [--data sst2 edos] [--model NAME] [--depth 4]

Needs ../shared beside the repository.

sweep: seconds of a fit on SST-2 with 2 sites, 3 poolings, 5 C, 10 eta and every depth. The extraction is compared with the
    machine's limit. --model names another base model than the demo's. --depth fits the first layers only and estimates all of
    them: the probes' seconds grow with the number of layers, those of the heads with its square (a head of depth k reads k
    layers).
exits: for each data set a classifier with a head at every depth. Accuracy against mean depth for each kind of exit; then 20
    calibrations, each on a random half of the test rows and checked on the other half (accuracy may drop by at most 1 point,
    with 95 % confidence); then seconds of `predict` with a calibrated exit against the fixed deepest depth, in the same rounds.
xl: bytes on disk for each row of a fit in two stages (random weights, bfloat16, 1,000 tweets, a sample of 200).

The last line is JSON.
"""

import argparse
import resource
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from inputs import demo_weights, random_model, read
from machine import alternate, environment, median_ratio, parser, print_json, share_of_limit

import spin_native as sn

DROP, CONFIDENCE = 0.01, 0.95
N_CALIBRATIONS = 20


def measure_sweep(given: argparse.Namespace) -> dict[str, Any]:
    model = given.model or str(demo_weights())
    clf = sn.SpinClassifier(
        model,
        head="refit",
        depth=given.depth or "best",
        baseline=given.depth is None,
        sites=("activation", "hidden"),
        mixing="apart",
        poolings=("mean", "max", "first"),
        etas=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        Cs=(0.003, 0.01, 0.03, 0.1, 0.3),
    )
    parts = {part: read("sst2", part) for part in ("train", "dev", "test")}
    clf.fit(*parts["train"], validation=parts["dev"], test=parts["test"])
    config = sn.load_model(model, depth=1).config
    row = {**clf.seconds_, "after_extraction": clf.seconds_["probe"] + clf.seconds_["integrate"]}
    row |= {"depth": clf.depth_, "test": clf.depth_curve_[clf.depth_ - 1].test}
    if given.depth:
        n, n_layers = given.depth, config.n_layers
        row["all_layers"] = clf.seconds_["probe"] * n_layers / n
        row["all_layers"] += clf.seconds_["integrate"] * n_layers * (n_layers + 1) / (n * (n + 1))
    else:
        lengths = list(map(len, sn.load_tokenizer(model).encode([text for texts, _ in parts.values() for text in texts]).ids))
        row["extract_of_limit"] = share_of_limit(config, lengths, clf.seconds_["extract"], torch.float32)
    print("sweep:", ", ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
    return row


def measure_exits(given: argparse.Namespace) -> dict[str, Any]:
    """All the figures of early exits, for each data set."""
    results = {}
    for name in given.data:
        train, dev, (texts, labels) = (read(name, part) for part in ("train", "dev", "test"))
        settings: dict[str, Any] = {"head": "refit", "depth": None, "exits": "all", "baseline": False, "poolings": ("mean",)}
        clf = sn.SpinClassifier(str(demo_weights()), **settings)
        clf.fit(*train, validation=dev)
        print(f"\n{name}: (mean depth, accuracy)", flush=True)
        curves = exit_curves(clf, texts, np.array(labels))
        calibrations = calibrate_on_halves(clf, texts, np.array(labels))
        clock = calibrated_speed(clf, texts, labels)
        results[name] = {"curves": curves, **calibrations, **clock}
    return results


def exit_curves(clf: sn.SpinClassifier, texts: list[str], labels: np.ndarray) -> dict[str, list[tuple[float, float]]]:
    """(mean depth, accuracy) of every exit to compare, by its kind."""
    exits = [f"fixed:{depth}" for depth in clf.heads_]
    exits += [f"confidence:{threshold}" for threshold in (0.6, 0.7, 0.8, 0.9, 0.95, 0.99)]
    exits += [f"patience:{n_heads}" for n_heads in range(1, clf.depth_)]
    curves: dict[str, list[tuple[float, float]]] = {}
    for exit_ in exits:
        predicted, depths = clf.predict(texts, exit=exit_, return_depth=True)
        curves.setdefault(exit_.partition(":")[0], []).append((float(depths.mean()), float((predicted == labels).mean())))
    for kind, points in curves.items():
        print(f"  {kind}: " + ", ".join(f"({depth:.2f}, {accuracy:.4f})" for depth, accuracy in points), flush=True)
    return curves


def calibrate_on_halves(clf: sn.SpinClassifier, texts: list[str], labels: np.ndarray) -> dict[str, Any]:
    """How often a calibration on one half of the rows keeps its promise on the other half."""
    deepest = clf.predict(texts, exit=f"fixed:{clf.depth_}")
    calibrations: list[dict[str, Any]] = []
    for seed in range(N_CALIBRATIONS):
        order = np.random.default_rng(seed).permutation(len(labels))
        half, other = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        clf.calibrate([texts[row] for row in half], labels[half], max_accuracy_drop=DROP, confidence=CONFIDENCE)
        predicted, depths = clf.predict([texts[row] for row in other], return_depth=True)
        drop = (deepest[other] == labels[other]).mean() - (predicted == labels[other]).mean()
        calibrations.append({"exit": str(clf.exit_), "mean_depth": float(depths.mean()), "drop": float(drop)})
    drops = [calibration["drop"] for calibration in calibrations]
    n_kept = sum(drop <= DROP for drop in drops)
    mean_depth = float(np.mean([calibration["mean_depth"] for calibration in calibrations]))
    print(
        f"  promise kept in {n_kept} of {N_CALIBRATIONS}; largest drop {max(drops):.4f}, mean drop {np.mean(drops):.4f}; mean "
        f"depth {mean_depth:.2f} of {clf.depth_}",
        flush=True,
    )
    return {"calibrations": calibrations, "n_kept": n_kept, "mean_depth_of_calibrations": mean_depth}


def calibrated_speed(clf: sn.SpinClassifier, texts: list[str], labels: list[Any]) -> dict[str, Any]:
    """Seconds of `predict` at the deepest depth over those at the calibrated exit: first half calibrates, second is timed."""
    half = len(texts) // 2
    clf.calibrate(texts[:half], labels[:half], max_accuracy_drop=DROP, confidence=CONFIDENCE)
    rest = texts[half:]
    contenders = {
        "fixed": lambda: clf.predict(rest, exit=f"fixed:{clf.depth_}"),
        "calibrated": lambda: clf.predict(rest),
    }
    seconds = alternate(contenders, 3)
    speed = median_ratio(seconds["fixed"], seconds["calibrated"])
    mean_depth = float(clf.predict(rest, return_depth=True)[1].mean())
    print(
        f"  by the clock: {speed:.2f} times as fast as the fixed deepest depth, with {clf.exit_} at mean depth "
        f"{mean_depth:.2f} of {clf.depth_}",
        flush=True,
    )
    return {"times_as_fast_as_fixed": speed, "mean_depth": mean_depth}


def measure_xl(_given: argparse.Namespace) -> dict[str, Any]:
    texts, labels = read("tweet_emotion", "train")
    with TemporaryDirectory() as folder:
        weights, store = Path(folder) / "gpt2-xl", Path(folder) / "store"
        random_model("gpt2-xl", weights, tokenizer="gpt2")
        settings: dict[str, Any] = {"head": "refit", "sample": 200, "depth": None, "baseline": False, "mixing": "apart"}
        clf = sn.SpinClassifier(str(weights), dtype="bfloat16", **settings)
        clf.fit(texts[:1000], labels[:1000], store=store)
        sizes = {part.name: sum(file.stat().st_size for file in part.iterdir()) for part in store.iterdir()}
    row: dict[str, Any] = {
        "bytes_per_row_of_sample": sizes["training-sample"] / 200,
        "bytes_per_row": (sizes["training"] + sizes["validation"]) / 1000,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": clf.seconds_,
    }
    row["bytes_of_25k_rows_with_a_sample_of_2500"] = 25000 * row["bytes_per_row"] + 2500 * row["bytes_per_row_of_sample"]
    row["bytes_of_25k_rows_without_a_sample"] = 25000 * row["bytes_per_row_of_sample"]
    print("xl:", ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


SECTIONS = {"sweep": measure_sweep, "exits": measure_exits, "xl": measure_xl}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all of them")
    arguments.add_argument("--data", nargs="+", default=["sst2", "edos"], help="for exits")
    arguments.add_argument("--model", help="for sweep: checkpoint folder or Hub name (default: the demo's all-MiniLM-L6-v2)")
    arguments.add_argument("--depth", type=int, help="for sweep: fit only so many layers")
    given = arguments.parse_args()
    warnings.simplefilter("ignore")  # some texts are in two parts of these data sets
    where = environment()
    print_json(where, {section: SECTIONS[section](given) for section in given.sections or SECTIONS})


if __name__ == "__main__":
    main()
