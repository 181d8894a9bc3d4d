"""The probes' solver against liblinear, celer, skglm and SAGA: objective and seconds over a path of C, L1, one layer.

    python benchmarks/probes.py [sst2 edos edos12 roberta] [--Cs .01 .1 1 10 100] [--saga] [--limit 120] [--rows 1000]

Needs `pip install '.[bench]'` (celer, skglm) and, beside the repository, ../shared/data and ../shared/configs. Features are
mean-pooled, standardised, float32: layer 3 of MiniLM on SST-2 (6,920 x 1,536) and on EDOS (14,000 x 1,536; 2 or 12 classes),
and layer 3 of a RoBERTa-base of random weights on all of EDOS (20,000 x 3,072).

Every solver minimises C * sum log-loss + |w|_1. The time of each C counts; compilation does not. A peer that needs more than
--limit seconds for one C is stopped (between two of its steps) and not given the larger ones: its time is then a lower bound.
SAGA cannot be stopped by the clock, so for each C it gets as many passes as fit into 30 times our seconds (--saga). The "best"
objective is the smallest of any solver. The limit of the machine is one pass over the features: all scores, then all slopes, as
two matrix products. Peak memory is that of the process: name one set alone to see its own. --rows takes the first rows of each
set, for a quick try. The last line is JSON.
"""

import argparse
import resource
import signal
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from inputs import demo_weights, random_model, read
from machine import environment, parser, print_json

import spin_native as sn

# The package's internals: the public probes do not report the seconds and the proven gap of each C of a path.
from spin_native.probes.solver import Design, Logistic, Softmax, Solution, sparse_path

Fit = Callable[[np.ndarray, np.ndarray, float], Any]
SETS = ("sst2", "edos", "edos12", "roberta")
CS = (0.01, 0.1, 1.0, 10.0, 100.0)
TOL = 1e-6  # of the objective, for all solvers
SAGA_TIMES = 30  # SAGA gets so many times our seconds


