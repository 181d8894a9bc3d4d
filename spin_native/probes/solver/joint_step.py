"""One Newton step on the nonzero weights of all outputs together, by preconditioned conjugate gradients.

The steps of single outputs ignore how outputs depend on each other, which softmax couples. They also form X^T X, whose
rounding can mislead them even where outputs are independent; conjugate gradients never form it.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spin_native.probes.solver.conjugate_gradients import MAX_CONJUGATE_GRADIENTS, conjugate_gradients
from spin_native.probes.solver.objective import Objective, gradients
from spin_native.probes.solver.output_step import LEAST_DAMPING, Damping, OutputStep, heaviest_rows

# While softmax's gap is wide and F still falls, its quadratic model is poor and an exact step is not worth its time. The
# conjugate gradient iterations are limited to the first number over min(1, relative gap, the second number * the share by which
# F fell in the last iteration).
JOINT_CONJUGATE_GRADIENTS, DECREASE_FACTOR = 12, 100
# The share of a class's curvature that the preconditioner may neglect by leaving out the rows of least curvature.
LIGHT_CURVATURE_SHARE_COARSE = 0.02
MAX_BOUNDARY_HITS = 4

Product = Callable[[Float[Tensor, "feature_1 output"]], Float[Tensor, "feature_1 output"]]


def joint_step(state: Objective, damping: Damping, output_steps: Sequence[OutputStep], gap: float, decrease: float) -> None:
    """Move all nonzero weights and all intercepts by one Newton step in which no weight changes its sign.

    output_steps: of this iteration; their Cholesky factors precondition this step. gap: relative duality gap at the start of
    the iteration. decrease: by how much F fell in the iteration before.
    """
    (gradient,), slopes = gradients([state]), state.slopes().sum(0)
    sign = state.weights.sign()
    linear = torch.cat([gradient + state.l1 * sign, slopes[None]])
    start = torch.cat([state.weights, torch.zeros_like(slopes)[None]])
    sign_and_zero = torch.cat([sign, torch.zeros_like(slopes)[None]])  # the intercepts are unbounded
    is_free = torch.cat([sign != 0, torch.ones_like(slopes, dtype=torch.bool)[None]])
    is_free[-1, 0] = not state.is_coupled  # softmax: adding one number to all intercepts changes nothing, so one is fixed
    hessian_product = _damped_hessian_product(state, damping, output_steps)
    precondition = TwoLevelPreconditioner(state, output_steps, is_free)
    value = state.value(state.z, state.weights)
    max_iter = MAX_CONJUGATE_GRADIENTS
    if state.is_coupled and not state.l2:
        precision = max(1e-9, min(1.0, gap, DECREASE_FACTOR * decrease / value))
        max_iter = min(max_iter, int(JOINT_CONJUGATE_GRADIENTS / precision))
    dtype = state.design.dtype
    step = torch.zeros_like(start)
    for _ in range(MAX_BOUNDARY_HITS):
        right_side = (-linear.to(dtype) - (hessian_product(step.to(dtype)) if step.any() else 0)) * is_free
        change = conjugate_gradients(
            _masked(hessian_product, is_free), _masked(precondition, is_free), right_side, 1, value, max_iter
        )
        step = step + change.double()
        has_crossed = is_free & (sign_and_zero * (start + step) < 0)
        step = torch.where(has_crossed, -start, step)  # a weight that would change its sign becomes 0 and stays there
        if not has_crossed.any():
            break
        is_free = is_free & ~has_crossed
    dz = state.times(step[:-1]) + step[-1]
    damping.update_joint(state.line_search(dz, step[:-1], step[-1], float((linear * step).sum())))


def _masked(product: Product, mask: Bool[Tensor, "feature_1 output"]) -> Product:
    return lambda v: product(v) * mask


def _damped_hessian_product(state: Objective, damping: Damping, output_steps: Sequence[OutputStep]) -> Product:
    """v -> H v for the Hessian H of F's smooth part over all outputs, damped."""
    curvature_product = state.loss.curvature_product(state.z, state.row_weights, state.design.dtype)
    added = torch.zeros(state.design.n_features + 1, state.loss.n_outputs, dtype=state.design.dtype)
    added[:-1] = state.l2
    for k, output_step in enumerate(output_steps):
        added[output_step.columns, k] += damping.joint * output_step.factor.diagonal()[:-1]
    return lambda v: state.design.hessian_times(v, curvature_product) + added * v


class TwoLevelPreconditioner:
    """v -> approximate H^-1 v: each output's own block, which its step has factored, plus softmax's coarse correction."""

    def __init__(self, state: Objective, output_steps: Sequence[OutputStep], is_free: Bool[Tensor, "feature_1 output"]) -> None:
        self._coarse: Product = (
            CoarseCorrection(state, is_free.to(state.design.dtype)) if state.is_coupled else torch.zeros_like
        )
        intercept = torch.tensor([state.design.n_features])
        self._blocks = [(torch.cat([step.columns, intercept]), step.factor) for step in output_steps]

    def __call__(self, v: Float[Tensor, "feature_1 output"]) -> Float[Tensor, "feature_1 output"]:
        solved = torch.zeros_like(v)
        for k, (indices, factor) in enumerate(self._blocks):
            solved[indices, k] = factor.solve(v[indices, k])
        return solved + self._coarse(v)


