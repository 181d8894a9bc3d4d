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
from spin_native.models.layers import PostNormBlock, PreNormBlock, Projections

Prepack = Literal["auto"] | bool
REMEDY = "load the model with prepack=False for gradients, other devices or other dtypes"

PRODUCTS = ("attention.project", "attention.output", "feed_forward.up", "feed_forward.down")

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


def reorder(block: PreNormBlock | PostNormBlock, product: str, function: ActivationFunction) -> None:
    """Replace one of a block's PRODUCTS, in place; `function` is the model's activation function."""
    owner_name, name = product.split(".")
    owner = block.get_submodule(owner_name)
    plain = owner.get_submodule(name)
    if isinstance(plain, Projections):
        setattr(owner, name, ReorderedProjections(plain))
    else:
        linear = cast(nn.Linear, plain)
        setattr(owner, name, ReorderedLinear(linear.weight, linear.bias, function if name == "up" else None))
    if name == "up":
        block.feed_forward.activation_function = nn.Identity()  # fused into `up`


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
    # Measured: with AVX-512 it gains; held to AVX2, the same CPU lost a tenth on large batches. Elsewhere nobody has looked.
    return works and (prepack is True or torch.backends.cpu.get_cpu_capability() == "AVX512")


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
