"""Compare a checkpoint with transformers, layer by layer. Nothing else in the package imports transformers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spin_native.checkpoints import Checkpoint, Location, load_tokenizer
from spin_native.errors import InputError
from spin_native.text.batch import TokenBatch

# float64 against the largest value of the layer (at least 1: GPT-2's residual stream reaches thousands, and rounding grows
# with it), float32 as a relative Frobenius error.
MAX_ERROR_FLOAT64 = 1e-12
MAX_RELATIVE_ERROR_FLOAT32 = 5e-6

SAMPLE = (
    "The museum was closed, so we sat by the river and fed the ducks instead.",
    "no",
    "",
    "Wer hätte das gedacht?! 🎻 <s> [SEP] <|endoftext|> http://t.co/x #tags @user",
    "A much longer text, with several clauses that follow one another; it is here because positions, padding and attention "
    "masks go wrong first on rows whose neighbours have another length, which is why every row is compared by itself.",
)


class LayerError(NamedTuple):
    """How far one quantity is from transformers' over all rows.

    largest: the largest absolute difference. relative: Frobenius norm of the difference over that of transformers' values.
    passed: within the tolerance of its dtype.
    """

    dtype: str
    layer: int
    site: str
    largest: float
    relative: float
    passed: bool


def verify_parity(
    name: str, texts: Sequence[str] = SAMPLE, *, revision: str | None = None, allow_pickle: bool = False
) -> list[LayerError]:
    """Per-layer errors of hidden states and activations against transformers, in float64 and float32.

    Both run on the same token ids; transformers sees every row by itself, without padding, which is the reference.
    Raises InputError where transformers is not installed.
    """
    checkpoint = Checkpoint(Location(name, revision), allow_pickle)
    ids = load_tokenizer(name, revision=checkpoint.revision).encode(texts).ids
    errors = []
    for dtype in (torch.float64, torch.float32):
        reference = _reference(checkpoint, ids, dtype)
        model = checkpoint.load(None, dtype, "cpu")
        with torch.inference_mode():
            for layer in model.layers(TokenBatch.from_rows(ids)):
                for site, ours in (("hidden", layer.hidden), ("activation", layer.activation)):
                    if ours is not None:
                        errors.append(_compare(ours, reference[site, layer.index], layer.index, site))
    return errors


def _compare(ours: Float[Tensor, "token width"], theirs: Float[Tensor, "token width"], layer: int, site: str) -> LayerError:
    difference = (ours - theirs).double()
    largest = float(difference.abs().max())
    relative = float(difference.norm() / theirs.double().norm())
    passed = (
        largest <= MAX_ERROR_FLOAT64 * max(1.0, float(theirs.abs().max()))
        if ours.dtype == torch.float64
        else relative <= MAX_RELATIVE_ERROR_FLOAT32
    )
    return LayerError(str(ours.dtype).removeprefix("torch."), layer, site, largest, relative, passed)


def _reference(
    checkpoint: Checkpoint, rows: Sequence[Sequence[int]], dtype: torch.dtype
) -> dict[tuple[str, int], Float[Tensor, "token width"]]:
    """(site, layer) -> transformers' values for all rows, end to end."""
    try:
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError:
        raise InputError("comparing with transformers needs it installed: pip install transformers") from None
    location = checkpoint.location
    logging.set_verbosity_error()  # AutoModel reports the heads it leaves out
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(
        location.folder or location.name, revision=checkpoint.revision, dtype=dtype, attn_implementation="eager"
    ).eval()
    values: dict[tuple[str, int], list[Tensor]] = {}
    for layer, function in enumerate(activation_functions(model)):
        function.register_forward_hook(
            lambda _module, _given, out, layer=layer: values.setdefault(("activation", layer), []).append(out[0])
        )
    with torch.inference_mode():
        for row in rows:
            hidden_states = model(torch.tensor([row]), output_hidden_states=True).hidden_states
            for layer, hidden in enumerate(hidden_states):
                values.setdefault(("hidden", layer), []).append(hidden[0])
    return {key: torch.cat(rows) for key, rows in values.items()}


def activation_functions(model: nn.Module) -> list[nn.Module]:
    """The modules of a transformers model whose outputs are the FFN activations, layer by layer."""
    endings = ("intermediate.intermediate_act_fn", "ffn.activation", "mlp.act")
    return [module for name, module in model.named_modules() if name.endswith(endings)]
