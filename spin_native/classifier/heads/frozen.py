"""Liu's head: the layers' probes stay as they are, and a dense layer joins their outputs (phase 2)."""

from dataclasses import dataclass

import numpy as np

from spin_native.classifier.fitting import BASELINE_C_TIMES, Rows, Standardizer, best_probe
from spin_native.classifier.heads.base import OF_SELECTION, SelectedLinearHead
from spin_native.classifier.settings import Settings
from spin_native.classifier.sparsify import Selection


@dataclass(frozen=True)
class FrozenHead(SelectedLinearHead):
    """The layers' probes, pruned to their salient neurons and frozen; a dense layer reads their scaled outputs.

    Both levels are linear, so they are stored as one coefficient matrix.
    """

    kind = saved_kind = "frozen"
    label = "frozen (Liu)"
    options = ("head_Cs", "final_rows", "phase_two", *OF_SELECTION)

    @classmethod
    def fit(cls, selection: Selection, train: Rows, validation: Rows, settings: Settings) -> tuple["FrozenHead", float]:
        chosen = [(selection.layers[feature].probe, neurons) for feature, neurons in selection.neurons.items()]
        n_scores = len(chosen[0][0].coef_)
        frozen = np.zeros((train.features.shape[1], len(chosen) * n_scores))
        start = 0
        for index, (probe, neurons) in enumerate(chosen):
            frozen[start : start + len(neurons), index * n_scores : (index + 1) * n_scores] = probe.coef_[:, neurons].T
            start += len(neurons)
        # The products are taken in float32: a float64 factor would copy all features to float64.
        frozen /= Standardizer.of(train.features @ frozen.astype(np.float32), "standard", least=0.0).scale
        below, held_out = (
            Rows(rows.features @ frozen.astype(np.float32), rows.labels, rows.weights) for rows in (train, validation)
        )
        width = frozen.shape[1]
        Cs = settings.head_Cs or [times / width for times in BASELINE_C_TIMES]
        dense, score = best_probe(below, held_out, Cs, 0.0, settings)
        model = dense.through(frozen.T)
        return cls(settings.task, selection.cut, selection.neurons, selection.standardizer, model), score
