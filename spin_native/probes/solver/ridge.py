"""L2: models of all weights, for many C at once, by Newton steps and conjugate gradients."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spin_native.probes.solver.conjugate_gradients import conjugate_gradients
from spin_native.probes.solver.design import Design
from spin_native.probes.solver.losses import Loss
from spin_native.probes.solver.objective import COARSE_STEPS, Objective, Solution, gradients_and_gaps, settle, widest

# Whose eigenbasis is worth finding: for each output, since all share it, and in all.
BLOCK_COLUMNS_PER_OUTPUT, MAX_BLOCK_COLUMNS = 512, 3072


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
    design = design.centred(row_weights)
    states = [Objective(design, loss, C * row_weights, 0.0, 1.0, tol) for C in Cs]
    states[0].checked()
    bases = _BlockBases(design, row_weights, loss.n_outputs)
    found: dict[int, Solution] = {}
    for n_iter in range(1, max_iter + 1):
        for state in states:
            state.begin_round()
            state.fit_intercepts()
        open_ = [index for index in range(len(states)) if index not in found]
        if not open_:
            break
        if n_iter == COARSE_STEPS:
            settle([states[i] for i in open_])
        todo = {}
        for index, (gradient, gap) in zip(open_, gradients_and_gaps([states[i] for i in open_], tol), strict=True):
            if gap <= tol or n_iter == max_iter:
                found[index] = states[index].solution(gap, n_iter)
            else:
                todo[index] = gradient
        if not todo:
            continue
        going = [states[i] for i in todo]
        steps = _newton_directions(going, list(todo.values()), bases)
        weights = torch.cat([step[:-1] for step in steps], 1).to(widest(going))
        dzs = design.times(weights).double().split(loss.n_outputs, 1)
        for (index, gradient), step, dz in zip(todo.items(), steps, dzs, strict=True):
            state = states[index]
            slope = float((gradient * step[:-1]).sum() + state.slopes().sum(0) @ step[-1])
            if state.move(dz + step[-1], step[:-1], step[-1], slope):
                continue
            if state.precision == torch.float64:
                found[index] = state.solution(state.gap(gradient), n_iter)
            else:
                settle([state])
    return [found[index] for index in range(len(states))]


def _newton_directions(
    states: Sequence[Objective], gradients: Sequence[Float64[Tensor, "feature output"]], bases: "_BlockBases"
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
    step = conjugate_gradients(hessian, bases.inverse(states), right.to(design.dtype), len(states), values)
    return list(step.double().split(n_outputs, 1))


class _BlockBases:
    """An approximate inverse of every Hessian of a design: of its blocks of neighbouring columns, if a row curved as it weighs.

    The Hessian over outputs and columns is then M x X^T S X + I (a Kronecker product; S: the rows' weights, of sum 1; M: their
    summed curvature matrix; X centred as the free intercepts make it), and one eigenbasis of each block serves all C and steps.
    """

    def __init__(self, design: Design, row_weights: Float64[Tensor, "row"], n_outputs: int) -> None:
        n_columns = min(MAX_BLOCK_COLUMNS, n_outputs * BLOCK_COLUMNS_PER_OUTPUT)
        # Of more columns than rows there is nothing to learn together.
        n_blocks = -(-design.n_features // min(n_columns, max(design.n_rows, 64)))
        means, self._blocks = [], []
        for columns in torch.arange(design.n_features).tensor_split(n_blocks):
            gram = design.gram(columns, (row_weights / row_weights.sum())[:, None]).lower()
            means.append(gram[-1, :-1].clone())
            values, basis = torch.linalg.eigh(gram[:-1, :-1].addr_(means[-1], means[-1], alpha=-1))
            self._blocks.append((slice(int(columns[0]), int(columns[-1]) + 1), values.clamp_(min=0), basis))
        self._means = torch.cat(means)[:, None]

    def inverse(self, states: Sequence[Objective]) -> Callable[[Float[Tensor, "feature_1 column"]], Tensor]:
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
