"""The ground truth of neuron gradients: shift neurons step by step, run the model, and see how its output moves.

Many interventions run as the rows of one batch, from the first shifted layer on: the layers below it are the same for all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from spin_native.analyses.gradients import Convention, NeuronSet, as_numpy, check_convention, neuron_set
from spin_native.analyses.prompts import (
    Of,
    Position,
    Prompts,
    Target,
    Text,
    checked_layers,
    read_output,
    read_prompts,
)
from spin_native.analyses.results import Result, provenance
from spin_native.errors import InputError
from spin_native.features.extract import token_budget
from spin_native.given import is_number, numbers_of
from spin_native.models import Layer, Transformer
from spin_native.text.tokenizer import Tokenizer

GRID = tuple(float(delta) for delta in np.linspace(-2, 2, 21).round(1))  # the range that Zhao et al. 2025 report as linear
LINEAR = 0.95  # from this absolute Pearson r on, a neuron's curve is called linear (Zhao et al. 2025)


@dataclass(frozen=True, eq=False)
class InterventionCurves(Result):
    """The output along every intervention's grid of shifts: array "output", axes row, label, intervention, delta.

    base [row, label]: the output without a shift. neurons: of each intervention, the (layer, neuron) pairs it shifts.
    """

    base: Float[np.ndarray, "row label"]
    neurons: Sequence[Sequence[tuple[int, int]]]

    def change(
        self, within: float | int | None = None
    ) -> tuple[Float[np.ndarray, "delta"], Float[np.ndarray, "row label intervention delta"]]:
        """The shifts of at most `within` in absolute value (None: all), and the output's change from `base` at each."""
        delta = self.axes["delta"]
        chosen = np.ones(len(delta), bool) if within is None else np.abs(delta) <= within
        check_grid(delta[chosen].tolist())
        return delta[chosen], self["output"][..., chosen] - self.base[:, :, None, None]

    def slope(self, within: float | int | None = None) -> Float[np.ndarray, "row label intervention"]:
        """The neuron empirical gradient: sum(delta * change) / sum(delta^2), the regression line through the origin.

        within: use only shifts of at most this size (None: all). Raises InputError if fewer than two shifts remain.
        """
        delta, change = self.change(within)
        return change @ delta / (delta @ delta)

    def linearity(self, within: float | int | None = None) -> Float[np.ndarray, "row label intervention"]:
        """Pearson's r of shift and change: 1 or -1 for a line; NaN where the output does not move."""
        delta, change = self.change(within)
        return correlation(change, np.broadcast_to(delta, change.shape))

    def shares(self, within: float | int | None = None) -> dict[str, float]:
        """The shares of all curves that are linear (|r| > 0.95), rise (slope > 0) and fall (slope < 0)."""
        slope, linearity = self.slope(within), self.linearity(within)
        return {
            "linear": float((np.abs(linearity) > LINEAR).mean()),
            "positive": float((slope > 0).mean()),
            "negative": float((slope < 0).mean()),
        }

    def summary(self, within: float | int | None = None) -> Result:
        """Arrays "slope" and "linearity" of every curve, axes row, label, intervention."""
        axes = {name: self.axes[name] for name in ("row", "label", "intervention")}
        arrays = {"slope": self.slope(within), "linearity": self.linearity(within)}
        return Result(axes, arrays, {**self.metadata, "within": within})

    def to_table(self) -> pa.Table:
        """As `Result.to_table`, with the shifted neurons in words ("3:17 3:20": neurons 17 and 20 of layer 3)."""
        table = super().to_table()
        names = np.array([" ".join(f"{layer}:{neuron}" for layer, neuron in members) for members in self.neurons])
        return table.append_column("neurons", pa.array(names[table["intervention"].to_numpy()]))


