"""The objective that the solvers minimise, the current point, the line search, and the duality gap that stops a solve.

    F(W, b) = C * sum_i s_i loss(y_i, x_i W + b) + l1 * |W|_1 + l2 / 2 * |W|_2^2

with weights W [feature, output], free intercepts b [output] and row weights s. Features are read in blocks of rows, in their
own precision. Margins, gradients and objectives are float64; where the tolerance is loose, the products with float32 features
are computed in float32 until the solve is about to stop. A solve stops when the duality gap, always computed in float64, is at
most `tol` times F. The dual value is a lower bound of F everywhere, so F cannot be lowered by more than the gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from spin_native.errors import InputError
from spin_native.probes.solver.design import Design
from spin_native.probes.solver.eigen import pseudo_inverse
from spin_native.probes.solver.losses import Loss, Softmax

Array = np.ndarray
# Float32 products are too coarse to reach a smaller gap than this. (The gap that stops a solve is computed in float64.)
FLOAT64_BELOW_TOL = 1e-5
# A solve that needs more iterations may be limited by the rounding of float32 products, and continues in float64.
MAX_FLOAT32_ITERATIONS = 10
MAX_STEP_HALVINGS = 40
# Iterations that may pass without a measurable decrease of F; see Objective.line_search.
MAX_STALLED_ITERATIONS = 8


@dataclass(frozen=True)
class Solution:
    """A solved model.

    weights [feature, output]; intercepts [output]; gap: duality gap over F, an upper bound on (F - minimum) / F; n_iter:
    iterations used.
    """

    weights: Float64[Array, "feature output"]
    intercepts: Float64[Array, "output"]
    gap: float
    n_iter: int


class Objective:
    """F and the current point.

    row_weights: C * s_i. weights [feature, output], intercepts [output], z [row, output]: the current point and its margins
    X W + b. precision: the dtype of products with the features. is_coupled: whether one output's margin changes the slopes of
    the others (softmax).
    """

    def __init__(
        self, design: Design, loss: Loss, row_weights: Float64[Tensor, "row"], l1: float, l2: float, tol: float
    ) -> None:
        self.design, self.loss, self.l1, self.l2 = design, loss, l1, l2
        self.precision = torch.float64 if tol < FLOAT64_BELOW_TOL else design.dtype
        self.weights = torch.zeros(design.n_features, loss.n_outputs, dtype=torch.float64)
        self.intercepts = torch.zeros(loss.n_outputs, dtype=torch.float64)
        self.z = torch.zeros(design.n_rows, loss.n_outputs, dtype=torch.float64)
        self.is_coupled = isinstance(loss, Softmax)
        self.set_row_weights(row_weights)

    def value(self, z: Tensor, weights: Tensor) -> float:
        """F at the given margins and weights."""
        penalty = self.l1 * weights.abs().sum() + self.l2 / 2 * weights.square().sum()
        return float(self.row_weights @ self.loss.value(z) + penalty)

    def require_finite_features(self) -> "Objective":
        """Return self; InputError naming a feature that is not finite, which could make the solver loop forever."""
        is_finite = gradients([self])[0].isfinite().all(1)
        if not is_finite.all():
            feature = int((~is_finite).nonzero()[0])
            raise InputError(f"feature {feature} is NaN or infinite in some row; drop the feature or the row")
        return self

    def slopes(self) -> Float64[Tensor, "row output"]:
        """The derivative of the summed loss with respect to each margin."""
        return self.row_weights[:, None] * self.loss.slope(self.z)

    def times(
        self, weights: Float64[Tensor, "column output"], columns: Int[Tensor, "column"] | None = None
    ) -> Float64[Tensor, "row output"]:
        """X W, computed in `precision`; with `columns`, only these columns of X."""
        return self.design.times(weights.to(self.precision), columns).double()

    def transposed_times(
        self, values: Float64[Tensor, "row output"], columns: Int[Tensor, "column"] | None = None
    ) -> Float64[Tensor, "column output"]:
        """X^T V, computed in `precision`; with `columns`, only these columns of X."""
        return self.design.transposed_times(values.to(self.precision), columns).double()

    def relative_gap(self, gradient: Float64[Tensor, "feature output"]) -> float:
        """The duality gap over F, given the gradient of F's smooth part.

        The dual point is u = a * slopes. Its dual value is -sum_i loss_i*(u_i) minus the penalty's conjugate at X^T u:

            l2 > 0:  sum max(|X^T u| - l1, 0)^2 / (2 l2), with a = 1
            l2 = 0:  0 if |X^T u| <= l1 everywhere; a <= 1 shrinks the slopes until that holds

        The slopes must sum to 0 over rows (the intercepts are free): call fit_intercepts first.
        """
        value = self.value(self.z, self.weights)
        loss_gradient = gradient - self.l2 * self.weights
        scale, conjugate = 1.0, 0.0
        if self.l2:
            conjugate = float((loss_gradient.abs() - self.l1).clamp(min=0).square().sum()) / (2 * self.l2)
        else:
            scale = min(1.0, self.l1 / max(float(loss_gradient.abs().max()), 1e-300))
        dual = float(self.row_weights @ self.loss.dual(self.z, scale)) - conjugate
        return (value - dual) / max(abs(value), 1e-300)

    def fit_intercepts(self) -> None:
        """Minimise F over the intercepts alone by Newton's method, until the slopes sum to 0 (a dual point must satisfy it)."""
        for _ in range(50):
            slope = self.slopes().sum(0)
            if slope.abs().max() <= 1e-13 * self.row_weights.sum():
                return
            hessian = self.loss.total_curvature(self.z, self.row_weights)
            # A pseudo-inverse: softmax's Hessian is singular, as adding one number to all intercepts changes nothing.
            step = -pseudo_inverse(hessian, rtol=1e-12) @ slope
            if not self.line_search(step.expand_as(self.z), torch.zeros_like(self.weights), step, float(slope @ step)):
                return

    def set_row_weights(self, row_weights: Float64[Tensor, "row"]) -> None:
        """Start a new solve with these row weights, from the current point (a warm start)."""
        self.row_weights = row_weights
        self.reset_stall_count()

    def reset_stall_count(self) -> None:
        """Forget the stalled iterations so far."""
        self.n_stalled_iterations, self._has_decreased = 0, True

    def start_iteration(self) -> None:
        """Count the consecutive iterations without a measurable decrease of F."""
        self.n_stalled_iterations = 0 if self._has_decreased else self.n_stalled_iterations + 1
        self._has_decreased = False

    def line_search(self, dz: Tensor, dweights: Tensor, dintercepts: Tensor, slope: float) -> float:
        """Step along a direction, halving the step until Armijo's condition holds; return the step length, 0 if none was taken.

        slope: the directional derivative of F. It assumes that no weight changes its sign along the whole direction, as the L1
        norm is linear only there. Near the minimum F changes by less than its last bit while the gap still shrinks. A step
        that promises so little is accepted if F rises by no more than rounding, for MAX_STALLED_ITERATIONS iterations.
        """
        before = self.value(self.z, self.weights)
        step, rounding = 1.0, 1e-15 * abs(before)
        is_below_rounding = abs(slope) < 1e3 * rounding
        if slope >= 0 or (is_below_rounding and self.n_stalled_iterations >= MAX_STALLED_ITERATIONS):
            return 0.0
        for _ in range(MAX_STEP_HALVINGS):
            z, weights = self.z + step * dz, self.weights + step * dweights
            if self.value(z, weights) <= before + 1e-4 * step * slope + (10 * rounding if is_below_rounding else 0.0):
                self.z, self.weights, self.intercepts = z, weights, self.intercepts + step * dintercepts
                self._has_decreased |= not is_below_rounding
                return step
            step /= 2
        return 0.0

    def solution(self, gap: float, n_iter: int) -> Solution:
        """The current point as a Solution: intercepts for features that are not centred, and for softmax of mean 0."""
        intercepts = self.intercepts - self.design.means.double() @ self.weights
        intercepts -= intercepts.mean() if self.is_coupled else 0.0
        gap = max(gap, 0.0)  # rounding can make it negative
        return Solution(self.weights.numpy().copy(), intercepts.numpy().copy(), gap, n_iter)


