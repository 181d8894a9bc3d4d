"""What the benchmarks run on: data sets, the demo's model, and models of random weights with known sizes.

Data sets, configurations and tokenizers are read from a folder `shared` beside the repository (shared/data/NAME/train.csv with
columns `text` and `label`; shared/configs/NAME.config.json; shared/tokenizers/NAME). They are not part of the repository.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The package's internals that these benchmarks need as inputs, all in this block.
from spin_native.cli.demo import demo_weights
from spin_native.models import ModelConfig, new_model, read_config
from spin_native.tables import read_labelled

__all__ = [
    "DATA",
    "Rows",
    "config_of",
    "copy_tokenizer",
    "demo_weights",
    "random_checkpoint",
    "random_model",
    "random_rows",
    "random_weights",
    "raw_config",
    "read",
]

SHARED = Path(__file__).parents[2] / "shared"
DATA = SHARED / "data"
Rows = list[list[int]]
# Number of rows; median, sigma, smallest and largest number of tokens.
WORKLOADS = {"tweets": (256, 22, 0.55, 4, 128), "reviews": (24, 245, 0.55, 20, 512)}


def read(name: str, part: str, label: str = "label") -> tuple[list[str], list[Any]]:
    """Texts and labels of one part ("train", "dev", "val", "test") of a data set."""
    return read_labelled(DATA / name / f"{part}.csv", "text", label)


def random_rows(workload: str, n_vocab: int) -> Rows:
    """Rows of random token ids whose lengths are lognormal, as those of tweets or reviews; unsorted."""
    n_rows, median, sigma, shortest, longest = WORKLOADS[workload]
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(median), sigma, n_rows).round(), shortest, longest).astype(int)
    return [generator.integers(10, n_vocab - 10, n).tolist() for n in lengths]


def raw_config(name: str) -> dict[str, Any]:
    """The published config.json of a model."""
    return json.loads((SHARED / "configs" / f"{name}.config.json").read_text(encoding="utf-8"))


def config_of(name: str) -> ModelConfig:
    """The sizes of a published model."""
    return read_config(raw_config(name), "config.json")


def random_checkpoint(name: str, folder: Path) -> Path:
    """Writes a checkpoint of random float32 weights with a published model's sizes and tensor names; returns the folder."""
    return random_weights(raw_config(name), folder)


def random_weights(content: dict[str, Any], folder: Path, spread: float = 0.02) -> Path:
    """`random_checkpoint` for a config.json of one's own. spread: the standard deviation of the weights."""
    from safetensors.torch import save_file

    with torch.device("meta"):
        model = new_model(read_config(content, "config.json"))
    tensors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        rule = model.weights.rule(parameter_name)
        if rule.stored not in tensors:
            shape = rule.stored_shape(tuple(parameter.shape))
            is_gain = "norm" in parameter_name and parameter_name.endswith("weight")
            tensors[rule.stored] = torch.empty(shape).normal_(float(is_gain), spread, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def random_model(name: str, folder: Path, tokenizer: str | None = None) -> Path:
    """`random_checkpoint` with the tokenizer of the same name, or of another one."""
    return random_checkpoint(name, copy_tokenizer(tokenizer or name, folder))


def copy_tokenizer(name: str, folder: Path) -> Path:
    """Puts a published model's tokenizer into a folder, which is made if it is missing; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (SHARED / "tokenizers" / name).iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    return folder
