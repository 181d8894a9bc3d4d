"""Probabilities that can be used: calibration error, promised errors that hold, and the alarm for other texts.

    python benchmarks/probabilities.py [sst2 edos edos_category imdb_small tweet_emotion] [--model FOLDER] [--seeds 0 1 2 3 4]
                                       [--rows 4000] [--test-rows N] [--calibrations 20] [--max-errors 0.05 0.1 0.2]
                                       [--alarm-sets tweet_emotion sst2 imdb_small]

Needs ../shared/data beside the repository. --model is a checkpoint folder or Hub name; without it, the demo's all-MiniLM-L6-v2.

Calibration error: a default fit on at most --rows random training rows of each seed; expected calibration error of the most
probable class (15 bins of equal width) and log-loss on the test rows, at the chosen depth; beside it scikit-learn's logistic
regression on the mean final hidden state of the same rows (C by cross-validated log-loss).

Promised errors: the same classifier with exits="all". Each calibration draws half of the test rows and promises an error with
confidence 0.95; the error among the answered rows is then measured on the other half ("others") and on all test rows ("all").
The two halves of one finite sample are anti-correlated: a half that is easier than the whole leaves a half that is harder. So
"others" breaks more promises than new rows would, and "all", which holds the calibration rows, breaks fewer. A promise that no
threshold keeps is not made (InputError); the guarantee is that at most 5 % of calibrations make a promise that is broken.
Each head's probabilities are computed once (predict_proba with exit="fixed:DEPTH"); the calibrations of a seed share them. The
first promise of a seed is made again by clf.calibrate, and answered by clf.predict(abstain=True), and must be the same.

Alarm: a default fit on each of --alarm-sets reads the test texts of all of them, all at once and in five random draws of 200.
No alarm is expected on its own test texts, and one on the others. The last line is JSON.
"""

import argparse
import warnings
from time import perf_counter
from typing import Any

import numpy as np
from inputs import demo_weights
from machine import environment, parser, print_json
from sklearn.metrics import log_loss
from usual import SETS, Labelled, Model, hidden_regression, labelled, mean_of, timed

import spin_native as sn

# The package's internals: what `calibrate(max_error=...)` computes, on probabilities that are computed once.
from spin_native.classifier.risk import bounded_error
from spin_native.classifier.splits import numbered_texts
from spin_native.errors import ShiftWarning

CONFIDENCE = 0.95
N_BINS = 15
ALARM_DRAWS, ALARM_TEXTS = 5, 200


def ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence| of N_BINS bins, weighted by their rows."""
    confidence, is_right = probabilities.max(1), probabilities.argmax(1) == labels
    bin_of = np.minimum(np.ceil(confidence * N_BINS).astype(int) - 1, N_BINS - 1)
    gaps = [abs((is_right[bin_of == b] - confidence[bin_of == b]).sum()) for b in np.unique(bin_of)]
    return float(sum(gaps) / len(labels))


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        "ece": ece(probabilities, labels),
        "log_loss": float(log_loss(labels, probabilities, labels=range(probabilities.shape[1]))),
    }


def measure_seed(base: Model, name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One fit: its calibration error, and its calibrations."""
    train, test = labelled(name, given.rows, given.test_rows, seed)
    features, extraction = timed(lambda: base.features(train[0]))
    estimator = sn.SpinClassifier(base.name, exits="all", seed=seed)
    clf, fit_cost = timed(lambda: estimator.fit(*train, features=features, progress=False))
    labels = np.searchsorted(clf.classes_, np.array(test[1]))
    heads, predict_cost = timed(
        lambda: {depth: clf.predict_proba(test[0], exit=f"fixed:{depth}") for depth in sorted(clf.heads_)}
    )
    regression, regression_cost = timed(lambda: hidden_regression(seed).fit(base.final_of(features), train[1]))
    others = regression.predict_proba(base.final_hidden(test[0]))
    result: dict[str, Any] = {
        "depth": clf.depth_,
        "n_train": len(train[0]),
        "n_test": len(test[0]),
        "default": scores(heads[clf.depth_], labels) | fit_cost,
        "final_hidden": scores(others, labels) | regression_cost,
        "extraction": extraction,
        "predictions_of_all_heads": predict_cost,
    }
    result["promises"] = {
        f"{max_error:g}": promises(clf, heads, test, labels, max_error, seed, given.calibrations)
        for max_error in given.max_errors
    }
    print(
        f"  seed {seed}: depth {clf.depth_}; "
        + "; ".join(
            f"{who}: accuracy {result[who]['accuracy']:.4f}, ECE {result[who]['ece']:.4f}, "
            f"log-loss {result[who]['log_loss']:.4f}, {result[who]['cpu_seconds']:.1f} CPU s"
            for who in ("default", "final_hidden")
        ),
        flush=True,
    )
    return result


