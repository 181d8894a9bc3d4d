"""The same arithmetic at the machine's speed: parts that replace the plain ones after a model is loaded.

- `use_kernels`: torch's fused attention, norms and activation functions, on any device and in any dtype.
- `reorder`: oneDNN multiplies fastest by weights that lie in blocks cut for the processor's registers. Every weight of a block
  is brought into that order once. Three things are saved: nothing is reordered at every call; the activation function or the
  residual sum is applied while a product is in registers; query, key and value are one product. Each weight is in memory once.

Results equal those of the plain parts but for rounding. On reordered weights a row has the same bits in every batch
(docs/promises.md). A reordered product has no gradient, stays on the CPU and in its dtype. `load_model(..., prepack="kernels")`
uses the kernels, and the products of `products.py`, on ordinary weights, which give gradients; `prepack=False` keeps the plain
parts.
"""

import weakref
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spin_native.errors import InputError
from spin_native.models.attention import Attention
from spin_native.models.config import ActivationFunction
from spin_native.models.layers import ACTIVATIONS, Block, FeedForward, LayerNorm, Projections
from spin_native.models.transformer import Transformer
from spin_native.text.batch import TokenBatch

Prepack = Literal["auto", "kernels"] | bool
BiasedMasks = dict[tuple[int, int], Tensor]  # (length, width) -> mask with the position bias
REMEDY = "load the model with prepack='kernels' or prepack=False for gradients, other devices or other dtypes"
IMMOVABLE = f"a model with reordered weights cannot be moved or converted: {REMEDY}"

# CPU kernels vectorise over 16 keys; a remainder runs scalar and doubles the time.
KEYS_AT_A_TIME = 16
ALIGNED_NUMBERS = 16  # of float32: 64 bytes

KERNELS: dict[ActivationFunction, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # no lambda: a model can be pickled
    "relu": F.relu,
}


def use_kernels(model: Transformer) -> None:
    """Replace attention, norms and activation functions by torch's fused kernels, in place. Gradients and moves still work."""
    masks, is_first = _Masks(), True
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, LayerNorm):
                setattr(module, name, FusedLayerNorm(part))
            elif isinstance(part, Attention):
                setattr(module, name, FusedAttention(part, masks, renews_masks=is_first))
                is_first = False
        if isinstance(module, FeedForward) and module.activation_function is ACTIVATIONS[model.config.activation_function]:
            module.activation_function = KERNELS[model.config.activation_function]


class FusedLayerNorm(nn.LayerNorm):
    """LayerNorm as one kernel, over the plain one's parameters."""

    def __init__(self, plain: LayerNorm) -> None:
        super().__init__(len(plain.weight), plain.eps, device="meta")
        self.weight, self.bias = plain.weight, plain.bias


