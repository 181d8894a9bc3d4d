"""L2-penalised models for many C at once, by Newton's method with preconditioned conjugate gradients."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spin_native.probes.solver.conjugate_gradients import conjugate_gradients
from spin_native.probes.solver.design import CurvatureProduct, Design
from spin_native.probes.solver.eigen import eigenbasis
from spin_native.probes.solver.losses import Loss
from spin_native.probes.solver.objective import (
    MAX_FLOAT32_ITERATIONS,
    Objective,
    Solution,
    gradients_and_gaps,
    switch_to_float64,
    widest_precision,
)

# The largest block of columns whose eigenbasis is computed. All outputs share a basis, so more outputs pay for a larger block.
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
    """A solution for each C, in their order, with l1 = 0 and l2 = 1.

    All C are solved side by side: one pass over the features costs nearly the same for many columns as for one. Each iteration
    is a truncated Newton step: its linear system is solved by preconditioned conjugate gradients, to a precision that follows
    the progress (see conjugate_gradients), and a line search makes F fall.

    tol: the relative duality gap at which a C is solved. max_iter: the last iteration only measures the gap.
    InputError for a feature that is not finite, or whose squares overflow.
    """
    design = design.centred(row_weights)
    states = [Objective(design, loss, C * row_weights, 0.0, 1.0, tol) for C in Cs]
    states[0].require_finite_features()
    preconditioner = _BlockPreconditioner(design, row_weights, loss.n_outputs)
    solutions: dict[int, Solution] = {}  # index of C -> solution
    in_float64: set[int] = set()  # indices of the C whose linear systems are solved in float64
    for n_iter in range(1, max_iter + 1):
        for state in states:
            state.start_iteration()
            state.fit_intercepts()
        unsolved = [index for index in range(len(states)) if index not in solutions]
        if not unsolved:
            break
        if n_iter == MAX_FLOAT32_ITERATIONS:
            switch_to_float64([states[i] for i in unsolved])
        gradient_of = {}
        for index, (gradient, gap) in zip(unsolved, gradients_and_gaps([states[i] for i in unsolved], tol), strict=True):
            if gap <= tol or n_iter == max_iter:
                solutions[index] = states[index].solution(gap, n_iter)
            else:
                gradient_of[index] = gradient
        coarse, fine = ({i: g for i, g in gradient_of.items() if (i in in_float64) is fine} for fine in (False, True))
        for index in _newton_steps(states, coarse, preconditioner, design.dtype):
            if states[index].precision != torch.float64:
                switch_to_float64([states[index]])
            else:  # float32 gives no direction that lowers F
                in_float64.add(index)
        for index in _newton_steps(states, fine, preconditioner, torch.float64):  # rounding allows no further progress
            solutions[index] = states[index].solution(states[index].relative_gap(gradient_of[index]), n_iter)
    return [solutions[index] for index in range(len(states))]


def _newton_steps(
    states: Sequence[Objective],
    gradient_of: Mapping[int, Float64[Tensor, "feature output"]],
    preconditioner: "_BlockPreconditioner",
    dtype: torch.dtype,
) -> list[int]:
    """Take a Newton step for each state that has a gradient; return the indices of those that could not lower F.

    dtype: of the linear systems.
    """
    if not gradient_of:
        return []
    moving = [states[index] for index in gradient_of]
    design, n_outputs = moving[0].design, moving[0].loss.n_outputs
    steps = _newton_directions(moving, list(gradient_of.values()), preconditioner, dtype)
    weights = torch.cat([step[:-1] for step in steps], 1).to(widest_precision(moving))
    dzs = design.times(weights).double().split(n_outputs, 1)
    stuck = []
    for (index, gradient), step, dz in zip(gradient_of.items(), steps, dzs, strict=True):
        state = states[index]
        slope = float((gradient * step[:-1]).sum() + state.slopes().sum(0) @ step[-1])
        if not state.line_search(dz + step[-1], step[:-1], step[-1], slope):
            stuck.append(index)
    return stuck


def _newton_directions(
    states: Sequence[Objective],
    gradients: Sequence[Float64[Tensor, "feature output"]],
    preconditioner: "_BlockPreconditioner",
    dtype: torch.dtype,
) -> list[Float64[Tensor, "feature_1 output"]]:
    """The Newton direction -H^-1 g of each state, for the weights and (last row) the intercepts."""
    design, n_outputs = states[0].design, states[0].loss.n_outputs
    curvature_products = [state.loss.curvature_product(state.z, state.row_weights, dtype) for state in states]
    right_side = torch.cat(
        [torch.cat([-g, -s.slopes().sum(0, keepdim=True)]) for s, g in zip(states, gradients, strict=True)], 1
    )
    values = torch.tensor([state.value(state.z, state.weights) for state in states], dtype=torch.float64)
    step = conjugate_gradients(
        lambda v: _hessian_product(design, curvature_products, v),
        preconditioner.inverse_at(states, dtype),
        right_side.to(dtype),
        len(states),
        values,
    )
    return list(step.double().split(n_outputs, 1))


def _hessian_product(
    design: Design, curvature_products: Sequence[CurvatureProduct], v: Float[Tensor, "feature_1 column"]
) -> Float[Tensor, "feature_1 column"]:
    """H v for the Hessians of several states, whose outputs stand side by side in v's columns; l2 = 1."""
    n_outputs = v.shape[1] // len(curvature_products)
    # One pass over the features serves all states.
    product = design.hessian_times(v, lambda u, rows: _side_by_side(curvature_products, u.split(n_outputs, 1), rows))
    product[:-1] += v[:-1]
    return product


