"""The design matrix: the features of all rows, centred, read in blocks of rows, and the products a solver needs."""

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
# The size of a block of rows. Small for blocks that are copied (cast to float64, or reduced to some columns), so that the copy
# needs little memory; larger for blocks that are multiplied without a copy, so that the products run at full speed.
COPIED_BLOCK_BYTES, DIRECT_BLOCK_BYTES = 2 * 2**20, 8 * 2**20

# Axis names that end in _1 have one entry more than the name says, the last one: it belongs to the intercept.

# (vectors of some rows, which rows) -> each row's vector times that row's weighted Hessian [output, output].
CurvatureProduct = Callable[[Float[Tensor, "row output"], slice], Float[Tensor, "row output"]]
# (term, row indices) -> a factor for each entry of these rows of Z; see Design.gram.
EntryFactors = Callable[[int, Int[Tensor, "row"]], Float[Tensor, "row column_1"]]


class Design:
    """The features of all rows [row, feature], in one array or in several that follow each other (a store's shards).

    arrays: blocks of rows, each [rows of the block, feature], all with the same dtype; they are never copied as a whole, so
        they may be memory-mapped and larger than memory.
    transform: applied to each block of rows after it is read, such as standardising.

    In the products below, X stands for the (transformed) features minus `means`, and Z = [X 1] has a column of ones for the
    intercept. `means` is 0 until `centred` sets it.
    """

    def __init__(self, arrays: Sequence[Float[Array, "_ feature"]], transform: Callable[[Array], Array] | None = None) -> None:
        self.n_rows, self.n_features = sum(map(len, arrays)), arrays[0].shape[1]
        self._stored_dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
        self.dtype = torch.float64 if self._stored_dtype == torch.float64 else torch.float32
        self._transform = transform
        self._small_blocks = self._split(arrays, COPIED_BLOCK_BYTES // (8 * self.n_features))
        self._large_blocks = self._split(arrays, DIRECT_BLOCK_BYTES // (self.dtype.itemsize * self.n_features))
        self.means = torch.zeros(self.n_features, dtype=self.dtype)

    def centred(self, row_weights: Float64[Tensor, "row"]) -> "Design":
        """A copy that subtracts the weighted mean of each feature whose mean is larger than its standard deviation.

        Such a feature lies far from 0: its column is nearly parallel to the intercept's, and rounding would drown its spread.
        Subtracting a mean changes only the intercepts, which are not penalised. Other features are not centred: one outlier
        can move the mean far from all values, but then the standard deviation is larger still.
        """
        shares = row_weights / row_weights.sum()
        means, mean_squares = torch.zeros(2, self.n_features, dtype=torch.float64)
        for rows, features in self._blocks(None, torch.float64):
            means += shares[rows] @ features
            mean_squares += shares[rows] @ features.square()
        centred = copy(self)
        # mean^2 > variance, where variance = mean of squares - mean^2.
        centred.means = torch.where(2 * means.square() > mean_squares, means, 0.0).to(self.dtype)
        return centred

    @staticmethod
    def _split(arrays: Sequence[Array], block_rows: int) -> list[tuple[slice, Array]]:
        """(row numbers, features) of blocks of at most `block_rows` rows (at least 1); no block spans two arrays."""
        blocks, start = [], 0
        for array in arrays:
            for first in range(0, len(array), max(1, block_rows)):
                block = array[first : first + max(1, block_rows)]
                blocks.append((slice(start + first, start + first + len(block)), block))
            start += len(array)
        return blocks

    def _blocks(
        self, columns: Int[Tensor, "column"] | None, dtype: torch.dtype, row_mask: Bool[Tensor, "row"] | None = None
    ) -> Iterator[tuple[slice, Float[Tensor, "_ column"]]]:
        """(row numbers of the block, its features), not centred, in `dtype`.

        columns: the features to return, None for all. row_mask: of each block, return only the rows where it is True; the
        row numbers are still those of the whole block.
        """
        copies_whole_rows = (
            (columns is not None and row_mask is None) or dtype != self._stored_dtype or self._transform is not None
        )
        for rows, block in self._small_blocks if copies_whole_rows else self._large_blocks:
            block = block if min(block.strides) >= 0 else block.copy()  # torch does not accept negative strides
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch warns about read-only arrays; nothing writes to them here
                features = torch.from_numpy(block if self._transform is None else self._transform(block))
            features = features if row_mask is None else features[row_mask[rows]]
            yield rows, (features if columns is None else features.index_select(1, columns)).to(dtype)

    def _means_of(self, columns: Int[Tensor, "column"] | None, dtype: torch.dtype) -> Float[Tensor, "column"]:
        return (self.means if columns is None else self.means[columns]).to(dtype)

    def times(
        self, weights: Float[Tensor, "column output"], columns: Int[Tensor, "column"] | None = None
    ) -> Float[Tensor, "row output"]:
        """X W in W's precision; with `columns`, only these columns of X."""
        product = weights.new_empty(self.n_rows, weights.shape[1])
        shift = -self._means_of(columns, weights.dtype) @ weights
        for rows, features in self._blocks(columns, weights.dtype):
            torch.addmm(shift, features, weights, out=product[rows])
        return product

    def transposed_times(
        self, values: Float[Tensor, "row output"], columns: Int[Tensor, "column"] | None = None
    ) -> Float[Tensor, "column output"]:
        """X^T V in V's precision; with `columns`, only these columns of X."""
        # Computed as (V^T X)^T: with few outputs and many features, BLAS is up to twice as fast as for X^T V.
        means = self._means_of(columns, values.dtype)
        total = torch.outer(-values.sum(0), means)
        for rows, features in self._blocks(columns, values.dtype):
            total.addmm_(values[rows].T, features)
        return total.T

    def hessian_times(
        self, v: Float[Tensor, "feature_1 output"], curvature_product: CurvatureProduct
    ) -> Float[Tensor, "feature_1 output"]:
        """Z^T curvature_product(Z v), the Hessian of a summed loss times v, in one pass over the features."""
        weights, intercepts = v.new_zeros(v.shape[1], self.n_features), v.new_zeros(v.shape[1])
        means = self._means_of(None, v.dtype)
        shift = v[-1] - means @ v[:-1]
        for rows, features in self._blocks(None, v.dtype):
            curved = curvature_product(torch.addmm(shift, features, v[:-1]), rows)
            weights.addmm_(curved.T, features)
            intercepts += curved.sum(0)
        return torch.cat([weights.addr_(intercepts, means, alpha=-1), intercepts[:, None]], 1).T

    def weighted_squares(
        self, columns: Int[Tensor, "column"], weights: Callable[[slice], Float[Tensor, "row column_1"]]
    ) -> Float[Tensor, "column_1"]:
        """sum_i weights(i, j) Z_ij^2 for the given columns and the intercept: each entry of Z has a weight of its own."""
        total, means = torch.zeros(len(columns) + 1, dtype=self.dtype), self._means_of(columns, self.dtype)
        for rows, features in self._blocks(columns, self.dtype):
            weight = weights(rows)
            total[:-1] += (features - means).square_().mul_(weight[:, :-1]).sum(0)
            total[-1] += weight[:, -1].sum()
        return total

    def gram(
        self,
        columns: Int[Tensor, "column"],
        weights: Float64[Tensor, "row term"],
        entry_factors: EntryFactors | None = None,
    ) -> Symmetric:
        """sum_t (Z o E_t)^T diag(weights[:, t]) (Z o E_t), in the features' precision, for the given columns and the intercept.

        E_t = entry_factors(t, rows) multiplies Z entry by entry; without it E_t is 1 everywhere. A row whose root weight is
        below 1e-10 of the term's largest counts as weight 0: its products would be denormal numbers, ten times as slow. Where
        most rows of a term have weight 0, only the others are multiplied.

        InputError naming the feature whose sum of squares is not finite.
        """
        total, means = Symmetric.zeros(len(columns) + 1, self.dtype), self._means_of(columns, self.dtype)
        for term, roots in enumerate(weights.sqrt().to(self.dtype).T):
            roots = torch.where(roots < 1e-10 * roots.max(), 0.0, roots)
            row_mask = roots != 0 if roots.count_nonzero() < self.n_rows / 2 else None
            for rows, features in self._blocks(columns, self.dtype, row_mask):
                row_numbers = torch.arange(rows.start, rows.stop)
                row_numbers = row_numbers if row_mask is None else row_numbers[row_mask[rows]]
                scaled = features.new_empty(len(features), len(columns) + 1)
                torch.sub(features, means, out=scaled[:, :-1]).mul_(roots[row_numbers, None])
                scaled[:, -1] = roots[row_numbers]
                total.add_product(scaled if entry_factors is None else scaled.mul_(entry_factors(term, row_numbers)))
        is_finite = total.diagonal().isfinite()
        if not is_finite.all():
            first = int((~is_finite).nonzero()[0])
            raise InputError(
                f"feature {int(columns[first]) if first < len(columns) else 'intercept'}: its weighted sum of squares is not a "
                f"finite {str(self.dtype).removeprefix('torch.')}; standardise the features, or lower C"
            )
        return total