class FusedAttention(Attention):
    """Attention by torch's kernels, over runs of rows of one length.

    In a batch sorted longest first, rows of one length are neighbours (`TokenBatch.runs`), so that a run of them is a
    [row, position] view for one kernel. Other batches are sorted first, and the result is brought back, by copying.

    masks: shared by the layers of a model; the first layer renews them (renews_masks).
    """

    def __init__(self, plain: Attention, masks: "_Masks", *, renews_masks: bool = True) -> None:
        super().__init__(plain.n_heads, scale=plain.scale, causal=plain.causal)
        self.bias, self._masks, self._renews_masks = plain.bias, masks, renews_masks

    def forward(
        self,
        query: Float[Tensor, "token d_model"],
        key: Float[Tensor, "token d_model"],
        value: Float[Tensor, "token d_model"],
        batch: TokenBatch,
    ) -> Float[Tensor, "token d_model"]:
        query, key, value = (x.unflatten(-1, (self.n_heads, -1)) for x in (query, key, value))  # [token, head, d_head]
        if query.is_cuda and self.bias is None and _varlen_works(query.device.type, query.dtype, query.shape[-1]):
            return _varlen(query, key, value, batch, causal=self.causal, scale=self.scale)
        if batch.longest_first is not None:
            query, key, value = (x[batch.longest_first] for x in (query, key, value))
        widens = query.dtype in (torch.float32, torch.bfloat16) and not (query.is_cuda or torch.is_grad_enabled())
        mixed = self._over_runs(query, key, value, batch, widens=widens, may_see_next=True)
        if widens and not mixed.sum(dtype=torch.float32).isfinite():
            # A window's hidden keys weigh 0, but 0 times infinity is NaN: keep every row to its own keys.
            mixed = self._over_runs(query, key, value, batch, widens=True, may_see_next=False)
        return mixed if batch.input_order is None else mixed[batch.input_order]

    def _over_runs(
        self,
        query: Float[Tensor, "token head d_head"],
        key: Float[Tensor, "token head d_head"],
        value: Float[Tensor, "token head d_head"],
        batch: TokenBatch,
        *,
        widens: bool,
        may_see_next: bool,
    ) -> Float[Tensor, "token d_model"]:
        """Every run; on a CPU over windows of keys whose width is a multiple of KEYS_AT_A_TIME.

        A window wider than its row covers the next row's first tokens, which a mask (or causality) hides. The batch's last
        rows have nothing after them and are padded with zeros; so is every row where it may not see the next one. The hidden
        keys weigh exactly 0: a row's bits are the same either way. float16 overflows easily and gets no windows.
        """
        d_head = query.shape[-1]
        if widens and query.dtype == torch.float32 and d_head % ALIGNED_NUMBERS:
            # MKL gives other last bits at other memory alignments: zeros let every head begin at a multiple of 64 bytes.
            query, key, value = (F.pad(x, (0, -d_head % ALIGNED_NUMBERS)) for x in (query, key, value))
        parts = []
        biased = None if self.bias is None else self._masks.of_pass(batch, renew=self._renews_masks)
        for run in batch.runs:
            width, n_windows = run.length, run.n_rows
            if widens:
                width = -(-run.length // KEYS_AT_A_TIME) * KEYS_AT_A_TIME
                n_followed = max(0, (len(query) - run.start - width) // run.length + 1)  # rows whose window the batch covers
                n_windows = min(n_followed if may_see_next or width == run.length else 0, run.n_rows)
            mask = self._mask(run.length, width, query, biased)
            for first, last, n_keys in ((0, n_windows, width), (n_windows, run.n_rows, run.length)):
                if first < last:
                    start, n_rows = run.start + first * run.length, last - first
                    q = _rows(query, start, n_rows, run.length, run.length)  # [row, head, position, d_head]
                    k, v = (_rows(x, start, n_rows, run.length, n_keys) for x in (key, value))
                    if n_keys < width:
                        k, v = (F.pad(x, (0, 0, 0, width - n_keys)) for x in (k, v))
                    if widens and n_rows * self.n_heads == 1:
                        # A thread of torch's takes a head of a row; MKL would split a lone one, and change its last bits.
                        q, k, v = (x.expand(2, -1, -1, -1) for x in (q, k, v))
                    is_causal = self.causal and mask is None
                    heads = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=self.scale)[:n_rows]
                    parts.append(heads.transpose(1, 2).flatten(0, 1)[..., :d_head])  # [token, head, d_head]
        return torch.cat(parts).flatten(1)

    def _mask(self, length: int, width: int, like: Tensor, biased: "BiasedMasks | None") -> Float[Tensor, "1 _ _ width"] | None:
        """What is added to the scores of rows of one length over windows of `width` keys; None: nothing.

        The position bias, and minus infinity on the keys after a row's end. like: has the dtype. biased: of this pass.
        """
        if self.bias is None or biased is None:
            return None if self.causal or width == length else _beyond(length, width, like.dtype)
        if (length, width) not in biased:
            bias = self.bias(length).to(like.dtype)
            if self.causal:
                bias = bias.masked_fill(torch.ones_like(bias[0], dtype=torch.bool).triu(1), float("-inf"))
            biased[length, width] = F.pad(bias, (0, width - length), value=float("-inf"))[None]
        return biased[length, width]


class _Masks:
    """The masks of one forward pass: a model's layers share them, so that each is built once per pass.

    Not once per batch: between two passes the position bias may be changed.
    """

    def __init__(self) -> None:
        self._pass: tuple[weakref.ref[TokenBatch], BiasedMasks] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: no pass of their own yet."""
        return {"_pass": None}

    def of_pass(self, batch: TokenBatch, *, renew: bool) -> "BiasedMasks":
        """The masks that this pass has built, by length and width; new ones for another batch, and where gradients may flow."""
        current = self._pass
        if renew or current is None or current[0]() is not batch or torch.is_grad_enabled():
            current = weakref.ref(batch), {}
            self._pass = None if torch.is_grad_enabled() else current
        return current[1]


def _rows(
    x: Float[Tensor, "token head d_head"], start: int, n_rows: int, length: int, n_positions: int
) -> Float[Tensor, "row head position d_head"]:
    """A view: `n_positions` tokens from the beginning of each of some rows of one length."""
    token, head, number = x.stride()
    size, stride = (n_rows, x.shape[1], n_positions, x.shape[2]), (length * token, head, token, number)
    return x.as_strided(size, stride, x.storage_offset() + start * token)


@lru_cache(maxsize=1024)
def _beyond(length: int, width: int, dtype: torch.dtype) -> Float[Tensor, "1 1 1 width"]:
    """0 for a row's own keys, minus infinity for those after its end. On the CPU: elsewhere no window is wider than its row."""
    with torch.inference_mode(False):  # cached, and a later call may need gradients
        return torch.zeros(1, 1, 1, width, dtype=dtype).masked_fill(torch.arange(width) >= length, float("-inf"))


def _varlen(
    query: Float[Tensor, "token head d_head"],
    key: Float[Tensor, "token head d_head"],
    value: Float[Tensor, "token head d_head"],
    batch: TokenBatch,
    *,
    causal: bool,
    scale: float,
) -> Float[Tensor, "token d_model"]:
    """CUDA's kernel for ragged batches. Imported here: it is slow to import."""
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest, window = batch.bounds, max(batch.lengths), (-1, 0) if causal else (-1, -1)
    mixed = varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=window)
    assert isinstance(mixed, Tensor)  # a pair only where the normaliser is asked for
    return mixed.flatten(1)


