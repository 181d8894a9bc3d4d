"""A symmetric matrix stored as its lower triangle: half the memory of the square, and half the work to compute it."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Wide enough that a product of two panels runs at full speed; the entries stored twice (above the diagonal) stay few.
PANEL_COLUMNS = 192


class _Panels:
    """A lower triangle cut into panels of adjacent columns.

    parts: (first column, end column, panel) for each panel. A panel holds its columns from the diagonal downwards:
    [n - first column, end column - first column]. Its top square is stored whole, both triangles.
    """

    def __init__(self, panels: Sequence[Float[Tensor, "_ _"]]) -> None:
        ends = accumulate((panel.shape[1] for panel in panels), initial=0)
        self.parts = [(start, end, panel) for (start, end), panel in zip(pairwise(ends), panels, strict=True)]


class CholeskyFactor(_Panels):
    """The lower triangular factor L of a positive definite matrix A = L L^T."""

    def diagonal(self) -> Float[Tensor, "n"]:
        """The diagonal of A = L L^T (not that of L)."""
        total = self.parts[0][2].new_zeros(len(self.parts[0][2]))
        for start, end, panel in self.parts:
            total[start:end] += panel[: end - start].tril().square().sum(1)
            total[end:] += panel[end - start :].square().sum(1)
        return total

    def solve(self, right: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """x with L L^T x = right: forward substitution panel by panel, then backward substitution."""
        x = right.clone()
        for start, end, panel in self.parts:
            x[start:end] = torch.linalg.solve_triangular(panel[: end - start], x[start:end, None], upper=False)[:, 0]
            x[end:] -= panel[end - start :] @ x[start:end]
        for start, end, panel in reversed(self.parts):
            x[start:end] -= x[end:] @ panel[end - start :]
            x[start:end] = torch.linalg.solve_triangular(panel[: end - start].T, x[start:end, None], upper=True)[:, 0]
        return x


class Symmetric(_Panels):
    """A symmetric matrix [n, n] stored as its lower triangle."""

    @classmethod
    def zeros(cls, size: int, dtype: torch.dtype) -> "Symmetric":
        """The zero matrix [size, size]."""
        starts = range(0, size, PANEL_COLUMNS)
        return cls([torch.zeros(size - start, min(PANEL_COLUMNS, size - start), dtype=dtype) for start in starts])

    def add_product(self, rows: Float[Tensor, "row n"]) -> None:
        """Add rows^T rows in place."""
        for start, end, panel in self.parts:
            panel.addmm_(rows[:, start:].T, rows[:, start:end])

    def diagonal(self) -> Float[Tensor, "n"]:
        """A copy of the diagonal."""
        return torch.cat([panel.diagonal() for _, _, panel in self.parts])

    def set_diagonal(self, values: Float[Tensor, "n"]) -> None:
        """Overwrite the diagonal in place."""
        for start, end, panel in self.parts:
            panel.diagonal().copy_(values[start:end])

    def times(self, v: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The product with a vector."""
        product = torch.zeros_like(v)
        for start, end, panel in self.parts:
            product[start:] += panel @ v[start:end]
            product[start:end] += v[end:] @ panel[end - start :]
        return product

    def lower_square(self) -> Float[Tensor, "n n"]:
        """The matrix as an ordinary square tensor. Read its lower triangle only: the upper one is incomplete."""
        (_, _, first), *_ = self.parts
        square = first.new_zeros(len(first), len(first))
        for start, end, panel in self.parts:
            square[start:, start:end] = panel
        return square

    def submatrix(self, indices: Int[Tensor, "m"]) -> "Symmetric":
        """A copy of the rows and columns at `indices`, which must be ascending."""
        panels = []
        for start, end, panel in self.parts:
            below = indices[indices >= start] - start
            columns = below[below < end - start]
            if len(columns):
                panels.append(panel.index_select(1, columns).index_select(0, below))
        return Symmetric(panels)

    def cholesky_in_place(self) -> CholeskyFactor | None:
        """The Cholesky factor, written over this matrix, which must not be used afterwards; None if not positive definite.

        Left-looking blocked algorithm. For each panel: subtract the products of the panels before it, factor the top square,
        solve for the rows below.
        """
        for index, (start, end, panel) in enumerate(self.parts):
            width = end - start
            for earlier_start, _, earlier_panel in self.parts[:index]:
                below = earlier_panel[start - earlier_start :]
                panel.addmm_(below, below[:width].T, alpha=-1)
            top, failed = torch.linalg.cholesky_ex(panel[:width])
            if failed:
                return None
            panel[:width] = top
            panel[width:] = torch.linalg.solve_triangular(top.T, panel[width:], upper=True, left=False)
        return CholeskyFactor([panel for _, _, panel in self.parts])
