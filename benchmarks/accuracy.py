"""Test scores on real data: the default classifier, every other head, and what people would run otherwise, over several seeds.

    python benchmarks/accuracy.py [--sets sst2 edos ...] [--model FOLDER] [--heads refit frozen weighted] [--seeds 5]
                                  [--limit N] [--store FOLDER] [--dtype float32] [--mixing best]

Needs ../shared/data beside the repository: folders with train.csv, test.csv and, where there is one, dev.csv or val.csv.
--model is a checkpoint folder or Hub name of any supported family; without it, all-MiniLM-L6-v2 of the demo is used.

Contenders, all fitted on the same rows, training and dev rows together:
    default             head="best", with its baselines
    dense_hidden        head="dense" on the mean hidden states
    dense_activations   head="dense" on the mean activations
    refit, frozen, weighted
                        the published heads. The dev rows are their validation rows. The last fit of refit and frozen heads
                        learns from all rows; that of "weighted" does not, because validation rows stop its training. "weighted"
                        has the settings published for SIREN: a share of 0.9 of the absolute weights, one pooling.
    tfidf               TF-IDF of words and pairs of words, and logistic (for values: ridge) regression; C by 5-fold
                        cross-validation
    majority, final_hidden, best_hidden, all_hidden, all_activations
                        the default's own baselines_, at its chosen depth

Method: the default and the dense heads choose by cross-validation. Test rows are scored once for the table, and choose nothing.
Texts that are also test rows, and copies of a text, are removed from the other parts. Features are extracted once for a set and
a model; with --store they stay on disk for later runs. The seed is the estimators' seed (their folds, the perceptron), and it
decides which rows are dev rows: seed 0 has the given ones, the other seeds draw as many from training and dev rows. A set
without dev rows, and a regression, has 20 % (or as many as were given) drawn by every seed.

CPU seconds are those of the process during `fit` with the features given: of all threads, with reading the features and loading
the chosen layers. All but the default are fitted with baseline=False, so their seconds hold no other model.

Against each contender: the default's score minus its score on the same test rows, with a paired test (McNemar's exact test for
accuracy, the paired bootstrap otherwise): in how many seeds the default is clearly better or worse (p < .05); and the mean and
standard deviation of the difference over the seeds. The second table is at full depth. The last line is JSON.
"""

import argparse
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from inputs import demo_weights
from labelled import SETS, Extracted, Labelled, Rows, drawn, extracted, read_set, test_predictions, tfidf
from machine import environment, parser, print_json

import spin_native as sn

# The package's internals: the paired test of `baselines_`, for other contenders.
from spin_native.classifier.comparisons import compare
from spin_native.classifier.options import DTYPES, settings_of

HEADS = ("refit", "frozen", "weighted")
DENSE: dict[str, dict[str, Any]] = {
    "dense_hidden": {"head": "dense", "sites": ("hidden",), "poolings": ("mean",), "baseline": False},
    "dense_activations": {"head": "dense", "sites": ("activation",), "poolings": ("mean",), "baseline": False},
}
Record = dict[str, Any]


def split(data: Labelled, seed: int) -> tuple[Rows, Rows]:
    """Training and dev rows of one seed."""
    n_rows = len(data.learnt.texts)
    if seed == 0 and data.n_dev and not data.source.is_regression:
        is_dev = np.arange(n_rows) >= n_rows - data.n_dev
    else:
        n_dev = data.n_dev or n_rows // 5
        is_dev = np.isin(np.arange(n_rows), drawn(data.learnt.labels, n_dev, data.source, seed))
    return data.learnt.take(np.flatnonzero(~is_dev)), data.learnt.take(np.flatnonzero(is_dev))


def options_of(head: str, given: argparse.Namespace) -> dict[str, Any]:
    """The parameters of a published head."""
    if head == "weighted":
        return {"head": head, "baseline": False, "ranker": "absolute", "etas": (0.9,), "mixing": "apart"}
    return {"head": head, "baseline": False, "final_rows": "all", "mixing": given.mixing}


