"""What the solver minimises, where it stands, and the proof of how far that is from the minimum.

    F(W, b) = C * sum_i s_i loss(y_i, x_i W + b) + l1 * |W|_1 + l2 / 2 * |W|_2^2

The features stay where they are and are read in blocks of rows, in their own precision; margins, gradients and objectives are
summed in float64; where the tolerance is loose, margins and gradients on the way are summed in the features' own precision. A
solve stops when the duality gap, in float64 always, is a given share of F: no objective can undercut F by more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from spin_native.errors import InputError
from spin_native.probes.solver.design import Design
from spin_native.probes.solver.losses import Loss, Softmax

Array = np.ndarray
# To reach a gap below this, float32's products are too coarse. (Whether any gap was reached is found out in float64.)
FLOAT64_BELOW = 1e-5
COARSE_STEPS = 10  # a solve that needs more may be lost in the rounding of float32's products, and goes on in float64
MAX_STEP_HALVINGS, MAX_BLIND_ROUNDS = 40, 8


@dataclass(frozen=True)
class Solution:
    """weights [feature, output], intercepts [output]; gap: proven distance from the smallest F, as a share of F."""

    weights: Float64[Array, "feature output"]
    intercepts: Float64[Array, "output"]
    gap: float
    n_iter: int


class Objective:
    """F and where it stands: weights, intercepts, and their margins."""

    def __init__(
        self, design: Design, loss: Loss, row_weights: Float64[Tensor, "row"], l1: float, l2: float, tol: float
    ) -> None:
        self.design, self.loss, self.l1, self.l2 = design, loss, l1, l2
        self.precision = torch.float64 if tol < FLOAT64_BELOW else design.dtype
        self.weights = torch.zeros(design.n_features, loss.n_outputs, dtype=torch.float64)
        self.intercepts = torch.zeros(loss.n_outputs, dtype=torch.float64)
        self.z = torch.zeros(design.n_rows, loss.n_outputs, dtype=torch.float64)
        self.is_coupled = isinstance(loss, Softmax)  # one output's margin changes another's slope
        self.begin(row_weights)

    def value(self, z: Tensor, weights: Tensor) -> float:
        penalty = self.l1 * weights.abs().sum() + self.l2 / 2 * weights.square().sum()
        return float(self.row_weights @ self.loss.value(z) + penalty)

    def checked(self) -> "Objective":
        """InputError if a feature is not finite: no solver would notice, and some would never end."""
        finite = gradients([self])[0].isfinite().all(1)
        if not finite.all():
            feature = int((~finite).nonzero()[0])
            raise InputError(f"feature {feature} is NaN or infinite in some row; drop the feature or the row")
        return self

    def slopes(self) -> Float64[Tensor, "row output"]:
        """Of the summed loss, by each margin."""
        return self.row_weights[:, None] * self.loss.slope(self.z)

    def margins(
        self, weights: Float64[Tensor, "column output"], columns: Int[Tensor, "column"] | None = None
    ) -> Float64[Tensor, "row output"]:
        """X W, of some columns of X."""
        return self.design.times(weights.to(self.precision), columns).double()

    def by_feature(
        self, values: Float64[Tensor, "row output"], columns: Int[Tensor, "column"] | None = None
    ) -> Float64[Tensor, "column output"]:
        """X^T V, of some columns of X."""
        return self.design.transposed_times(values.to(self.precision), columns).double()

    def gap(self, gradient: Float64[Tensor, "feature output"]) -> float:
        """F minus the value of a dual point, over F. The slopes, scaled into the dual's domain, are that point."""
        value = self.value(self.z, self.weights)
        slopes = gradient - self.l2 * self.weights
        scale, conjugate = 1.0, 0.0
        if self.l2:
            conjugate = float((slopes.abs() - self.l1).clamp(min=0).square().sum()) / (2 * self.l2)
        else:
            scale = min(1.0, self.l1 / max(float(slopes.abs().max()), 1e-300))
        dual = float(self.row_weights @ self.loss.dual(self.z, scale)) - conjugate
        return (value - dual) / max(abs(value), 1e-300)

    def fit_intercepts(self) -> None:
        """Newton's method on the intercepts alone. A dual point must have slopes that sum to 0: the intercepts are free."""
        for _ in range(50):
            slope = self.slopes().sum(0)
            if slope.abs().max() <= 1e-13 * self.row_weights.sum():
                return
            hessian = self.loss.total_curvature(self.z, self.row_weights)
            # Softmax's is singular: one number added to all intercepts changes nothing.
            step = -torch.linalg.pinv(hessian, hermitian=True, rtol=1e-12) @ slope
            if not self.move(step.expand_as(self.z), torch.zeros_like(self.weights), step, float(slope @ step)):
                return

    def begin(self, row_weights: Float64[Tensor, "row"]) -> None:
        """Set out, from where it stands, for the minimum at these weights of the rows."""
        self.row_weights = row_weights
        self.n_blind, self._saw_fall = 0, True

    def begin_round(self) -> None:
        """Count the rounds in which no move was seen to lower F: in a few of them moves may be blind."""
        self.n_blind = 0 if self._saw_fall else self.n_blind + 1
        self._saw_fall = False

    def move(self, dz: Tensor, dweights: Tensor, dintercepts: Tensor, slope: float) -> float:
        """Go along a direction, half as far until F falls as its slope promises; how far that was, 0 where it does not at all.

        No weight may change its sign on the way: the slope would not be that of the L1 norm. Near the end F falls by less than
        its last bit while the gap still shrinks: for a few rounds such steps are taken blindly.
        """
        before = self.value(self.z, self.weights)
        step, rounding = 1.0, 1e-15 * abs(before)
        is_blind = abs(slope) < 1e3 * rounding
        if slope >= 0 or (is_blind and self.n_blind >= MAX_BLIND_ROUNDS):
            return 0.0
        for _ in range(MAX_STEP_HALVINGS):
            z, weights = self.z + step * dz, self.weights + step * dweights
            if self.value(z, weights) <= before + 1e-4 * step * slope + (10 * rounding if is_blind else 0.0):
                self.z, self.weights, self.intercepts = z, weights, self.intercepts + step * dintercepts
                self._saw_fall |= not is_blind
                return step
            step /= 2
        return 0.0

    def solution(self, gap: float, n_iter: int) -> Solution:
        intercepts = self.intercepts - self.design.means.double() @ self.weights  # those of the features as they are given
        intercepts -= intercepts.mean() if self.is_coupled else 0.0
        return Solution(self.weights.numpy().copy(), intercepts.numpy().copy(), max(gap, 0.0), n_iter)  # less is rounding


