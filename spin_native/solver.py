"""Sparse and dense linear models, solved to a proven gap: the arithmetic behind the probes.

All of them minimise, over weights W and free intercepts b,

    F(W, b) = C * sum_i s_i loss(y_i, x_i W + b) + l1 * |W|_1 + l2 / 2 * |W|_2^2

The features stay where they are and are read in blocks of rows, in their own precision; margins, gradients and objectives are
summed in float64; where the tolerance is loose, margins and gradients on the way are summed in the features' own precision. A
solve stops when the duality gap, in float64 always, is a given share of F: no objective can undercut F by more.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from spin_native.design import Design
from spin_native.errors import InputError
from spin_native.losses import Loss, Softmax
from spin_native.symmetric import CholeskyFactor, Symmetric

Array = np.ndarray
# To reach a gap below this, float32's products are too coarse. (Whether any gap was reached is found out in float64.)
FLOAT64_BELOW = 1e-5
COARSE_STEPS = 10  # a solve that needs more may be lost in the rounding of float32's products, and goes on in float64
MAX_STEP_HALVINGS, MAX_BLIND_ROUNDS = 40, 8
# While a softmax's gap is wide its model leads astray, and exact joint steps are not worth their time: at most so many over the
# gap, which is at most 1 where l2 is 0.
MAX_CONJUGATE_GRADIENTS, JOINT_CONJUGATE_GRADIENTS = 200, 12
# Of softmax's turns, whose models a joint step repairs: the share of an output's curvature that its lightest rows may hold to
# be left out (most rows, of a rare class), and the least that is added to its Hessian's diagonal, as a share of the spread.
LIGHT_ROWS, LEAST_DAMPING = 1e-3, 1e-3
TOGETHER_ROWS = 0.98  # of each class's curvature: what rows must hold to tell how its weights move with the other classes'
# Whose eigenbasis is worth finding: for each output, since all share it, and in all.
BLOCK_COLUMNS_PER_OUTPUT, MAX_BLOCK_COLUMNS = 512, 3072


@dataclass(frozen=True)
class Solution:
    """weights [feature, output], intercepts [output]; gap: proven distance from the smallest F, as a share of F."""

    weights: Float64[Array, "feature output"]
    intercepts: Float64[Array, "output"]
    gap: float
    n_iter: int


class _Objective:
    """F and where it stands: weights, intercepts, and their margins."""

    def __init__(
        self, design: Design, loss: Loss, row_weights: Float64[Tensor, "row"], l1: float, l2: float, tol: float
    ) -> None:
        self.design, self.loss, self.l1, self.l2 = design, loss, l1, l2
        self.precision = torch.float64 if tol < FLOAT64_BELOW else design.dtype
        self.weights = torch.zeros(design.n_features, loss.n_outputs, dtype=torch.float64)
        self.intercepts = torch.zeros(loss.n_outputs, dtype=torch.float64)
        self.z = torch.zeros(design.n_rows, loss.n_outputs, dtype=torch.float64)
        self.is_coupled = isinstance(loss, Softmax)  # one output's margin changes another's slope
        self.least_damping = LEAST_DAMPING if self.is_coupled else 0.0
        self.begin(row_weights)

    def value(self, z: Tensor, weights: Tensor) -> float:
        penalty = self.l1 * weights.abs().sum() + self.l2 / 2 * weights.square().sum()
        return float(self.row_weights @ self.loss.value(z) + penalty)

    def checked(self) -> "_Objective":
        """InputError if a feature is not finite: no solver would notice, and some would never end."""
        finite = _gradients([self])[0].isfinite().all(1)
        if not finite.all():
            feature = int((~finite).nonzero()[0])
            raise InputError(f"feature {feature} is NaN or infinite in some row; drop the feature or the row")
        return self

    def slopes(self) -> Float64[Tensor, "row output"]:
        """Of the summed loss, by each margin."""
        return self.row_weights[:, None] * self.loss.slope(self.z)

    def margins(
        self, weights: Float64[Tensor, "column output"], columns: Int[Tensor, "column"] | None = None
    ) -> Float64[Tensor, "row output"]:
        """X W, of some columns of X."""
        return self.design.times(weights.to(self.precision), columns).double()

    def by_feature(
        self, values: Float64[Tensor, "row output"], columns: Int[Tensor, "column"] | None = None
    ) -> Float64[Tensor, "column output"]:
        """X^T V, of some columns of X."""
        return self.design.transposed_times(values.to(self.precision), columns).double()

    def gap(self, gradient: Float64[Tensor, "feature output"]) -> float:
        """F minus the value of a dual point, over F. The slopes, scaled into the dual's domain, are that point."""
        value = self.value(self.z, self.weights)
        slopes = gradient - self.l2 * self.weights
        scale, conjugate = 1.0, 0.0
        if self.l2:
            conjugate = float((slopes.abs() - self.l1).clamp(min=0).square().sum()) / (2 * self.l2)
        else:
            scale = min(1.0, self.l1 / max(float(slopes.abs().max()), 1e-300))
        dual = float(self.row_weights @ self.loss.dual(self.z, scale)) - conjugate
        return (value - dual) / max(abs(value), 1e-300)

    def fit_intercepts(self) -> None:
        """Newton's method on the intercepts alone. A dual point must have slopes that sum to 0: the intercepts are free."""
        for _ in range(50):
            slope = self.slopes().sum(0)
            if slope.abs().max() <= 1e-13 * self.row_weights.sum():
                return
            hessian = self.loss.total_curvature(self.z, self.row_weights)
            # Softmax's is singular: one number added to all intercepts changes nothing.
            step = -torch.linalg.pinv(hessian, hermitian=True, rtol=1e-12) @ slope
            if not self.move(step.expand_as(self.z), torch.zeros_like(self.weights), step, float(slope @ step)):
                return

    def begin(self, row_weights: Float64[Tensor, "row"]) -> None:
        """Set out, from where it stands, for the minimum at these weights of the rows."""
        self.row_weights = row_weights
        # Of each output's turn: what was added to its Hessian's diagonal, as a share of the feature's spread; and whether its
        # lightest rows may be left out.
        self.damping, self.is_rough = [self.least_damping] * self.loss.n_outputs, [self.is_coupled] * self.loss.n_outputs
        self.joint_damping = 0.0  # the same, of the step for all outputs together
        self.n_blind, self._saw_fall = 0, True

    def begin_round(self) -> None:
        """Count the rounds in which no move was seen to lower F: in a few of them moves may be blind."""
        self.n_blind = 0 if self._saw_fall else self.n_blind + 1
        self._saw_fall = False

    def centre(self) -> None:
        """Move a feature's weights of all classes by one number, which softmax does not see, to where the penalty is smallest.

        That is the median of the weights and of the parabola's minima between them (Li & Osher 2009, A new median formula).
        """
        if not self.is_coupled:
            return
        n = self.loss.n_outputs
        slopes = self.l1 * (n - 2.0 * torch.arange(n + 1, dtype=torch.float64)) / n
        if self.l2:
            minima = self.weights.mean(1, keepdim=True) + slopes / self.l2
        else:  # none between; of equally good numbers the one nearest 0
            minima = torch.where(slopes == 0, 0.0, slopes * torch.inf).expand(len(self.weights), -1)
        self.weights -= torch.cat([self.weights, minima], 1).median(1, keepdim=True).values

    def move(self, dz: Tensor, dweights: Tensor, dintercepts: Tensor, slope: float) -> float:
        """Go along a direction, half as far until F falls as its slope promises; how far that was, 0 where it does not at all.

        No weight may change its sign on the way: the slope would not be that of the L1 norm. Near the end F falls by less than
        its last bit while the gap still shrinks: for a few rounds such steps are taken blindly.
        """
        before = self.value(self.z, self.weights)
        step, rounding = 1.0, 1e-15 * abs(before)
        is_blind = abs(slope) < 1e3 * rounding
        if slope >= 0 or (is_blind and self.n_blind >= MAX_BLIND_ROUNDS):
            return 0.0
        for _ in range(MAX_STEP_HALVINGS):
            z, weights = self.z + step * dz, self.weights + step * dweights
            if self.value(z, weights) <= before + 1e-4 * step * slope + (10 * rounding if is_blind else 0.0):
                self.z, self.weights, self.intercepts = z, weights, self.intercepts + step * dintercepts
                self._saw_fall |= not is_blind
                return step
            step /= 2
        return 0.0

    def solution(self, gap: float, n_iter: int) -> Solution:
        intercepts = self.intercepts - self.intercepts.mean() if self.is_coupled else self.intercepts
        return Solution(self.weights.numpy().copy(), intercepts.numpy().copy(), max(gap, 0.0), n_iter)  # less is rounding


