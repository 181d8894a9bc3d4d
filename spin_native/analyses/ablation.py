"""Change chosen neurons while the model runs: an `edit` for `Transformer.layers`, and the values that it writes."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spin_native.errors import InputError
from spin_native.features.extract import token_budget
from spin_native.given import is_whole, numbers_of
from spin_native.models import Transformer
from spin_native.models.transformer import Layer
from spin_native.text.batch import TokenBatch
from spin_native.text.packing import pack

How = Literal["zero", "mean", "noise", "resample"]
Neurons = Mapping[int, Sequence[int] | Int[np.ndarray, "_"]]  # layer -> indices
Types = Sequence[Sequence[int]] | None  # token types of each row; None: all 0
POOL_TOKENS = 1000  # how many tokens "resample" draws from


@dataclass(frozen=True)
class Ablation:
    """What happens to chosen neurons of every token.

    neurons: layer -> indices. how: "zero"; "mean", the value in `values`; "noise", Gaussian noise of standard deviation
        `noise` is added (Wang et al. 2022: 0.1); "resample", the values of a random other token out of `values`, all chosen
        neurons of a layer from the same one.
    values: for "mean" layer -> [neuron]; for "resample" layer -> [pool_token, neuron]; over the chosen neurons, in their order.
    seed: of noise and resampling. What is drawn for a text depends on its token ids and the layer, not on its batch.
    text_of: for "resample" the `text_digest` of each pool token's text: a text never draws from itself. None: not known.
    """

    neurons: Mapping[int, Int[np.ndarray, "chosen"]]
    how: How = "zero"
    values: Mapping[int, Float[np.ndarray, "*pool chosen"]] = field(default_factory=dict)
    noise: float = 0.1
    seed: int = 0
    text_of: Int[np.ndarray, "pool"] | None = None

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
            if not is_whole(layer) or not 0 <= layer < model.depth:
                raise InputError(f"ablation: no layer {layer!r}; the model has layers 0 to {model.depth - 1}")
            width = model.width("activation", layer)
            if len(chosen) and not (min(chosen) >= 0 and max(chosen) < width):
                raise InputError(
                    f"ablation: layer {layer} has neurons {min(chosen)} to {max(chosen)}; expected 0 to {width - 1}"
                )
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
        for ids in layer.batch.ids.split(layer.batch.texts.lengths):
            generator = self._generator(layer.index, ids)
            if self.how == "noise":
                rows.append(self.noise * torch.randn(len(ids), old.shape[1], generator=generator))
            else:
                pool = torch.as_tensor(self._pool(layer.index, ids))
                rows.append(pool[torch.randint(len(pool), (len(ids),), generator=generator)])
        drawn = torch.cat(rows).to(old.device)
        return old + drawn if self.how == "noise" else drawn

    def _pool(self, layer: int, ids: Int[Tensor, "token"]) -> Float[np.ndarray, "other_token chosen"]:
        """The tokens that a text may draw from: those of other texts."""
        pool = self.values[layer]
        if self.text_of is not None:
            pool = pool[self.text_of != text_digest(ids.tolist())]
            if not len(pool):
                raise InputError("resample: the texts that values are drawn from hold no other text than this one; give others")
        return pool

    def _generator(self, layer: int, ids: Int[Tensor, "token"]) -> torch.Generator:
        """Random numbers that belong to one text, one layer and the seed."""
        digest = hashlib.sha256(f"{self.seed} {layer} {ids.tolist()}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class NeuronValues:
    """What "mean" and "resample" write, for all neurons of every layer.

    values: layer -> [neuron], means, or [pool_token, neuron]; empty for "zero" and "noise". text_of: as of `Ablation`.
    """

    values: Mapping[int, Float[np.ndarray, "*pool neuron"]] = field(default_factory=dict)
    text_of: Int[np.ndarray, "pool"] | None = None

    def edit(self, neurons: Mapping[int, Int[np.ndarray, "_"]], how: How, noise: float, seed: int) -> Ablation:
        """The edit of some neurons."""
        values = {layer: self.values[layer][..., chosen] for layer, chosen in neurons.items() if layer in self.values}
        return Ablation(neurons, how, values, noise, seed, self.text_of)


def ablation_values(
    model: Transformer,
    rows: Sequence[Sequence[int]] | None,
    how: How,
    *,
    pool_tokens: int = POOL_TOKENS,
    seed: int = 0,
    text_of: Sequence[int] | None = None,
    token_types: Types = None,
) -> NeuronValues:
    """The values that ablation by "mean" or "resample" writes, from the unchanged model's activations on other texts.

    rows: token ids of each text. how: "mean" takes the mean over all tokens of all rows; "resample" keeps `pool_tokens` random
        tokens (drawn by `seed`), special tokens among them. "zero" and "noise" need no rows, and get no values.
    text_of: the `text_digest` of the text of each row, where a row is one window of a text; None: every row is a text.
    token_types: of the tokens of each row; None: all 0.
    Raises InputError for an unknown `how`, and where rows are needed but none are given.
    """
    if how not in get_args(How):
        raise InputError(f"how is {how!r}; expected one of {', '.join(get_args(How))}")
    if how in ("zero", "noise"):
        return NeuronValues()
    if not rows:
        raise InputError(f"how={how!r} needs texts to take the neurons' values from: give values_from=, a list of texts")
    if how == "mean":
        return NeuronValues(_means(model, rows, token_types))
    if not is_whole(pool_tokens) or pool_tokens < 1:
        raise InputError(f"pool_tokens is {pool_tokens!r}; expected a whole number, 1 or more")
    lengths = [len(row) for row in rows]
    n_tokens = sum(lengths)
    picked = np.sort(np.random.default_rng(seed).permutation(n_tokens)[:pool_tokens])
    digests = np.repeat([text_digest(row) for row in rows] if text_of is None else text_of, lengths)
    return NeuronValues(_tokens(model, rows, token_types, picked), digests[picked])


def text_digest(ids: Sequence[int]) -> int:
    """A number of 63 bits that recognises a text by its token ids."""
    return int.from_bytes(hashlib.sha256(str(list(ids)).encode()).digest()[:8], "little") >> 1


def chosen_neurons(given: Any, widths: Mapping[int, int]) -> dict[int, Int[np.ndarray, "_"]]:
    """{layer: indices} with ascending int64 indices, without empty layers.

    widths: layer -> number of neurons, of the layers that may be chosen from. Raises InputError for anything else than such a
    mapping, for no neurons at all, and for layers, neurons or repetitions that cannot be.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"neurons is a {type(given).__name__}; expected a dict, {{layer: indices of its neurons}}")
    chosen = {}
    for layer, indices in given.items():
        if not is_whole(layer) or layer not in widths:
            raise InputError(f"neurons: no layer {layer!r}; expected layers {min(widths)} to {max(widths)}")
        listed = numbers_of(indices)
        if listed is None and not (isinstance(indices, (Sequence, np.ndarray)) and not len(indices)):
            raise InputError(f"neurons: layer {layer} has {indices!r:.60}; expected a list of indices of neurons")
        for neuron in listed or []:
            if not is_whole(neuron) or not 0 <= neuron < widths[layer]:
                raise InputError(f"neurons: layer {layer} has no neuron {neuron!r}; expected 0 to {widths[layer] - 1}")
        if len(set(listed or [])) < len(listed or []):
            raise InputError(f"neurons: layer {layer} names a neuron twice; name each once")
        if listed:
            chosen[int(layer)] = np.array(sorted(listed), np.int64)
    if not chosen:
        raise InputError("neurons: none are chosen; expected one or more in at least one layer")
    return dict(sorted(chosen.items()))


