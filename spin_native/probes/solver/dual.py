"""L2-penalised models on one Gram matrix: every C and every cross-validation fold side by side.

The solution of an L2 problem is a combination of the rows, w = X^T a (the representer theorem), so the features enter only
through K = X X^T. K depends neither on C nor on the rows that a fold holds out (their weight is 0): it is computed once, and
grows by a sum as features are added. Each iteration multiplies K by the vectors of all problems at once, and gives the scores
of all rows, those of held-out rows included.

Newton's method in the space of the weights, where X^T u is held as u with K u beside it; the inner product of X^T u and X^T v
is u^T K v. Its linear systems are solved by preconditioned conjugate gradients, as precisely as the progress asks for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

from spin_native.probes.solver.gram import Gram
from spin_native.probes.solver.losses import Loss

MAX_NEWTON_STEPS, MAX_CONJUGATE_GRADIENTS, MAX_HALVINGS = 30, 60, 30
LEAST_VALUE = 1e-6  # of the first objective: a minimum of 0 is reached when this share is left
MAX_ROUNDING = 0.1  # of the objective
FORCING = 0.1  # of the first Newton steps: the residual that a linear system may keep, as a share


class DualFits(NamedTuple):
    """Fitted models, one per problem: w = X^T a, intercepts, and the scores X w + b of all rows, held out or not.

    converged: whether the Newton decrement, an estimate of how far the objective is above its minimum, fell to the tolerance.
    """

    a: Float32[Tensor, "row problem output"]
    intercepts: Float32[Tensor, "problem output"]
    scores: Float32[Tensor, "row problem output"]
    converged: Bool[Tensor, "problem"]


def dual_fits(gram: Gram, loss: Loss, row_weights: Float[Tensor, "row problem"], tol: float = 1e-4) -> DualFits:
    """Minimise sum_i s_i loss_i(x_i w + b) + |w|^2 / 2 for each problem's row weights s (C times the weight of the row).

    loss: of all rows, once. tol: the estimated distance to the minimum, over the objective, at which a problem is solved.
    """
    every, first = _Problems(gram, loss, row_weights), None
    found, is_solved = every.start(), torch.zeros(row_weights.shape[1], dtype=torch.bool)
    for _ in range(MAX_NEWTON_STEPS):
        open_ones = (~is_solved).nonzero()[:, 0]  # solved problems cost no more products
        problems, at = every.only(open_ones), found.only(open_ones)
        slopes = problems.slopes(at)
        residual = _Vector(u := -(slopes + at.u), problems.times(u), -slopes.sum(0))
        value = problems.value(at)
        first = value if first is None else first  # of the models without features, from which all start
        precondition = _Preconditioner(problems, at)
        decrement = precondition.decrement(residual)
        is_solved[open_ones] = decrement <= 2 * tol * (value + LEAST_VALUE * first[open_ones])
        still_open = (~is_solved[open_ones]).nonzero()[:, 0]
        if not len(still_open):
            break
        if len(still_open) < len(open_ones):
            problems, at, residual = problems.only(still_open), at.only(still_open), residual.only(still_open)
            precondition = _Preconditioner(problems, at)
        step = _newton_step(problems, at, residual, precondition)
        found.put(open_ones[still_open], _line_search(problems, at, step, -residual.dot(step)))
    return DualFits(found.u, found.b, found.scores, is_solved & ~every.is_rounding(found))


@dataclass(frozen=True)
class _Vector:
    """One vector per problem: X^T u with K u, and the part of the intercepts."""

    u: Float32[Tensor, "row problem output"]
    ku: Float32[Tensor, "row problem output"]
    b: Float32[Tensor, "problem output"]

    @property
    def scores(self) -> Float32[Tensor, "row problem output"]:
        return self.ku + self.b

    def plus(self, factor: Float[Tensor, "problem"], other: "_Vector") -> "_Vector":
        """self + factor * other."""
        f = factor.float()[:, None]
        return _Vector(
            *(torch.addcmul(mine, f, its) for mine, its in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def only(self, problems: Int[Tensor, "_"]) -> "_Vector":
        """Of some of the problems."""
        return _Vector(self.u[:, problems], self.ku[:, problems], self.b[problems])

    def put(self, problems: Int[Tensor, "_"], other: "_Vector") -> None:
        """Replace those of some problems, in place."""
        self.u[:, problems], self.ku[:, problems], self.b[problems] = other.u, other.ku, other.b

    def dot(self, other: "_Vector") -> Float64[Tensor, "problem"]:
        """Inner products; the other one's K u is used."""
        return _sum(self.u * other.ku) + (self.b * other.b).sum(1, dtype=torch.float64)