def _widest(states: Sequence[_Objective]) -> torch.dtype:
    return max((state.precision for state in states), key=lambda dtype: dtype.itemsize)


def _gradients(states: Sequence[_Objective]) -> list[Float64[Tensor, "feature output"]]:
    """Of each state's smooth part, in one pass through the features."""
    slopes = torch.cat([state.slopes() for state in states], 1).to(_widest(states))
    parts = states[0].design.transposed_times(slopes).double().split(states[0].loss.n_outputs, 1)
    return [part + state.l2 * state.weights for part, state in zip(parts, states, strict=True)]


def _settle(states: Sequence[_Objective]) -> None:
    """Margins anew from the weights, in float64, as everything from here on."""
    margins = states[0].design.times(torch.cat([state.weights for state in states], 1)).split(states[0].loss.n_outputs, 1)
    for state, z in zip(states, margins, strict=True):
        state.precision, state.z = torch.float64, z + state.intercepts
        state.fit_intercepts()


def _gradients_and_gaps(states: Sequence[_Objective], tol: float) -> list[tuple[Float64[Tensor, "feature output"], float]]:
    """A gap that would end a solve is found in float64: a proof is not to rest on the rounding of float32's products."""
    found = [(gradient, state.gap(gradient)) for state, gradient in zip(states, _gradients(states), strict=True)]
    small = [i for i, (_, gap) in enumerate(found) if gap <= tol and states[i].precision != torch.float64]
    if small:
        chosen = [states[i] for i in small]
        _settle(chosen)
        for i, pair in zip(small, _gradients_and_gaps(chosen, tol), strict=True):
            found[i] = pair
    return found


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
    outputs depend on each other (softmax): a Newton step for all of them together follows,
    which allows each turn a rougher model.
    """
    state = _Objective(design, loss, row_weights, l1, l2, tol).checked()
    precision = state.precision
    for C in Cs:
        state.precision = precision
        state.begin(C * row_weights)
        state.fit_intercepts()
        for n_iter in range(1, max_iter + 1):
            state.begin_round()
            if n_iter == COARSE_STEPS:
                _settle([state])
            ((gradient, gap),) = _gradients_and_gaps([state], tol)
            if gap <= tol:
                break
            turns: list[_Turn] = []  # which frees the factors of the turns before
            for k in range(loss.n_outputs):
                turns.append(_newton_step(state, k, gradient[:, k], is_current=k == 0 or not state.is_coupled))
            state.fit_intercepts()
            if not any(turn.may_gain for turn in turns):
                if state.precision == torch.float64:
                    break
                _settle([state])
                state.begin(state.row_weights)
            if loss.n_outputs > 1:
                state.centre()
                _joint_newton_step(state, turns, gap)
                state.fit_intercepts()
        yield state.solution(gap, n_iter)


class _Turn(NamedTuple):
    """Whether another turn may gain, and the Cholesky factor of an output's Hessian over some columns and the intercept."""

    may_gain: bool
    columns: Int[Tensor, "column"]
    factor: CholeskyFactor