def fit(
    data: Labelled, ready: Extracted, seed: int, given: argparse.Namespace, options: dict[str, Any], validation: bool = False
) -> tuple[Any, Record]:
    """A fitted estimator, and its record. validation: whether the dev rows of the seed validate, or are training rows, too."""
    estimator = sn.SpinRegressor if data.source.is_regression else sn.SpinClassifier
    train, dev = split(data, seed) if validation else (data.learnt, None)
    fitted = estimator(given.model, metric=data.source.metric, dtype=given.dtype, examples=None, seed=seed, **options)
    started = process_time()
    fitted.fit(
        *train.pair(),
        validation=None if dev is None else dev.pair(),
        test=data.test.pair(),
        features=ready.features,
        progress=False,
    )
    seconds = process_time() - started
    curve = [row._asdict() for row in fitted.depth_curve_]
    record = {"test": next(row["test"] for row in curve if row["depth"] == fitted.depth_), "depth": fitted.depth_}
    record |= {"share": fitted.depth_ / ready.n_layers, "n_neurons": fitted.head_.n_neurons, "cpu_seconds": seconds}
    return fitted, record | {"unconverged": len(fitted.unconverged_), "wall_seconds": fitted.seconds_, "curve": curve}


def measure_seed(data: Labelled, ready: Extracted, seed: int, given: argparse.Namespace) -> dict[str, Record]:
    """Every contender of one seed, and the default against it."""
    default, record = fit(data, ready, seed, given, {})
    records: dict[str, Record] = {"default": record}
    settings = settings_of(default.get_params(), default.task_)
    ours = test_predictions(default, ready.features, data.test)

    def against(theirs: np.ndarray) -> dict[str, float]:
        return compare(settings, data.test.labels, ours, theirs)._asdict()

    for name in (*DENSE, *given.heads):
        is_published = name in HEADS
        fitted, record = fit(data, ready, seed, given, options_of(name, given) if is_published else DENSE[name], is_published)
        records[name] = record | {"against": against(test_predictions(fitted, ready.features, data.test))}
    simple = tfidf(data, data.learnt, seed)
    records["tfidf"] = {"test": data.score(simple.predicted), "chosen": simple.chosen, "cpu_seconds": simple.cpu_seconds}
    records["tfidf"]["against"] = against(simple.predicted)
    for name, baseline in default.baselines_.items():
        share = baseline.row.depth / ready.n_layers
        records[name] = {"test": baseline.row.test, "depth": baseline.row.depth, "share": share}
        records[name]["against"] = baseline.test._asdict()
    return records


