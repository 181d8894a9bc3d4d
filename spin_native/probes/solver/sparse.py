"""L1 and elastic net: models of few weights, by proximal Newton steps on a working set."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from spin_native.probes.solver.conjugate_gradients import MAX_CONJUGATE_GRADIENTS, conjugate_gradients
from spin_native.probes.solver.design import Design
from spin_native.probes.solver.losses import Loss
from spin_native.probes.solver.objective import (
    COARSE_STEPS,
    MAX_BLIND_ROUNDS,
    Objective,
    Solution,
    gradients,
    gradients_and_gaps,
    settle,
)
from spin_native.probes.solver.symmetric import CholeskyFactor, Symmetric

# While a softmax's gap is wide and F falls its model leads astray, and exact joint steps are not worth their time: at most so
# many over the gap, which is at most 1 where l2 is 0, or over so many times the share by which F fell in the last round.
JOINT_CONJUGATE_GRADIENTS, FALLS_LEFT = 12, 100
# Of softmax's turns, whose models a joint step repairs: the share of an output's curvature that its lightest rows may hold to
# be left out (where they are most rows), and the least that is added to its Hessian's diagonal, as a share of the spread.
LIGHT_ROWS, LEAST_DAMPING = 1e-3, 1e-3
LIGHT_ROWS_TOGETHER = 0.02  # the same share, of rows that are to tell how an output's weights move with the other outputs'


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
    """A solution for each C in turn, each from where the one before ended (l1 > 0).

    Proximal Newton on a working set: the weights that are not zero, and those that most want to leave it. Outputs take turns;
    each turn solves its quadratic model exactly, within the orthant, by Cholesky factors. Turns alone would see little of how
    outputs depend on each other (softmax): a Newton step for all of them together follows, which allows each turn a rougher
    model.
    """
    state = Objective(design.centred(row_weights), loss, row_weights, l1, l2, tol).checked()
    precision = state.precision
    for C in Cs:
        state.precision = precision
        state.begin(C * row_weights)
        trust = _Trust.at_first(state)
        state.fit_intercepts()
        before = math.inf
        for n_iter in range(1, max_iter + 1):
            state.begin_round()
            value = state.value(state.z, state.weights)
            fall, before = before - value, value
            if n_iter == COARSE_STEPS:
                settle([state])
            ((gradient, gap),) = gradients_and_gaps([state], tol)
            if gap <= tol or n_iter == max_iter:
                break
            turns: list[_Turn] = []  # which frees the factors of the turns before
            for k in range(loss.n_outputs):
                turns.append(_newton_step(state, trust, k, gradient[:, k], is_current=k == 0 or not state.is_coupled))
            state.fit_intercepts()
            if not any(turn.may_gain for turn in turns):
                if state.precision == torch.float64:
                    break
                settle([state])
                state.begin(state.row_weights)
                trust = _Trust.at_first(state)
            if loss.n_outputs > 1:
                _centre(state)
                _joint_newton_step(state, trust, turns, gap, fall)
                state.fit_intercepts()
        yield state.solution(gap, n_iter)


@dataclass
class _Trust:
    """How far quadratic models are believed (Levenberg and Marquardt).

    damping: what is added to a Hessian's diagonal, as a share of the features' spread in the turn of each output and, last, of
    that turn's whole diagonal in the step for all of them; is_rough: whether the lightest rows of an output may be left out of
    its turn.
    """

    damping: list[float]
    is_rough: list[bool]

    @classmethod
    def at_first(cls, state: Objective) -> "_Trust":
        n_outputs = state.loss.n_outputs
        return cls([LEAST_DAMPING * state.is_coupled] * n_outputs + [0.0], [state.is_coupled] * n_outputs)

    def learn(self, place: int, length: float, least: float) -> None:
        """Believe a model less that led too far: of more columns than rows, separable rows, columns that are sums of others."""
        if length == 1:
            self.damping[place] = max(self.damping[place] / 3, least)
        elif length < 0.25:
            self.damping[place] = min(max(1e-5, 10 * self.damping[place]), 1e6)


def _centre(state: Objective) -> None:
    """Move a feature's weights of all classes by one number, which softmax does not see, to where the penalty is smallest.

    That is the median of the weights and of the parabola's minima between them (Li & Osher 2009, A new median formula).
    """
    if not state.is_coupled:
        return
    n = state.loss.n_outputs
    slopes = state.l1 * (n - 2.0 * torch.arange(n + 1, dtype=torch.float64)) / n
    if state.l2:
        minima = state.weights.mean(1, keepdim=True) + slopes / state.l2
    else:  # none between; of equally good numbers the one nearest 0
        minima = torch.where(slopes == 0, 0.0, slopes * torch.inf).expand(len(state.weights), -1)
    state.weights -= torch.cat([state.weights, minima], 1).median(1, keepdim=True).values


class _Turn(NamedTuple):
    """Whether another turn may gain, and the Cholesky factor of an output's Hessian over some columns and the intercept."""

    may_gain: bool
    columns: Int[Tensor, "column"]
    factor: CholeskyFactor


