"""Draws docs/depth_curve.svg, the picture in the README, from what `accuracy.py` printed.

    python benchmarks/accuracy.py --sets sst2 edos --model FOLDER | tail -n 1 > scores.json
    python benchmarks/picture.py scores.json --out docs/depth_curve.svg

One panel per data set: the test score of the `refit` head at every depth (mean over the seeds), and the baseline, logistic
regression on the final hidden state, as a horizontal line.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib import rcParams

rcParams.update({"svg.hashsalt": "spin_native", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})
TITLES = {
    "sst2": "SST-2",
    "edos": "EDOS",
    "edos_category": "EDOS, 5 categories",
    "imdb_small": "imdb_small",
    "tweet_emotion": "tweet_emotion",
    "tweet_valence": "tweet_valence",
}
METRICS = {"accuracy": "test accuracy", "macro_f1": "test macro-F1", "pearson": "test Pearson correlation"}
CURVE, BASELINE = "#1f6f8b", "#c05621"


def draw(results: dict[str, Any], out: Path, head: str) -> None:
    figure, panels = plt.subplots(1, len(results), figsize=(3.6 * len(results), 2.9), squeeze=False, layout="constrained")
    for panel, (name, result) in zip(panels[0], results.items(), strict=True):
        curves = [[row["test"] for row in record["curve"]] for record in result["contenders"][head]]
        scores = np.mean(curves, axis=0)
        depths = np.arange(1, len(scores) + 1)
        baseline = np.mean([record["test"] for record in result["contenders"]["final_hidden"]])
        panel.axhline(baseline, color=BASELINE, linestyle="--", linewidth=1.5)
        panel.plot(depths, scores, color=CURVE, marker="o", markersize=4, linewidth=1.8)
        panel.text(0.98, 0.05, "- -  final hidden state", transform=panel.transAxes, color=BASELINE, ha="right", fontsize=9)
        panel.annotate("salient neurons of the first k layers", (depths[-1], scores.max()), (0, 6), color=CURVE,
                       textcoords="offset points", ha="right", va="bottom", fontsize=9)  # fmt: skip
        panel.set_title(TITLES[name], loc="left", fontweight="bold")
        panel.set_xlabel("depth k (layers run)")
        panel.set_ylabel(METRICS[result["metric"]])
        panel.set_xticks(depths[:: 1 + len(depths) // 8])
        low, high = min(scores.min(), baseline), max(scores.max(), baseline)
        panel.set_ylim(low - 0.15 * (high - low), high + 0.25 * (high - low))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", linewidth=0.4)
    figure.savefig(out, format="svg", metadata={"Date": None})


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("scores", type=Path, nargs="+", help="files with the JSON line of accuracy.py")
    arguments.add_argument("--out", type=Path, required=True, help="SVG file to write")
    arguments.add_argument("--head", default="refit", help="default, dense_hidden, refit, frozen, weighted ...")
    given = arguments.parse_args()
    results: dict[str, Any] = {}
    for path in given.scores:
        results |= json.loads(path.read_text(encoding="utf-8"))["results"]["sets"]
    draw(results, given.out, given.head)


if __name__ == "__main__":
    main()