def _newton_step(state: _Objective, k: int, gradient: Float64[Tensor, "feature"], *, is_current: bool) -> _Turn:
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
    if state.is_rough[k]:
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
    gram.set_diagonal(diagonal + rounding + state.damping[k] * spread + 1e-30)
    linear = torch.cat([gradient + state.l1 * sign, slopes.sum()[None]])
    nothing = torch.zeros(1, dtype=torch.float64)  # the intercept: starts anywhere, ends anywhere
    step, free, factor = _step_in_orthant(gram, linear, torch.cat([start, nothing]), torch.cat([sign, nothing]))
    dz, dweights, dintercepts = torch.zeros_like(state.z), torch.zeros_like(state.weights), torch.zeros_like(state.intercepts)
    dz[:, k] = state.margins(step[:-1, None], columns)[:, 0] + step[-1]
    dweights[columns, k], dintercepts[k] = step[:-1], step[-1]
    length = state.move(dz, dweights, dintercepts, float(linear @ step))
    # Levenberg and Marquardt: where the model led too far (more columns than rows, separable rows), believe it less next time.
    damping = state.damping[k]
    is_final = not length and (damping > 1.0 or state.n_blind >= MAX_BLIND_ROUNDS)
    if length == 1:
        state.damping[k] = max(damping / 10, state.least_damping)
    elif length < 0.25:
        state.damping[k], state.is_rough[k] = min(max(1e-5, 10 * damping), 1e6), False
    return _Turn(not is_final, columns[free[:-1]], factor)


