"""The Gram matrices of what lies below a depth, which grow layer by layer: as matrices, or as the features themselves.

Each source (a site and a pooling) is weighted so that all its layers together have a mean square of 1 per row: one C then suits
every depth and width, as the prior variance of a logit.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from spin_native.classifier.settings import Source
from spin_native.probes.solver import Gram, GramFactors, GramMatrix, GramSum, times_transposed

MAX_MATRIX_ROWS = 16_384  # 1 GiB a matrix; a few are in memory at a time

Features = Float32[Tensor, "row feature"]
TestFeatures = Float32[Tensor, "test feature"]


def grown(n_rows: int, n_features: int) -> "Grown":
    """What is cheaper: a matrix for fewer rows than twice the features, if it fits in memory."""
    return GrownMatrices() if n_rows <= min(2 * n_features, MAX_MATRIX_ROWS) else GrownFactors()


class Grown(ABC):
    """Standardised features, added layer by layer. `test`: those of rows that are scored only (may have no rows)."""

    def __init__(self) -> None:
        self.n_layers: dict[Source, int] = {}

    def add(self, source: Source, features: Features, test: TestFeatures) -> Gram:
        """One more layer of a source. Returns the Gram matrix of this layer alone."""
        self.n_layers[source] = self.n_layers.get(source, 0) + 1
        return self._add(source, features, test)

    def weights(self, sources: Sequence[Source]) -> list[float]:
        """Of each source's sum of X X^T / width."""
        return [1 / (len(sources) * self.n_layers[source]) for source in sources]

    @abstractmethod
    def _add(self, source: Source, features: Features, test: TestFeatures) -> Gram: ...

    @abstractmethod
    def gram(self, sources: Sequence[Source]) -> Gram:
        """Of all layers of these sources so far."""

    @abstractmethod
    def test_scores(self, sources: Sequence[Source], a: Float32[Tensor, "row score"]) -> Float32[Tensor, "test score"]:
        """X_test w for w = X^T a, over all layers of these sources so far."""


class GrownMatrices(Grown):
    """Gram matrices; the features are not kept."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[Source, GramSum] = {}
        self._tests: dict[Source, Float32[Tensor, "test row"]] = {}

    def _add(self, source: Source, features: Features, test: TestFeatures) -> Gram:
        one = GramSum(len(features))
        one.add(features, 1 / features.shape[1])
        alone = GramMatrix.combined([one], [1.0])
        if source in self._sums:
            one.lower += self._sums[source].lower
        self._sums[source] = one
        of_test = times_transposed(test, features) / features.shape[1]
        self._tests[source] = self._tests[source] + of_test if source in self._tests else of_test
        return alone

    def gram(self, sources: Sequence[Source]) -> Gram:
        return GramMatrix.combined([self._sums[source] for source in sources], self.weights(sources))

    def test_scores(self, sources: Sequence[Source], a: Float32[Tensor, "row score"]) -> Float32[Tensor, "test score"]:
        weights = self.weights(sources)
        parts = [weight * (self._tests[source] @ a) for source, weight in zip(sources, weights, strict=True)]
        return torch.stack(parts).sum(0)


class GrownFactors(Grown):
    """The features, which stay in memory: many rows of few features."""

    def __init__(self) -> None:
        super().__init__()
        self._features: dict[Source, list[Features]] = {}
        self._tests: dict[Source, list[TestFeatures]] = {}

    def _add(self, source: Source, features: Features, test: TestFeatures) -> Gram:
        self._features.setdefault(source, []).append(features)
        self._tests.setdefault(source, []).append(test)
        return GramFactors([features], [1 / features.shape[1]])

    def gram(self, sources: Sequence[Source]) -> Gram:
        parts = [
            (features, weight / features.shape[1])
            for source, weight in zip(sources, self.weights(sources), strict=True)
            for features in self._features[source]
        ]
        return GramFactors(*map(list, zip(*parts, strict=True)))

    def test_scores(self, sources: Sequence[Source], a: Float32[Tensor, "row score"]) -> Float32[Tensor, "test score"]:
        scores = torch.zeros(len(self._tests[sources[0]][0]), a.shape[1])
        for source, weight in zip(sources, self.weights(sources), strict=True):
            for features, test in zip(self._features[source], self._tests[source], strict=True):
                scores += weight / features.shape[1] * (test @ (features.T @ a))
        return scores