class CoarseCorrection:
    """v -> E (E^T H E)^-1 E^T v: the coarse level of a two-level preconditioner for softmax.

    A column of E moves one feature's free weights of all classes by the same number. Softmax hardly reacts to such a step (not
    at all if all classes of the feature are free), but a preconditioner that treats classes one by one cannot know it, and
    conjugate gradients would need hundreds of iterations. With f_jk = 1 where the weight of feature j and class k is free, and
    p_ik the probabilities,

        (E^T H E)_jm = sum_i s_i x_ij x_im cov_i(f_j, f_m) + l2 (sum_k f_jk) [j = m]

    where cov_i is the covariance over classes, at the probabilities of row i. This matrix is as large as the Hessian of one
    class, and is factored. See Nabben & Vuik 2004, "A comparison of deflation and coarse grid correction".

    is_free: f, as 0 and 1; its last row is the intercepts'.
    """

    def __init__(self, state: Objective, is_free: Float[Tensor, "feature_1 class"]) -> None:
        n_free = is_free.sum(1)
        # A feature with all classes free and no L2 penalty has no curvature at all in this direction: it is left out.
        has_shared_step = (n_free > 1) & ((n_free < state.loss.n_outputs) | (state.l2 > 0))
        shared = has_shared_step[:-1].nonzero()[:, 0]
        self._indices = torch.cat([shared, torch.tensor([len(is_free) - 1])])
        self._is_free = is_free[self._indices]
        p, row_weights = state.z.softmax(1), state.row_weights[:, None]
        is_heavy = torch.stack([heaviest_rows(c, 1 - LIGHT_CURVATURE_SHARE_COARSE) for c in (row_weights * p * (1 - p)).T], 1)
        p_rounded = p.to(is_free.dtype)
        gram = state.design.gram(
            shared, row_weights * p * is_heavy, lambda k, rows: self._is_free[:, k] - self._mean_free(p_rounded[rows])
        )
        # The diagonal counts all rows: a feature may be 0 in all rows but light ones.
        full_diagonal = state.design.weighted_squares(
            shared, lambda rows: self._weighted_variance(p_rounded[rows], row_weights[rows].to(p_rounded.dtype))
        )
        diagonal = torch.maximum(gram.diagonal(), full_diagonal)
        diagonal[:-1] += state.l2 * n_free[shared]
        gram.set_diagonal(diagonal * (1 + LEAST_DAMPING) + 1e-30)
        self._factor = gram.cholesky_in_place()

    def _mean_free(self, p: Float[Tensor, "row class"]) -> Float[Tensor, "row shared_1"]:
        """The mean of f over classes, at each row's probabilities."""
        return p @ self._is_free.T

    def _weighted_variance(
        self, p: Float[Tensor, "row class"], row_weights: Float[Tensor, "row 1"]
    ) -> Float[Tensor, "row shared_1"]:
        """s_i times the variance of f over classes (f^2 = f)."""
        means = self._mean_free(p)
        return row_weights * (means - means.square())

    def __call__(self, v: Float[Tensor, "feature_1 class"]) -> Float[Tensor, "feature_1 class"]:
        corrected = torch.zeros_like(v)
        if self._factor is not None:
            corrected[self._indices] = self._factor.solve(v[self._indices].sum(1))[:, None] * self._is_free
        return corrected


def shift_to_least_penalty(state: Objective) -> None:
    """For softmax, add to each feature's weights of all classes the number that makes the penalty smallest.

    The loss does not change. The number t minimises l1 sum_k |w_k - t| + l2 / 2 sum_k (w_k - t)^2. It is the median of the n
    weights w_k and of the n + 1 numbers mean(w) + l1 (n - 2 i) / (n l2), i = 0..n (Li & Osher 2009, "A new median formula with
    applications to PDE based denoising"). Other losses: does nothing.
    """
    if not state.is_coupled:
        return
    n = state.loss.n_outputs
    slopes = state.l1 * (n - 2.0 * torch.arange(n + 1, dtype=torch.float64)) / n
    if state.l2:
        candidates = state.weights.mean(1, keepdim=True) + slopes / state.l2
    else:
        # Their limit for l2 -> 0 is infinite, except for the middle one of an even n: t is a median of the weights, and of all
        # equally good medians the one nearest to 0.
        candidates = torch.where(slopes == 0, 0.0, slopes * torch.inf).expand(len(state.weights), -1)
    state.weights -= torch.cat([state.weights, candidates], 1).median(1, keepdim=True).values
