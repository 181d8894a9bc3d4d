"""Change chosen neurons while the model runs: an `edit` for `Transformer.layers`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spin_native.errors import InputError
from spin_native.models import Transformer
from spin_native.models.transformer import Layer

How = Literal["zero", "mean", "noise", "resample"]


@dataclass(frozen=True)
class Ablation:
    """What happens to chosen neurons of every token.

    neurons: layer -> indices. how: "zero"; "mean", the value in `values`; "noise", Gaussian noise of standard deviation
        `noise` is added (Wang et al. 2022: 0.1); "resample", the values of a random other token out of `values`, all chosen
        neurons of a layer from the same one.
    values: for "mean" layer -> [neuron]; for "resample" layer -> [pool_token, neuron]; over the chosen neurons, in their order.
    seed: of noise and resampling. What is drawn for a text depends on its token ids and the layer, not on its batch.
    """

    neurons: Mapping[int, Int[np.ndarray, "chosen"]]
    how: How = "zero"
    values: Mapping[int, Float[np.ndarray, "*pool chosen"]] = field(default_factory=dict)
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            raise InputError(f"how is {self.how!r}; expected one of {', '.join(get_args(How))}")
        for layer, chosen in self.neurons.items():
            if self.how in ("mean", "resample"):
                expected = (2 if self.how == "resample" else 1, len(chosen))
                values = self.values.get(layer)
                if values is None or (values.ndim, values.shape[-1]) != expected or not len(values):
                    raise InputError(
                        f"ablation by {self.how!r} needs values of the {len(chosen)} chosen neurons of layer {layer}; got "
                        f"{'none' if values is None else list(values.shape)}"
                    )

    def check(self, model: Transformer) -> "Ablation":
        """Itself; InputError for a layer or a neuron that the model does not have."""
        for layer, chosen in self.neurons.items():
            if not 0 <= layer < model.depth:
                raise InputError(f"no layer {layer}; the model has layers 0 to {model.depth - 1}")
            width = model.width("activation", layer)
            if len(chosen) and not (chosen.min() >= 0 and chosen.max() < width):
                raise InputError(f"layer {layer}: neurons {chosen.min()} to {chosen.max()}; expected 0 to {width - 1}")
        return self

    def __call__(self, layer: Layer) -> Float[Tensor, "token d_ffn"]:
        """The layer's activation with the chosen neurons changed."""
        activation = layer.activation
        assert activation is not None  # the loop asks only layers that have an FFN
        chosen = self.neurons.get(layer.index)
        if chosen is None or not len(chosen):
            return activation
        columns = torch.as_tensor(chosen, device=activation.device)
        changed = activation.clone()
        changed[:, columns] = self._changed(layer, activation[:, columns]).to(activation.dtype)
        return changed

    def _changed(self, layer: Layer, old: Float[Tensor, "token chosen"]) -> Float[Tensor, "token chosen"]:
        if self.how == "zero":
            return torch.zeros_like(old)
        if self.how == "mean":
            return torch.as_tensor(self.values[layer.index], device=old.device).expand_as(old)
        rows = []
        for ids in layer.batch.ids.split(layer.batch.lengths):
            generator = self._generator(layer.index, ids)
            if self.how == "noise":
                rows.append(self.noise * torch.randn(len(ids), old.shape[1], generator=generator))
            else:
                pool = torch.as_tensor(self.values[layer.index])
                rows.append(pool[torch.randint(len(pool), (len(ids),), generator=generator)])
        drawn = torch.cat(rows).to(old.device)
        return old + drawn if self.how == "noise" else drawn

    def _generator(self, layer: int, ids: Int[Tensor, "token"]) -> torch.Generator:
        """Random numbers that belong to one text, one layer and the seed."""
        digest = hashlib.sha256(f"{self.seed} {layer} {ids.tolist()}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
