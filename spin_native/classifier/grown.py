"""The Gram matrix of what lies below a depth, which grows layer by layer.

Each source (a site and a pooling) is weighted so that all its layers together have a mean square of 1 per row: one C then suits
every depth and width, as the prior variance of a score. A source with more features than half the rows is summed up as a Gram
matrix; the features of a narrower one are kept, because products with them are cheaper.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from spin_native.classifier.settings import Source
from spin_native.features.spec import FeatureKey
from spin_native.probes.solver import Gram, GramFactors, GramMatrix, Grams, GramSum, times_transposed

MAX_MATRIX_ROWS = 16_384  # 1 GiB a matrix; a few are in memory at a time

Features = Float32[Tensor, "row feature"]
TestFeatures = Float32[Tensor, "test feature"]


def feature_weights(features: Mapping[FeatureKey, int]) -> dict[FeatureKey, float]:
    """The weight of each feature's X X^T; features: their widths."""
    n_layers = Counter(map(source_of, features))
    return {key: 1 / (len(n_layers) * n_layers[source_of(key)] * width) for key, width in features.items()}


def source_of(key: FeatureKey) -> Source:
    """Its site and pooling."""
    return key.site, key.pooling


class Grown:
    """Standardised features, added layer by layer; with each those of test rows, which are scored only (may be none).

    widths: of all features that will be added. keeps_layers: whether some layers will be left out again; then all features are
    kept.
    """

    def __init__(self, n_rows: int, widths: Mapping[FeatureKey, int], keeps_layers: bool = False) -> None:
        self._n_rows, self._widths = n_rows, dict(widths)
        total: Counter[Source] = Counter()
        for key, width in widths.items():
            total[source_of(key)] += width
        matrices = () if keeps_layers or n_rows > MAX_MATRIX_ROWS else total
        self._sums = {source: GramSum(n_rows) for source in matrices if 2 * total[source] > n_rows}
        self._of_test: dict[Source, Float32[Tensor, "test row"]] = {}
        self._kept: dict[FeatureKey, tuple[Features, TestFeatures]] = {}

    def add(self, key: FeatureKey, features: Features, test: TestFeatures) -> None:
        """One more feature."""
        source, weight = source_of(key), 1 / features.shape[1]
        if source not in self._sums:
            self._kept[key] = features, test
            return
        self._sums[source].add(features, weight)
        of_test = weight * times_transposed(test, features)
        self._of_test[source] = self._of_test[source] + of_test if source in self._of_test else of_test

    def gram(self, keys: Sequence[FeatureKey]) -> Gram:
        """Of these features; of a source that is summed up, all that were added."""
        summed, kept = self._weights(keys)
        parts: list[Gram] = []
        if summed:
            parts.append(GramMatrix.combined([self._sums[source] for source in summed], list(summed.values())))
        if kept:
            parts.append(GramFactors([self._kept[key][0] for key in kept], list(kept.values())))
        return parts[0] if len(parts) == 1 else Grams(parts)

    def test_scores(self, keys: Sequence[FeatureKey], a: Float32[Tensor, "row score"]) -> Float32[Tensor, "test score"]:
        """X_test w for w = X^T a, over these features."""
        summed, kept = self._weights(keys)
        parts = [weight * (self._of_test[source] @ a) for source, weight in summed.items()]
        parts += [weight * (test @ (features.T @ a)) for key, weight in kept.items() for features, test in [self._kept[key]]]
        return torch.stack(parts).sum(0)

    def _weights(self, keys: Sequence[FeatureKey]) -> tuple[dict[Source, float], dict[FeatureKey, float]]:
        """The weight of each source that is summed up, and of each feature that is kept."""
        n_layers = Counter(map(source_of, keys))
        summed = {source: 1 / (len(n_layers) * n) for source, n in n_layers.items() if source in self._sums}
        of_features = feature_weights({key: self._widths[key] for key in keys})
        return summed, {key: weight for key, weight in of_features.items() if source_of(key) not in summed}


def gram_of(features: Features) -> Gram:
    """That of one feature alone, over its width."""
    weight = 1 / features.shape[1]
    if 2 * features.shape[1] <= len(features) or len(features) > MAX_MATRIX_ROWS:
        return GramFactors([features], [weight])
    alone = GramSum(len(features))
    alone.add(features, weight)
    return GramMatrix.combined([alone], [1.0])