def _visit(
    model: Transformer, rows: Sequence[Sequence[int]], types: Types
) -> Iterator[tuple[list[int], int, Float[np.ndarray, "token neuron"]]]:
    """For each batch and layer: which rows, the layer, and the activations of their tokens."""
    for chosen in pack([len(row) for row in rows], token_budget(model)):
        chosen_types = None if types is None else [types[row] for row in chosen]
        batch = TokenBatch.from_rows([rows[row] for row in chosen], model.device, chosen_types)
        layers = model.layers(batch)
        while True:
            with torch.inference_mode():
                layer = next(layers, None)
            if layer is None or layer.activation is None:
                break
            wide = torch.promote_types(layer.activation.dtype, torch.float32)
            yield chosen, layer.index, layer.activation.to(wide).cpu().numpy()
            del layer


def _means(model: Transformer, rows: Sequence[Sequence[int]], types: Types) -> dict[int, Float[np.ndarray, "neuron"]]:
    """Each neuron's mean over all tokens."""
    totals = {layer: np.zeros(model.width("activation", layer)) for layer in range(model.depth)}
    for _, layer, activation in _visit(model, rows, types):
        totals[layer] += activation.sum(0, dtype=np.float64)
    n_tokens = sum(map(len, rows))
    return {layer: total / n_tokens for layer, total in totals.items()}


def _tokens(
    model: Transformer, rows: Sequence[Sequence[int]], types: Types, picked: Int[np.ndarray, "pool"]
) -> dict[int, Float[np.ndarray, "pool neuron"]]:
    """The activations of some tokens. picked: ascending, counted over all rows end to end."""
    starts = np.cumsum([0, *map(len, rows)])
    dtype = np.float64 if model.dtype == torch.float64 else np.float32
    pools = {layer: np.empty((len(picked), model.width("activation", layer)), dtype) for layer in range(model.depth)}
    for chosen, layer, activation in _visit(model, rows, types):
        tokens = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in chosen])
        wanted = np.isin(tokens, picked)
        pools[layer][np.searchsorted(picked, tokens[wanted])] = activation[wanted]
    return pools
