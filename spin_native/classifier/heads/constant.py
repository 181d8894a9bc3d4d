"""The head where no neuron is salient: the same answer for every text."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from spin_native.classifier.fitting import Rows, Standardizer
from spin_native.classifier.heads.base import SelectedLinearHead, no_neurons
from spin_native.classifier.settings import Settings
from spin_native.classifier.sparsify import ProbedLayers, Selection
from spin_native.features.store import FeatureKey

Array = np.ndarray


@dataclass(frozen=True)
class ConstantHead(SelectedLinearHead):
    """The most frequent class, or the mean value. Saved as a refit head that reads no neuron."""

    kind = "constant"
    saved_kind = "refit"
    label = "constant"

    @classmethod
    def of(
        cls, labels: Shaped[Array, "row *label"], settings: Settings, weights: Float[Array, "row"] | None = None
    ) -> "ConstantHead":
        """The best constant answer to these labels. weights: how many times each row counts; None means once."""
        site, pooling = settings.sources[0]
        empty = np.empty(0, dtype=np.float32)
        constant = settings.task.constant(labels, settings.row_weights(labels, weights))
        neurons = {FeatureKey(site, pooling, 0): no_neurons()}
        return cls(settings.task, settings.cuts[0], neurons, Standardizer(empty, empty), constant)

    @classmethod
    def fit(cls, selection: Selection, train: Rows, validation: Rows, settings: Settings) -> tuple["ConstantHead", float]:
        head = cls.of(train.labels, settings, train.weights)
        return head, settings.score(validation.labels, head.predict(validation.features))

    def fit_again(self, layers: ProbedLayers, rows: Rows, settings: Settings) -> "ConstantHead":
        return self.of(rows.labels, settings, rows.weights)
