"""Speed of the probes' solver against liblinear, celer, skglm and SAGA: objective and seconds over a path of C, L1, one layer.

    python benchmarks/probes.py [sst2 edos edos12 roberta] [--Cs .01 .1 1 10 100] [--saga] [--limit 120]

Needs `pip install '.[bench]'` (celer, skglm) and, beside the repository, ../shared/data and ../shared/configs. Features are
mean-pooled and standardised, float32: MiniLM's layer 3 on SST-2 (6,920 x 1,536) and EDOS (14,000 x 1,536; 2 or 12 classes),
and layer 3 of a RoBERTa-base of random weights on all of EDOS (20,000 x 3,072). Every solver minimises
C * sum log-loss + |w|_1; each C's time counts, compilation does not. A peer is stopped after --limit seconds for one C
(between two of its steps) and not asked for the larger ones: its time is a lower bound from there on. Best: the smallest
objective of any. Peak memory is the process's: ask for one set alone to see its own. SAGA (--saga) hears no clock: it gets, for
each C, as many passes as fit into 30 times our seconds, and its objective tells whether they were enough. The last line is
JSON.
"""

import argparse
import json
import resource
import signal
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from forward import SHARED, random_model
from machine import environment

import spin_native as sn
from spin_native.cli.demo import demo_weights
from spin_native.probes.solver import Design, Logistic, Softmax, Solution, sparse_path
from spin_native.tables import read_labelled

Fit = Callable[[np.ndarray, np.ndarray, float], Any]
CS = (0.01, 0.1, 1.0, 10.0, 100.0)
TOL = 1e-6  # of the objective, for all


