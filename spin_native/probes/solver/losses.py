"""Losses of linear models, with all that a Newton step and a proof of the gap need."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spin_native.probes.solver.design import Curve


def _normal(values: Float64[Tensor, "row output"], dtype: torch.dtype) -> Float[Tensor, "row output"]:
    """In a dtype; what is next to nothing as 0, since products of denormal numbers take ten times as long."""
    return torch.where(values < 1e-20, 0.0, values).to(dtype)


@dataclass(frozen=True, eq=False)
class Loss:
    """A convex loss of margins z [row, output]; `targets` holds what is true of each row."""

    targets: Float64[Tensor, "row output"]

    @property
    def n_outputs(self) -> int:
        return self.targets.shape[1]

    def value(self, z: Float64[Tensor, "row output"]) -> Float64[Tensor, "row"]:
        raise NotImplementedError

    def slope(self, z: Float64[Tensor, "row output"]) -> Float64[Tensor, "row output"]:
        """Derivative by each margin."""
        raise NotImplementedError

    def curvature(self, z: Float64[Tensor, "row output"]) -> Float64[Tensor, "row output"]:
        """Second derivative by each margin alone."""
        raise NotImplementedError

    def curve(self, z: Float64[Tensor, "row output"], row_weights: Float64[Tensor, "row"], dtype: torch.dtype) -> Curve:
        """All second derivatives of each row, times its weight."""
        raise NotImplementedError

    def total_curvature(
        self, z: Float64[Tensor, "row output"], row_weights: Float64[Tensor, "row"]
    ) -> Float64[Tensor, "output output"]:
        """The rows' matrices of second derivatives, summed."""
        return torch.diag(row_weights @ self.curvature(z))

    def dual(self, z: Float64[Tensor, "row output"], scale: float) -> Float64[Tensor, "row"]:
        """Minus the convex conjugate, at `scale` times the slopes."""
        raise NotImplementedError


class Squared(Loss):
    """(z - y)^2 / 2, summed over outputs."""

    def value(self, z: Tensor) -> Tensor:
        return (z - self.targets).square().sum(1) / 2

    def slope(self, z: Tensor) -> Tensor:
        return z - self.targets

    def curvature(self, z: Tensor) -> Tensor:
        return torch.ones_like(z)

    def curve(self, z: Tensor, row_weights: Tensor, dtype: torch.dtype) -> Curve:
        weights = row_weights[:, None].to(dtype)
        return lambda u, rows: weights[rows] * u

    def dual(self, z: Tensor, scale: float) -> Tensor:
        slope = scale * (z - self.targets)
        return -(slope.square() / 2 + slope * self.targets).sum(1)


# Of the two losses below all digits hold where a model is sure and right, which is all that separable rows leave: nothing is
# taken from 1 or from a large margin, but told by the odds, or the probability, that a row is not of its class.


def _log_odds_loss(against: Float64[Tensor, "_"]) -> Float64[Tensor, "_"]:
    """log(1 + e^z) of the log odds that a row is not of its class."""
    return torch.nn.functional.softplus(against, threshold=40)


class Logistic(Loss):
    """Two classes, one margin: log(1 + e^z) - y z; y [row, 1] is 0 or 1."""

    @property
    def _away(self) -> Float64[Tensor, "row output"]:
        """The sign of the margins that speak against a row's class."""
        return 1 - 2 * self.targets

    def value(self, z: Tensor) -> Tensor:
        return _log_odds_loss((self._away * z)[:, 0])

    def slope(self, z: Tensor) -> Tensor:
        return self._away * (self._away * z).sigmoid()

    def curvature(self, z: Tensor) -> Tensor:
        return z.sigmoid() * (-z).sigmoid()

    def curve(self, z: Tensor, row_weights: Tensor, dtype: torch.dtype) -> Curve:
        curvature = row_weights[:, None].to(dtype) * _normal(self.curvature(z), dtype)
        return lambda u, rows: curvature[rows] * u

    def dual(self, z: Tensor, scale: float) -> Tensor:
        q = scale * (self._away * z)[:, 0].sigmoid()
        return torch.special.entr(q) - torch.special.xlog1py(1 - q, -q)


class Softmax(Loss):
    """Several classes, one margin each: log sum e^z - z_y; y [row, class] is one-hot."""

    def value(self, z: Tensor) -> Tensor:
        others = torch.where(self.targets > 0, -torch.inf, z).logsumexp(1)
        return _log_odds_loss(others - (z * self.targets).sum(1))

    def slope(self, z: Tensor) -> Tensor:
        p = z.softmax(1)
        return torch.where(self.targets > 0, -(p * (1 - self.targets)).sum(1, keepdim=True), p)

    def curvature(self, z: Tensor) -> Tensor:
        p = z.softmax(1)
        return p * (1 - p)

    def curve(self, z: Tensor, row_weights: Tensor, dtype: torch.dtype) -> Curve:
        p = _normal(z.softmax(1), dtype)
        weights = row_weights[:, None].to(dtype)

        def curve(u: Tensor, rows: slice) -> Tensor:
            share = p[rows]
            weighted = share * u
            return weights[rows] * (weighted - share * weighted.sum(1, keepdim=True))

        return curve

    def total_curvature(self, z: Tensor, row_weights: Tensor) -> Tensor:
        p = z.softmax(1)
        weighted = row_weights[:, None] * p
        return torch.diag(weighted.sum(0)) - weighted.T @ p

    def dual(self, z: Tensor, scale: float) -> Tensor:
        slope = scale * self.slope(z)
        return torch.where(self.targets > 0, -torch.special.xlog1py(1 + slope, slope), torch.special.entr(slope)).sum(1)