def intervention_curves(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Sequence[Text],
    targets: Sequence[Target | Sequence[Target]] | None = None,
    *,
    neurons: Sequence[tuple[int, int] | NeuronSet],
    grid: Sequence[float | int] | np.ndarray = GRID,
    convention: Convention = "magnitude",
    of: Of = "probability",
    position: Position | None = None,
    max_tokens: int | None = None,
    progress: bool | None = None,
) -> InterventionCurves:
    """Shift neurons at the probed token over a grid, and record the output at every step.

    neurons: the interventions, the same for every prompt: a (layer, neuron) pair each, or a list of pairs shifted together.
    grid: the shifts delta, two different ones or more.
    convention: "magnitude" replaces an activation a by a + sign(a) delta (a neuron at 0 stays); "additive" by a + delta. The
        sign is that of the unshifted run.
    The other arguments are those of `neuron_gradients`. A model with reordered weights works here, too. In float32 the change
    of a weak neuron drowns in rounding: load the model with dtype=torch.float64 for exact curves.

    Raises InputError as `neuron_gradients` does, and for a grid of one point or a neuron that the model does not have.
    """
    check_convention(convention)
    check_grid(grid)
    read = read_prompts(model, tokenizer, prompts, targets, of, position)
    if not isinstance(neurons, (Sequence, np.ndarray)):
        raise InputError(f"neurons is {neurons!r:.60}; expected a list of (layer, neuron) pairs")
    members = [neuron_set(entry) for entry in neurons]
    check_neurons(model, members)
    runner = _Interventions(model, read, of, members, np.array(grid, np.float64), convention, max_tokens or token_budget(model))
    base, output = [], []
    for row in tqdm(range(len(read.rows)), unit=" prompts", disable=None if progress is None else not progress):
        of_row = runner.run(row)
        base.append(of_row[0])
        output.append(of_row[1])
    stacked = np.stack(output)  # [row, label, intervention, delta]
    axes = {
        "row": np.arange(stacked.shape[0]),
        "label": np.arange(stacked.shape[1]),
        "intervention": np.arange(len(members)),
        "delta": np.array(grid, np.float64),
    }
    metadata = provenance(
        model,
        tokenizer,
        analysis="intervention_curves",
        convention=convention,
        **read.settings(of),
    )
    return InterventionCurves(axes, {"output": stacked}, metadata, np.stack(base), members)


