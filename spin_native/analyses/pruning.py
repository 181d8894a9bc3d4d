"""Pruning: FFNs cut to their most important neurons, saved as a smaller checkpoint (Wang et al. 2022, section 4.4).

A dropped neuron is replaced by its mean: the mean times the vector that the neuron writes is added to the output bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from tqdm.auto import tqdm

from spin_native.analyses.prompts import check_model
from spin_native.analyses.results import provenance
from spin_native.checkpoints import Checkpoint
from spin_native.checkpoints.pruned import write_pruned
from spin_native.disk import check_new_folder
from spin_native.errors import InputError
from spin_native.features.extract import token_budget
from spin_native.features.store import Features
from spin_native.given import checked_texts, is_number, is_whole, path_of, plain
from spin_native.models import Transformer
from spin_native.tables import Given, open_source
from spin_native.text.tokenizer import Tokenizer

Array = np.ndarray
ByLayer = dict[int, Float[Array, "neuron"]]


@dataclass(frozen=True)
class ActivationMeans:
    """Layer -> one number per FFN neuron, over all tokens of the texts.

    mean: the mean activation. absolute: the mean absolute activation, an importance. n_tokens: how many tokens were read.
    """

    mean: ByLayer
    absolute: ByLayer
    n_tokens: int


@dataclass(frozen=True)
class Pruned:
    """A pruned model as it was saved.

    folder: where. kept: layer -> the kept neurons' indices in the model before, for the pruned layers.
    widths: neurons of every layer's FFN in the new model. metadata: what the folder's pruning.json holds.
    """

    folder: Path
    kept: dict[int, Int[Array, "kept"]]
    widths: tuple[int, ...]
    metadata: dict[str, Any]


def prune(
    model: Transformer,
    keep: Mapping[int, Sequence[int] | Int[Array, "kept"]] | None = None,
    *,
    importance: Mapping[int, Shaped[Array, "neuron"]] | None = None,
    share: float | None = None,
    mean: Mapping[int, Float[Array, "neuron"]] | Features | Sequence[str] | None = None,
    tokenizer: Tokenizer | None = None,
    out: str | Path,
    pad: bool = False,
    progress: bool | None = None,
) -> Pruned:
    """Cut FFNs to the neurons that are kept, and save the smaller model as a checkpoint. `model` itself stays as it is.

    keep: layer -> indices of the neurons to keep, at least one. Layers that are not named keep all.
    importance, share: instead of `keep`: layer -> one number per neuron; the `share` of the layer's neurons with the largest
        ones are kept (rounded up; of equal numbers, the lower index first).
    mean: each neuron's mean activation, which stands for a dropped neuron from now on: texts (with `tokenizer`), the mean over
        all their tokens; Features with the mean pooling, the mean over the texts' means; or layer -> one number per neuron.
        All are means of the model as it was: with several pruned layers, the later ones read slightly other inputs.
    out: a new folder. It gets config.json, model.safetensors, the tokenizer's files, and pruning.json, which lists the kept
        neurons, versions and the sha256 of the model before. Language-model and classification heads are copied.
    pad: fill every layer up to the widest with neurons whose weights are zero: the model computes the same, and transformers
        can load it. Without, a model whose layers differ in width is only loaded by `load_model`; its config.json lists the
        widths as "ffn_widths". A model with one width for all layers needs no padding.

    The weights are those of the files that the model was loaded from; numbers keep the type that they are stored in.
    Raises InputError for a model that is not whole or not loaded from files, a layer or neuron that it does not have, a layer
    without a kept neuron, missing means, and a folder that exists.
    """
    source = _checked_source(model)
    folder = path_of(out, "out")
    check_new_folder(folder)
    kept = chosen_neurons(model, keep, importance, share)
    losing = [layer for layer, neurons in kept.items() if len(neurons) < model.width("activation", layer)]
    means = _means(model, tokenizer, mean, losing, progress)
    metadata = provenance(
        model,
        tokenizer,
        analysis="prune",
        share=share,
        kept={str(layer): neurons.tolist() for layer, neurons in kept.items()},
        padded=pad,
    )
    widths = write_pruned(source, kept, means, folder, pad=pad, record=metadata)
    return Pruned(folder, kept, widths, metadata)


def activation_means(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    progress: bool | None = None,
) -> ActivationMeans:
    """The mean and the mean absolute activation of every FFN neuron, over all tokens of the texts, special tokens included.

    layers: which layers (None: all that the model holds); later ones are not run.
    """
    listed = checked_texts(texts, "texts")
    wanted = range(model.depth) if layers is None else [_checked_layer(model, layer, "layers") for layer in layers]
    sums = {layer: np.zeros((2, model.width("activation", layer))) for layer in wanted}
    n_tokens = 0
    with (
        torch.inference_mode(),
        tqdm(total=len(listed), unit=" rows", disable=None if progress is None else not progress) as bar,
    ):
        for batch, rows in tokenizer.batches(listed, token_budget(model)):
            n_tokens += batch.n_tokens
            for layer in model.layers(batch.to(model.device)):
                if layer.index in sums and layer.activation is not None:
                    both = [x.sum(0, dtype=torch.float64) for x in (layer.activation, layer.activation.abs())]
                    sums[layer.index] += torch.stack(both).cpu().numpy()
                if layer.index >= max(sums, default=0):
                    break
                del layer
            bar.update(len(rows))
    mean, absolute = ({layer: total[index] / n_tokens for layer, total in sums.items()} for index in (0, 1))
    return ActivationMeans(mean, absolute, n_tokens)


def read_importance(path: Given, model: Transformer, *, column: str = "importance") -> ByLayer:
    """Layer -> one number per neuron, from a CSV, JSONL or Parquet file with the columns layer, neuron and `column`.

    A neuron that is not listed gets minus infinity: it is never kept. Layers that are not listed are left out.
    Raises InputError, naming the row, for a layer or neuron that the model does not have or that is listed twice, and for what
    is no number.
    """
    table = open_source(path)
    importance: ByLayer = {}
    first_row = 0
    for block in table.blocks(["layer", "neuron", column]):
        cells = zip(block.values("layer"), block.values("neuron"), block.values(column), strict=True)
        for row, (layer, neuron, value) in enumerate(cells, first_row):
            where = f"{table.label}, row {row}"
            at = _checked_layer(model, _number(layer, int, where, "layer"), where)
            of_layer = importance.setdefault(at, np.full(model.width("activation", at), -np.inf))
            index = _number(neuron, int, where, "neuron")
            if not 0 <= index < len(of_layer):
                raise InputError(f"{where}: neuron {index} of layer {at}; expected 0 to {len(of_layer) - 1}")
            if of_layer[index] != -np.inf:
                raise InputError(f"{where}: neuron {index} of layer {at} is listed twice; expected one row per neuron")
            of_layer[index] = _number(value, float, where, column)
        first_row += block.n_rows
    return importance


def checked_share(share: object) -> float:
    """`share` itself; InputError unless it is above 0 and at most 1."""
    if not is_number(share) or not 0 < share <= 1:  # type: ignore[operator]
        raise InputError(f"share is {share!r}; expected a number above 0 and up to 1: how much of each layer's neurons to keep")
    return float(share)  # type: ignore[arg-type]


def chosen_neurons(
    model: Transformer,
    keep: Mapping[int, Any] | None,
    importance: Mapping[int, Any] | None,
    share: float | None,
) -> dict[int, Int[Array, "kept"]]:
    """Layer -> the neurons to keep, ascending; see `prune`."""
    if (keep is None) == (importance is None) or (importance is None) != (share is None):
        raise InputError("prune: give either keep, or importance and share")
    given = keep if importance is None else importance
    name = "keep" if importance is None else "importance"
    if not isinstance(given, Mapping) or not given:
        raise InputError(f"{name} is a {type(given).__name__}; expected a dict with one or more layers")
    chosen = {}
    for key, values in given.items():
        layer = _checked_layer(model, key, name)
        width = model.width("activation", layer)
        try:
            of_layer = np.asarray(values)
        except ValueError:  # lists of different lengths
            raise InputError(f"{name}: layer {layer} has {values!r:.60}; expected one list of numbers") from None
        if importance is None:
            chosen[layer] = _checked_neurons(of_layer, layer, width)
        else:
            chosen[layer] = _most_important(_checked_values(of_layer, layer, width, name), checked_share(share), layer)
    return dict(sorted(chosen.items()))


def _checked_source(model: Transformer) -> Checkpoint:
    check_model(model)
    if not isinstance(model.source, Checkpoint):
        raise InputError("prune: the model was not loaded from a checkpoint, whose files it is made from: use sn.load_model")
    if not model.is_whole:
        raise InputError(
            f"prune: the model holds {model.depth} of {model.config.n_layers} layers; expected all: load it with depth=None"
        )
    return model.source


def _checked_layer(model: Transformer, layer: object, where: str) -> int:
    if not is_whole(layer) or not 0 <= layer < model.depth:  # type: ignore[operator]
        raise InputError(f"{where}: no layer {layer!r}; the model has layers 0 to {model.depth - 1}")
    return int(layer)  # type: ignore[call-overload]


def _checked_neurons(neurons: Shaped[Array, "..."], layer: int, width: int) -> Int[Array, "kept"]:
    if neurons.ndim != 1 or not neurons.size:
        raise InputError(f"keep: layer {layer} has no list of neurons; expected the indices of one neuron or more")
    if neurons.dtype.kind not in "iuf":
        raise InputError(f"keep: layer {layer} holds {neurons[0]!r:.40}; expected whole numbers from 0 to {width - 1}")
    if neurons.dtype.kind == "f" or neurons.min() < 0 or neurons.max() >= width:
        raise InputError(
            f"keep: layer {layer} holds {neurons.dtype} numbers from {neurons.min()} to {neurons.max()}; expected whole "
            f"numbers from 0 to {width - 1}"
        )
    ascending = np.unique(neurons).astype(np.int64)
    if len(ascending) < len(neurons):
        raise InputError(f"keep: layer {layer} names a neuron twice; expected each once")
    return ascending


def _checked_values(values: Shaped[Array, "..."], layer: int, width: int, what: str) -> Float[Array, "neuron"]:
    """One number per neuron; minus infinity is one (of a neuron never to be kept)."""
    if values.shape != (width,) or values.dtype.kind not in "fiu":
        raise InputError(
            f"{what}: layer {layer} has {values.dtype} {list(values.shape)}; expected {width} numbers, one per neuron"
        )
    if np.isnan(values).any() or np.isposinf(values).any():
        raise InputError(f"{what}: layer {layer} holds NaN or infinity; expected a finite number per neuron")
    return values.astype(np.float64)


def _most_important(importance: Float[Array, "neuron"], share: float, layer: int) -> Int[Array, "kept"]:
    n_kept = int(np.ceil(share * len(importance) - 1e-9))  # 0.2 * 10 neurons is 2, whatever the rounding
    n_kept, n_known = max(n_kept, 1), int(np.isfinite(importance).sum())
    if n_known < n_kept:
        raise InputError(
            f"importance: layer {layer} has a value for {n_known} of {len(importance)} neurons, a share of {share} keeps "
            f"{n_kept}; expected at least as many: choose a smaller share, or list more neurons"
        )
    return np.sort(np.argsort(-importance, kind="stable")[:n_kept])


def _means(
    model: Transformer,
    tokenizer: Tokenizer | None,
    given: Mapping[int, Any] | Features | Sequence[str] | None,
    layers: Sequence[int],
    progress: bool | None,
) -> ByLayer:
    """The mean activation of every neuron of the layers."""
    if not layers:
        return {}
    if given is None:
        raise InputError("prune: neurons are dropped, but there is no mean to put in their place: give mean, for example texts")
    if isinstance(given, Features):
        if not len(given):
            raise InputError("mean: the Features hold no rows; expected at least one")
        blocks = {layer: given.blocks(site="activation", pooling="mean", layer=layer) for layer in layers}
        found = {layer: sum(b.sum(0, dtype=np.float64) for b in of_layer) / len(given) for layer, of_layer in blocks.items()}
    elif isinstance(given, Mapping):
        if missing := [layer for layer in layers if layer not in given]:
            raise InputError(f"mean: layer {missing[0]} loses neurons, but has no means; expected one number per neuron")
        found = {layer: given[layer] for layer in layers}
    else:
        if not isinstance(tokenizer, Tokenizer):
            raise InputError("prune: means of texts need the model's tokenizer: give tokenizer=sn.load_tokenizer(...)")
        found = activation_means(model, tokenizer, given, layers=layers, progress=progress).mean
    means = {}
    for layer, values in found.items():
        means[layer] = _checked_values(np.asarray(values), layer, model.width("activation", layer), "mean")
        if not np.isfinite(means[layer]).all():
            raise InputError(f"mean: layer {layer} holds NaN or infinity; expected a finite number per neuron")
    return means


def _number(cell: object, kind: type, where: str, column: str) -> Any:
    """A cell of a table, text in CSV files, as an int or a float."""
    value = plain(cell)
    try:
        number = kind(value) if isinstance(value, str) or is_number(value) else None
    except ValueError:
        number = None
    if number is None or not np.isfinite(number) or (not isinstance(value, str) and number != value):
        raise InputError(f"{where}: {column} is {str(value)[:40]!r}; expected a {'whole ' if kind is int else ''}number")
    return number
