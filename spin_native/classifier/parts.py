"""The features of one part of the data: as they were extracted, or only the columns that are still needed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped

from spin_native.features.store import FeatureKey, Features

Array = np.ndarray
Neurons = dict[FeatureKey, Int[Array, "_"]]  # of each feature, some of its columns, sorted


@dataclass(frozen=True)
class Part(ABC):
    """Some rows (training, validation or test): their encoded labels, and columns of their features.

    weights: how many times each row counts in a fit; None means once.
    """

    labels: Shaped[Array, "_ *label"]
    weights: Float[Array, "_"] | None = field(default=None, kw_only=True)

    @abstractmethod
    def take(self, feature: FeatureKey, neurons: Int[Array, "neuron"]) -> Float32[Array, "row neuron"]:
        """Some neurons (sorted) of a feature."""

    def side_by_side(self, neurons: Mapping[FeatureKey, Int[Array, "_"]]) -> Float32[Array, "row salient"]:
        """Some neurons of several features."""
        return np.concatenate([self.take(feature, chosen) for feature, chosen in neurons.items()], axis=1)

    def _nothing(self) -> Float32[Array, "row 0"]:
        return np.empty((len(self.labels), 0), np.float32)


@dataclass(frozen=True)
class ExtractedPart(Part):
    """Features as they were extracted; every `take` reads one of their arrays.

    columns: which neurons of a feature were extracted (sorted), where not all were. rows: which rows belong to the part (None:
    all).
    """

    features: Features
    columns: Mapping[FeatureKey, Int[Array, "_"]] | None = None
    rows: Int[Array, "_"] | None = None

    def whole(self, feature: FeatureKey) -> Float32[Array, "row width"]:
        """All columns of a feature."""
        array = self.features.array(**feature._asdict())
        return array if self.rows is None else array[self.rows]

    def take(self, feature: FeatureKey, neurons: Int[Array, "neuron"]) -> Float32[Array, "row neuron"]:
        if not len(neurons):
            return self._nothing()  # of a feature that may not have been extracted at all
        if self.columns is not None and feature in self.columns:
            neurons = np.searchsorted(self.columns[feature], neurons)
        array = self.features.array(**feature._asdict())
        array = array.take(neurons, axis=1)  # array[:, neurons] would be stored column by column
        return array if self.rows is None else array[self.rows]

    def only(self, rows: Int[Array, "_"]) -> "ExtractedPart":
        """Some of the rows."""
        of_features = rows if self.rows is None else self.rows[rows]
        weights = None if self.weights is None else self.weights[rows]
        return ExtractedPart(self.labels[rows], self.features, self.columns, of_features, weights=weights)

    def gathered(self, neurons: Neurons) -> "GatheredPart":
        """Only these columns, each array read once, and freed if it is in memory."""
        arrays = {}
        for feature, chosen in neurons.items():
            arrays[feature] = self.take(feature, chosen)
            self.features.drop(feature)
        return GatheredPart(self.labels, neurons, arrays, weights=self.weights)


@dataclass(frozen=True)
class GatheredPart(Part):
    """Some columns of some features, in memory."""

    neurons: Neurons
    arrays: dict[FeatureKey, Float32[Array, "_ _"]]

    def take(self, feature: FeatureKey, neurons: Int[Array, "neuron"]) -> Float32[Array, "row neuron"]:
        if not len(neurons):
            return self._nothing()
        return self.arrays[feature].take(np.searchsorted(self.neurons[feature], neurons), axis=1)