def _sum(entries: Float32[Tensor, "row problem output"]) -> Float64[Tensor, "problem"]:
    return entries.sum((0, 2), dtype=torch.float64)


class _Problems:
    """The objectives of all problems."""

    def __init__(self, gram: Gram, loss: Loss, row_weights: Float[Tensor, "row problem"]) -> None:
        self.gram, self.weights = gram, row_weights.float()
        self.shape = (*row_weights.shape, loss.n_outputs)
        self.one = type(loss)(loss.targets.float())
        self._all = type(loss)(self.one.targets.repeat_interleave(self.shape[1], 0))  # rows of all problems, as flattened
        self._flat_weights = self.weights.reshape(-1)

    def only(self, problems: Int[Tensor, "_"]) -> "_Problems":
        """Some of the problems."""
        return self if len(problems) == self.shape[1] else _Problems(self.gram, self.one, self.weights[:, problems])

    def start(self) -> _Vector:
        return _Vector(torch.zeros(self.shape), torch.zeros(self.shape), torch.zeros(self.shape[1:]))

    def times(self, u: Float32[Tensor, "row problem output"]) -> Float32[Tensor, "row problem output"]:
        """K u."""
        return self.gram.times(u.reshape(len(u), -1)).view(self.shape)

    def value(self, at: _Vector) -> Float64[Tensor, "problem"]:
        losses = self._flat_weights * self._all.value(self._flat(at.scores))
        return losses.view(self.shape[:2]).sum(0, dtype=torch.float64) + _sum(at.u * at.ku) / 2

    def is_rounding(self, at: _Vector) -> Bool[Tensor, "problem"]:
        """Whether the entries of u, up to C large, cancel in K u so much that the scores may be rounding."""
        largest = max(self.gram.directions.values.tolist(), default=0.0)  # constant features have no direction
        rounding = torch.finfo(torch.float32).eps * largest * _sum(at.u * at.u)
        return rounding > MAX_ROUNDING * self.value(at)

    def slopes(self, at: _Vector) -> Float32[Tensor, "row problem output"]:
        """Of the weighted losses by the scores."""
        return (self._flat_weights[:, None] * self._all.slope(self._flat(at.scores))).view(self.shape)

    def curvature_product(self, at: _Vector) -> Callable[[Tensor], Tensor]:
        """v [row, problem, output] -> each row's weighted Hessian times it."""
        product = self._all.curvature_product(self._flat(at.scores), self._flat_weights, torch.float32)
        return lambda v: product(self._flat(v), slice(None)).view(self.shape)

    def _flat(self, v: Float32[Tensor, "row problem output"]) -> Float32[Tensor, "row*problem output"]:
        return v.reshape(-1, self.shape[2])