def _newton_step(state: Objective, trust: _Trust, k: int, gradient: Float64[Tensor, "feature"], *, is_current: bool) -> _Turn:
    """Improve output k on its working set."""
    weights = state.weights[:, k]
    is_active = weights != 0
    wish = torch.where(is_active, 0.0, gradient.abs() - state.l1)
    n_new = min(max(min(128, 1 + state.design.n_rows // 2), int(is_active.sum())), int((wish > 0).sum()))
    is_active[wish.topk(n_new).indices] = True
    columns = is_active.nonzero()[:, 0]
    slopes = state.slopes()[:, k]
    if is_current:
        gradient = gradient[columns]
    else:
        gradient = state.by_feature(slopes[:, None], columns)[:, 0] + state.l2 * weights[columns]
    start = weights[columns]
    sign = torch.where(start != 0, start.sign(), -gradient.sign())
    curvature = state.row_weights * state.loss.curvature(state.z)[:, k]
    if trust.is_rough[k]:
        heaviest = _heaviest(curvature, 1 - LIGHT_ROWS)
        if heaviest.count_nonzero() < len(heaviest) / 2:
            curvature = curvature * heaviest
    gram = state.design.gram(columns, curvature[:, None])
    diagonal = gram.diagonal()
    diagonal[:-1] += state.l2
    # The intercept is free, so what curves is a feature's spread, however far from 0 it lies.
    sums = gram.times((torch.arange(len(diagonal)) == len(columns)).to(diagonal.dtype))
    rounding = 10 * torch.finfo(diagonal.dtype).eps * diagonal
    spread = torch.maximum(diagonal - sums * (sums / sums[-1].clamp(min=1e-30)), rounding)
    spread[-1] = 0.0
    gram.set_diagonal(diagonal + rounding + trust.damping[k] * spread + 1e-30)
    linear = torch.cat([gradient + state.l1 * sign, slopes.sum()[None]])
    nothing = torch.zeros(1, dtype=torch.float64)  # the intercept: starts anywhere, ends anywhere
    step, free, factor = _step_in_orthant(gram, linear, torch.cat([start, nothing]), torch.cat([sign, nothing]))
    dz, dweights, dintercepts = torch.zeros_like(state.z), torch.zeros_like(state.weights), torch.zeros_like(state.intercepts)
    dz[:, k] = state.margins(step[:-1, None], columns)[:, 0] + step[-1]
    dweights[columns, k], dintercepts[k] = step[:-1], step[-1]
    length = state.move(dz, dweights, dintercepts, float(linear @ step))
    is_final = not length and (trust.damping[k] > 1.0 or state.n_blind >= MAX_BLIND_ROUNDS)
    trust.learn(k, length, LEAST_DAMPING * state.is_coupled)
    trust.is_rough[k] &= length >= 0.25
    return _Turn(not is_final, columns[free[:-1]], factor)


def _heaviest(weights: Float64[Tensor, "row"], share: float) -> Bool[Tensor, "row"]:
    """The fewest rows that hold a share of the sum."""
    order = weights.argsort(descending=True, stable=True)
    before = weights[order].cumsum(0) - weights[order]
    return torch.zeros_like(weights, dtype=torch.bool).index_fill(0, order[before < share * weights.sum()], True)


def _joint_newton_step(state: Objective, trust: _Trust, turns: Sequence[_Turn], gap: float, fall: float) -> None:
    """Newton's step for all outputs at once over the weights that are not zero, which may become zero but no less.

    Conjugate gradients, preconditioned by each output's own factor and, of softmax, by what classes have in common. (They never
    form X^T X, whose rounding may have misled the turns even where outputs do not depend on each other.)
    """
    design, dtype = state.design, state.design.dtype
    (gradient,), slopes = gradients([state]), state.slopes().sum(0)
    sign = state.weights.sign()
    linear = torch.cat([gradient + state.l1 * sign, slopes[None]])
    start = torch.cat([state.weights, torch.zeros_like(slopes)[None]])
    is_free = torch.cat([sign != 0, torch.ones_like(slopes, dtype=torch.bool)[None]])
    is_free[-1, 0] = not state.is_coupled  # one number added to all of softmax's intercepts changes nothing
    end_sign = torch.cat([sign, torch.zeros_like(slopes)[None]])
    curve = state.loss.curve(state.z, state.row_weights, dtype)
    inverse = _joint_inverse(state, turns, is_free)
    ridge = torch.zeros_like(start, dtype=dtype)
    ridge[:-1] = state.l2
    for k, turn in enumerate(turns):
        ridge[turn.columns, k] += trust.damping[-1] * turn.factor.diagonal()[:-1]

    def hessian(v: Tensor) -> Tensor:
        return design.curved_times(v, curve) + ridge * v

    def free_hessian(v: Tensor) -> Tensor:
        return hessian(v) * is_free

    def free_inverse(v: Tensor) -> Tensor:
        return inverse(v) * is_free

    step, n_most, value = torch.zeros_like(start), MAX_CONJUGATE_GRADIENTS, state.value(state.z, state.weights)
    if state.is_coupled and not state.l2:
        n_most = min(n_most, int(JOINT_CONJUGATE_GRADIENTS / max(1e-9, min(1.0, gap, FALLS_LEFT * fall / value))))
    for _ in range(4):
        right = (-linear.to(dtype) - (hessian(step.to(dtype)) if step.any() else 0)) * is_free
        found = conjugate_gradients(free_hessian, free_inverse, right, 1, value, n_most)
        step = step + found.double()
        crosses = is_free & (end_sign * (start + step) < 0)
        step = torch.where(crosses, -start, step)
        if not crosses.any():
            break
        is_free &= ~crosses
    dz = state.margins(step[:-1]) + step[-1]
    trust.learn(-1, state.move(dz, step[:-1], step[-1], float((linear * step).sum())), 0.0)


def _joint_inverse(
    state: Objective, turns: Sequence[_Turn], is_free: Bool[Tensor, "feature_1 output"]
) -> Callable[[Float[Tensor, "feature_1 output"]], Tensor]:
    """Nearly that of the Hessian over the free weights of all outputs: of each output's block, which its turn has factored."""
    together = _together(state, is_free.to(state.design.dtype)) if state.is_coupled else torch.zeros_like
    places = [torch.cat([turn.columns, torch.tensor([state.design.n_features])]) for turn in turns]

    def inverse(v: Tensor) -> Tensor:
        solved = torch.zeros_like(v)
        for k, turn in enumerate(turns):
            solved[places[k], k] = turn.factor.solve(v[places[k], k])
        return solved + together(v)

    return inverse


def _together(state: Objective, is_free: Float[Tensor, "feature_1 class"]) -> Callable[[Tensor], Tensor]:
    """What a preconditioner by classes is blind to: steps that move a feature's free weights of all classes by one number.

    Softmax hardly sees them (not at all where every class is free), so conjugate gradients alone would need hundreds of steps.
    Their Hessian E^T H E, as large as that of one class, is solved: the coarse space of a two-level method.
    """
    n_free = is_free.sum(1)
    shared = ((n_free > 1) & ((n_free < state.loss.n_outputs) | (state.l2 > 0)))[:-1].nonzero()[:, 0]
    places = torch.cat([shared, torch.tensor([len(is_free) - 1])])
    p, row_weights = state.z.softmax(1), state.row_weights[:, None]
    # A row's share in it is the covariance, over classes at their probabilities, of the features that are free.
    heaviest = torch.stack([_heaviest(c, 1 - LIGHT_ROWS_TOGETHER) for c in (row_weights * p * (1 - p)).T], 1)
    free, p_free = is_free[places], p.to(is_free.dtype)

    def shares(rows: slice) -> Float[Tensor, "row shared_1"]:
        means = p_free[rows] @ free.T
        return row_weights[rows].to(means.dtype) * (means - means.square())

    gram = state.design.gram(shared, row_weights * p * heaviest, lambda k, rows: free[:, k] - p_free[rows] @ free.T)
    # On the diagonal all rows count: a feature may be 0 in all but light ones.
    diagonal = torch.maximum(gram.diagonal(), state.design.squares(shared, shares))
    diagonal[:-1] += state.l2 * n_free[shared]
    gram.set_diagonal(diagonal * (1 + LEAST_DAMPING) + 1e-30)
    factor = gram.cholesky()

    def solve(v: Tensor) -> Tensor:
        solved = torch.zeros_like(v)
        if factor is not None:
            solved[places] = factor.solve(v[places].sum(1))[:, None] * is_free[places]
        return solved

    return solve


def _step_in_orthant(
    gram: Symmetric,
    linear: Float64[Tensor, "n"],
    start: Float64[Tensor, "n"],
    sign: Float64[Tensor, "n"],
) -> tuple[Float64[Tensor, "n"], Int[Tensor, "free"], CholeskyFactor]:
    """The step d that minimises linear d + d gram d / 2 where no entry of start + d has the other sign (sign 0: free).

    Block principal pivoting (Kim & Park 2011): all entries on the wrong side change places at once; when that does not help
    any more, one at a time. With the step: the entries that are not held at zero, and the factor of gram over them.
    """
    is_free = torch.ones(len(start), dtype=torch.bool)
    dtype = gram.diagonal().dtype
    fewest, patience = len(start) + 1, 3
    for _ in range(100):
        step = torch.where(is_free, 0.0, -start)
        residual = -linear - gram.times(step.to(dtype)).double()
        free = is_free.nonzero()[:, 0]
        factor = CholeskyFactor([])  # the one before is not kept beside the new one
        factor = _factor(gram, free)
        step[free] = factor.solve(residual[free].to(dtype)).double()
        slack = sign * (linear + gram.times(step.to(dtype)).double())
        end = sign * (start + step)
        is_wrong = torch.where(is_free, end < 0, slack < 0)
        n_wrong = int(is_wrong.sum())
        if not n_wrong:
            break
        if n_wrong < fewest:
            fewest, patience = n_wrong, 3
        elif patience:
            patience -= 1
        else:
            last = is_wrong.nonzero()[-1]
            is_wrong = torch.zeros_like(is_wrong)
            is_wrong[last] = True
        is_free ^= is_wrong
    return torch.where(sign * (start + step) < 0, -start, step), free, factor


def _factor(gram: Symmetric, places: Int[Tensor, "m"]) -> CholeskyFactor:
    """Cholesky's factor of some rows and columns, of a larger diagonal where rounding has made the matrix indefinite."""
    ridge = 0.0
    while True:
        some = gram.only(places)
        diagonal = some.diagonal()
        if ridge:
            some.set_diagonal(diagonal * (1 + ridge) + ridge * diagonal.mean(dtype=torch.float64).to(diagonal.dtype))
        if (factor := some.cholesky()) is not None:
            return factor
        ridge = max(10 * ridge, 10 * torch.finfo(diagonal.dtype).eps)
