"""Cross-fitting: every row is scored by a model that did not learn from it, and the same scores serve every choice.

With cross-validation each fold holds out a part of the training rows; where the caller gives validation rows, one fold holds
out these. All folds, all C and the last fit are solved side by side, on one Gram matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int, Shaped

from spin_native.classifier.splits import folds
from spin_native.classifier.tasks import Task
from spin_native.errors import InputError
from spin_native.probes.solver import Gram, Loss, dual_fits
from spin_native.text.pairs import Text

Array = np.ndarray
N_FOLDS = 5
TOL = 1e-4  # of the objective: a hundred times below what a held-out score can see


@dataclass(frozen=True)
class Folds:
    """Which rows each fit learns from.

    held_out_by: the fold that holds each row out, from 0; -1: none. learns_last: the rows of the last fit. weights: how much
    each row counts in a fit.
    """

    held_out_by: Int[Array, "row"]
    learns_last: Bool[Array, "row"]
    weights: Float64[Array, "row"]

    @classmethod
    def crossed(
        cls, task: Task, texts: Sequence[Text], labels: Shaped[Array, "row *label"], weights: Float64[Array, "row"], seed: int
    ) -> "Folds":
        """Cross-validation; the last fit learns from all rows. InputError where no row can be held out."""
        held_out_by = folds(task, texts, labels, N_FOLDS, seed)
        if (held_out_by < 0).all():
            raise InputError(
                "training rows: no class has two different texts, so that none can be held out and choose; add other texts, or "
                "give validation rows of your own"
            )
        return cls(held_out_by, np.ones(len(labels), dtype=bool), weights)

    @classmethod
    def given(cls, n_training: int, n_validation: int, weights: Float64[Array, "row"], learns_all: bool) -> "Folds":
        """Training rows, then validation rows. learns_all: the last fit learns from these, too."""
        is_validation = np.arange(n_training + n_validation) >= n_training
        return cls(np.where(is_validation, 0, -1), ~is_validation | learns_all, weights)

    @property
    def n(self) -> int:
        """How many folds."""
        return int(self.held_out_by.max()) + 1

    @property
    def held_out(self) -> Int[Array, "_"]:
        """The rows that some fold holds out."""
        return np.flatnonzero(self.held_out_by >= 0)

    def problems(self, Cs: Sequence[float]) -> Float64[Array, "row problem"]:
        """Row weights times C: for each C every fold, then the last fit."""
        learns = [self.held_out_by != fold for fold in range(self.n)] + [self.learns_last]
        return np.stack([C * rows * self.weights for C in Cs for rows in learns], axis=1)


@dataclass(frozen=True)
class CrossFit:
    """One kind of model, cross-fitted with the best of several C.

    loss: the mean loss of the held-out rows, which chose C. scores: of each row by the fold that held it out (by the last fit
    where none did). a, intercepts: the last fit, w = X^T a. converged: whether all fits with this C reached the tolerance.
    """

    C: float
    loss: float
    scores: Float32[Array, "row score"]
    a: Float32[Array, "row score"]
    intercepts: Float32[Array, "score"]
    converged: bool

    @classmethod
    def on(cls, gram: Gram, loss: Loss, folds: Folds, Cs: Sequence[float]) -> "CrossFit":
        """Fit all folds with every C; the C with the smallest held-out loss is taken (of equals, the smallest)."""
        Cs = sorted(Cs)
        fits = dual_fits(gram, loss, torch.from_numpy(folds.problems(Cs)), TOL)
        rows, held_out = np.arange(gram.n_rows), folds.held_out
        share = torch.from_numpy(folds.weights[held_out] / folds.weights[held_out].sum())
        best: CrossFit | None = None
        for index, C in enumerate(Cs):
            first = index * (folds.n + 1)
            of_row = np.where(folds.held_out_by >= 0, folds.held_out_by, folds.n) + first
            scores = fits.scores[rows, of_row]
            value = float(share @ loss.value(scores.double())[held_out])
            if best is None or value < best.loss:
                last = first + folds.n
                is_solved = bool(fits.converged[first : last + 1].all())
                a, intercepts = fits.a[:, last].numpy().copy(), fits.intercepts[last].numpy().copy()
                best = cls(C, value, scores.numpy(), a, intercepts, is_solved)
        assert best is not None
        return best