def features(name: str, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features [row, neuron] and labels 0, 1, ... [row]; extracted once and kept in `cache`."""
    path = cache / f"{name}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        folder = "sst2" if name == "sst2" else "edos"
        parts = ("train", "dev", "test") if name == "roberta" else ("train",)
        label = "label_vector" if name == "edos12" else "label"
        rows = [row for part in parts for row in zip(*read(folder, part, label), strict=True)]
        weights = random_model("roberta-base", cache / "roberta-base") if name == "roberta" else demo_weights()
        model, tokenizer = sn.load_model(str(weights), depth=4), sn.load_tokenizer(str(weights))
        extracted = sn.extract(model, tokenizer, [text for text, _ in rows], poolings=("mean",))
        X = extracted.array(site="activation", pooling="mean", layer=3)
        np.savez(path, X=(X - X.mean(0)) / X.std(0), y=np.unique([label for _, label in rows], return_inverse=True)[1])
    arrays = np.load(path)
    return arrays["X"], arrays["y"]


def objective(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray, C: float) -> float:
    """C * sum log-loss + |w|_1, in float64."""
    coef = np.atleast_2d(coef)
    z = X.astype(np.float64) @ coef.T + intercept
    if len(coef) == 1:
        loss = np.logaddexp(0, np.where(y == 1, -z[:, 0], z[:, 0]))
    else:
        loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), y]
    return float(C * loss.sum() + np.abs(coef).sum())


def seconds_of_a_pass(X: np.ndarray, n_outputs: int) -> float:
    """Median time of one bare pass over the features: scores of all rows, then slopes of all features, float32."""
    features_, weights = torch.from_numpy(X), torch.randn(X.shape[1], n_outputs)
    seconds = []
    for _ in range(10):
        started = perf_counter()
        features_.T @ (features_ @ weights)
        seconds.append(perf_counter() - started)
    return statistics.median(seconds)


@torch.inference_mode()
def ours(X: np.ndarray, y: np.ndarray, Cs: Sequence[float]) -> list[tuple[Solution, float]]:
    """Solution and seconds of each C; each one starts from the solution before it."""
    targets = torch.from_numpy(y)[:, None] if y.max() == 1 else torch.nn.functional.one_hot(torch.from_numpy(y))
    loss = (Logistic if y.max() == 1 else Softmax)(targets.double())
    weights = torch.ones(len(X), dtype=torch.float64)
    solutions, started = [], perf_counter()
    for solution in sparse_path(Design([X]), loss, weights, Cs, l1=1.0, l2=0.0, tol=TOL, max_iter=1000):
        solutions.append((solution, perf_counter() - started))
        started = perf_counter()
    return solutions


def liblinear(X: np.ndarray, y: np.ndarray, C: float) -> Any:
    """To a tolerance at which its objective is as good as the others'."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, l1_ratio=1.0, solver="liblinear", tol=1e-4, intercept_scaling=100, max_iter=10000)
    model.fit(X, y)
    return model.coef_, model.intercept_


def celer(X: np.ndarray, y: np.ndarray, C: float) -> Any:
    """Without an intercept, which it does not have for this loss: its time compares, its objective does not."""
    from celer import LogisticRegression as Celer

    model = Celer(C=C, fit_intercept=False, tol=TOL, max_iter=100).fit(X, y)
    return model.coef_, 0.0


def skglm(X: np.ndarray, y: np.ndarray, C: float) -> Any:
    from skglm import SparseLogisticRegression

    model = SparseLogisticRegression(alpha=1 / (C * len(y)), tol=TOL / 100, fit_intercept=True, max_iter=100).fit(X, y)
    return model.coef_, model.intercept_


def saga(X: np.ndarray, y: np.ndarray, C: float, n_passes: int) -> Any:
    """SAGA with a number of passes instead of a tolerance."""
    from sklearn.linear_model import LogisticRegression

    settings: dict[str, Any] = {"solver": "saga", "tol": 1e-8, "max_iter": n_passes, "random_state": 0}
    return LogisticRegression(C=C, l1_ratio=1.0, **settings).fit(X, y)


def saga_within(X: np.ndarray, y: np.ndarray, budgets: dict[float, float]) -> Fit:
    """SAGA with as many passes for each C as fit into the budget of seconds {C: seconds}."""

    def timed(n_passes: int) -> float:
        started = perf_counter()
        saga(X, y, 0.01, n_passes)
        return perf_counter() - started

    seconds = (timed(12) - timed(2)) / 10
    print(f"  SAGA: {seconds:.2f} s a pass", flush=True)

    def fit(X: np.ndarray, y: np.ndarray, C: float) -> Any:
        n_passes = max(1, int(budgets[C] / seconds))
        model = saga(X, y, C, n_passes)
        print(f"  SAGA: {model.n_iter_.max()} of {n_passes} passes", flush=True)
        return model.coef_, model.intercept_

    return fit


def peers(X: np.ndarray, y: np.ndarray, budgets: dict[float, float] | None) -> dict[str, Fit]:
    """Each fits one C on float64 features and returns (coef, intercept). budgets: SAGA's seconds for each C; None: no SAGA."""
    # Only SAGA has a multinomial loss.
    fits: dict[str, Fit] = {} if y.max() > 1 else {"liblinear": liblinear, "celer (no intercept)": celer, "skglm": skglm}
    return fits if budgets is None else {**fits, "SAGA": saga_within(X, y, budgets)}


def run_peer(peer: str, fit: Fit, X: np.ndarray, y: np.ndarray, Cs: Sequence[float], limit: float) -> list[tuple[float, float]]:
    """(objective, seconds) of each C, up to the first that takes more than `limit` seconds (whose objective is infinite)."""
    wide, rows = X.astype(np.float64), []
    is_saga = peer == "SAGA"
    if not is_saga:
        fit(wide[:200], y[:200], 0.01)  # compiles
    for C in Cs:
        started = perf_counter()
        signal.setitimer(signal.ITIMER_REAL, 0 if is_saga else limit)
        try:
            coef, intercept = fit(wide, y, C)
            value = objective(X, y, coef, intercept, C)
        except (TimeoutError, SystemError):  # numba turns a TimeoutError into a SystemError
            value = np.inf
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = perf_counter() - started
        rows.append((value, seconds))
        print(f"  {peer} C={C:g}: objective {value:.6f}, {seconds:.2f} s", flush=True)
        if seconds > limit and not is_saga:
            break
    return rows


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One data set: all solvers over the path."""
    X, y = (array[: given.rows] for array in features(name, given.cache))
    Cs, n_classes = given.Cs, int(y.max()) + 1
    print(f"\n{name}: {X.shape[0]} x {X.shape[1]}, {n_classes} classes", flush=True)
    ours(X[:1000, :200], y[:1000], Cs)  # loads the libraries
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    solutions = ours(X, y, Cs)  # before the peers: the peak of memory is the process's
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / X.nbytes
    one_pass = seconds_of_a_pass(X, 1 if n_classes == 2 else n_classes)
    results: dict[str, list[tuple[float, float]]] = {"ours": []}
    for C, (solution, seconds) in zip(Cs, solutions, strict=True):
        value = objective(X, y, solution.weights.T, solution.intercepts, C)
        results["ours"].append((value, seconds))
        print(f"  ours C={C:g}: objective {value:.6f}, {seconds:.2f} s, gap {solution.gap:.1e}", flush=True)
    budgets = {C: SAGA_TIMES * seconds for C, (_, seconds) in zip(Cs, results["ours"], strict=True)}
    for peer, fit in peers(X.astype(np.float64), y, budgets if given.saga else None).items():
        results[peer] = run_peer(peer, fit, X, y, Cs, given.limit)
    best = [min(rows[i][0] for rows in results.values() if i < len(rows)) for i in range(len(Cs))]
    total = sum(seconds for _, seconds in results["ours"])
    summary = {"seconds_of_a_pass": one_pass, "ours_in_passes": total / one_pass, "memory_over_data": extra}
    for peer, rows in results.items():
        above = ", ".join(f"{value / best[i] - 1:.1e}" for i, (value, _) in enumerate(rows))
        seconds = sum(s for _, s in rows)
        # Of the same C only: a peer that was stopped compares with our time up to there.
        ratio = seconds / sum(s for _, s in results["ours"][: len(rows)])
        note = "" if len(rows) == len(Cs) else f" up to C={Cs[len(rows) - 1]:g}, where it was stopped"
        print(f"  {peer}: {seconds:.2f} s{note} ({ratio:.1f} x ours); above the best objective: {above}", flush=True)
    print(
        f"  limit: one pass over the features takes {one_pass * 1e3:.1f} ms; ours takes as long as {total / one_pass:.0f} "
        f"passes for {len(Cs)} C; its peak memory over the data is {extra:.0%} of the data",
        flush=True,
    )
    return {"objectives_and_seconds": results, **summary}


def stop(*_: object) -> None:
    raise TimeoutError


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("data", nargs="*", choices=[*SETS, []], help="default: all of them")
    arguments.add_argument("--Cs", nargs="+", type=float, default=CS, help="in ascending order")
    arguments.add_argument("--saga", action="store_true", help="run SAGA, too")
    arguments.add_argument("--limit", type=float, default=120, help="seconds of a peer for one C")
    arguments.add_argument("--rows", type=int, help="rows of each set (default: all)")
    arguments.add_argument("--cache", type=Path, default=Path(".cache-probes"), help="folder that keeps the features")
    given = arguments.parse_args()
    warnings.simplefilter("ignore")  # peers warn that they did not converge
    signal.signal(signal.SIGALRM, stop)
    where = environment()
    print_json(where, {name: measure(name, given) for name in given.data or SETS})


if __name__ == "__main__":
    main()