@lru_cache
def _varlen_works(device: str, dtype: torch.dtype, d_head: int) -> bool:
    """Whether this torch has the ragged kernel for this device, and it is right: tried once on a small product."""
    if dtype not in (torch.float16, torch.bfloat16) or d_head % 8:
        return False
    with torch.inference_mode(False), torch.no_grad():
        batch = TokenBatch.from_rows([[0] * 3, [0] * 5], device=device)
        query, key, value = torch.linspace(-1, 1, 8 * 3 * 2 * d_head, device=device, dtype=dtype).view(3, 8, 2, d_head)
        for causal in (False, True):
            plain = Attention(2, scale=d_head**-0.5, causal=causal)
            expected = plain(*(x.double().flatten(1) for x in (query, key, value)), batch)
            try:
                result = _varlen(query, key, value, batch, causal=causal, scale=d_head**-0.5).double()
            except Exception:  # whatever a missing, other or unsupported kernel raises: the other kernels serve
                return False
            if not (result - expected).norm() <= 2e-2 * expected.norm():
                return False
    return True


PRODUCTS = ("attention.project", "attention.output", "feed_forward.up", "feed_forward.down")

# oneDNN's name of the function applied to a product, and its variant.
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
        if len(x) == 1:  # oneDNN splits the sum of a lone row over threads, which changes its last bits
            return self(x.repeat(2, 1), None if residual is None else residual.repeat(2, 1))[:1]
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._reordered, self.bias, "add")
        kind, variant = self._fused
        return torch.ops.mkldnn._linear_pointwise(x, self._reordered, self.bias, kind, [], variant)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        raise InputError(IMMOVABLE)

    # In copies, pickles and state dicts the weight is in ordinary order.

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reordered": self.weight}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not _works(state["_reordered"].dtype):
            raise InputError(f"a model with reordered weights cannot be unpickled here: {REMEDY}")
        super().__setstate__({**state, "_reordered": torch.ops.mkldnn._reorder_linear_weight(state["_reordered"])})

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *given: Any) -> None:
        self._parameters["weight"] = nn.Parameter(self.weight, requires_grad=False)  # for as long as torch fills it
        super()._load_from_state_dict(*given)
        self._reordered = torch.ops.mkldnn._reorder_linear_weight(self._parameters.pop("weight"))


