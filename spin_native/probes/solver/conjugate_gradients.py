"""Conjugate gradients, for several systems side by side."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

MAX_CONJUGATE_GRADIENTS = 200


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    right: Float[Tensor, "n column"],
    n_problems: int,
    values: Float64[Tensor, "problem"] | float,
    n_most: int = MAX_CONJUGATE_GRADIENTS,
) -> Float[Tensor, "n column"]:
    """product^-1 right, for several problems side by side with as many columns each.

    Each one as exactly as its progress is worth (Eisenstat & Walker): loosely while F, which is at `values`, can fall a lot.
    """

    def inner(a: Tensor, b: Tensor) -> Float64[Tensor, "problem"]:
        return (a * b).sum(0, dtype=torch.float64).view(n_problems, -1).sum(1)

    def each(numbers: Float64[Tensor, "problem"]) -> Float[Tensor, "column"]:
        return numbers.repeat_interleave(right.shape[1] // n_problems).to(right.dtype)

    solution, residual = torch.zeros_like(right), right
    direction = scaled = precondition(residual)
    size = first = inner(residual, scaled)
    enough = first * (first / values).clamp(10 * torch.finfo(right.dtype).eps, 1e-2)
    for _ in range(n_most):
        is_open = size > enough
        if not is_open.any():
            break
        curved = product(direction)
        length = each(torch.where(is_open, size / inner(direction, curved), 0.0))
        solution = solution + length * direction
        residual = residual - length * curved
        scaled = precondition(residual)
        before, size = size, torch.where(is_open, inner(residual, scaled), size)
        direction = scaled + each(torch.where(is_open, size / before, 0.0)) * direction
    return solution