def widest(states: Sequence[Objective]) -> torch.dtype:
    return max((state.precision for state in states), key=lambda dtype: dtype.itemsize)


def gradients(states: Sequence[Objective]) -> list[Float64[Tensor, "feature output"]]:
    """Of each state's smooth part, in one pass through the features."""
    slopes = torch.cat([state.slopes() for state in states], 1).to(widest(states))
    parts = states[0].design.transposed_times(slopes).double().split(states[0].loss.n_outputs, 1)
    return [part + state.l2 * state.weights for part, state in zip(parts, states, strict=True)]


def settle(states: Sequence[Objective]) -> None:
    """Margins anew from the weights, in float64, as everything from here on."""
    margins = states[0].design.times(torch.cat([state.weights for state in states], 1)).split(states[0].loss.n_outputs, 1)
    for state, z in zip(states, margins, strict=True):
        state.precision, state.z = torch.float64, z + state.intercepts
        state.fit_intercepts()


def gradients_and_gaps(states: Sequence[Objective], tol: float) -> list[tuple[Float64[Tensor, "feature output"], float]]:
    """A gap that would end a solve is found in float64: a proof is not to rest on the rounding of float32's products."""
    found = [(gradient, state.gap(gradient)) for state, gradient in zip(states, gradients(states), strict=True)]
    small = [i for i, (_, gap) in enumerate(found) if gap <= tol and states[i].precision != torch.float64]
    if small:
        chosen = [states[i] for i in small]
        settle(chosen)
        for i, pair in zip(small, gradients_and_gaps(chosen, tol), strict=True):
            found[i] = pair
    return found