def _heaviest(weights: Float64[Tensor, "row"], share: float) -> Bool[Tensor, "row"]:
    """The fewest rows that hold a share of the sum."""
    order = weights.argsort(descending=True, stable=True)
    before = weights[order].cumsum(0) - weights[order]
    return torch.zeros_like(weights, dtype=torch.bool).index_fill(0, order[before < share * weights.sum()], True)


def _joint_newton_step(state: _Objective, turns: Sequence[_Turn], gap: float) -> None:
    """Newton's step for all outputs at once over the weights that are not zero, which may become zero but no less.

    Conjugate gradients, preconditioned by each output's own factor and, of softmax, by what classes have in common. (They never
    form X^T X, whose rounding may have misled the turns even where outputs do not depend on each other.)
    """
    design, dtype = state.design, state.design.dtype
    (gradient,), slopes = _gradients([state]), state.slopes().sum(0)
    sign = state.weights.sign()
    linear = torch.cat([gradient + state.l1 * sign, slopes[None]])
    start = torch.cat([state.weights, torch.zeros_like(slopes)[None]])
    is_free = torch.cat([sign != 0, torch.ones_like(slopes, dtype=torch.bool)[None]])
    is_free[-1, 0] = not state.is_coupled  # one number added to all of softmax's intercepts changes nothing
    end_sign = torch.cat([sign, torch.zeros_like(slopes)[None]])
    curve = state.loss.curve(state.z, state.row_weights, dtype)
    together = _together(state, is_free.to(dtype)) if state.is_coupled else torch.zeros_like

    damping = torch.zeros_like(start, dtype=dtype)
    for k, turn in enumerate(turns):
        damping[turn.columns, k] = state.joint_damping * turn.factor.diagonal()[:-1]

    def hessian(v: Tensor) -> Tensor:
        product = design.curved_times(v, curve)
        product[:-1] += state.l2 * v[:-1]
        return product + damping * v

    def precondition(v: Tensor) -> Tensor:
        solved = torch.zeros_like(v)
        for k, turn in enumerate(turns):
            places = torch.cat([turn.columns, torch.tensor([design.n_features])])
            solved[places, k] = turn.factor.solve(v[places, k])
        return (solved + together(v)) * is_free

    def free_part(v: Tensor) -> Tensor:
        return hessian(v) * is_free

    step, n_most = torch.zeros_like(start), MAX_CONJUGATE_GRADIENTS
    if state.is_coupled and not state.l2:
        n_most = min(n_most, int(JOINT_CONJUGATE_GRADIENTS / min(1.0, gap)))
    for _ in range(4):
        right = (-linear.to(dtype) - (hessian(step.to(dtype)) if step.any() else 0)) * is_free
        found = _conjugate_gradients(free_part, precondition, right, 1, state.value(state.z, state.weights), n_most)
        step = step + found.double()
        crosses = is_free & (end_sign * (start + step) < 0)
        step = torch.where(crosses, -start, step)
        if not crosses.any():
            break
        is_free &= ~crosses
    dz = state.margins(step[:-1]) + step[-1]
    length = state.move(dz, step[:-1], step[-1], float((linear * step).sum()))
    if length == 1:
        state.joint_damping = state.joint_damping / 3
    elif length < 0.25:
        state.joint_damping = min(max(1e-5, 10 * state.joint_damping), 1e6)


