"""One proximal Newton step on the weights of one output, and the damping that keeps its quadratic model honest."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from spin_native.probes.solver.objective import MAX_STALLED_ITERATIONS, Objective
from spin_native.probes.solver.orthant import minimise_in_orthant
from spin_native.probes.solver.symmetric import CholeskyFactor, Symmetric

# The number of zero weights that may enter the working set, unless more weights than that are nonzero.
MAX_NEW_COLUMNS = 128
# For softmax, whose joint step corrects what a single output's step misses: the smallest damping, and the share of an output's
# curvature that may be neglected by leaving out the rows of least curvature (done where these are most of the rows).
LEAST_DAMPING, LIGHT_CURVATURE_SHARE = 1e-3, 1e-3


class Damping:
    """Levenberg-Marquardt damping: how much is added to the diagonal of each Hessian, as a share of that diagonal.

    per_output: for the step of each output, as a share of the features' spread. joint: for the step of all outputs together,
    as a share of the damped diagonals of the outputs' steps. drops_light_rows: for each output, whether its step may leave out
    the rows of least curvature (softmax only, and only while its steps succeed).
    """

    def __init__(self, n_outputs: int, is_coupled: bool) -> None:
        self._least = LEAST_DAMPING if is_coupled else 0.0
        self._n_outputs, self._is_coupled = n_outputs, is_coupled
        self.reset()

    def reset(self) -> None:
        """Forget the steps so far."""
        self.per_output, self.joint = [self._least] * self._n_outputs, 0.0
        self.drops_light_rows = [self._is_coupled] * self._n_outputs

    def update_output(self, k: int, step_length: float) -> None:
        """Learn from the step length that the line search allowed to output k."""
        self.per_output[k] = _next_damping(self.per_output[k], step_length, self._least)
        self.drops_light_rows[k] &= step_length >= 0.25

    def update_joint(self, step_length: float) -> None:
        """Learn from the step length that the line search allowed to the joint step."""
        self.joint = _next_damping(self.joint, step_length, 0.0)


def _next_damping(damping: float, step_length: float, least: float) -> float:
    """Damp less after a full step and more after a short one.

    Steps are short where the quadratic model reaches too far: more features than rows, separable rows, features that are
    sums of others.
    """
    if step_length == 1:
        return max(damping / 3, least)
    if step_length < 0.25:
        return min(max(1e-5, 10 * damping), 1e6)
    return damping


class OutputStep(NamedTuple):
    """The result of one output's step.

    can_improve: False if no step lowered F and a stronger damping would not help. columns: the features that are free to move.
    factor: the Cholesky factor of the damped Hessian over these columns and the intercept.
    """

    can_improve: bool
    columns: Int[Tensor, "column"]
    factor: CholeskyFactor


def step_of_output(
    state: Objective, damping: Damping, k: int, gradient: Float64[Tensor, "feature"], *, is_gradient_current: bool
) -> OutputStep:
    """Move output k's weights and intercept by one proximal Newton step on its working set.

    With the signs of the weights fixed (those of zero weights: against the gradient), the L1 norm is linear. The quadratic
    model of F is then minimised exactly within that orthant, followed by a line search.

    gradient: of the smooth part, for output k. It chooses the working set; if other outputs have moved since
    (is_gradient_current is False), the model computes it again for the working set.
    """
    weights = state.weights[:, k]
    columns = _working_set(state, weights, gradient)
    slopes = state.slopes()[:, k]
    if is_gradient_current:
        gradient = gradient[columns]
    else:
        gradient = state.transposed_times(slopes[:, None], columns)[:, 0] + state.l2 * weights[columns]
    start = weights[columns]
    sign = torch.where(start != 0, start.sign(), -gradient.sign())
    hessian = _damped_hessian(state, damping, k, columns)
    linear = torch.cat([gradient + state.l1 * sign, slopes.sum()[None]])
    zero = torch.zeros(1, dtype=torch.float64)  # the intercept's start and sign: it is unbounded
    step, free, factor = minimise_in_orthant(hessian, linear, torch.cat([start, zero]), torch.cat([sign, zero]))
    dz, dweights, dintercepts = torch.zeros_like(state.z), torch.zeros_like(state.weights), torch.zeros_like(state.intercepts)
    dz[:, k] = state.times(step[:-1, None], columns)[:, 0] + step[-1]
    dweights[columns, k], dintercepts[k] = step[:-1], step[-1]
    step_length = state.line_search(dz, dweights, dintercepts, float(linear @ step))
    is_at_limit = damping.per_output[k] > 1.0 or state.n_stalled_iterations >= MAX_STALLED_ITERATIONS
    damping.update_output(k, step_length)
    return OutputStep(step_length > 0 or not is_at_limit, columns[free[:-1]], factor)


def _working_set(
    state: Objective, weights: Float64[Tensor, "feature"], gradient: Float64[Tensor, "feature"]
) -> Int[Tensor, "column"]:
    """The nonzero weights, and the zero weights that most violate their optimality condition |gradient| <= l1."""
    is_in_set = weights != 0
    violation = torch.where(is_in_set, 0.0, gradient.abs() - state.l1)
    n_allowed = max(min(MAX_NEW_COLUMNS, 1 + state.design.n_rows // 2), int(is_in_set.sum()))
    n_new = min(n_allowed, int((violation > 0).sum()))
    is_in_set[violation.topk(n_new).indices] = True
    return is_in_set.nonzero()[:, 0]


def _damped_hessian(state: Objective, damping: Damping, k: int, columns: Int[Tensor, "column"]) -> Symmetric:
    """The Hessian of F's smooth part over some weights of output k and its intercept, damped."""
    curvature = state.row_weights * state.loss.curvature(state.z)[:, k]
    if damping.drops_light_rows[k]:
        is_heavy = heaviest_rows(curvature, 1 - LIGHT_CURVATURE_SHARE)
        if is_heavy.count_nonzero() < len(is_heavy) / 2:
            curvature = curvature * is_heavy
    gram = state.design.gram(columns, curvature[:, None])
    diagonal = gram.diagonal()
    diagonal[:-1] += state.l2
    # Damping is measured against a feature's spread, sum c x^2 - (sum c x)^2 / sum c with c the curvature: the intercept is
    # free, so a feature's distance from 0 must not count.
    sums = gram.times((torch.arange(len(diagonal)) == len(columns)).to(diagonal.dtype))
    rounding = 10 * torch.finfo(diagonal.dtype).eps * diagonal
    spread = torch.maximum(diagonal - sums * (sums / sums[-1].clamp(min=1e-30)), rounding)
    spread[-1] = 0.0
    gram.set_diagonal(diagonal + rounding + damping.per_output[k] * spread + 1e-30)
    return gram


def heaviest_rows(weights: Float64[Tensor, "row"], share: float) -> Bool[Tensor, "row"]:
    """The fewest rows whose weights sum to at least `share` of the total."""
    order = weights.argsort(descending=True, stable=True)
    before = weights[order].cumsum(0) - weights[order]
    return torch.zeros_like(weights, dtype=torch.bool).index_fill(0, order[before < share * weights.sum()], True)
