"""The features of all rows, centred and read in blocks: what the solver multiplies."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from spin_native.errors import InputError
from spin_native.probes.solver.symmetric import Symmetric

Array = np.ndarray
# Of features that are copied (to float64, or some of their columns): small beside the data. And of those that are multiplied as
# they lie: large enough for full speed.
COPIED_BYTES, READ_BYTES = 2 * 2**20, 8 * 2**20

# What multiplies margins [row, output] of some rows by each row's matrix of second derivatives.
Curve = Callable[[Float[Tensor, "row output"], slice], Float[Tensor, "row output"]]
Entries = Callable[[int, Int[Tensor, "row"]], Float[Tensor, "row column_1"]]  # of some part and some rows


class Design:
    """The features of all rows [row, feature]: one array, or several that follow one another, such as a store's shards.

    change: what is done to a block after it was read, such as standardising; the array itself is never copied.

    X, in all products, are the features less `means` (0, but see centred).
    """

    def __init__(self, arrays: Sequence[Float[Array, "_ feature"]], change: Callable[[Array], Array] | None = None) -> None:
        self.n_rows, self.n_features = sum(map(len, arrays)), arrays[0].shape[1]
        self._stored = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
        self.dtype = torch.float64 if self._stored == torch.float64 else torch.float32
        self._change = change
        self._small = self._cut(arrays, COPIED_BYTES // (8 * self.n_features))
        self._large = self._cut(arrays, READ_BYTES // (self.dtype.itemsize * self.n_features))
        self.means = torch.zeros(self.n_features, dtype=self.dtype)

    def centred(self, row_weights: Float64[Tensor, "row"]) -> "Design":
        """The same, less the means of the features that lie farther from 0 than they spread: free intercepts allow it.

        They would all look like the intercept and each other, and their spread would be lost in the rounding. (The mean of a
        feature with an outlier is far from all of its values, but smaller than its spread.)
        """
        shares = row_weights / row_weights.sum()
        means, squares = torch.zeros(2, self.n_features, dtype=torch.float64)
        for rows, features in self._read(None, torch.float64):
            means += shares[rows] @ features
            squares += shares[rows] @ features.square()
        centred = copy(self)
        centred.means = torch.where(2 * means.square() > squares, means, 0.0).to(self.dtype)
        return centred

    @staticmethod
    def _cut(arrays: Sequence[Array], n_rows: int) -> list[tuple[slice, Array]]:
        """Blocks of at most so many rows, and which rows they are."""
        blocks, start = [], 0
        for array in arrays:
            for first in range(0, len(array), max(1, n_rows)):
                block = array[first : first + max(1, n_rows)]
                blocks.append((slice(start + first, start + first + len(block)), block))
            start += len(array)
        return blocks

    def _read(
        self, columns: Int[Tensor, "column"] | None, dtype: torch.dtype, is_read: Bool[Tensor, "row"] | None = None
    ) -> Iterator[tuple[slice, Float[Tensor, "_ column"]]]:
        """The features in a dtype, of all rows or the few that are read; in small blocks where whole rows have to be copied."""
        copies = (columns is not None and is_read is None) or dtype != self._stored or self._change is not None
        for rows, block in self._small if copies else self._large:
            block = block if min(block.strides) >= 0 else block.copy()  # torch reads nothing backwards
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of arrays that must not be written to, which nobody does here
                features = torch.from_numpy(block if self._change is None else self._change(block))
            features = features if is_read is None else features[is_read[rows]]
            yield rows, (features if columns is None else features.index_select(1, columns)).to(dtype)

    def _means_of(self, columns: Int[Tensor, "column"] | None, dtype: torch.dtype) -> Float[Tensor, "column"]:
        return (self.means if columns is None else self.means[columns]).to(dtype)

    def times(
        self, weights: Float[Tensor, "column output"], columns: Int[Tensor, "column"] | None = None
    ) -> Float[Tensor, "row output"]:
        """X W in W's precision, of some columns of X."""
        product = weights.new_empty(self.n_rows, weights.shape[1])
        shift = -self._means_of(columns, weights.dtype) @ weights
        for rows, features in self._read(columns, weights.dtype):
            torch.addmm(shift, features, weights, out=product[rows])
        return product

    def transposed_times(
        self, values: Float[Tensor, "row output"], columns: Int[Tensor, "column"] | None = None
    ) -> Float[Tensor, "column output"]:
        """X^T V in V's precision, of some columns of X."""
        # (V^T X)^T: the library's product of few columns by many reads X as it lies, and is up to twice as fast as X^T V.
        means = self._means_of(columns, values.dtype)
        total = torch.outer(-values.sum(0), means)
        for rows, features in self._read(columns, values.dtype):
            total.addmm_(values[rows].T, features)
        return total.T

    def curved_times(self, v: Float[Tensor, "feature_1 output"], curve: Curve) -> Float[Tensor, "feature_1 output"]:
        """[X 1]^T curve([X 1] v), in one pass through X; the last row of v is the intercepts'."""
        weights, intercepts = v.new_zeros(v.shape[1], self.n_features), v.new_zeros(v.shape[1])
        means = self._means_of(None, v.dtype)
        shift = v[-1] - means @ v[:-1]
        for rows, features in self._read(None, v.dtype):
            curved = curve(torch.addmm(shift, features, v[:-1]), rows)
            weights.addmm_(curved.T, features)
            intercepts += curved.sum(0)
        return torch.cat([weights.addr_(intercepts, means, alpha=-1), intercepts[:, None]], 1).T

    def squares(
        self, columns: Int[Tensor, "column"], weights: Callable[[slice], Float[Tensor, "row column_1"]]
    ) -> Float[Tensor, "column_1"]:
        """Sum over rows of the weights times Z^2, where Z is [X 1] of some columns."""
        total, means = torch.zeros(len(columns) + 1, dtype=self.dtype), self._means_of(columns, self.dtype)
        for rows, features in self._read(columns, self.dtype):
            weight = weights(rows)
            total[:-1] += (features - means).square_().mul_(weight[:, :-1]).sum(0)
            total[-1] += weight[:, -1].sum()
        return total

    def gram(
        self, columns: Int[Tensor, "column"], weights: Float64[Tensor, "row part"], entries: Entries | None = None
    ) -> Symmetric:
        """Sum over parts of Z^T diag(weights of the part) Z, in the features' precision.

        Z is [X 1] of some columns, its last one the intercept's; each entry times what `entries` says of it. Rows that weigh
        next to nothing count as nothing (their products would be denormal numbers, ten times as slow); where most rows of a
        part weigh nothing, they are left out of the sums.
        """
        total, means = Symmetric.zeros(len(columns) + 1, self.dtype), self._means_of(columns, self.dtype)
        for part, roots in enumerate(weights.sqrt().to(self.dtype).T):
            roots = torch.where(roots < 1e-10 * roots.max(), 0.0, roots)
            is_read = roots != 0 if roots.count_nonzero() < self.n_rows / 2 else None
            for rows, features in self._read(columns, self.dtype, is_read):
                chosen = torch.arange(rows.start, rows.stop)
                chosen = chosen if is_read is None else chosen[is_read[rows]]
                scaled = features.new_empty(len(features), len(columns) + 1)
                torch.sub(features, means, out=scaled[:, :-1]).mul_(roots[chosen, None])
                scaled[:, -1] = roots[chosen]
                total.add_product(scaled if entries is None else scaled.mul_(entries(part, chosen)))
        finite = total.diagonal().isfinite()
        if not finite.all():
            place = int((~finite).nonzero()[0])
            raise InputError(
                f"feature {int(columns[place]) if place < len(columns) else 'intercept'}: its weighted sum of squares is not a "
                f"finite {str(self.dtype).removeprefix('torch.')}; standardise the features, or lower C"
            )
        return total
