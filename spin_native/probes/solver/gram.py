"""Gram matrices K = X X^T of rows, and their products: what a solver in the dual space needs of the features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

N_DIRECTIONS = 96  # leading directions in a preconditioner: few enough to cost less than one product with K
POWER_STEPS = 3
BLOCK_ROWS = 1024  # of a product that is added to K: bounds the memory beside K


class LeadingDirections(NamedTuple):
    """The leading eigenvectors X^T q of X^T X, approximately, each of length 1: their q, K q, and eigenvalues."""

    q: Float32[Tensor, "row direction"]
    kq: Float32[Tensor, "row direction"]
    values: Float32[Tensor, "direction"]


class Gram(ABC):
    """K = X X^T of `n_rows` rows."""

    n_rows: int

    @abstractmethod
    def times(self, u: Float32[Tensor, "row column"]) -> Float32[Tensor, "row column"]:
        """K u."""

    @cached_property
    def directions(self) -> LeadingDirections:
        """The leading directions, by subspace iteration from a fixed start and a Rayleigh-Ritz step in the weights' space."""
        basis = torch.randn(self.n_rows, min(N_DIRECTIONS, self.n_rows), generator=torch.Generator().manual_seed(0))
        for _ in range(POWER_STEPS):
            basis = torch.linalg.qr(self.times(basis))[0]
        wide, product = basis.double(), self.times(basis).double()
        sizes, rotation = torch.linalg.eigh(wide.T @ product)
        is_clear = sizes > 1e-5 * sizes[-1]  # below it is rounding
        rotation = rotation[:, is_clear] / sizes[is_clear].sqrt()
        q, kq = wide @ rotation, product @ rotation  # q^T K q = 1
        values, rotation = torch.linalg.eigh(kq.T @ kq)
        return LeadingDirections((q @ rotation).float(), (kq @ rotation).float(), values.float())


class GramSum:
    """A sum of X X^T over features, which grows."""

    def __init__(self, n_rows: int) -> None:
        self.matrix = torch.zeros(n_rows, n_rows)

    def add(self, features: Float32[Tensor, "row feature"], weight: float = 1.0) -> None:
        """+= weight X X^T, computed on and below the diagonal only."""
        for start in range(0, len(features), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            block = weight * times_transposed(features[rows], features[: start + BLOCK_ROWS])
            self.matrix[rows, : start + BLOCK_ROWS] += block
            self.matrix[:start, rows] += block[:, :start].T


class GramMatrix(Gram):
    """K [row, row] as a matrix: for fewer rows than features."""

    def __init__(self, matrix: Float32[Tensor, "row row"]) -> None:
        self.n_rows = len(matrix)
        self._factor = torch.ops.mkldnn._reorder_linear_weight(matrix) if has_onednn() else matrix

    @classmethod
    def combined(cls, sums: Sequence[GramSum], weights: Sequence[float]) -> "GramMatrix":
        """The weighted sum of several sums."""
        matrix = weights[0] * sums[0].matrix
        for one, weight in zip(sums[1:], weights[1:], strict=True):
            matrix.add_(one.matrix, alpha=weight)
        return cls(matrix)

    def times(self, u: Float32[Tensor, "row column"]) -> Float32[Tensor, "row column"]:
        if not has_onednn():
            return self._factor @ u
        return torch.ops.mkldnn._linear_pointwise(u.T.contiguous(), self._factor, None, "none", [], "").T


class GramFactors(Gram):
    """K = sum weight X X^T by its features, over which every product passes: for more rows than features."""

    def __init__(self, features: Sequence[Float32[Tensor, "row _"]], weights: Sequence[float]) -> None:
        self.n_rows, self._features, self._weights = len(features[0]), features, weights

    def times(self, u: Float32[Tensor, "row column"]) -> Float32[Tensor, "row column"]:
        product = torch.zeros_like(u)
        for features, weight in zip(self._features, self._weights, strict=True):
            product += weight * times_transposed(features, times_transposed(u.T, features.T))
        return product


class Grams(Gram):
    """A sum of several."""

    def __init__(self, parts: Sequence[Gram]) -> None:
        self.n_rows, self._parts = parts[0].n_rows, parts

    def times(self, u: Float32[Tensor, "row column"]) -> Float32[Tensor, "row column"]:
        return torch.stack([part.times(u) for part in self._parts]).sum(0)


def has_onednn() -> bool:
    """Whether oneDNN multiplies float32 here: for few columns 10 times as fast as MKL on AMD's processors."""
    return bool(torch.backends.mkldnn.is_available())


def times_transposed(x: Float32[Tensor, "row inner"], y: Float32[Tensor, "column inner"]) -> Float32[Tensor, "row column"]:
    """x y^T."""
    if not has_onednn():
        return x @ y.T
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), y, None, "none", [], "")