def _together(state: _Objective, is_free: Float[Tensor, "feature_1 class"]) -> Callable[[Tensor], Tensor]:
    """What a preconditioner by classes is blind to: steps that move a feature's free weights of all classes by one number.

    Softmax hardly sees them (not at all where every class is free), so conjugate gradients alone would need hundreds of steps.
    Their Hessian E^T H E, as large as that of one class, is solved: the coarse space of a two-level method.
    """
    n_free = is_free.sum(1)
    shared = ((n_free > 1) & ((n_free < state.loss.n_outputs) | (state.l2 > 0)))[:-1].nonzero()[:, 0]
    places = torch.cat([shared, torch.tensor([len(is_free) - 1])])
    p, row_weights = state.z.softmax(1), state.row_weights[:, None]
    # A row's share in it is the covariance, over classes at their probabilities, of the features that are free.
    heaviest = torch.stack([_heaviest(c, TOGETHER_ROWS) for c in (row_weights * p * (1 - p)).T], 1)
    weights, means = row_weights * p * heaviest, p.to(is_free.dtype)
    gram = state.design.gram(shared, weights, lambda k, rows: is_free[places, k] - means[rows] @ is_free[places].T)
    diagonal = gram.diagonal()
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


def ridge_path(
    design: Design,
    loss: Loss,
    row_weights: Float64[Tensor, "row"],
    Cs: Sequence[float],
    *,
    tol: float,
    max_iter: int,
) -> list[Solution]:
    """A solution for each C (l1 = 0, l2 = 1), all at once: a pass through the features costs the same for many as for one.

    Newton's method, its equations solved by conjugate gradients as exactly as the progress is worth.
    """
    states = [_Objective(design, loss, C * row_weights, 0.0, 1.0, tol) for C in Cs]
    states[0].checked()
    bases = _BlockBases(design, loss.n_outputs)
    found: dict[int, Solution] = {}
    for n_iter in range(1, max_iter + 1):
        for state in states:
            state.begin_round()
            state.fit_intercepts()
        open_ = [index for index in range(len(states)) if index not in found]
        if not open_:
            break
        if n_iter == COARSE_STEPS:
            _settle([states[i] for i in open_])
        todo = {}
        for index, (gradient, gap) in zip(open_, _gradients_and_gaps([states[i] for i in open_], tol), strict=True):
            if gap <= tol or n_iter == max_iter:
                found[index] = states[index].solution(gap, n_iter)
            else:
                todo[index] = gradient
        if not todo:
            continue
        going = [states[i] for i in todo]
        steps = _newton_directions(going, list(todo.values()), bases)
        weights = torch.cat([step[:-1] for step in steps], 1).to(_widest(going))
        dzs = design.times(weights).double().split(loss.n_outputs, 1)
        for (index, gradient), step, dz in zip(todo.items(), steps, dzs, strict=True):
            state = states[index]
            slope = float((gradient * step[:-1]).sum() + state.slopes().sum(0) @ step[-1])
            if state.move(dz + step[-1], step[:-1], step[-1], slope):
                continue
            if state.precision == torch.float64:
                found[index] = state.solution(state.gap(gradient), n_iter)
            else:
                _settle([state])
    return [found[index] for index in range(len(states))]


