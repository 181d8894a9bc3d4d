"""Random tiny models: transformers' own, saved as checkpoints, with what they compute on each unpadded row."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import torch
import transformers
from torch import Tensor, nn

import spin_native as sn
from spin_native.models import Transformer
from spin_native.parity import activation_functions
from spin_native.text.batch import TokenBatch

N_VOCAB, MAX_TOKENS = 50, 9
QUICK = {
    "head": "refit",
    "depth": 2,
    "baseline": False,
    "poolings": ("mean",),
    "etas": (0.8,),
}  # parameters of a fit that is quick
FAMILIES = ("roberta", "bert", "distilbert", "gpt2", "mpnet", "xlm-roberta")


class Shape(NamedTuple):
    """n_layers, n_heads, d_model, d_ffn."""

    n_layers: int = 3
    n_heads: int = 2
    d_model: int = 16
    d_ffn: int = 40


USUAL = Shape()
SHAPES = (Shape(1, 1, 8, 12), Shape(2, 3, 12, 48), USUAL, Shape(4, 4, 32, 64))


def reference_model(family: str, shape: Shape = USUAL, **settings: object) -> nn.Module:
    """transformers' model in float64. The default init (std 0.02, unit gains, zero biases) would hide bugs."""
    bert = {
        "vocab_size": N_VOCAB,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "intermediate_size": shape.d_ffn,
        "max_position_embeddings": MAX_TOKENS,
    }
    roberta = {**bert, "max_position_embeddings": MAX_TOKENS + 2, "layer_norm_eps": 1e-5}
    distilbert = {
        "vocab_size": N_VOCAB,
        "dim": shape.d_model,
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "hidden_dim": shape.d_ffn,
        "max_position_embeddings": MAX_TOKENS,
    }
    gpt2 = {
        "vocab_size": N_VOCAB,
        "n_embd": shape.d_model,
        "n_layer": shape.n_layers,
        "n_head": shape.n_heads,
        "n_inner": shape.d_ffn,
        "n_positions": MAX_TOKENS,
    }
    config = {
        "bert": lambda: transformers.BertConfig(**{**bert, **settings}),
        "roberta": lambda: transformers.RobertaConfig(**{**roberta, "type_vocab_size": 1, **settings}),
        "xlm-roberta": lambda: transformers.XLMRobertaConfig(**{**roberta, "type_vocab_size": 1, **settings}),
        "mpnet": lambda: transformers.MPNetConfig(**{**roberta, **settings}),
        "distilbert": lambda: transformers.DistilBertConfig(**{**distilbert, **settings}),
        "gpt2": lambda: transformers.GPT2Config(**{**gpt2, **settings}),
    }[family]()
    config._attn_implementation = "eager"
    torch.manual_seed(7)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.1)
            if "norm" in name.lower() or "ln_" in name:
                parameter += float(name.endswith("weight"))
    return model


@cache
def checkpoint(family: str, shape: Shape = USUAL) -> tuple[str, nn.Module]:
    """A folder with the reference model's float64 checkpoint, and the model."""
    model = reference_model(family, shape)
    folder = mkdtemp(prefix=f"tiny-{family}-")
    model.save_pretrained(folder)
    return folder, model


def rows_of_every_length() -> list[list[int]]:
    """One row of each length from 1 to the longest, shuffled; no id is a padding id."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randperm(MAX_TOKENS, generator=generator) + 1
    return [torch.randint(4, N_VOCAB, (int(n),), generator=generator).tolist() for n in lengths]


def padded(rows: list[list[int]], side: str) -> TokenBatch:
    """The rows as a batch: straight ("none"), or through padded tensors with padding on one side."""
    if side == "none":
        return TokenBatch.from_rows(rows)
    width = max(map(len, rows))
    ids, mask = torch.ones(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, place], mask[index, place] = torch.tensor(row), 1
    return TokenBatch.from_padded(ids, mask)


def reference_values(model: nn.Module, rows: list[list[int]]) -> dict[tuple[str, int], Tensor]:
    """(site, layer) -> transformers' values, each row run by itself without padding, rows end to end."""
    found: dict[tuple[str, int], list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, out, layer=layer: found.setdefault(("activation", layer), []).append(out[0])
        )
        for layer, module in enumerate(activation_functions(model))
    ]
    with torch.inference_mode():
        for row in rows:
            for layer, hidden in enumerate(model(torch.tensor([row]), output_hidden_states=True).hidden_states):
                found.setdefault(("hidden", layer), []).append(hidden[0])
    for hook in hooks:
        hook.remove()
    return {key: torch.cat(values) for key, values in found.items()}


def our_values(model: Transformer, batch: TokenBatch) -> dict[tuple[str, int], Tensor]:
    """The same from our loop."""
    found = {}
    with torch.inference_mode():
        for layer in model.layers(batch):
            found["hidden", layer.index] = layer.hidden
            if layer.activation is not None:
                found["activation", layer.index] = layer.activation
    return found


def largest_error(ours: dict[tuple[str, int], Tensor], theirs: dict[tuple[str, int], Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)


def values(folder: Path | str, **options: object) -> dict[tuple[str, int], Tensor]:
    """What a checkpoint computes in float64 on rows of every length."""
    model = sn.load_model(str(folder), dtype=torch.float64, **options)
    return our_values(model, TokenBatch.from_rows(rows_of_every_length()))


def edit_config(folder: Path, **settings: object) -> None:
    """Change some settings of a checkpoint's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


SHARED = Path(__file__).parents[2] / "shared"
