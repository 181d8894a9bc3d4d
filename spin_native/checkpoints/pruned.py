"""A checkpoint with fewer FFN neurons, written as a checkpoint: config.json, model.safetensors, the tokenizer's files."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from spin_native.checkpoints.accounting import take
from spin_native.checkpoints.files import SINGLE
from spin_native.checkpoints.load import SENTENCEPIECE_FILES, TOKENIZER_FILES, Checkpoint
from spin_native.disk import own_folder, write_json
from spin_native.errors import InputError

RECORD = "pruning.json"
COPIED_FILES = (*TOKENIZER_FILES, *SENTENCEPIECE_FILES, "generation_config.json")


def write_pruned(
    checkpoint: Checkpoint,
    kept: Mapping[int, Int[np.ndarray, "kept"]],
    means: Mapping[int, Float[np.ndarray, "neuron"]],
    out: Path,
    *,
    pad: bool,
    record: Mapping[str, Any],
) -> tuple[int, ...]:
    """Write the checkpoint with only the kept neurons to a new folder, whole or not at all. Returns the layers' FFN widths.

    kept: layer -> the neurons to keep, ascending; of other layers all are kept. means: layer -> each neuron's mean activation,
    for layers that lose neurons. pad: fill every layer up to the widest with neurons whose weights are all zero.
    record: what pruning.json holds. Tensors keep their names and number type; heads are copied.
    Raises InputError if `out` exists or cannot be written.
    """
    config = checkpoint.config
    widths = [len(kept[layer]) if layer in kept else config.ffn_width(layer) for layer in range(config.n_layers)]
    if pad:
        widths = [max(widths)] * len(widths)
    tensors = {name: checkpoint.readers[canonical]() for canonical, name in checkpoint.stored_as.items()}
    for layer, width in enumerate(widths):
        if layer in kept or width != config.ffn_width(layer):
            neurons = kept.get(layer, np.arange(config.ffn_width(layer)))
            tensors |= cut_layer(checkpoint, layer, neurons, means.get(layer), width)
    try:
        with own_folder(out) as folder:
            write_json(folder / "config.json", pruned_config(checkpoint, widths))
            write_json(folder / RECORD, dict(record))
            save_file(_apart(tensors), folder / SINGLE, {"format": "pt"})
            for filename in COPIED_FILES:
                if path := checkpoint.location.find(filename):
                    shutil.copyfile(path, folder / filename)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{out}: the pruned model could not be written ({error}); choose another folder or make room"
        ) from error
    return tuple(widths)


def cut_layer(
    checkpoint: Checkpoint,
    layer: int,
    kept: Int[np.ndarray, "kept"],
    means: Float[np.ndarray, "neuron"] | None,
    width: int,
) -> dict[str, Shaped[Tensor, "..."]]:
    """The tensors of one layer's FFN with the kept neurons only, by stored name.

    The output bias takes over what the dropped neurons write on average: b2 + W2[:, dropped] @ means[dropped].
    width: how many neurons the layer gets; those past the kept ones have zero weights.
    """
    model = checkpoint.build(None)
    names = {part: f"blocks.{layer}.feed_forward.{part}" for part in ("up.weight", "up.bias", "down.weight", "down.bias")}
    rules = {part: model.weights.rule(name) for part, name in names.items()}
    plain = {  # [neuron, d_model], [neuron], [d_model, neuron], [d_model]
        part: take(rule, checkpoint.readers[rule.stored](), tuple(model.get_parameter(names[part]).shape), checkpoint.name)
        for part, rule in rules.items()
    }
    dropped = np.setdiff1d(np.arange(len(plain["up.bias"])), kept)
    bias = plain["down.bias"]
    if len(dropped):
        assert means is not None
        offset = plain["down.weight"].double()[:, dropped] @ torch.as_tensor(means[dropped], dtype=torch.float64)
        bias = (bias.double() + offset).to(bias.dtype)
    n_padded = width - len(kept)
    cut = {
        "up.weight": F.pad(plain["up.weight"][kept], (0, 0, 0, n_padded)),
        "up.bias": F.pad(plain["up.bias"][kept], (0, n_padded)),
        "down.weight": F.pad(plain["down.weight"][:, kept], (0, n_padded)),
        "down.bias": bias,
    }
    # A rule copies or transposes: taken twice, a tensor is as it was stored.
    return {checkpoint.stored_as[rule.stored]: rule.take(cut[part]) for part, rule in rules.items()}


def pruned_config(checkpoint: Checkpoint, widths: Sequence[int]) -> dict[str, Any]:
    """The content of config.json for these FFN widths. Only different widths need "ffn_widths", which is ours alone."""
    content = checkpoint.location.read_json("config.json")
    content["model_type"] = checkpoint.config.family
    content[type(checkpoint.build(1)).ffn_key] = max(widths)
    content.pop("ffn_widths", None)
    return content if len(set(widths)) == 1 else {**content, "ffn_widths": list(widths)}


def _apart(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
    """The tensors with no memory in common, as safetensors wants them: a legacy file holds tied ones once."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if place in seen else tensor.contiguous()
        seen.add(place)
    return apart