def promises(
    clf: sn.SpinClassifier,
    heads: dict[int, np.ndarray],
    test: Labelled,
    labels: np.ndarray,
    max_error: float,
    seed: int,
    n_calibrations: int,
) -> list[dict[str, Any]]:
    """Calibrations on random halves of the test rows; a record for each, with "exit": None where no promise was made."""
    rng = np.random.default_rng([seed, round(1e6 * max_error)])
    records: list[dict[str, Any]] = []
    for _ in range(n_calibrations):
        order = rng.permutation(len(labels))
        rows, others = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        started = perf_counter()
        of_rows = {depth: outputs[rows] for depth, outputs in heads.items()}
        text_of = numbered_texts([test[0][row] for row in rows])
        try:
            promise = bounded_error(of_rows, labels[rows], max_error, CONFIDENCE, text_of)
        except sn.InputError:
            records.append({"exit": None, "seconds": perf_counter() - started})
            continue
        record: dict[str, Any] = {"exit": str(promise.exit), "seconds": perf_counter() - started}
        answers, depths = answered(heads, float(promise.exit.value or 0))
        for what, judged in (("others", others), ("all", np.arange(len(labels)))):
            is_answered = answers[judged] >= 0
            n_wrong = int((answers[judged] != labels[judged])[is_answered].sum())
            record[what] = {
                "answered": float(is_answered.mean()),
                "error": n_wrong / max(1, int(is_answered.sum())),
                "mean_depth": float(depths[judged].mean()),
            }
        if all(earlier["exit"] is None for earlier in records):
            check_public(clf, test, rows, others, max_error, record, (answers, depths))
        records.append(record)
    return records