class ReorderedProjections(nn.Module):
    """Query, key and value as one product."""

    def __init__(self, projections: Projections) -> None:
        super().__init__()
        parts = (projections.query, projections.key, projections.value)
        self.all = ReorderedLinear(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
        self.register_state_dict_post_hook(_named_apart)

    def forward(
        self, hidden: Float[Tensor, "token d_model"]
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
        query, key, value = self.all(hidden).chunk(3, dim=-1)
        return query, key, value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for part in ("weight", "bias"):
            apart = [state_dict.pop(f"{prefix}{name}.{part}", None) for name in ("query", "key", "value")]
            if all(piece is not None for piece in apart):
                state_dict[f"{prefix}all.{part}"] = torch.cat(apart)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _named_apart(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """In a state dict, query, key and value are apart, as in Projections."""
    for part in ("weight", "bias"):
        query, key, value = state.pop(f"{prefix}all.{part}").chunk(3)
        state |= {f"{prefix}query.{part}": query, f"{prefix}key.{part}": key, f"{prefix}value.{part}": value}


def reorder(block: Block, product: str, function: ActivationFunction) -> None:
    """Replace one of a block's PRODUCTS by its reordered one, in place; `function` is the model's activation function."""
    owner_name, name = product.split(".")
    owner = block.get_submodule(owner_name)
    plain = owner.get_submodule(name)
    if isinstance(plain, Projections):
        setattr(owner, name, ReorderedProjections(plain))
    else:
        assert isinstance(plain, nn.Linear)
        setattr(owner, name, ReorderedLinear(plain.weight, plain.bias, function if name == "up" else None))
    if name == "up":
        block.feed_forward.activation_function = nn.Identity()  # fused into `up`


def is_worth_it(prepack: Prepack, dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether to reorder: "auto" where it works and is faster; True raises InputError where it does not work."""
    if prepack not in ("auto", "kernels", True, False):
        raise InputError(f"prepack is {prepack!r}; expected 'auto', 'kernels', True or False")
    if prepack in ("kernels", False):
        return False
    works = torch.device(device).type == "cpu" and _works(dtype)
    if prepack is True and not works:
        raise InputError(
            f"prepack=True, but {dtype} weights on {device} cannot be reordered here: expected float32 or bfloat16 on a CPU, "
            "and a torch with oneDNN; use prepack='auto'"
        )
    return works and (prepack is True or multiplies_faster(dtype, device))


def multiplies_faster(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether oneDNN's products work and are faster than torch's own."""
    # Measured: faster with AVX-512; restricted to AVX2, the same CPU was a tenth slower on large batches.
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return has_avx512 and torch.device(device).type == "cpu" and _works(dtype)


@lru_cache
def _works(dtype: torch.dtype) -> bool:
    """Whether this torch on this CPU multiplies by reordered weights, and is right: tried once on a small product."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = (torch.linspace(-1, 1, n, dtype=dtype) for n in (3 * 32, 48 * 32, 48))
    x, weight = x.view(3, 32), weight.view(48, 32)
    expected = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    try:
        result = ReorderedLinear(weight, bias, "gelu")(x).double()
    except (AttributeError, RuntimeError, NotImplementedError):  # the operator is missing, or refuses
        return False
    return bool((result - expected).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * expected.norm())