class _Interventions:
    """Interventions on one prompt at a time."""

    def __init__(
        self,
        model: Transformer,
        prompts: Prompts,
        of: Of,
        members: list[list[tuple[int, int]]],
        grid: Float[np.ndarray, "delta"],
        convention: Convention,
        max_tokens: int,
    ) -> None:
        self.model, self.prompts, self.of, self.members = model, prompts, of, members
        self.grid, self.convention, self.max_tokens = grid, convention, max_tokens

    @torch.inference_mode()
    def run(self, row: int) -> tuple[Float[np.ndarray, "label"], Float[np.ndarray, "label intervention delta"]]:
        """The output without a shift, and at every point of every intervention."""
        batch, token = self.prompts.batch([row], self.model.device)
        targets = torch.as_tensor(self.prompts.targets[[row]], device=self.model.device)
        hidden, activation = {}, {}
        for layer in self.model.layers(batch):
            if layer.activation is None:
                base = read_output(self.model, self.of, layer.hidden[token], targets)[0]
            else:
                hidden[layer.index], activation[layer.index] = layer.hidden, layer.activation[token[0]]
        output = np.empty((len(base), len(self.members), len(self.grid)))
        for first in hidden:
            chosen = [index for index, members in enumerate(self.members) if min(members)[0] == first]
            for index, step, values in self.from_layer(row, first, chosen, hidden[first], activation):
                output[:, index, step] = values
        return as_numpy(base), output

    def from_layer(
        self,
        row: int,
        first: int,
        chosen: Sequence[int],
        hidden: Float[Tensor, "token d_model"],
        activation: dict[int, Float[Tensor, "d_ffn"]],
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Float[np.ndarray, "label point"]]]:
        """Interventions whose lowest layer is `first`: their indices, their places on the grid, and the output at each."""
        index, step = (grid.ravel() for grid in np.meshgrid(np.array(chosen, int), np.arange(len(self.grid)), indexing="ij"))
        n_copies = max(1, self.max_tokens // len(hidden))
        for start in range(0, len(index), n_copies):
            part = slice(start, start + n_copies)
            shifts = self.shifts(index[part], step[part], activation)
            values = self.output(row, len(index[part]), first, hidden, shifts)
            yield index[part], step[part], values.T

    def shifts(
        self, index: np.ndarray, step: np.ndarray, activation: dict[int, Float[Tensor, "d_ffn"]]
    ) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Layer -> which copies of the prompt are shifted, which neuron of each, and by how much."""
        listed: dict[int, list[tuple[int, int, float]]] = {}
        for copy, (intervention, place) in enumerate(zip(index.tolist(), step.tolist(), strict=True)):
            for layer, neuron in self.members[intervention]:
                sign = float(activation[layer][neuron].sign()) if self.convention == "magnitude" else 1.0
                listed.setdefault(layer, []).append((copy, neuron, sign * float(self.grid[place])))
        return {
            layer: (
                torch.tensor([copy for copy, _, _ in entries], device=self.model.device),
                torch.tensor([neuron for _, neuron, _ in entries], device=self.model.device),
                torch.tensor([shift for _, _, shift in entries], device=self.model.device, dtype=self.model.dtype),
            )
            for layer, entries in listed.items()
        }

    def output(
        self,
        row: int,
        n_copies: int,
        first: int,
        hidden: Float[Tensor, "token d_model"],
        shifts: dict[int, tuple[Tensor, Tensor, Tensor]],
    ) -> Float[np.ndarray, "point label"]:
        """The output of copies of a prompt from layer `first` on, each with shifts of its own."""
        batch, tokens = self.prompts.batch([row] * n_copies, self.model.device)
        targets = torch.as_tensor(self.prompts.targets[[row] * n_copies], device=self.model.device)

        def edit(layer: Layer) -> Tensor:
            assert layer.activation is not None
            if layer.index not in shifts:
                return layer.activation
            copies, neurons, by = shifts[layer.index]
            return layer.activation.index_put((tokens[copies], neurons), by, accumulate=True)

        *_, final = self.model.layers(batch, edit=edit, embedded=hidden.repeat(n_copies, 1), first=first)
        return as_numpy(read_output(self.model, self.of, final.hidden[tokens], targets))


def check_grid(grid: Sequence[float | int] | np.ndarray) -> None:
    """InputError unless the grid has two different finite shifts."""
    shifts = numbers_of(grid) or []
    if len(set(shifts)) < 2 or not all(map(is_number, shifts)):
        given = grid.tolist() if isinstance(grid, np.ndarray) else grid
        raise InputError(f"the grid of shifts is {given!r:.80}; expected two or more different finite numbers")


def check_neurons(model: Transformer, interventions: Sequence[Sequence[tuple[int, int]]]) -> None:
    """InputError, naming it, for a neuron that the model does not have."""
    if not interventions or not all(interventions):
        raise InputError("neurons: got none; expected one or more (layer, neuron) pairs")
    for members in interventions:
        for layer, neuron in members:
            checked_layers(model, [layer])
            if not 0 <= neuron < model.width("activation", layer):
                raise InputError(f"neuron {neuron} of layer {layer}: expected 0 to {model.width('activation', layer) - 1}")


def correlation(one: Float[np.ndarray, "*axes n"], other: Float[np.ndarray, "*axes n"]) -> Float[np.ndarray, "*axes"]:
    """Pearson's r along the last axis; NaN where one of the two is constant."""
    one, other = (x - x.mean(-1, keepdims=True) for x in (np.asarray(one, np.float64), np.asarray(other, np.float64)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