def answered(heads: dict[int, np.ndarray], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The class of each row (-1: not answered) and the depth where it exits, at the first head that is sure enough."""
    deepest = max(heads)
    answers = np.full(len(heads[deepest]), -1)
    depths = np.full(len(answers), deepest)
    is_open = np.ones(len(answers), dtype=bool)
    for depth, outputs in sorted(heads.items()):
        exits = is_open & (outputs.max(1) >= threshold)
        answers[exits], depths[exits] = outputs[exits].argmax(1), depth
        is_open &= ~exits
    return answers, depths


def check_public(
    clf: sn.SpinClassifier,
    test: Labelled,
    rows: np.ndarray,
    others: np.ndarray,
    max_error: float,
    record: dict[str, Any],
    expected: tuple[np.ndarray, np.ndarray],
) -> None:
    """The same promise by clf.calibrate and clf.predict(abstain=True); SystemExit where the two differ.

    Probabilities of other batches differ in their last bits: one row in 500 may be answered otherwise, or at another depth, and
    a threshold may be another one, which is printed.
    """
    texts, truth = test
    clf.calibrate([texts[row] for row in rows], [truth[row] for row in rows], max_error=max_error, confidence=CONFIDENCE)
    if str(clf.exit_) != record["exit"]:
        print(f"    clf.calibrate promises {clf.exit_}, the shared probabilities {record['exit']}", flush=True)
        return
    labels, depths = clf.predict([texts[row] for row in others], abstain=True, return_depth=True)
    classes = clf.classes_.tolist()
    answers = np.array([-1 if label is None else classes.index(label) for label in labels])
    n_other = int(((answers != expected[0][others]) | (depths != expected[1][others])).sum())
    if n_other > len(others) / 500:
        raise SystemExit(f"clf.predict(abstain=True) answers {n_other} of {len(others)} rows otherwise than the simulation")


def summary(records: list[dict[str, Any]], max_error: float) -> dict[str, Any]:
    """Over all calibrations: how many promises were made, and broken; and the share of rows answered, and depth, where made."""
    made = [record for record in records if record["exit"] is not None]
    result: dict[str, Any] = {"calibrations": len(records), "made": len(made)}
    for what in ("others", "all"):
        result[what] = {"broken": sum(record[what]["error"] > max_error for record in made)}
        for key in ("answered", "error", "mean_depth"):
            result[what][key] = float(np.mean([record[what][key] for record in made])) if made else None
    return result


def measure(base: Model, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One data set over all seeds."""
    print(f"\n{name}", flush=True)
    seeds = [measure_seed(base, name, seed, given) for seed in given.seeds]
    for who in ("default", "final_hidden"):
        print(f"  {who}: " + ", ".join(f"{key} {mean_of(seeds, who, key)}" for key in ("accuracy", "ece", "log_loss")))
    summaries = {}
    for max_error in given.max_errors:
        records = [record for seed in seeds for record in seed["promises"][f"{max_error:g}"]]
        summaries[f"{max_error:g}"] = found = summary(records, max_error)
        print(f"  promised error {max_error:g}: made in {found['made']} of {found['calibrations']} calibrations", flush=True)
        if found["made"]:
            for what in ("others", "all"):
                on = found[what]
                print(
                    f"    on {what}: {on['broken']} broken; answered {on['answered']:.3f}, error {on['error']:.4f}, "
                    f"mean depth {on['mean_depth']:.2f} of {base.model.config.n_layers}",
                    flush=True,
                )
    return {"seeds": seeds, "promises": summaries}


def alarms(base: Model, names: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Fits on each set that read the test texts of all sets: which reads set off the alarm."""
    parts = {name: labelled(name, given.rows, given.test_rows) for name in names}
    results: dict[str, Any] = {}
    print("\nalarm", flush=True)
    for fitted_on, (train, _) in parts.items():
        clf = sn.SpinClassifier(base.name).fit(*train, features=base.features(train[0]), progress=False)
        for read, (_, (texts, _)) in parts.items():
            rng = np.random.default_rng(0)
            draws = [rng.permutation(len(texts))[:ALARM_TEXTS] for _ in range(ALARM_DRAWS)]
            of_all, cost = timed(lambda texts=texts, clf=clf: alarm(clf, texts))  # type: ignore[misc]
            found = [alarm(clf, [texts[row] for row in draw]) for draw in draws]
            record = {
                "expected": read != fitted_on,
                "all_texts": of_all,
                "n_texts": len(texts),
                "draws_with_alarm": sum(one["fired"] for one in found),
                "draws": ALARM_DRAWS,
                "share_of_neurons_in_draws": [one["share_of_neurons"] for one in found],
            } | cost
            results[f"{fitted_on} reads {read}"] = record
            print(
                f"  fitted on {fitted_on}, reads {len(texts)} test texts of {read}: "
                f"{'alarm' if of_all['fired'] else 'no alarm'} ({'expected' if record['expected'] else 'none expected'}; "
                f"{of_all['share_of_neurons']:.1%} of the neurons differ), {cost['seconds']:.1f} s; in "
                f"{record['draws_with_alarm']} of {ALARM_DRAWS} draws of {len(draws[0])}",
                flush=True,
            )
    return results


def alarm(clf: sn.SpinClassifier, texts: list[str]) -> dict[str, Any]:
    """Whether reading these texts sets off the alarm, and the largest share of neurons that differ in a block."""
    watch = clf.shift_watch()
    assert watch is not None  # of every classifier that was just fitted
    for _ in clf.output_blocks(texts, progress=False, watch=watch):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShiftWarning)
        watch.finish()
    share = max((shift.n_different / shift.n_neurons for shift in watch.shifts), default=0.0)
    return {"fired": bool(watch.shifts), "share_of_neurons": share}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("data", nargs="*", choices=[*SETS, []], help="default: all of them")
    arguments.add_argument("--model", help="checkpoint folder or Hub name (default: the demo's all-MiniLM-L6-v2)")
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    arguments.add_argument("--rows", type=int, default=4000, help="training rows, at most")
    arguments.add_argument("--test-rows", type=int, help="first test rows only (default: all)")
    arguments.add_argument("--calibrations", type=int, default=20, help="of each seed and promised error")
    arguments.add_argument("--max-errors", nargs="+", type=float, default=[0.05, 0.1, 0.2])
    arguments.add_argument("--alarm-sets", nargs="*", choices=list(SETS), default=["tweet_emotion", "sst2", "imdb_small"])
    given = arguments.parse_args()
    given.model = given.model or str(demo_weights())
    where = environment()
    base = Model.load(given.model)
    # The classifiers of the first part read each text many times: the alarm has a part of its own.
    warnings.simplefilter("ignore", ShiftWarning)
    results = {name: measure(base, name, given) for name in given.data or SETS}
    results["alarm"] = alarms(base, given.alarm_sets, given)
    print_json(where | {"arguments": vars(given)}, results)


if __name__ == "__main__":
    main()