def features(name: str, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features [row, neuron] and labels 0, 1, ..."""
    path = cache / f"{name}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        folder = SHARED / "data" / ("sst2" if name == "sst2" else "edos")
        parts = ("train", "dev", "test") if name == "roberta" else ("train",)
        label = "label_vector" if name == "edos12" else "label"
        rows = [row for part in parts for row in zip(*read_labelled(folder / f"{part}.csv", "text", label), strict=True)]
        weights = random_model("roberta-base", cache / "roberta-base") if name == "roberta" else demo_weights()
        model, tokenizer = sn.load_model(str(weights), depth=4), sn.load_tokenizer(str(weights))
        found = sn.extract(model, tokenizer, [text for text, _ in rows], poolings=("mean",))
        X = found.array(site="activation", pooling="mean", layer=3)
        np.savez(path, X=(X - X.mean(0)) / X.std(0), y=np.unique([label for _, label in rows], return_inverse=True)[1])
    kept = np.load(path)
    return kept["X"], kept["y"]


def objective(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray, C: float) -> float:
    """C * sum log-loss + |w|_1, in float64."""
    coef = np.atleast_2d(coef)
    z = X.astype(np.float64) @ coef.T + intercept
    if len(coef) == 1:
        loss = np.logaddexp(0, np.where(y == 1, -z[:, 0], z[:, 0]))
    else:
        loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), y]
    return float(C * loss.sum() + np.abs(coef).sum())


@torch.inference_mode()
def ours(X: np.ndarray, y: np.ndarray, Cs: Sequence[float]) -> list[tuple[Solution, float]]:
    """Solution and seconds of each C, from where the one before ended."""
    targets = torch.from_numpy(y)[:, None] if y.max() == 1 else torch.nn.functional.one_hot(torch.from_numpy(y))
    loss = (Logistic if y.max() == 1 else Softmax)(targets.double())
    weights = torch.ones(len(X), dtype=torch.float64)
    found, started = [], perf_counter()
    for solution in sparse_path(Design([X]), loss, weights, Cs, l1=1.0, l2=0.0, tol=TOL, max_iter=1000):
        found.append((solution, perf_counter() - started))
        started = perf_counter()
    return found


def peers(X: np.ndarray, y: np.ndarray, saga: dict[float, float]) -> dict[str, Fit]:
    """Each fits one C on float64 features and returns (coef, intercept). saga: how many seconds it gets for each C, if any."""
    from sklearn.linear_model import LogisticRegression

    found: dict[str, Fit] = {}
    if saga:
        seconds_of_a_pass = (timed_passes(X, y, 12) - timed_passes(X, y, 2)) / 10
        print(f"  SAGA: {seconds_of_a_pass:.2f} s a pass", flush=True)

        def fit_saga(X: np.ndarray, y: np.ndarray, C: float) -> Any:
            n_passes = max(1, int(saga[C] / seconds_of_a_pass))
            settings: dict[str, Any] = {"solver": "saga", "tol": 1e-8, "max_iter": n_passes, "random_state": 0}
            model = LogisticRegression(C=C, l1_ratio=1.0, **settings).fit(X, y)
            print(f"  SAGA: {model.n_iter_.max()} of {n_passes} passes", flush=True)
            return model.coef_, model.intercept_

        found["SAGA"] = fit_saga
    if y.max() > 1:
        return found  # the others have no multinomial loss

    def liblinear(X: np.ndarray, y: np.ndarray, C: float) -> Any:
        """To a tolerance at which its objective is as good as the others'."""
        model = LogisticRegression(C=C, l1_ratio=1.0, solver="liblinear", tol=1e-4, intercept_scaling=100, max_iter=10000)
        model.fit(X, y)
        return model.coef_, model.intercept_

    def celer(X: np.ndarray, y: np.ndarray, C: float) -> Any:
        from celer import LogisticRegression as Celer

        # Without an intercept: it has none for this loss. Its objective is not ours, its time is.
        model = Celer(C=C, fit_intercept=False, tol=TOL, max_iter=100).fit(X, y)
        return model.coef_, 0.0

    def skglm(X: np.ndarray, y: np.ndarray, C: float) -> Any:
        from skglm import SparseLogisticRegression

        model = SparseLogisticRegression(alpha=1 / (C * len(y)), tol=TOL / 100, fit_intercept=True, max_iter=100).fit(X, y)
        return model.coef_, model.intercept_

    return {"liblinear": liblinear, "celer (no intercept)": celer, "skglm": skglm, **found}


def timed_passes(X: np.ndarray, y: np.ndarray, n_passes: int) -> float:
    """Seconds of a fit by SAGA that is given so few passes."""
    from sklearn.linear_model import LogisticRegression

    started = perf_counter()
    LogisticRegression(C=0.01, l1_ratio=1.0, solver="saga", tol=1e-8, max_iter=n_passes, random_state=0).fit(X, y)
    return perf_counter() - started


def measure(name: str, cache: Path, Cs: Sequence[float], saga: bool, limit: float) -> dict[str, Any]:
    X, y = features(name, cache)
    n_classes = int(y.max()) + 1
    print(f"\n{name}: {X.shape[0]} x {X.shape[1]}, {n_classes} classes", flush=True)
    ours(X[:1000, :200], y[:1000], Cs)  # loads the libraries
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = ours(X, y, Cs)  # first: a peak in memory is the process's
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / X.nbytes
    results: dict[str, Any] = {"ours": []}
    for C, (solution, seconds) in zip(Cs, found, strict=True):
        value = objective(X, y, solution.weights.T, solution.intercepts, C)
        results["ours"].append((value, seconds))
        print(f"  ours C={C:g}: objective {value:.6f}, {seconds:.2f} s, gap {solution.gap:.1e}", flush=True)
    wide = X.astype(np.float64)
    budget = {C: 30 * seconds for C, (_, seconds) in zip(Cs, results["ours"], strict=True)} if saga else {}
    for peer, fit in peers(wide, y, budget).items():
        results[peer] = []
        if peer != "SAGA":
            fit(wide[:200], y[:200], 0.01)  # compiles
        for C in Cs:
            started = perf_counter()
            signal.setitimer(signal.ITIMER_REAL, 0 if peer == "SAGA" else limit)
            try:
                coef, intercept = fit(wide, y, C)
                value = objective(X, y, coef, intercept, C)
            except (TimeoutError, SystemError):  # numba makes the one of the other
                value = np.inf
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            seconds = perf_counter() - started
            results[peer].append((value, seconds))
            print(f"  {peer} C={C:g}: objective {value:.6f}, {seconds:.2f} s", flush=True)
            if seconds > limit and peer != "SAGA":
                break
    best = [min(rows[i][0] for rows in results.values() if i < len(rows)) for i in range(len(Cs))]
    total = sum(seconds for _, seconds in results["ours"])
    for peer, rows in results.items():
        above = ", ".join(f"{value / best[i] - 1:.1e}" for i, (value, _) in enumerate(rows))
        seconds = sum(s for _, s in rows)
        note = "" if len(rows) == len(Cs) else f" up to C={Cs[len(rows) - 1]:g}"
        print(f"  {peer}: {seconds:.2f} s{note} ({seconds / total:.1f} x ours); above the best objective: {above}", flush=True)
    print(f"  ours: peak memory over the data {extra:.0%}", flush=True)
    return {"seconds_and_objectives": results, "memory_over_data": extra}


def too_long(*_: object) -> None:
    raise TimeoutError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = ("sst2", "edos", "edos12", "roberta")
    parser.add_argument("data", nargs="*", choices=[*choices, []], help="default: all of them")
    parser.add_argument("--Cs", nargs="+", type=float, default=CS, help="in ascending order")
    parser.add_argument("--saga", action="store_true")
    parser.add_argument("--limit", type=float, default=120)
    parser.add_argument("--cache", type=Path, default=Path(".cache-probes"), help="folder that keeps the features")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers' convergence
    signal.signal(signal.SIGALRM, too_long)
    where = environment()
    results = {name: measure(name, given.cache, given.Cs, given.saga, given.limit) for name in given.data or choices}
    print(json.dumps({"environment": where, "results": results}))


if __name__ == "__main__":
    main()
