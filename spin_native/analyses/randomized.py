"""A baseline for every analysis: the same architecture with random weights (Zhang & Bowman 2018; Wieting & Kiela 2019)."""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from spin_native.errors import InputError
from spin_native.given import is_whole
from spin_native.models import Transformer
from spin_native.models.families import new_model
from spin_native.models.fast import use_kernels
from spin_native.models.transformer import Source

Draw = Literal["normal", "permuted"]


@dataclass(frozen=True)
class RandomizedSource:
    """Where a model with random weights came from: the trained model, and how its weights were drawn anew."""

    trained: Source
    seed: int
    draw: Draw

    @property
    def name(self) -> str:
        return f"{self.trained.name} with random weights ({self.draw}, seed {self.seed})"

    @property
    def revision(self) -> str | None:
        return self.trained.revision

    def fingerprint(self, depth: int, *, head: bool = False) -> str:
        """sha256 over the trained model's fingerprint, the seed and the way of drawing."""
        return hashlib.sha256(
            f"random weights {self.draw} {self.seed} {self.trained.fingerprint(depth, head=head)}".encode()
        ).hexdigest()


def randomized(model: Transformer, seed: int = 0, *, draw: Draw = "normal") -> Transformer:
    """A new model of the same config, depth, dtype and device, with every parameter drawn at random; `model` stays as it is.

    What an analysis reports for it comes from the architecture and the words, not from training.

    draw: "normal", each parameter's numbers are drawn from a normal distribution with the mean and standard deviation of the
        trained parameter (a bias of zeros stays zero); "permuted", the trained parameter's own numbers in a random order.
    seed: a whole number. A parameter's numbers depend on the seed, its name and the trained parameter only, not on the depth.

    The new model can be moved and gives gradients, also where `model` has reordered weights. Its source names the trained model
    and says that the weights are random; its fingerprint is another one. A tied head stays tied.
    Raises InputError for a model without a source, or an unknown `draw` or `seed`.
    """
    if draw not in get_args(Draw):
        raise InputError(f"draw is {draw!r}; expected one of {', '.join(get_args(Draw))}")
    if not is_whole(seed):
        raise InputError(f"seed is {seed!r}; expected a whole number")
    if model.source is None:
        raise InputError("randomized: the model has no source, which the new one must name; load it with load_model")
    trained = model.state_dict()  # plain names and order, also of reordered weights
    with torch.device("meta"):
        fresh = new_model(model.config, model.depth)
        if model.head is not None:
            fresh.head = type(model).new_head(model.config)
    drawn: dict[int, nn.Parameter] = {}  # address of a trained parameter -> the new one, so that tied ones stay tied
    for name, _ in list(fresh.named_parameters()):
        old = trained[name]
        if old.data_ptr() not in drawn:
            drawn[old.data_ptr()] = nn.Parameter(_drawn(old, name, int(seed), draw), requires_grad=False)
        module, _, leaf = name.rpartition(".")
        setattr(fresh.get_submodule(module), leaf, drawn[old.data_ptr()])
    use_kernels(fresh)
    fresh.source = RandomizedSource(model.source, int(seed), draw)
    return fresh.eval().requires_grad_(False)


def _drawn(old: Shaped[Tensor, "..."], name: str, seed: int, draw: Draw) -> Shaped[Tensor, "..."]:
    """New numbers for one parameter."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    if draw == "permuted":
        order = torch.randperm(old.numel(), generator=generator).to(old.device)
        return old.reshape(-1)[order].reshape(old.shape)
    variance, mean = torch.var_mean(old.to(torch.promote_types(old.dtype, torch.float32)), correction=0)
    noise = torch.randn(old.shape, generator=generator)  # float32 for every dtype: one draw
    return noise.mul_(float(variance) ** 0.5).add_(float(mean)).to(device=old.device, dtype=old.dtype)
