"""Integrated gradients (Sundararajan et al. 2017) of neurons: the baseline that neuron gradients are compared with."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from spin_native.analyses.gradients import as_numpy, check_gradients_flow
from spin_native.analyses.prompts import (
    Of,
    Position,
    Prompts,
    Target,
    Text,
    checked_layers,
    default_max_tokens,
    read_output,
    read_prompts,
)
from spin_native.analyses.results import Result, provenance
from spin_native.errors import InputError
from spin_native.given import is_whole
from spin_native.models import Layer, Transformer
from spin_native.text.tokenizer import Tokenizer

Scaled = Literal["token", "layer"]


def integrated_gradients(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Sequence[Text],
    targets: Sequence[Target | Sequence[Target]] | None = None,
    *,
    steps: int = 20,
    scaled: Scaled = "token",
    of: Of = "probability",
    position: Position | None = None,
    layers: Sequence[int] | None = None,
    max_tokens: int | None = None,
    progress: bool | None = None,
) -> Result:
    """Integrated gradients of every neuron at the probed token: a times the mean of do/da on the path from 0 to a.

    steps: points on the path, at the middles of equal parts. One layer after another is scaled, with all its neurons together:
    scaled: "token" scales them at the probed token only (as Dai et al. 2022, "Knowledge neurons"), "layer" at every token (as
        Captum's layer integrated gradients). With "token" the attributions of a layer sum to the output minus that of the
        layer at 0.
    The other arguments, and the errors, are those of `neuron_gradients`. Returns the array "attribution", axes row, label,
    layer, neuron.

    It costs `steps` forward and backward passes per row and layer. For one neuron scaled alone the integral is exactly the
    output minus that with the neuron at 0: use `intervention_curves`.
    """
    check_gradients_flow(model)
    if not is_whole(steps) or steps < 1 or scaled not in get_args(Scaled):
        raise InputError(f"got steps={steps}, scaled={scaled!r}; expected 1 or more, and one of {', '.join(get_args(Scaled))}")
    read = read_prompts(model, tokenizer, prompts, targets, of, position)
    chosen = checked_layers(model, layers)
    budget = default_max_tokens(model) if max_tokens is None else max_tokens
    rows = tqdm(range(len(read.rows)), unit=" prompts", disable=None if progress is None else not progress)
    attribution = np.stack([_of_row(model, read, row, of, chosen, steps, scaled, budget) for row in rows])
    axes = {
        "row": np.arange(attribution.shape[0]),
        "label": np.arange(attribution.shape[1]),
        "layer": np.array(chosen),
        "neuron": np.arange(attribution.shape[3]),
    }
    settings = {"analysis": "integrated_gradients", **read.settings(of), "steps": steps, "scaled": scaled}
    return Result(axes, {"attribution": attribution}, provenance(model, tokenizer, **settings))


@torch.inference_mode(False)
def _of_row(
    model: Transformer,
    prompts: Prompts,
    row: int,
    of: Of,
    layers: Sequence[int],
    steps: int,
    scaled: Scaled,
    max_tokens: int,
) -> Float[np.ndarray, "label layer neuron"]:
    batch, _ = prompts.batch([row], model.device)
    hidden = {}
    with torch.no_grad():
        for layer in model.layers(batch):
            if layer.index in layers:
                hidden[layer.index] = layer.hidden
            if layer.index == max(layers):
                break
    fractions = (np.arange(steps) + 0.5) / steps
    n_copies = max(1, max_tokens // batch.n_tokens)
    attributions = []
    for index in layers:
        parts = [
            _summed(model, prompts, row, of, index, hidden[index], fractions[start : start + n_copies], scaled)
            for start in range(0, steps, n_copies)
        ]
        attributions.append(np.sum(parts, axis=0) / steps)
    return np.stack(attributions, axis=1)


def _summed(
    model: Transformer,
    prompts: Prompts,
    row: int,
    of: Of,
    index: int,
    hidden: Float[Tensor, "token d_model"],
    fractions: Float[np.ndarray, "step"],
    scaled: Scaled,
) -> Float[np.ndarray, "label neuron"]:
    """a times the sum of do/da over some points of the path, which run as copies of the row from layer `index` on."""
    n_copies = len(fractions)
    batch, tokens = prompts.batch([row] * n_copies, model.device)
    targets = torch.as_tensor(prompts.targets[[row] * n_copies], device=model.device)
    factors = torch.as_tensor(fractions, dtype=model.dtype, device=model.device)[:, None]
    kept: dict[str, Tensor] = {}

    def edit(layer: Layer) -> Tensor:
        assert layer.activation is not None
        if layer.index != index:
            return layer.activation
        kept["activation"] = layer.activation[tokens]
        kept["scaled"] = (factors * kept["activation"]).requires_grad_()
        if scaled == "token":
            return layer.activation.index_copy(0, tokens, kept["scaled"])
        return (layer.activation * factors[batch.row_of_token]).index_copy(0, tokens, kept["scaled"])

    with torch.enable_grad():
        *_, final = model.layers(batch, edit=edit, embedded=hidden.repeat(n_copies, 1), first=index)
        output = read_output(model, of, final.hidden[tokens], targets)
        labels = range(output.shape[1])
        gradients = [
            torch.autograd.grad(output[:, label].sum(), kept["scaled"], retain_graph=label < labels[-1])[0] for label in labels
        ]
    return as_numpy((torch.stack(gradients) * kept["activation"]).sum(1))
