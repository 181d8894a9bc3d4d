"""A quadratic function minimised where no variable changes its sign, by block principal pivoting."""

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from spin_native.probes.solver.symmetric import CholeskyFactor, Symmetric

MAX_EXCHANGES = 100
# Full exchanges in a row that may leave as many variables wrong as before, until only one variable is exchanged at a time.
PATIENCE = 3


def minimise_in_orthant(
    gram: Symmetric,
    linear: Float64[Tensor, "n"],
    start: Float64[Tensor, "n"],
    sign: Float64[Tensor, "n"],
) -> tuple[Float64[Tensor, "n"], Int[Tensor, "free"], CholeskyFactor]:
    """Minimise linear . d + d . gram d / 2 over steps d with sign * (start + d) >= 0; where sign is 0, d is unbounded.

    Block principal pivoting (Kim & Park 2011, "Fast nonnegative matrix factorization"). Each variable is either free or bound
    at start + d = 0. With g = linear + gram d, the solution is right when no free variable has left the orthant and no bound
    variable has sign * g < 0 (moving it into the orthant would lower the function). All wrong variables change between free
    and bound at once. If that reduces their number no further, only the last one changes, which cannot cycle.

    Returns d, the indices of the free variables, and the Cholesky factor of gram over these.
    """
    is_free = torch.ones(len(start), dtype=torch.bool)
    dtype = gram.diagonal().dtype
    fewest_wrong, patience = len(start) + 1, PATIENCE
    for _ in range(MAX_EXCHANGES):
        step = torch.where(is_free, 0.0, -start)
        residual = -linear - gram.times(step.to(dtype)).double()
        free = is_free.nonzero()[:, 0]
        factor = CholeskyFactor([])  # releases the last factor before the next one is computed
        factor = _regularised_cholesky(gram, free)
        step[free] = factor.solve(residual[free].to(dtype)).double()
        signed_gradient = sign * (linear + gram.times(step.to(dtype)).double())
        signed_end = sign * (start + step)
        is_wrong = torch.where(is_free, signed_end < 0, signed_gradient < 0)
        n_wrong = int(is_wrong.sum())
        if not n_wrong:
            break
        if n_wrong < fewest_wrong:
            fewest_wrong, patience = n_wrong, PATIENCE
        elif patience:
            patience -= 1
        else:
            last = is_wrong.nonzero()[-1]
            is_wrong = torch.zeros_like(is_wrong)
            is_wrong[last] = True
        is_free ^= is_wrong
    return torch.where(sign * (start + step) < 0, -start, step), free, factor


def _regularised_cholesky(matrix: Symmetric, indices: Int[Tensor, "m"]) -> CholeskyFactor:
    """The Cholesky factor of the rows and columns at `indices`.

    Where rounding has made the submatrix indefinite, a growing share of its diagonal is added until it has a factor.
    """
    ridge = 0.0
    while True:
        submatrix = matrix.submatrix(indices)
        diagonal = submatrix.diagonal()
        if ridge:
            mean = diagonal.mean(dtype=torch.float64).to(diagonal.dtype)
            submatrix.set_diagonal(diagonal * (1 + ridge) + ridge * mean)
        if (factor := submatrix.cholesky_in_place()) is not None:
            return factor
        ridge = max(10 * ridge, 10 * torch.finfo(diagonal.dtype).eps)
