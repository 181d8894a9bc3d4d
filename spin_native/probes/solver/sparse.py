"""L1 and elastic-net models, whose weights are mostly 0, by proximal Newton steps on a working set."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from spin_native.probes.solver.design import Design
from spin_native.probes.solver.joint_step import joint_step, shift_to_least_penalty
from spin_native.probes.solver.losses import Loss
from spin_native.probes.solver.objective import (
    MAX_FLOAT32_ITERATIONS,
    Objective,
    Solution,
    gradients_and_gaps,
    switch_to_float64,
)
from spin_native.probes.solver.output_step import Damping, OutputStep, step_of_output


def sparse_path(
    design: Design,
    loss: Loss,
    row_weights: Float64[Tensor, "row"],
    Cs: Sequence[float],
    *,
    l1: float,
    l2: float,
    tol: float,
    max_iter: int,
) -> Iterator[Solution]:
    """A solution for each C in the order given, each started from the one before (l1 > 0).

    An iteration takes one proximal Newton step for each output in turn, on a working set: the nonzero weights, and the zero
    weights that most violate their optimality condition (Lee, Sun & Saunders 2014, "Proximal Newton-type methods"). If there
    are several outputs, a Newton step on all nonzero weights together follows.

    tol: the relative duality gap at which a C is solved. max_iter: the last iteration only measures the gap.
    InputError for a feature that is not finite, or whose squares overflow.
    """
    state = Objective(design.centred(row_weights), loss, row_weights, l1, l2, tol).require_finite_features()
    first_precision = state.precision
    for C in Cs:
        state.precision = first_precision
        state.set_row_weights(C * row_weights)
        damping = Damping(loss.n_outputs, state.is_coupled)
        state.fit_intercepts()
        previous = math.inf
        for n_iter in range(1, max_iter + 1):
            state.start_iteration()
            value = state.value(state.z, state.weights)
            decrease, previous = previous - value, value
            if n_iter == MAX_FLOAT32_ITERATIONS:
                switch_to_float64([state])
            ((gradient, gap),) = gradients_and_gaps([state], tol)
            if gap <= tol or n_iter == max_iter or not _iterate(state, damping, gradient, gap, decrease):
                break
        yield state.solution(gap, n_iter)


def _iterate(
    state: Objective, damping: Damping, gradient: Float64[Tensor, "feature output"], gap: float, decrease: float
) -> bool:
    """Step each output in turn, then all together; False if no output can lower F any further, not even in float64."""
    n_outputs = state.loss.n_outputs
    output_steps: list[OutputStep] = []
    for k in range(n_outputs):
        # Where outputs are independent, the gradient from the start of the iteration still holds after other outputs' steps.
        is_current = k == 0 or not state.is_coupled
        output_steps.append(step_of_output(state, damping, k, gradient[:, k], is_gradient_current=is_current))
    state.fit_intercepts()
    if not any(output_step.can_improve for output_step in output_steps):
        if state.precision == torch.float64:
            return False
        switch_to_float64([state])
        state.reset_stall_count()
        damping.reset()
    if n_outputs > 1:
        shift_to_least_penalty(state)
        joint_step(state, damping, output_steps, gap, decrease)
        state.fit_intercepts()
    return True
