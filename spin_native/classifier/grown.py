"""The Gram matrices of what lies below a depth, which grow layer by layer: as matrices, or as the features themselves.

Each source (a site and a pooling) is weighted so that all its layers together have a mean square of 1 per row: one C then suits
every depth and width, as the prior variance of a score.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from spin_native.classifier.settings import Source
from spin_native.features.spec import FeatureKey
from spin_native.probes.solver import Gram, GramFactors, GramMatrix, GramSum, times_transposed

MAX_MATRIX_ROWS = 16_384  # 1 GiB a matrix; a few are in memory at a time

Features = Float32[Tensor, "row feature"]
TestFeatures = Float32[Tensor, "test feature"]


def grown(n_rows: int, n_features: int, keeps_layers: bool = False) -> "Grown":
    """What is cheaper: a matrix for fewer rows than twice the features, if it fits in memory.

    keeps_layers: whether some of the layers will be left out again.
    """
    is_wide = n_rows <= min(2 * n_features, MAX_MATRIX_ROWS)
    return GrownMatrices() if is_wide and not keeps_layers else GrownFactors()


def feature_weights(features: Mapping[FeatureKey, int]) -> dict[FeatureKey, float]:
    """The weight of each feature's X X^T; features: their widths."""
    n_layers = Counter((key.site, key.pooling) for key in features)
    return {key: 1 / (len(n_layers) * n_layers[key.site, key.pooling] * width) for key, width in features.items()}


class Grown(ABC):
    """Standardised features, added layer by layer. `test`: those of rows that are scored only (may have no rows)."""

    def __init__(self) -> None:
        self.widths: dict[FeatureKey, int] = {}

    def add(self, key: FeatureKey, features: Features, test: TestFeatures) -> Gram:
        """One more feature. Returns its Gram matrix alone, over its width."""
        self.widths[key] = features.shape[1]
        return self._add(key, features, test)

    def weights(self, keys: Sequence[FeatureKey]) -> dict[FeatureKey, float]:
        """Of the X X^T of these features."""
        return feature_weights({key: self.widths[key] for key in keys})

    @abstractmethod
    def _add(self, key: FeatureKey, features: Features, test: TestFeatures) -> Gram: ...

    @abstractmethod
    def gram(self, keys: Sequence[FeatureKey]) -> Gram:
        """Of these features: with matrices all that were added of some sources."""

    @abstractmethod
    def test_scores(self, keys: Sequence[FeatureKey], a: Float32[Tensor, "row score"]) -> Float32[Tensor, "test score"]:
        """X_test w for w = X^T a, over these features."""


class GrownMatrices(Grown):
    """One sum of Gram matrices per source; the features are not kept."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[Source, GramSum] = {}
        self._tests: dict[Source, Float32[Tensor, "test row"]] = {}

    def _add(self, key: FeatureKey, features: Features, test: TestFeatures) -> Gram:
        source = (key.site, key.pooling)
        one = GramSum(len(features))
        one.add(features, 1 / features.shape[1])
        alone = GramMatrix.combined([one], [1.0])
        if source in self._sums:
            one.lower += self._sums[source].lower
        self._sums[source] = one
        of_test = times_transposed(test, features) / features.shape[1]
        self._tests[source] = self._tests[source] + of_test if source in self._tests else of_test
        return alone

    def gram(self, keys: Sequence[FeatureKey]) -> Gram:
        weights = self._of_sources(keys)
        return GramMatrix.combined([self._sums[source] for source in weights], list(weights.values()))

    def test_scores(self, keys: Sequence[FeatureKey], a: Float32[Tensor, "row score"]) -> Float32[Tensor, "test score"]:
        parts = [weight * (self._tests[source] @ a) for source, weight in self._of_sources(keys).items()]
        return torch.stack(parts).sum(0)

    def _of_sources(self, keys: Sequence[FeatureKey]) -> dict[Source, float]:
        """The weight of each source's sum; all features of a source that were added are in it."""
        n_layers = Counter((key.site, key.pooling) for key in keys)
        assert all(n == sum((key.site, key.pooling) == source for key in self.widths) for source, n in n_layers.items())
        return {source: 1 / (len(n_layers) * n) for source, n in n_layers.items()}


class GrownFactors(Grown):
    """The features, which stay in memory: many rows of few features, or few rows."""

    def __init__(self) -> None:
        super().__init__()
        self._features: dict[FeatureKey, tuple[Features, Features]] = {}

    def _add(self, key: FeatureKey, features: Features, test: TestFeatures) -> Gram:
        self._features[key] = features, test
        return GramFactors([features], [1 / features.shape[1]])

    def gram(self, keys: Sequence[FeatureKey]) -> Gram:
        weights = self.weights(keys)
        return GramFactors([self._features[key][0] for key in keys], [weights[key] for key in keys])

    def test_scores(self, keys: Sequence[FeatureKey], a: Float32[Tensor, "row score"]) -> Float32[Tensor, "test score"]:
        weights = self.weights(keys)
        parts = [weights[key] * (test @ (features.T @ a)) for key in keys for features, test in [self._features[key]]]
        return torch.stack(parts).sum(0)
