"""The engine: a model's matrix products at the speed of the machine, without a word of it in the forward pass.

oneDNN multiplies fastest by weights that lie in blocks cut for the processor's registers. `reorder` brings every weight of a
block into that order once, and puts modules in the place of the `nn.Linear`s that do the same with three savings: nothing is
reordered again at every call; the activation function, or the residual sum, is applied while a product is in registers; and
query, key and value are one product. Each weight is held once. Results are those of the plain path but for rounding.

Such a product has no gradient, stays on the CPU and in its dtype; `load_model(..., prepack=False)` gives the plain path.
"""

from functools import lru_cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spin_native.errors import InputError
from spin_native.models.config import ActivationFunction
from spin_native.models.layers import PostNormBlock, PreNormBlock, Projections, ResidualLinear

Prepack = Literal["auto"] | bool
REMEDY = "load the model with prepack=False for gradients, other devices or other dtypes"

# oneDNN's name of what is applied to a product, and its variant.
_FUSED: dict[ActivationFunction | None, tuple[str, str]] = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}


class ReorderedLinear(nn.Module):
    """f(x W^T + b) with W [out, in] in oneDNN's order and f fused; f is the identity where no function is given."""

    def __init__(
        self,
        weight: Float[Tensor, "d_out d_in"],
        bias: Float[Tensor, "d_out"],
        function: ActivationFunction | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = nn.Parameter(bias, requires_grad=False)
        self._fused = _FUSED[function]
        # No buffer: oneDNN's tensors can neither be saved nor moved.
        self._reordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The weight in ordinary order, exactly: a copy."""
        return self._reordered.to_dense()

    def forward(
        self, x: Float[Tensor, "token d_in"], residual: Float[Tensor, "token d_out"] | None = None
    ) -> Float[Tensor, "token d_out"]:
        """The product; plus `residual`, as `ResidualLinear` has it, where one is given."""
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(f"reordered weights give no gradients: {REMEDY}")
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._reordered, self.bias, "add")
        kind, variant = self._fused
        return torch.ops.mkldnn._linear_pointwise(x, self._reordered, self.bias, kind, [], variant)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        raise InputError(f"a model with reordered weights cannot be moved or converted: {REMEDY}")


class ReorderedProjections(nn.Module):
    """Query, key and value as one product."""

    def __init__(self, projections: Projections) -> None:
        super().__init__()
        parts = (projections.query, projections.key, projections.value)
        self.all = ReorderedLinear(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))

    def forward(
        self, hidden: Float[Tensor, "token d_model"]
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
        query, key, value = self.all(hidden).chunk(3, dim=-1)
        return query, key, value


def reorder(block: PreNormBlock | PostNormBlock, function: ActivationFunction) -> None:
    """Replace a block's products, in place; `function` is the model's activation function."""

    attention, feed_forward = block.attention, block.feed_forward
    attention.project = cast(Projections, ReorderedProjections(attention.project))
    attention.output = cast(ResidualLinear, ReorderedLinear(attention.output.weight, attention.output.bias))
    up, down = feed_forward.up, feed_forward.down
    feed_forward.up = cast(nn.Linear, ReorderedLinear(up.weight, up.bias, function))
    feed_forward.activation_function = nn.Identity()  # fused into `up`
    if down is not None:
        feed_forward.down = cast(ResidualLinear, ReorderedLinear(down.weight, down.bias))


def is_worth_it(prepack: Prepack, dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether to reorder: "auto" where it works and gains; True is refused, with the reason, where it does not work."""
    if prepack not in ("auto", True, False):
        raise InputError(f"prepack is {prepack!r}; expected 'auto', True or False")
    if prepack is False:
        return False
    works = torch.device(device).type == "cpu" and _works(dtype)
    if prepack is True and not works:
        raise InputError(
            f"prepack=True, but {dtype} weights on {device} cannot be reordered here: expected float32 or bfloat16 on a CPU, "
            "and a torch with oneDNN; use prepack='auto'"
        )
    # Measured on x86 with AVX-512 and with AVX2; elsewhere it may gain, but nobody has looked.
    return works and (prepack is True or torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2"))


@lru_cache
def _works(dtype: torch.dtype) -> bool:
    """Whether this torch on this CPU multiplies by reordered weights, and rightly: tried on a small product."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = (torch.linspace(-1, 1, n, dtype=dtype) for n in (3 * 32, 48 * 32, 48))
    x, weight = x.view(3, 32), weight.view(48, 32)
    expected = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    try:
        found = ReorderedLinear(weight, bias, "gelu")(x).double()
    except (AttributeError, RuntimeError, NotImplementedError):  # the operator is missing, or refuses
        return False
    return bool((found - expected).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * expected.norm())
