"""Neuron gradients (NeurGrad; Zhao et al. 2025): how fast the model's output moves when a neuron's activation is shifted.

All neurons of all layers come from one forward and one backward pass: rows of a batch do not meet, so the gradient of the sum
of their outputs is each row's own gradient.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from spin_native.analyses.prompts import (
    Of,
    Position,
    Prompts,
    Target,
    Text,
    check_model,
    checked_layers,
    default_max_tokens,
    read_output,
    read_prompts,
)
from spin_native.analyses.reductions import REDUCTIONS, Reduce, Reduction, Top
from spin_native.analyses.results import Result, provenance
from spin_native.errors import InputError
from spin_native.given import is_whole
from spin_native.models import Layer, Transformer
from spin_native.text.batch import TokenBatch
from spin_native.text.tokenizer import Tokenizer

Convention = Literal["magnitude", "additive"]
NeuronSet = Sequence[tuple[int, int]]  # (layer, neuron) of neurons that are shifted together
BLOCK_BYTES = 16 * 2**20  # gradients in memory before they are handed on


class Block(NamedTuple):
    """Consecutive prompts: the followed numbers, and at the probed token the activations and the gradients."""

    output: Float[np.ndarray, "row label"]
    activation: Float[np.ndarray, "row layer neuron"]
    gradient: Float[np.ndarray, "row label layer neuron"]


@dataclass(frozen=True, eq=False)
class NeuronGradients(Result):
    """Gradients of every neuron, or their reduction; see `neuron_gradients`.

    output [row, label]: the followed number as the model computes it.
    """

    output: Float[np.ndarray, "row label"]

    def of(self, neurons: Sequence[tuple[int, int] | NeuronSet]) -> Float[np.ndarray, "row label intervention"]:
        """The gradient along each intervention: of one neuron, or the sum over a set of neurons that are shifted together.

        Compare it with `InterventionCurves.slope()`. Raises InputError for reduced gradients and for an unknown neuron.
        """
        if "layer" not in self.axes or "gradient" not in self.arrays or "rank" in self.axes:
            raise InputError("the gradients were reduced; compute them with reduce='none' to look up neurons")
        gradient, places = self["gradient"], {int(layer): place for place, layer in enumerate(self.axes["layer"])}
        sums = []
        for members in map(neuron_set, neurons):
            for layer, neuron in members:
                if layer not in places or not 0 <= neuron < gradient.shape[-1]:
                    raise InputError(
                        f"no gradient of neuron {neuron} of layer {layer}; there are layers {', '.join(map(str, places))} with "
                        f"neurons 0 to {gradient.shape[-1] - 1}"
                    )
            sums.append(sum(gradient[:, :, places[layer], neuron] for layer, neuron in members))
        return np.stack(sums, axis=-1)


def neuron_gradients(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Sequence[Text],
    targets: Sequence[Target | Sequence[Target]] | None = None,
    *,
    convention: Convention = "magnitude",
    of: Of = "probability",
    position: Position | None = None,
    layers: Sequence[int] | None = None,
    reduce: Reduce = "none",
    top: int | None = None,
    max_tokens: int | None = None,
    progress: bool | None = None,
) -> NeuronGradients:
    """The gradient of the model's output by every neuron's activation at one token of each prompt.

    model: load it with `load_model(name, head=True, prepack="kernels")`: reordered weights give no gradients.
    prompts: texts (the mask token is written as the tokenizer spells it, `<mask>` or `[MASK]`), or rows of token ids.
    targets: for each prompt a word of one token or a token id, or a list of them (labels; equally many for every prompt).
    convention: "magnitude" shifts an activation a by delta away from 0, a + sign(a) delta: the gradient is NeurGrad,
        do/da sign(a), and 0 where a is 0. "additive" shifts it by delta: the gradient is do/da.
    of: the output o: "probability", "logit" or "log_probability" of each target; or a function of the logits [row, vocab] that
        returns [row] or [row, label]; or, for a model without a head, a probe fitted on the final hidden state.
    position: the probed token, "mask", "last" or "first" (None: the mask of a masked, the last of a causal language model).
    layers: the layers to read (None: all).
    reduce: "none" keeps all, [row, label, layer, neuron]. The others never do, and their memory does not grow with it:
        "top", the `top` neurons (default 10) of every row, label and layer with the largest gradients in absolute value;
        "mean", over rows, with the mean absolute value, the share of positive gradients and the rank over all neurons;
        "histogram", over rows and neurons, in bins of one decade.
    max_tokens: batch size in tokens. progress: show a progress bar on stderr (None: if that is a terminal).

    Raises InputError for a model with reordered weights, of smaller depth, or without the output that `of` names; for a prompt
    without exactly one mask token or longer than the model holds; for a target of several tokens or outside the vocabulary;
    and for layers that the model does not have.

    Source: Zhao et al. 2025, "Neuron empirical gradient: discovering and quantifying neurons' global linear controllability".
    """
    reduction = new_reduction(reduce, top)
    outputs: list[Float[np.ndarray, "row label"]] = []
    gradients = _Gradients(model, tokenizer, prompts, targets, convention, of, position, layers, max_tokens)
    for _, block in gradients.blocks(progress):
        reduction.add(block.gradient, block.activation)
        outputs.append(block.output)
    output = np.concatenate(outputs)
    axes, arrays = reduction.result(gradients.layers)
    return NeuronGradients(axes, arrays, gradients.metadata(reduce=reduce, **reduction.settings), output)


def gradient_blocks(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Sequence[Text],
    targets: Sequence[Target | Sequence[Target]] | None = None,
    *,
    convention: Convention = "magnitude",
    of: Of = "probability",
    position: Position | None = None,
    layers: Sequence[int] | None = None,
    max_tokens: int | None = None,
    progress: bool | None = None,
) -> Iterator[NeuronGradients]:
    """All gradients as a stream of results, each of some consecutive rows, for more rows than memory holds.

    The axis "row" numbers the rows among all prompts. Arguments and errors: see `neuron_gradients`.
    """
    gradients = _Gradients(model, tokenizer, prompts, targets, convention, of, position, layers, max_tokens)
    metadata = gradients.metadata(reduce="none")
    for first_row, block in gradients.blocks(progress):
        reduction = REDUCTIONS["none"]()
        reduction.add(block.gradient, block.activation)
        axes, arrays = reduction.result(gradients.layers)
        yield NeuronGradients(axes | {"row": axes["row"] + first_row}, arrays, metadata, block.output)


class _Gradients:
    """A model with checked prompts, and the gradients to compute on them."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        prompts: Sequence[Text],
        targets: Sequence[Target | Sequence[Target]] | None,
        convention: Convention,
        of: Of,
        position: Position | None,
        layers: Sequence[int] | None,
        max_tokens: int | None,
    ) -> None:
        check_gradients_flow(model)
        check_convention(convention)
        self.model, self.tokenizer, self.convention, self.of = model, tokenizer, convention, of
        self.prompts: Prompts = read_prompts(model, tokenizer, prompts, targets, of, position)
        self.layers = checked_layers(model, layers)
        self.max_tokens = default_max_tokens(model) if max_tokens is None else max_tokens

    def metadata(self, **settings: object) -> dict[str, object]:
        return provenance(
            self.model,
            self.tokenizer,
            analysis="neuron_gradients",
            convention=self.convention,
            **self.prompts.settings(self.of),
            **settings,
        )

    def blocks(self, progress: bool | None) -> Iterator[tuple[int, Block]]:
        """The number of the first row of every block, and the block."""
        n_rows, first_row = len(self.prompts.rows), 0
        n_numbers = max(1, self.prompts.targets.shape[1]) * len(self.layers) * self.model.width("activation", self.layers[0])
        rows_per_block = max(1, BLOCK_BYTES // (n_numbers * self.model.dtype.itemsize))
        with tqdm(total=n_rows, unit=" prompts", disable=None if progress is None else not progress) as bar:
            while first_row < n_rows:
                rows = range(first_row, min(first_row + rows_per_block, n_rows))
                yield first_row, self.block(rows, bar)
                first_row = rows.stop

    @torch.inference_mode(False)
    def block(self, rows: range, bar: "tqdm[None]") -> Block:
        arrays: list[np.ndarray] = []  # output, activation, gradient
        for chosen in self.prompts.batches(self.max_tokens, rows):
            batch, tokens = self.prompts.batch(chosen, self.model.device)
            targets = torch.as_tensor(self.prompts.targets[chosen], device=self.model.device)
            parts = gradients_of_batch(self.model, batch, tokens, targets, self.of, self.layers)
            arrays = arrays or [np.empty((len(rows), *part.shape[1:]), part.dtype) for part in parts]
            for array, part in zip(arrays, parts, strict=True):
                array[np.array(chosen) - rows.start] = part
            bar.update(len(chosen))
        output, activation, gradient = arrays
        if self.convention == "magnitude":
            gradient *= np.sign(activation)[:, None]
        return Block(output, activation, gradient)


def gradients_of_batch(
    model: Transformer,
    batch: TokenBatch,
    tokens: Int[Tensor, "row"],
    targets: Int[Tensor, "row target"],
    of: Of,
    layers: Sequence[int],
) -> tuple[Float[np.ndarray, "row label"], Float[np.ndarray, "row layer neuron"], Float[np.ndarray, "row label layer neuron"]]:
    """The output, the activations at the probed tokens, and do/da of each output by each of them: one forward pass, and one
    backward pass per label.

    A shift of zeros is added to the activations of the probed tokens: its gradient is theirs, and no other token's is kept.
    """
    activations: dict[int, Tensor] = {}
    shifts: dict[int, Tensor] = {}

    def edit(layer: Layer) -> Tensor:
        assert layer.activation is not None
        if layer.index not in layers:
            return layer.activation
        activations[layer.index] = layer.activation.detach()[tokens]
        shifts[layer.index] = torch.zeros_like(activations[layer.index], requires_grad=True)
        return layer.activation.index_add(0, tokens, shifts[layer.index])

    with torch.enable_grad():
        *_, final = model.layers(batch, edit=edit)
        output = read_output(model, of, final.hidden[tokens], targets)  # [row, label]
        del final
        n_labels = output.shape[1]
        gradients = []
        for label in range(n_labels):
            by_layer = torch.autograd.grad(output[:, label].sum(), list(shifts.values()), retain_graph=label < n_labels - 1)
            gradients.append(torch.stack(by_layer, 1))  # [row, layer, neuron]
    activation, gradient = torch.stack(list(activations.values()), 1), torch.stack(gradients, 1)
    return as_numpy(output), as_numpy(activation), as_numpy(gradient)


def as_numpy(values: Float[Tensor, "..."]) -> Float[np.ndarray, "..."]:
    """float64 as it is, other dtypes as float32."""
    values = values.detach()
    return (values if values.dtype == torch.float64 else values.float()).cpu().numpy()


def neuron_set(neurons: tuple[int, int] | NeuronSet) -> list[tuple[int, int]]:
    """One (layer, neuron), or several different ones, as a list of pairs."""
    try:
        pairs: Any = [neurons] if len(neurons) == 2 and all(map(is_whole, neurons)) else neurons
        members = [(layer, neuron) for layer, neuron in pairs]
    except (TypeError, ValueError):
        members = [(None, None)]
    if not all(is_whole(number) for pair in members for number in pair):
        raise InputError(f"neurons: got {neurons!r:.60}; expected a pair (layer, neuron), or a list of such pairs")
    if len(set(members)) < len(members):
        raise InputError(f"neurons: {neurons!r:.60} names a neuron twice; name each once")
    return [(int(layer), int(neuron)) for layer, neuron in members]


def check_gradients_flow(model: Transformer) -> None:
    """InputError for what is no model, and for one with reordered weights."""
    check_model(model)
    if model.immovable is not None:
        raise InputError("the model's weights are reordered for speed and give no gradients: load it with prepack='kernels'")


def check_convention(convention: str) -> None:
    """InputError unless it is one of `Convention`."""
    if convention not in get_args(Convention):
        raise InputError(f"convention is {convention!r}; expected one of {', '.join(get_args(Convention))}")


def new_reduction(reduce: str, top: int | None) -> Reduction:
    """The reduction of that name; InputError for another name, and for `top` where nothing is ranked."""
    if reduce not in REDUCTIONS:
        raise InputError(f"reduce is {reduce!r}; expected one of {', '.join(REDUCTIONS)}")
    if top is not None and (reduce != "top" or not is_whole(top) or top < 1):
        raise InputError(f"top is {top!r}; expected 1 or more, and only with reduce='top'")
    return REDUCTIONS[reduce]() if top is None else Top(top)