def _side_by_side(products: Sequence[CurvatureProduct], parts: Sequence[Tensor], rows: slice) -> Tensor:
    return torch.cat([product(part, rows) for product, part in zip(products, parts, strict=True)], 1)


class _BlockPreconditioner:
    """An approximate inverse of the Hessian, from one eigendecomposition per block of adjacent columns.

    Two approximations are made. Columns of different blocks are treated as unrelated. And each row's Hessian over the outputs
    is taken to be proportional to the row's weight s_i (sum 1), so that with M = the rows' summed Hessians [output, output],

        Hessian = M (x) X^T diag(s) X + I        ((x): Kronecker product; X centred by the weighted means)

    The eigenbases of M and of X^T diag(s) X make this diagonal. The second one depends neither on C nor on the current point:
    it is computed once and serves all C and all iterations. For the squared loss and a single block the inverse is exact.
    """

    def __init__(self, design: Design, row_weights: Float64[Tensor, "row"], n_outputs: int) -> None:
        n_columns = min(MAX_BLOCK_COLUMNS, n_outputs * BLOCK_COLUMNS_PER_OUTPUT)
        # X^T diag(s) X has at most n_rows nonzero eigenvalues: a block larger than that costs more and helps no further.
        n_blocks = -(-design.n_features // min(n_columns, max(design.n_rows, 64)))
        means, self._blocks = [], []
        for columns in torch.arange(design.n_features).tensor_split(n_blocks):
            gram = design.gram(columns, (row_weights / row_weights.sum())[:, None]).lower_square()
            means.append(gram[-1, :-1].clone())
            eigenvalues, basis = eigenbasis(gram[:-1, :-1].addr_(means[-1], means[-1], alpha=-1))
            self._blocks.append((slice(int(columns[0]), int(columns[-1]) + 1), eigenvalues.clamp_(min=0), basis))
        self._means = torch.cat(means)[:, None]

    def inverse_at(
        self, states: Sequence[Objective], dtype: torch.dtype
    ) -> Callable[[Float[Tensor, "feature_1 column"]], Tensor]:
        """v -> approximate H^-1 v at the states' current points, in `dtype`.

        The outputs of the states stand side by side in v's columns.
        """
        curvatures = [state.loss.total_curvature(state.z, state.row_weights) for state in states]
        output_eigenvalues, output_bases = zip(*map(eigenbasis, curvatures), strict=True)
        # Softmax's smallest eigenvalue is 0 (all margins shifted together); no step goes that way, so any positive value does.
        sizes = torch.cat([values.clamp(min=1e-3 * float(values[-1])) for values in output_eigenvalues]).to(dtype)
        output_basis = torch.block_diag(*output_bases).to(dtype)
        means = self._means.to(dtype)
        blocks = [(columns, eigenvalues.to(dtype), basis.to(dtype)) for columns, eigenvalues, basis in self._blocks]

        def inverse(v: Float[Tensor, "feature_1 column"]) -> Float[Tensor, "feature_1 column"]:
            rotated = (v[:-1] - means * v[-1]) @ output_basis
            parts = [
                basis @ ((basis.T @ rotated[columns]) / (eigenvalues[:, None] * sizes + 1))
                for columns, eigenvalues, basis in blocks
            ]
            weights = torch.cat(parts) @ output_basis.T
            intercepts = (v[-1:] @ output_basis / sizes) @ output_basis.T - (means * weights).sum(0, keepdim=True)
            return torch.cat([weights, intercepts])

        return inverse
