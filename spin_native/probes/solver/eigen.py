"""Eigenvectors of symmetric matrices that LAPACK's divide and conquer may give up on.

LAPACK's float32 routine (ssyevd, which torch.linalg.eigh calls) can fail on a finite matrix: products of features below 1e-19
are denormal numbers, and with repeated columns the iteration does not settle on them. In float64 the same numbers are ordinary.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

# The square root of the smallest float64 is 1e-154: a smaller entry has a denormal square.
TINY = 1e-150


def eigenbasis(matrix: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n n"]]:
    """The eigenvalues, in ascending order, and eigenvectors (columns) of a finite symmetric matrix; its lower triangle is read.

    Where LAPACK fails in the matrix's own precision, they are computed in float64 with entries below 1e-150 of the largest set
    to 0. Where that fails as well: the diagonal and the unit vectors, which are a coarse approximation for a preconditioner.
    """
    if (found := _by_lapack(matrix)) is not None:
        return found
    scale, scaled = _scaled(matrix)
    if (found := _by_lapack(scaled)) is not None:
        return (found[0] * scale).to(matrix.dtype), found[1].to(matrix.dtype)
    diagonal, order = matrix.diagonal().sort()
    return diagonal, torch.eye(len(matrix), dtype=matrix.dtype)[:, order]


def pseudo_inverse(matrix: Float64[Tensor, "n n"], rtol: float) -> Float64[Tensor, "n n"]:
    """The pseudo-inverse of a finite symmetric matrix; eigenvalues of at most `rtol` times the largest count as 0."""
    try:
        return torch.linalg.pinv(matrix, hermitian=True, rtol=rtol)
    except torch.linalg.LinAlgError:
        eigenvalues, basis = eigenbasis(matrix)
    is_large = eigenvalues.abs() > rtol * eigenvalues.abs().max()
    return (basis * torch.where(is_large, 1 / eigenvalues, 0.0)) @ basis.T


def _by_lapack(matrix: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n n"]] | None:
    """None where LAPACK gives up, or gives numbers that are not finite."""
    try:
        eigenvalues, basis = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        return None
    return (eigenvalues, basis) if eigenvalues.isfinite().all() and basis.isfinite().all() else None


def _scaled(matrix: Float[Tensor, "n n"]) -> tuple[float, Float64[Tensor, "n n"]]:
    """The largest entry, and the lower triangle in float64 divided by it, without tiny entries."""
    lower = matrix.double().tril()
    scale = float(lower.abs().max()) or 1.0
    lower = lower / scale
    return scale, torch.where(lower.abs() < TINY, 0.0, lower)