def _newton_directions(
    states: Sequence[_Objective], gradients: Sequence[Float64[Tensor, "feature output"]], bases: "_BlockBases"
) -> list[Float64[Tensor, "feature_1 output"]]:
    """Newton's step of each state: of the weights, and in the last row of the intercepts."""
    design, n_outputs = states[0].design, states[0].loss.n_outputs
    curves = [state.loss.curve(state.z, state.row_weights, design.dtype) for state in states]

    def all_curve(u: Tensor, rows: slice) -> Tensor:
        return torch.cat([curve(part, rows) for curve, part in zip(curves, u.split(n_outputs, 1), strict=True)], 1)

    def hessian(v: Tensor) -> Tensor:
        product = design.curved_times(v, all_curve)
        product[:-1] += v[:-1]
        return product

    right = torch.cat([torch.cat([-g, -s.slopes().sum(0, keepdim=True)]) for s, g in zip(states, gradients, strict=True)], 1)
    values = torch.tensor([state.value(state.z, state.weights) for state in states], dtype=torch.float64)
    step = _conjugate_gradients(hessian, bases.inverse(states), right.to(design.dtype), len(states), values)
    return list(step.double().split(n_outputs, 1))


class _BlockBases:
    """An approximate inverse of every Hessian of a design: of its blocks of neighbouring columns, as if all rows curved alike.

    The Hessian over outputs and columns is then M x X^T X + I (a Kronecker product; M: the rows' summed curvature matrix, X
    centred as the free intercepts make it), and one eigenbasis of each block of X^T X serves every C and every step.
    """

    def __init__(self, design: Design, n_outputs: int) -> None:
        widest = min(MAX_BLOCK_COLUMNS, n_outputs * BLOCK_COLUMNS_PER_OUTPUT)
        # Of more columns than rows there is nothing to learn together.
        n_blocks = -(-design.n_features // min(widest, max(design.n_rows, 64)))
        means, self._blocks = [], []
        for columns in torch.arange(design.n_features).tensor_split(n_blocks):
            gram = design.gram(columns, torch.ones(design.n_rows, 1, dtype=torch.float64)).lower() / design.n_rows
            means.append(gram[-1, :-1].clone())
            values, basis = torch.linalg.eigh(gram[:-1, :-1].addr_(means[-1], means[-1], alpha=-1))
            self._blocks.append((slice(int(columns[0]), int(columns[-1]) + 1), values.clamp_(min=0), basis))
        self._means = torch.cat(means)[:, None]

    def inverse(self, states: Sequence[_Objective]) -> Callable[[Float[Tensor, "feature_1 column"]], Tensor]:
        """Of the Hessians where some states stand, their outputs side by side; the last row is the intercepts'."""
        curvatures = [state.loss.total_curvature(state.z, state.row_weights) for state in states]
        values, bases = zip(*map(torch.linalg.eigh, curvatures), strict=True)
        dtype = self._means.dtype
        # Softmax's smallest is 0, for what no step goes along.
        sizes = torch.cat([v.clamp(min=1e-3 * float(v[-1])) for v in values]).to(dtype)
        outputs = torch.block_diag(*bases).to(dtype)

        def inverse(v: Tensor) -> Tensor:
            centred = (v[:-1] - self._means * v[-1]) @ outputs
            parts = [
                basis @ ((basis.T @ centred[rows]) / (values[:, None] * sizes + 1)) for rows, values, basis in self._blocks
            ]
            weights = torch.cat(parts) @ outputs.T
            intercepts = (v[-1:] @ outputs / sizes) @ outputs.T - (self._means * weights).sum(0, keepdim=True)
            return torch.cat([weights, intercepts])

        return inverse


def _conjugate_gradients(
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