def summary(seeds: list[dict[str, Record]]) -> dict[str, dict[str, Any]]:
    """Over the seeds: each contender, and the default's difference to it, at the chosen depth and at full depth."""
    means = {}
    for name in seeds[0]:
        records = [seed[name] for seed in seeds]
        gains = [seed["default"]["test"] - seed[name]["test"] for seed in seeds]
        row: dict[str, Any] = {"test": spread([record["test"] for record in records]), "gain": spread(gains)}
        for key in ("depth", "share", "cpu_seconds"):
            row[key] = float(np.mean([record[key] for record in records])) if key in records[0] else None
        compared = [record["against"] for record in records if "against" in record]
        clear = [one["difference"] for one in compared if one["p_value"] < 0.05]
        row |= {"clearly_better": sum(gain > 0 for gain in clear), "clearly_worse": sum(gain < 0 for gain in clear)}
        if "curve" in records[0]:
            curves = [{point["depth"]: point["test"] for point in record["curve"]} for record in records]
            depths = sorted(set.intersection(*map(set, curves)))
            full = [seed["default"]["curve"][-1]["test"] - curve[depths[-1]] for seed, curve in zip(seeds, curves, strict=True)]
            row["by_depth"] = {depth: spread([curve[depth] for curve in curves]) for depth in depths}
            row["full_gain"] = spread(full)
        means[name] = row
    return means


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation over the seeds."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def print_summary(means: dict[str, dict[str, Any]], n_seeds: int) -> None:
    print(f"  over {n_seeds} seeds (default minus it: mean +- sd; seeds in which the default is clearly better / worse)")
    for name, row in means.items():
        depth = "" if row["depth"] is None else f"{row['depth']:.1f} ({row['share']:.0%})"
        seconds = "" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.1f} s"
        gain = "" if name == "default" else f"{row['gain'][0]:+.4f} +- {row['gain'][1]:.4f}"
        clear = "" if name == "default" else f"{row['clearly_better']} / {row['clearly_worse']}"
        print(f"    {name:18} {row['test'][0]:.4f} +- {row['test'][1]:.4f}  {depth:>11} {seconds:>9}  {gain:>18}  {clear}")
    print("  by depth (mean over the seeds); default at full depth minus it at full depth")
    for name, row in means.items():
        if "by_depth" in row:
            curve = ", ".join(f"{depth}: {test[0]:.4f}" for depth, test in row["by_depth"].items())
            print(f"    {name:18} {curve}; {row['full_gain'][0]:+.4f} +- {row['full_gain'][1]:.4f}")


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One set over all seeds."""
    data = read_set(name, given.limit)
    ready = extracted(data, given.model, given.dtype, given.store)
    n_dev = data.n_dev or len(data.learnt.texts) // 5
    print(
        f"\n{name}: {len(data.learnt.texts)} training and dev rows ({n_dev} dev), {len(data.test.texts)} test rows; "
        f"{data.source.metric}; {ready.n_layers} layers; features after {ready.seconds:.0f} s",
        flush=True,
    )
    seeds = []
    for seed in range(given.seeds):
        seeds.append(measure_seed(data, ready, seed, given))
        shown = ", ".join(
            f"{contender} {record['test']:.4f}" + (f" ({record['cpu_seconds']:.1f} s)" if "cpu_seconds" in record else "")
            for contender, record in seeds[-1].items()
        )
        print(f"  seed {seed}: {shown}", flush=True)
    means = summary(seeds)
    print_summary(means, given.seeds)
    return {
        "metric": data.source.metric,
        "n_layers": ready.n_layers,
        "rows": {"learnt": len(data.learnt.texts), "dev": n_dev, "test": len(data.test.texts)},
        "extraction_seconds": ready.seconds,
        "summary": means,
        "contenders": {contender: [records[contender] for records in seeds] for contender in seeds[0]},
    }


def over_sets(sets: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Means over the sets, and CPU time as a multiple of the dense hidden head's (geometric mean); also printed."""
    print(f"\nmeans over {', '.join(sets)}")
    means: dict[str, dict[str, Any]] = {}
    for name in next(iter(sets.values()))["summary"]:
        rows = [(one["summary"][name], one["summary"]["dense_hidden"]) for one in sets.values()]
        mean: dict[str, Any] = {"test": float(np.mean([row["test"][0] for row, _ in rows]))}
        mean["worst_gain"] = min(row["gain"][0] for row, _ in rows)
        shares = [row["share"] for row, _ in rows]
        mean["share"] = None if None in shares else float(np.mean(shares))
        ratios = [row["cpu_seconds"] and row["cpu_seconds"] / dense["cpu_seconds"] for row, dense in rows]
        mean["cpu_times"] = None if None in ratios else float(np.exp(np.mean(np.log(ratios))))
        for key in ("clearly_better", "clearly_worse"):
            mean[key] = sum(row[key] for row, _ in rows)
        if all("by_depth" in row for row, _ in rows):
            mean["full_test"] = float(np.mean([list(row["by_depth"].values())[-1][0] for row, _ in rows]))
        means[name] = mean
        share = "" if mean["share"] is None else f"{mean['share']:.0%} of the layers"
        times = "" if mean["cpu_times"] is None else f"{mean['cpu_times']:.1f} x dense_hidden's CPU time"
        full = f"full depth {mean['full_test']:.4f}" if "full_test" in mean else ""
        clear = f"{mean['clearly_better']} / {mean['clearly_worse']}"
        print(f"    {name:18} {mean['test']:.4f}  {full:18}  {share:>18}  {times:>30}  default clearly better / worse: {clear}")
    return means


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="default: all of them")
    arguments.add_argument("--model", help="checkpoint folder or Hub name (default: the demo's all-MiniLM-L6-v2)")
    arguments.add_argument("--heads", nargs="*", choices=HEADS, default=list(HEADS), help="published heads to fit")
    arguments.add_argument("--seeds", type=int, default=5, help="how many")
    arguments.add_argument("--limit", type=int, help="at most so many training and dev rows together")
    arguments.add_argument("--store", type=Path, help="folder that keeps the features for later runs")
    arguments.add_argument("--dtype", choices=DTYPES, default="float32", help="of the base model")
    arguments.add_argument("--mixing", choices=("apart", "together", "best"), default="best", help="of refit and frozen heads")
    given = arguments.parse_args()
    given.model = given.model or str(demo_weights())
    where = environment()
    sets = {name: measure(name, given) for name in given.sets}
    shown = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    print_json(where | {"arguments": shown}, {"sets": sets, "mean": over_sets(sets)})


if __name__ == "__main__":
    main()