def widest_precision(states: Sequence[Objective]) -> torch.dtype:
    """float64 if any of the objectives needs it."""
    return max((state.precision for state in states), key=lambda dtype: dtype.itemsize)


def gradients(states: Sequence[Objective]) -> list[Float64[Tensor, "feature output"]]:
    """The gradient of the smooth part (loss and L2 penalty) of each objective, in one pass over the features."""
    slopes = torch.cat([state.slopes() for state in states], 1).to(widest_precision(states))
    parts = states[0].design.transposed_times(slopes).double().split(states[0].loss.n_outputs, 1)
    return [part + state.l2 * state.weights for part, state in zip(parts, states, strict=True)]


def switch_to_float64(states: Sequence[Objective]) -> None:
    """Recompute the margins from the weights in float64, and compute all later products in float64."""
    products = states[0].design.times(torch.cat([state.weights for state in states], 1)).split(states[0].loss.n_outputs, 1)
    for state, product in zip(states, products, strict=True):
        state.precision, state.z = torch.float64, product + state.intercepts
        state.fit_intercepts()


def gradients_and_gaps(states: Sequence[Objective], tol: float) -> list[tuple[Float64[Tensor, "feature output"], float]]:
    """The gradient and the relative gap of each objective.

    A gap computed in float32 that would end the solve is computed again in float64, so that it does not rest on rounding.
    """
    pairs = [(gradient, state.relative_gap(gradient)) for state, gradient in zip(states, gradients(states), strict=True)]
    unproven = [i for i, (_, gap) in enumerate(pairs) if gap <= tol and states[i].precision != torch.float64]
    if unproven:
        recomputed = [states[i] for i in unproven]
        switch_to_float64(recomputed)
        for i, pair in zip(unproven, gradients_and_gaps(recomputed, tol), strict=True):
            pairs[i] = pair
    return pairs
