"""A symmetric matrix of which only the lower triangle is kept: half the memory of a square, and half the sums."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

PANEL_COLUMNS = 192  # wide enough that a product of panels runs at full speed; what is kept twice is small beside the rest


class Symmetric:
    """Panels of neighbouring columns, each from the diagonal downwards: [n - first column, columns].

    The square at the top of a panel is kept whole.
    """

    def __init__(self, panels: Sequence[Float[Tensor, "_ _"]]) -> None:
        self.panels = panels
        self.size, self._starts = (len(panels[0]) if panels else 0), [0]
        for panel in panels:
            self._starts.append(self._starts[-1] + panel.shape[1])

    @classmethod
    def zeros(cls, size: int, dtype: torch.dtype) -> "Symmetric":
        starts = range(0, size, PANEL_COLUMNS)
        return cls([torch.zeros(size - start, min(PANEL_COLUMNS, size - start), dtype=dtype) for start in starts])

    def add_product(self, rows: Float[Tensor, "row n"]) -> None:
        """Add rows^T rows."""
        for start, panel in zip(self._starts, self.panels, strict=False):
            panel.addmm_(rows[:, start:].T, rows[:, start : start + panel.shape[1]])

    def diagonal(self) -> Float[Tensor, "n"]:
        return torch.cat([panel.diagonal() for panel in self.panels])

    def set_diagonal(self, values: Float[Tensor, "n"]) -> None:
        for start, panel in zip(self._starts, self.panels, strict=False):
            panel.diagonal().copy_(values[start : start + panel.shape[1]])

    def times(self, v: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        product = torch.zeros_like(v)
        for start, end, panel in zip(self._starts, self._starts[1:], self.panels, strict=False):
            product[start:] += panel @ v[start:end]
            product[start:end] += v[end:] @ panel[end - start :]
        return product

    def dense(self) -> Float[Tensor, "n n"]:
        """As a square, the lower triangle only."""
        square = self.panels[0].new_zeros(self.size, self.size)
        for start, panel in zip(self._starts, self.panels, strict=False):
            square[start:, start : start + panel.shape[1]] = panel
        return square

    def only(self, places: Int[Tensor, "m"]) -> "Symmetric":
        """A copy of some rows and columns (in ascending order)."""
        panels = []
        for start, end, panel in zip(self._starts, self._starts[1:], self.panels, strict=False):
            below = places[places >= start] - start
            columns = below[below < end - start]
            if len(columns):
                panels.append(panel.index_select(1, columns).index_select(0, below))
        return Symmetric(panels)

    def factor(self) -> bool:
        """Become Cholesky's factor L of oneself, L L^T, in place; False, and nothing of use, where there is none.

        Panel by panel: take off what the panels before explain, factor the square at the top, solve for the rows below.
        """
        for index, (start, panel) in enumerate(zip(self._starts, self.panels, strict=False)):
            width = panel.shape[1]
            for before, done in zip(self._starts[:index], self.panels, strict=False):
                below = done[start - before :]
                panel.addmm_(below, below[:width].T, alpha=-1)
            top, failed = torch.linalg.cholesky_ex(panel[:width])
            if failed:
                return False
            panel[:width] = top
            panel[width:] = torch.linalg.solve_triangular(top.T, panel[width:], upper=True, left=False)
        return True

    def solve(self, right: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """(L L^T)^-1 right, once it is a factor."""
        x = right.clone()
        parts = list(zip(self._starts, self._starts[1:], self.panels, strict=False))
        for start, end, panel in parts:
            x[start:end] = torch.linalg.solve_triangular(panel[: end - start], x[start:end, None], upper=False)[:, 0]
            x[end:] -= panel[end - start :] @ x[start:end]
        for start, end, panel in reversed(parts):
            x[start:end] -= x[end:] @ panel[end - start :]
            x[start:end] = torch.linalg.solve_triangular(panel[: end - start].T, x[start:end, None], upper=True)[:, 0]
        return x
