"""What a head must beat: simple models on the same rows, chosen and fitted in the same way, and how sure the difference is."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from spin_native.classifier.comparisons import Comparison, compare
from spin_native.classifier.curves import CurveRow
from spin_native.classifier.dense import ACTIVATION, HIDDEN, DensePath
from spin_native.classifier.heads import ConstantHead

Array = np.ndarray

# The views that baselines read beside single hidden states.
BASELINE_VIEWS = ((HIDDEN,), (ACTIVATION,))


class Baseline(NamedTuple):
    """A simple model, and the head against it.

    row: its scores (site and pooling say what it reads). held_out, test: the head's score minus its score, with a paired test
    (None: of a classifier that was saved before they were measured; test: None also where no test rows were given).
    """

    row: CurveRow
    held_out: Comparison | None
    test: Comparison | None


def measure(
    path: DensePath, depth: int, held_out: Float[Array, "held_out output"], test: Float[Array, "test output"] | None
) -> dict[str, Baseline]:
    """Every baseline, by name.

    majority: the most frequent class, or the mean value. final_hidden: the mean final hidden state. best_hidden: the mean
    hidden state of the one layer with the smallest held-out loss. all_hidden, all_activations: those of all layers below
    `depth` (not with a sample). held_out, test: the outputs of the head at this depth.
    """
    found = {
        "final_hidden": path.alone[path.n_layers],
        "best_hidden": min(path.alone.values(), key=lambda solved: solved.fit.loss),
        "all_hidden": path.solved.get(((HIDDEN,), depth)),
        "all_activations": path.solved.get(((ACTIVATION,), depth)),
    }
    return {"majority": _majority(path, held_out, test)} | {
        name: _compared(path, path.row(solved), path.held_out_outputs(solved), path.test_outputs(solved), held_out, test)
        for name, solved in found.items()
        if solved is not None
    }


def _majority(path: DensePath, held_out: Array, test: Array | None) -> Baseline:
    rows = path.rows
    head = ConstantHead.of(rows.labels[rows.folds.learns_last], rows.settings)
    outputs = [head.output(np.empty((n, 0), np.float32)) for n in (len(held_out), rows.n_test)]
    scores = [path.score(of, of_test) for of, of_test in ((outputs[0], False), (outputs[1], True))]
    row = CurveRow(0, scores[0] or 0.0, scores[1], 0, "none", None, None, "none")
    return _compared(path, row, outputs[0], outputs[1], held_out, test)


def _compared(
    path: DensePath, row: CurveRow, theirs: Array, their_test: Array, ours: Array, our_test: Array | None
) -> Baseline:
    rows, settings = path.rows, path.rows.settings
    decide = settings.task.decide
    held_out = compare(settings, rows.labels[rows.folds.held_out], decide(ours), decide(theirs))
    tested = None
    if our_test is not None and "test" in rows.parts:
        tested = compare(settings, rows.parts["test"].labels, decide(our_test), decide(their_test))
    return Baseline(row, held_out, tested)
