"""Products by frozen float32 weights at oneDNN's speed, in both directions: for gradients by activations.

torch multiplies float32 by MKL, which reaches half of oneDNN's speed on CPUs with AVX-512 that are not Intel's. `fast.reorder`
is faster still, but its weights give no gradients.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spin_native.models.fast import multiplies_faster
from spin_native.models.transformer import Transformer


def use_products(model: Transformer) -> None:
    """Replace the products of every block, in place, where oneDNN is faster. Gradients and moves still work."""
    if not multiplies_faster(model.dtype, model.device) or model.dtype != torch.float32:
        return
    for module in list(model.blocks.modules()):  # type: ignore[attr-defined]
        for name, part in list(module.named_children()):
            if isinstance(part, nn.Linear):
                setattr(module, name, FrozenLinear(part))


class FrozenLinear(nn.Linear):
    """x W^T + b, plus `residual` where one is given, over a plain product's parameters."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, device="meta")
        self.weight, self.bias = plain.weight, plain.bias

    def forward(
        self, x: Float[Tensor, "token d_in"], residual: Float[Tensor, "token d_out"] | None = None
    ) -> Float[Tensor, "token d_out"]:
        is_frozen = not (self.weight.requires_grad or self.bias.requires_grad)
        if is_frozen and x.dtype == torch.float32 and x.device.type == "cpu":
            product = Product.apply(x, self.weight, self.bias)
        else:  # moved, converted or trained since it was loaded
            product = F.linear(x, self.weight, self.bias)
        return product if residual is None else residual + product


class Product(torch.autograd.Function):
    """x W^T + b, with a gradient by x only."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "token d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, "d_out"] | None
    ) -> Float[Tensor, "token d_out"]:
        ctx.save_for_backward(weight)
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "token d_out"]) -> tuple[Float[Tensor, "token d_in"], None, None]:
        (weight,) = ctx.saved_tensors
        return Product.apply(gradient, weight.t(), None), None, None  # itself a product, so that it can be differentiated
