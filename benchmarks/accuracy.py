"""What the method gains on real data: for each data set the baseline and every depth, with neurons used and seconds.

    python benchmarks/accuracy.py [sst2 edos imdb_small] [--model FOLDER_OR_NAME] [--seed 0]

The data sets are folders with train.csv, test.csv and perhaps dev.csv beside the repository (../shared/data); they are not part
of it. Validation chooses everything; the test rows are scored once. The last line is JSON.
"""

import argparse
import json
import platform
from pathlib import Path
from time import perf_counter

import torch

from spin_native.classifier import SpinClassifier
from spin_native.cli import render
from spin_native.cli.demo import demo_weights
from spin_native.cli.tables import read_labelled
from spin_native.version import __version__

DATA = Path(__file__).parents[2] / "shared" / "data"
METRICS = {"sst2": "accuracy", "edos": "macro_f1", "imdb_small": "accuracy", "tweet_emotion": "macro_f1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=["sst2", "edos", "imdb_small"])
    parser.add_argument("--model", help="base model (default: the demo's all-MiniLM-L6-v2)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = given.model or str(demo_weights())
    environment = {
        "spin_native": __version__,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
    print(" ".join(f"{name}={value}" for name, value in environment.items()))
    results = {name: measure(name, model, given.seed) for name in given.data}
    print(json.dumps({"environment": environment, "results": results}))


def measure(name: str, model: str, seed: int) -> dict[str, object]:
    """Fit on one data set and print its table."""
    folder = DATA / name
    train, test = (read_labelled(folder / f"{part}.csv", "text", "label") for part in ("train", "test"))
    held_out = next((folder / f"{part}.csv" for part in ("dev", "val") if (folder / f"{part}.csv").exists()), None)
    validation = held_out and read_labelled(held_out, "text", "label")
    started = perf_counter()
    clf = SpinClassifier(model, metric=METRICS.get(name, "accuracy"), seed=seed)
    clf.fit(*train, validation=validation, test=test)
    seconds = {**clf.seconds_, "total": perf_counter() - started}
    print(f"\n{name}: {len(train[0])} training rows, seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in seconds.items()))
    print(render.curve(clf), flush=True)
    return {
        "depth": clf.depth_,
        "baseline": clf.baseline_._asdict(),
        "depth_curve": [row._asdict() for row in clf.depth_curve_],
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
