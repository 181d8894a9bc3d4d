"""Few labelled rows: the default classifier beside what people would run otherwise, for 8, 32 and 128 rows per class.

    python benchmarks/few_shot.py [--sets sst2 tweet_emotion edos] [--model FOLDER] [--rows 8 32 128] [--seeds 5]
                                  [--test-rows 1000] [--store FOLDER]

Needs ../shared/data beside the repository. --model is a checkpoint folder or Hub name; without it, the demo's
all-MiniLM-L6-v2.

Contenders, all fitted on the same rows:
    default        head="best"
    dense          head="dense" on everything that the default may read
    refit          head="refit" (SPIN), which splits a fifth of the rows off for validation
    final_hidden   the mean final hidden state and logistic regression (scikit-learn)
    tfidf          TF-IDF of words and pairs of words, and logistic regression (scikit-learn)

Method: the seed draws the rows of each class from the training and dev rows; a smaller number takes the first of a larger
number's rows, and a class with fewer rows gives all it has. The two logistic regressions choose C, and whether to standardise
the hidden state, by 5-fold cross-validation on these rows. Texts that are also test rows, and copies of a text, are removed
first. Features of all rows that any seed draws, and of the test rows, are extracted once; with --store they stay on disk for
later runs.

Printed: mean test accuracy and macro-F1 over the seeds with standard deviations, and CPU seconds of a fit. A contender that
raises an error is shown with the error, and the exit status is 1. The last line is JSON.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from inputs import demo_weights
from labelled import (
    SETS,
    Array,
    Extracted,
    Labelled,
    Rows,
    Simple,
    drawn,
    embedding,
    extracted,
    read_set,
    test_predictions,
    tfidf,
)
from machine import environment, parser, print_json

import spin_native as sn

METRICS = ("accuracy", "macro_f1")
HEADS = {"default": "best", "dense": "dense", "refit": "refit"}
CONTENDERS = (*HEADS, "final_hidden", "tfidf")


def drawn_by_class(labels: Array, n: int, seed: int) -> Array:
    """The first n rows of each class in the random order of a seed, sorted."""
    random = np.random.default_rng(seed)
    orders = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(np.concatenate([order[:n] for order in orders]))


def fitted_predictions(data: Labelled, learnt: Rows, ready: Extracted, head: str, seed: int, model: str) -> tuple[Array, float]:
    """Encoded test predictions of an estimator, and CPU seconds of its fit."""
    options: dict[str, Any] = {"head": head, "metric": data.source.metric, "baseline": False, "examples": None}
    classifier = sn.SpinClassifier(model, seed=seed, **options)
    started = process_time()
    classifier.fit(*learnt.pair(), features=ready.features, progress=False)
    seconds = process_time() - started
    return test_predictions(classifier, ready.features, data.test), seconds


def measure_one(data: Labelled, predict: Callable[[], tuple[Array, float]]) -> dict[str, Any]:
    """The scores of one contender, or its error."""
    try:
        predicted, seconds = predict()
    except Exception as error:  # whatever it is, it is a result here
        return {"error": f"{type(error).__name__}: {error}"}
    return {metric: data.score(predicted, metric) for metric in METRICS} | {"cpu_seconds": seconds}


def measure_seed(data: Labelled, ready: Extracted, n: int, seed: int, model: str) -> dict[str, dict[str, Any]]:
    learnt = data.learnt.take(drawn_by_class(data.learnt.labels, n, seed))

    def simple(fit: Callable[[], Simple]) -> tuple[Array, float]:
        fitted = fit()
        return fitted.predicted, fitted.cpu_seconds

    contenders: dict[str, Callable[[], tuple[Array, float]]] = {
        name: partial(fitted_predictions, data, learnt, ready, head, seed, model) for name, head in HEADS.items()
    }
    contenders["final_hidden"] = partial(simple, partial(embedding, data, learnt, ready, seed))
    contenders["tfidf"] = partial(simple, partial(tfidf, data, learnt, seed))
    return {name: measure_one(data, predict) for name, predict in contenders.items()}


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One set: for every number of rows, every contender's records over the seeds."""
    data = read_set(name)
    test = data.test.take(drawn(data.test.labels, given.test_rows, data.source, seed=0))
    used = [drawn_by_class(data.learnt.labels, max(given.rows), seed) for seed in range(given.seeds)]
    small = data._replace(learnt=data.learnt.take(np.unique(np.concatenate(used))), test=test)
    ready = extracted(small, given.model, "float32", given.store)
    print(
        f"\n{name}: {len(np.unique(data.learnt.labels))} classes, {len(test.texts)} test rows; {ready.seconds:.0f} s",
        flush=True,
    )
    results = {}
    for n in given.rows:
        seeds = [measure_seed(data._replace(test=test), ready, n, seed, given.model) for seed in range(given.seeds)]
        results[str(n)] = {contender: [records[contender] for records in seeds] for contender in CONTENDERS}
        print(f"  {n} rows per class: accuracy, macro-F1, CPU seconds of a fit")
        for contender, records in results[str(n)].items():
            print(f"    {contender:14} {shown(records)}", flush=True)
    return results


def shown(records: list[dict[str, Any]]) -> str:
    """Means over the seeds, or the first error."""
    errors = [record["error"] for record in records if "error" in record]
    if errors:
        return f"{len(errors)} of {len(records)} fits failed: {errors[0]}"
    parts = []
    for metric in METRICS:
        values = [record[metric] for record in records]
        parts.append(f"{np.mean(values):.4f} +- {np.std(values, ddof=1) if len(values) > 1 else 0:.4f}")
    return "  ".join(parts) + f"  {np.mean([record['cpu_seconds'] for record in records]):.2f} s"


def means(sets: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Over the sets and seeds, for every number of rows and over all of them; also printed."""
    print(f"\nmeans over {', '.join(sets)}: accuracy, macro-F1")
    results: dict[str, Any] = {}
    for label, numbers in {**{str(n): [str(n)] for n in given.rows}, "all": [str(n) for n in given.rows]}.items():
        results[label] = {}
        for contender in CONTENDERS:
            records = [
                record for one in sets.values() for n in numbers for record in one[n][contender] if "error" not in record
            ]
            scores = {metric: float(np.mean([record[metric] for record in records])) for metric in METRICS} if records else {}
            results[label][contender] = scores
            print(f"  {label:>4} {contender:14} " + "  ".join(f"{score:.4f}" for score in scores.values()))
    return results


def main() -> None:
    arguments = parser(__doc__)
    classes = [name for name, source in SETS.items() if not source.is_regression]
    arguments.add_argument("--sets", nargs="+", choices=classes, default=["sst2", "tweet_emotion", "edos"])
    arguments.add_argument("--model", help="checkpoint folder or Hub name (default: the demo's all-MiniLM-L6-v2)")
    arguments.add_argument("--rows", nargs="+", type=int, default=[8, 32, 128], help="rows per class")
    arguments.add_argument("--seeds", type=int, default=5, help="how many")
    arguments.add_argument("--test-rows", type=int, default=1000, help="at most so many test rows")
    arguments.add_argument("--store", type=Path, help="folder that keeps the features for later runs")
    given = arguments.parse_args()
    given.model = given.model or str(demo_weights())
    where = environment()
    sets = {name: measure(name, given) for name in given.sets}
    shown_arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    print_json(where | {"arguments": shown_arguments}, {"sets": sets, "mean": means(sets, given)})
    every = [record for one in sets.values() for by_name in one.values() for records in by_name.values() for record in records]
    if any("error" in record for record in every):
        sys.exit(1)


if __name__ == "__main__":
    main()