class _Preconditioner:
    """An approximate inverse Hessian: exact along the leading directions of X^T X, the identity elsewhere.

    Rows are taken to have the same Hessian over the outputs, the mean over the rows, M; its eigenvectors decouple the outputs.
    """

    def __init__(self, problems: _Problems, at: _Vector) -> None:
        self._q, self._kq, values = problems.gram.directions
        n_rows, n_problems, _ = self._shape = problems.shape
        means = torch.stack(
            [problems.one.total_curvature(at.scores[:, p], problems.weights[:, p]) for p in range(n_problems)]
        ).double()
        sizes, basis = torch.linalg.eigh(means)
        # Softmax's smallest eigenvalue is 0 (all margins shifted together): no step goes that way.
        sizes = sizes.clamp(min=1e-3 * sizes[:, -1:].clamp(min=1e-30))
        scaled = sizes[:, None] / n_rows * values[:, None]  # [problem, direction, output]
        self._shrink, self._left = (scaled / (1 + scaled)).float(), 1 / (1 + scaled)
        self._sizes, self._basis = sizes.float()[:, None], basis.float()

    def __call__(self, v: _Vector) -> _Vector:
        n_rows, n_problems, n_outputs = self._shape
        along = (self._kq.T @ v.u.reshape(n_rows, -1)).view(-1, n_problems, n_outputs).transpose(0, 1)
        along = self._shrink * (along @ self._basis) @ self._basis.mT
        flat = along.transpose(0, 1).reshape(-1, n_problems * n_outputs)
        b = (v.b[:, None] @ self._basis / self._sizes @ self._basis.mT)[:, 0]
        return _Vector(v.u - (self._q @ flat).view(self._shape), v.ku - (self._kq @ flat).view(self._shape), b)

    def decrement(self, v: _Vector) -> Float64[Tensor, "problem"]:
        """v^T H^-1 v. The part along the directions and the rest are summed apart: where C is large, float32 rounds what
        __call__ leaves of the first part to nothing."""
        n_rows, n_problems, n_outputs = self._shape
        along = self._kq.T @ v.u.reshape(n_rows, -1)
        elsewhere = _Vector(v.u - (self._q @ along).view(self._shape), v.ku - (self._kq @ along).view(self._shape), v.b)
        along = along.view(-1, n_problems, n_outputs).transpose(0, 1) @ self._basis
        of_b = ((v.b[:, None] @ self._basis) ** 2 / self._sizes).sum((1, 2), dtype=torch.float64)
        of_rest = _sum(elsewhere.u * elsewhere.ku).clamp(min=0)
        return (along.double() ** 2 * self._left).sum((1, 2)) + of_rest + of_b


def _newton_step(problems: _Problems, at: _Vector, residual: _Vector, precondition: _Preconditioner) -> _Vector:
    """H^-1 residual, approximately, by conjugate gradients (forcing terms as in conjugate_gradients.py)."""
    curved = problems.curvature_product(at)
    direction = preconditioned = precondition(residual)
    norm = first = residual.dot(preconditioned)
    enough = first * (first / problems.value(at)).clamp(1e-6, FORCING)
    step = problems.start()
    for _ in range(MAX_CONJUGATE_GRADIENTS):
        is_active = norm > enough
        if not is_active.any():
            break
        bent = curved(direction.scores)
        product_u, product_b = bent + direction.u, bent.sum(0)  # H times the direction
        curvature = _sum(product_u * direction.ku) + (product_b * direction.b).sum(1, dtype=torch.float64)
        length = torch.where(is_active, norm / curvature, 0.0)
        step = step.plus(length, direction)
        lengths = length.float()[:, None]
        u = residual.u - lengths * product_u
        residual = _Vector(u, problems.times(u), residual.b - lengths * product_b)
        preconditioned = precondition(residual)
        previous, norm = norm, torch.where(is_active, residual.dot(preconditioned), norm)
        direction = preconditioned.plus(torch.where(is_active, norm / previous, 0.0), direction)
    return step


def _line_search(problems: _Problems, at: _Vector, step: _Vector, slope: Float64[Tensor, "problem"]) -> _Vector:
    """Halve each problem's step until its objective falls enough (Armijo)."""
    before = problems.value(at)
    length = torch.ones_like(before)
    for _ in range(MAX_HALVINGS):
        moved = at.plus(length, step)
        # The last term allows for rounding.
        is_short = problems.value(moved) > before + 1e-4 * length * slope + 1e-7 * before.abs()
        if not is_short.any():
            break
        length = torch.where(is_short, length / 2, length)
    return moved
