"""A symmetric matrix of which only the lower triangle is kept: half the memory of a square, and half the sums."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

PANEL_COLUMNS = 192  # wide enough that a product of panels runs at full speed; what is kept twice is small beside the rest


class _Panels:
    """A lower triangle in panels of neighbouring columns, each from the diagonal downwards: [n - first column, columns].

    The square at the top of a panel is kept whole.
    """

    def __init__(self, panels: Sequence[Float[Tensor, "_ _"]]) -> None:
        ends = accumulate((panel.shape[1] for panel in panels), initial=0)
        self.parts = [(start, end, panel) for (start, end), panel in zip(pairwise(ends), panels, strict=True)]


class CholeskyFactor(_Panels):
    """L of a matrix L L^T."""

    def diagonal(self) -> Float[Tensor, "n"]:
        """Of L L^T."""
        total = self.parts[0][2].new_zeros(len(self.parts[0][2]))
        for start, end, panel in self.parts:
            total[start:end] += panel[: end - start].tril().square().sum(1)
            total[end:] += panel[end - start :].square().sum(1)
        return total

    def solve(self, right: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """(L L^T)^-1 right."""
        x = right.clone()
        for start, end, panel in self.parts:
            x[start:end] = torch.linalg.solve_triangular(panel[: end - start], x[start:end, None], upper=False)[:, 0]
            x[end:] -= panel[end - start :] @ x[start:end]
        for start, end, panel in reversed(self.parts):
            x[start:end] -= x[end:] @ panel[end - start :]
            x[start:end] = torch.linalg.solve_triangular(panel[: end - start].T, x[start:end, None], upper=True)[:, 0]
        return x


class Symmetric(_Panels):
    """A symmetric matrix."""

    @classmethod
    def zeros(cls, size: int, dtype: torch.dtype) -> "Symmetric":
        starts = range(0, size, PANEL_COLUMNS)
        return cls([torch.zeros(size - start, min(PANEL_COLUMNS, size - start), dtype=dtype) for start in starts])

    def add_product(self, rows: Float[Tensor, "row n"]) -> None:
        """Add rows^T rows."""
        for start, end, panel in self.parts:
            panel.addmm_(rows[:, start:].T, rows[:, start:end])

    def diagonal(self) -> Float[Tensor, "n"]:
        return torch.cat([panel.diagonal() for _, _, panel in self.parts])

    def set_diagonal(self, values: Float[Tensor, "n"]) -> None:
        for start, end, panel in self.parts:
            panel.diagonal().copy_(values[start:end])

    def times(self, v: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        product = torch.zeros_like(v)
        for start, end, panel in self.parts:
            product[start:] += panel @ v[start:end]
            product[start:end] += v[end:] @ panel[end - start :]
        return product

    def lower(self) -> Float[Tensor, "n n"]:
        """As a square whose lower triangle alone holds."""
        (_, _, first), *_ = self.parts
        square = first.new_zeros(len(first), len(first))
        for start, end, panel in self.parts:
            square[start:, start:end] = panel
        return square

    def only(self, places: Int[Tensor, "m"]) -> "Symmetric":
        """A copy of some rows and columns (in ascending order)."""
        panels = []
        for start, end, panel in self.parts:
            below = places[places >= start] - start
            columns = below[below < end - start]
            if len(columns):
                panels.append(panel.index_select(1, columns).index_select(0, below))
        return Symmetric(panels)

    def cholesky(self) -> CholeskyFactor | None:
        """Its factor, in its place: the matrix is used up. None where it is not positive definite.

        Panel by panel: take off what the panels before explain, factor the square at the top, solve for the rows below.
        """
        for index, (start, end, panel) in enumerate(self.parts):
            width = end - start
            for before, _, done in self.parts[:index]:
                below = done[start - before :]
                panel.addmm_(below, below[:width].T, alpha=-1)
            top, failed = torch.linalg.cholesky_ex(panel[:width])
            if failed:
                return None
            panel[:width] = top
            panel[width:] = torch.linalg.solve_triangular(top.T, panel[width:], upper=True, left=False)
        return CholeskyFactor([panel for _, _, panel in self.parts])
