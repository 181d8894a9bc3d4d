"""Weight tables: which stored tensor each parameter of a model is, as data.

A family lists its parameters with `{layer}` for the layer index and `{part}` for weight and bias; each rule names the stored
tensor and how it is laid out.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from jaxtyping import Shaped
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Copied:
    """The parameter as it is stored."""

    stored: str

    def stored_shape(self, shape: Shape) -> Shape:
        return shape

    def take(self, tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        return tensor


@dataclass(frozen=True)
class Transposed:
    """Stored [in, out] (GPT-2's Conv1D), used [out, in]."""

    stored: str

    def stored_shape(self, shape: Shape) -> Shape:
        return shape[::-1]

    def take(self, tensor: Shaped[Tensor, "d_in d_out"]) -> Shaped[Tensor, "d_out d_in"]:
        return tensor.T


@dataclass(frozen=True)
class Third:
    """One of query (0), key (1), value (2), which GPT-2 stores side by side along the output: [in, 3 out] or [3 out]."""

    stored: str
    part: int

    def stored_shape(self, shape: Shape) -> Shape:
        return (*shape[1:], 3 * shape[0])

    def take(self, tensor: Shaped[Tensor, "*d_in three_d_out"]) -> Shaped[Tensor, "d_out *d_in"]:
        part = tensor.chunk(3, dim=-1)[self.part]
        return part.T if part.ndim == 2 else part


Rule = Copied | Transposed | Third


@dataclass(frozen=True)
class WeightTable:
    """How one family's checkpoints are read.

    prefix: of the model's own tensors in files that also hold a head; other files have none.
    rules: parameter -> rule, with `{layer}` and `{part}` in both.
    buffers, heads: patterns of known tensors that the forward pass does not read: constants that were stored, and the heads
        that a checkpoint may hold. Names as they are without the prefix.
    """

    prefix: str
    rules: Mapping[str, Rule]
    buffers: tuple[str, ...]
    heads: tuple[str, ...]

    def rule(self, parameter: str) -> Rule:
        """The rule of one parameter, its layer index and part filled in."""
        layer = re.match(r"blocks\.(\d+)\.", parameter)
        name = parameter if layer is None else "blocks.{layer}." + parameter[layer.end() :]
        stem, _, part = name.rpartition(".")
        template = self.rules[name] if name in self.rules else self.rules[stem + ".{part}"]
        return replace(template, stored=template.stored.format(layer=layer and layer[1], part=part))

    def fit(self, stored: Iterable[str]) -> bool:
        """Whether a checkpoint holds every weight of layer 0."""
        wanted = {self.rule(name.format(layer=0, part="weight")).stored for name in self.rules if name.startswith("blocks.")}
        return wanted <= set(map(self.canonical, stored))

    def is_ignorable(self, canonical: str) -> bool:
        return any(fnmatchcase(canonical, pattern) for pattern in (*self.buffers, *self.heads))

    def canonical(self, stored: str) -> str:
        """A stored name without the prefix, and with today's names for a LayerNorm's gain and bias (once gamma, beta)."""
        name = stored.removeprefix(self.prefix)
        return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
