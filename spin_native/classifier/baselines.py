"""What a head must beat: simple models on the same rows, chosen and fitted in the same way, and how sure the difference is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from spin_native.classifier.comparisons import Comparison, compare
from spin_native.classifier.curve_rows import CurveRow
from spin_native.classifier.dense import ACTIVATION, HIDDEN, DensePath
from spin_native.classifier.heads import ConstantHead
from spin_native.classifier.settings import View

Array = np.ndarray

NAMES = ("majority", "final_hidden", "best_hidden", "all_hidden", "all_activations")
# The views that baselines read beside single hidden states.
BASELINE_VIEWS = (View((HIDDEN,)), View((ACTIVATION,)))


class Baseline(NamedTuple):
    """A simple model, and the head against it.

    row: its scores (site and pooling say what it reads). held_out, test: the head's score minus its score, with a paired test
    (None: of a classifier that was saved before they were measured; test: None also where no test rows were given).
    """

    row: CurveRow
    held_out: Comparison | None
    test: Comparison | None


def measure(
    path: DensePath, depth: int, held_out: Shaped[Array, "held_out *label"], test: Shaped[Array, "test *label"]
) -> dict[str, Baseline]:
    """Every baseline, by name.

    majority: the most frequent class, or the mean value. final_hidden: the mean final hidden state. best_hidden: the mean
    hidden state of the one layer with the smallest held-out loss. all_hidden, all_activations: those of all layers below
    `depth` (not with a sample). held_out, test: the predictions of the head at this depth (no test rows where none were given).
    """
    solved = {
        "final_hidden": path.alone[path.n_layers],
        "best_hidden": min(path.alone.values(), key=lambda one: one.fit.loss),
        "all_hidden": path.solved.get((BASELINE_VIEWS[0], depth)),
        "all_activations": path.solved.get((BASELINE_VIEWS[1], depth)),
    }
    return {"majority": _majority(path, held_out, test)} | {
        name: _compared(path, path.row(one), *path.predictions(one), held_out, test)
        for name, one in solved.items()
        if one is not None
    }


def baselines_for_json(baselines: Mapping[str, Baseline] | None) -> dict[str, Any] | None:
    """Each baseline as an object: "row", "held_out" and "test" (null where there is none)."""
    if baselines is None:
        return None
    return {
        name: {
            "row": one.row._asdict(),
            "held_out": one.held_out and one.held_out._asdict(),
            "test": one.test and one.test._asdict(),
        }
        for name, one in baselines.items()
    }


def _majority(path: DensePath, held_out: Array, test: Array) -> Baseline:
    rows, settings = path.rows, path.rows.settings
    learns, weights = rows.folds.learns_last, rows.folds.weights
    head = ConstantHead.of(rows.labels[learns], replace(settings, class_weight=None), weights[learns])
    theirs, their_test = (head.predict(np.empty((n, 0), np.float32)) for n in (len(held_out), rows.n_test))
    score = settings.score(rows.labels[rows.folds.held_out], theirs)
    tested = settings.score(rows.parts["test"].labels, their_test) if "test" in rows.parts else None
    return _compared(path, CurveRow(0, score, tested, 0, "none", None, None, "none"), theirs, their_test, held_out, test)


def _compared(path: DensePath, row: CurveRow, theirs: Array, their_test: Array, ours: Array, our_test: Array) -> Baseline:
    rows, settings = path.rows, path.rows.settings
    held_out = compare(settings, rows.labels[rows.folds.held_out], ours, theirs)
    tested = compare(settings, rows.parts["test"].labels, our_test, their_test) if "test" in rows.parts else None
    return Baseline(row, held_out, tested)
