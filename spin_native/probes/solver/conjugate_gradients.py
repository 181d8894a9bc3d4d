"""Preconditioned conjugate gradients for several linear systems at once."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

MAX_CONJUGATE_GRADIENTS = 200


def conjugate_gradients(
    hessian_product: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    right_side: Float[Tensor, "n column"],
    n_problems: int,
    objectives: Float64[Tensor, "problem"] | float,
    max_iter: int = MAX_CONJUGATE_GRADIENTS,
) -> Float[Tensor, "n column"]:
    """Solve H x = right_side approximately, for several independent problems whose columns stand side by side.

    Each problem owns the same number of columns. The residual r is measured in the preconditioner's norm, r^T P r, which
    estimates how far a Newton step can lower the problem's objective F. A problem stops when r^T P r has fallen to `forcing`
    times its first value, with forcing = (first value / F), between 10 machine epsilons and 0.01: loose while F can still fall
    a lot, tight near the minimum (an inexact Newton method; Eisenstat & Walker 1996, "Choosing the forcing terms").

    hessian_product, precondition: v -> H v and v -> P v for all columns, with H and P symmetric positive definite.
    objectives: F of each problem.
    """

    solution, residual = torch.zeros_like(right_side), right_side
    direction = preconditioned = precondition(residual)
    residual_norm = first_norm = _inner(residual, preconditioned, n_problems)
    forcing = (first_norm / objectives).clamp(10 * torch.finfo(right_side.dtype).eps, 1e-2)
    target_norm = first_norm * forcing
    for _ in range(max_iter):
        is_unsolved = residual_norm > target_norm
        if not is_unsolved.any():
            break
        product = hessian_product(direction)
        curvature = _inner(direction, product, n_problems)
        step_length = _per_column(torch.where(is_unsolved, residual_norm / curvature, 0.0), right_side)
        solution = solution + step_length * direction
        residual = residual - step_length * product
        preconditioned = precondition(residual)
        previous_norm = residual_norm
        residual_norm = torch.where(is_unsolved, _inner(residual, preconditioned, n_problems), previous_norm)
        ratio = _per_column(torch.where(is_unsolved, residual_norm / previous_norm, 0.0), right_side)
        direction = preconditioned + ratio * direction
    return solution


def _inner(a: Float[Tensor, "n column"], b: Float[Tensor, "n column"], n_problems: int) -> Float64[Tensor, "problem"]:
    """The inner product of a and b for each problem."""
    return (a * b).sum(0, dtype=torch.float64).view(n_problems, -1).sum(1)


def _per_column(numbers: Float64[Tensor, "problem"], like: Float[Tensor, "n column"]) -> Float[Tensor, "column"]:
    """Each problem's number, repeated for its columns, in the precision of `like`."""
    return numbers.repeat_interleave(like.shape[1] // len(numbers)).to(like.dtype)
