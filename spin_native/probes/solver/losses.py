"""The losses of linear models, with the derivatives that a Newton step needs and the conjugate that a duality gap needs.

A margin z = x w + b is what the linear model returns for one row and one output (its logit, or its predicted value).
Margins and targets are both float64, or both float32.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spin_native.probes.solver.design import CurvatureProduct


def _flush_tiny(values: Float[Tensor, "row output"], dtype: torch.dtype) -> Float[Tensor, "row output"]:
    """Cast to a dtype, with values below 1e-20 set to 0: products of denormal numbers are ten times as slow."""
    return torch.where(values < 1e-20, 0.0, values).to(dtype)


@dataclass(frozen=True, eq=False)
class Loss:
    """A convex loss of the margins z [row, output], given the true `targets` of each row."""

    targets: Float[Tensor, "row output"]

    @property
    def n_outputs(self) -> int:
        return self.targets.shape[1]

    def value(self, z: Float[Tensor, "row output"]) -> Float[Tensor, "row"]:
        """The loss of each row."""
        raise NotImplementedError

    def slope(self, z: Float[Tensor, "row output"]) -> Float[Tensor, "row output"]:
        """The first derivative of a row's loss with respect to each of its margins."""
        raise NotImplementedError

    def curvature(self, z: Float[Tensor, "row output"]) -> Float[Tensor, "row output"]:
        """The second derivative with respect to each margin: the diagonal of each row's Hessian [output, output]."""
        raise NotImplementedError

    def curvature_product(
        self, z: Float[Tensor, "row output"], row_weights: Float[Tensor, "row"], dtype: torch.dtype
    ) -> CurvatureProduct:
        """A function that multiplies by each row's weighted Hessian [output, output]."""
        raise NotImplementedError

    def total_curvature(
        self, z: Float[Tensor, "row output"], row_weights: Float[Tensor, "row"]
    ) -> Float[Tensor, "output output"]:
        """The weighted sum of all rows' Hessians."""
        return torch.diag(row_weights @ self.curvature(z))

    def dual(self, z: Float[Tensor, "row output"], scale: float) -> Float[Tensor, "row"]:
        """-loss*(scale * slope): minus each row's convex conjugate, at the slopes multiplied by `scale` (0 to 1)."""
        raise NotImplementedError


class Squared(Loss):
    """|z - y|^2 / 2, summed over outputs; targets [row, output] are the values y."""

    def value(self, z: Tensor) -> Tensor:
        return (z - self.targets).square().sum(1) / 2

    def slope(self, z: Tensor) -> Tensor:
        return z - self.targets

    def curvature(self, z: Tensor) -> Tensor:
        return torch.ones_like(z)

    def curvature_product(self, z: Tensor, row_weights: Tensor, dtype: torch.dtype) -> CurvatureProduct:
        weights = row_weights[:, None].to(dtype)
        return lambda u, rows: weights[rows] * u

    def dual(self, z: Tensor, scale: float) -> Tensor:
        slope = scale * (z - self.targets)
        return -(slope.square() / 2 + slope * self.targets).sum(1)


# The two losses below keep full relative precision for rows that the model classifies with near certainty; on separable data
# these are all rows. They compute the small probability p of a wrong class directly, never as 1 - (a number close to 1).


def _softplus(log_odds: Float[Tensor, "_"]) -> Float[Tensor, "_"]:
    """log(1 + e^t), which is a row's log-loss when t is the log odds of a wrong class."""
    return torch.nn.functional.softplus(log_odds, threshold=40)


class Logistic(Loss):
    """Two classes, one margin: log(1 + e^z) - y z; targets [row, 1] are 0 or 1."""

    @property
    def _error_sign(self) -> Float[Tensor, "row output"]:
        """The sign of z where the prediction is wrong: +1 for class 0, -1 for class 1; times z, the log odds of an error."""
        return 1 - 2 * self.targets

    def value(self, z: Tensor) -> Tensor:
        return _softplus((self._error_sign * z)[:, 0])

    def slope(self, z: Tensor) -> Tensor:
        return self._error_sign * (self._error_sign * z).sigmoid()

    def curvature(self, z: Tensor) -> Tensor:
        return z.sigmoid() * (-z).sigmoid()

    def curvature_product(self, z: Tensor, row_weights: Tensor, dtype: torch.dtype) -> CurvatureProduct:
        curvature = row_weights[:, None].to(dtype) * _flush_tiny(self.curvature(z), dtype)
        return lambda u, rows: curvature[rows] * u

    def dual(self, z: Tensor, scale: float) -> Tensor:
        # The binary entropy of q = |scaled slope|: -q log q - (1 - q) log(1 - q).
        q = scale * (self._error_sign * z)[:, 0].sigmoid()
        return torch.special.entr(q) - torch.special.xlog1py(1 - q, -q)


class Softmax(Loss):
    """Several classes, one margin each: log sum_k e^z_k - z_y; targets [row, class] are one-hot.

    With p = softmax(z), a row's Hessian is diag(p) - p p^T.
    """

    def value(self, z: Tensor) -> Tensor:
        log_sum_wrong = torch.where(self.targets > 0, -torch.inf, z).logsumexp(1)
        return _softplus(log_sum_wrong - (z * self.targets).sum(1))

    def slope(self, z: Tensor) -> Tensor:
        p = z.softmax(1)
        return torch.where(self.targets > 0, -(p * (1 - self.targets)).sum(1, keepdim=True), p)

    def curvature(self, z: Tensor) -> Tensor:
        p = z.softmax(1)
        return p * (1 - p)

    def curvature_product(self, z: Tensor, row_weights: Tensor, dtype: torch.dtype) -> CurvatureProduct:
        p = _flush_tiny(z.softmax(1), dtype)
        weights = row_weights[:, None].to(dtype)
        return lambda u, rows: weights[rows] * self._times_hessian(p[rows], u)

    @staticmethod
    def _times_hessian(p: Float[Tensor, "row output"], u: Float[Tensor, "row output"]) -> Float[Tensor, "row output"]:
        """(diag(p) - p p^T) u for each row."""
        weighted = p * u
        return weighted - p * weighted.sum(1, keepdim=True)

    def total_curvature(self, z: Tensor, row_weights: Tensor) -> Tensor:
        p = z.softmax(1)
        weighted = row_weights[:, None] * p
        return torch.diag(weighted.sum(0)) - weighted.T @ p

    def dual(self, z: Tensor, scale: float) -> Tensor:
        # The entropy of the scaled point: -q_k log q_k for wrong classes q_k = slope_k, and for the true class q = 1 + slope.
        slope = scale * self.slope(z)
        return torch.where(self.targets > 0, -torch.special.xlog1py(1 + slope, slope), torch.special.entr(slope)).sum(1)
