"""From one value per token to one value per text: mean, max, first, last, or the token at a given position.

On ragged batches (`mean(x, batch)`), and on padded tensors (`masked_mean(x, mask)`). Every pooling reads the tokens once,
makes no copy per row, and returns at least float32. Liu's g(A_l) keeps the masked average and the masked maximum.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from spin_native.errors import InputError
from spin_native.text.batch import TokenBatch, checked_mask

Pooling = Literal["mean", "max", "first", "last"]


def mean(x: Float[Tensor, "token width"], batch: TokenBatch) -> Float[Tensor, "row width"]:
    """Average over each row's tokens."""
    return F.embedding_bag(torch.arange(len(x), device=x.device), wide(x), batch.starts, mode="mean")


def max(x: Float[Tensor, "token width"], batch: TokenBatch) -> Float[Tensor, "row width"]:
    """Largest value over each row's tokens; a zero is never negative."""
    if batch.n_rows == 1:  # the same number, computed faster
        largest = x.amax(0, keepdim=True)
    else:
        row_of_value = batch.row_of_token[:, None].expand_as(x)
        largest = x.new_empty(batch.n_rows, x.shape[1]).scatter_reduce(0, row_of_value, x, "amax", include_self=False)
    return wide(largest) + 0.0  # of 0.0 and -0.0, either may have been taken for the larger one


def first(x: Float[Tensor, "token width"], batch: TokenBatch) -> Float[Tensor, "row width"]:
    """Each row's first token (`<s>`, `[CLS]`)."""
    return wide(x[batch.starts])


def last(x: Float[Tensor, "token width"], batch: TokenBatch) -> Float[Tensor, "row width"]:
    """Each row's last token: the only one that has seen the whole text in a causal model."""
    lengths = torch.tensor(batch.lengths, device=x.device)
    return wide(x[batch.starts + lengths - 1])


def at(x: Float[Tensor, "token width"], batch: TokenBatch, positions: Int[Tensor, "row"]) -> Float[Tensor, "row width"]:
    """Each row's token at a position of its own, from 0."""
    return wide(x[batch.starts + positions])


POOLINGS: dict[Pooling, Callable[[Tensor, TokenBatch], Tensor]] = {"mean": mean, "max": max, "first": first, "last": last}


def masked_mean(x: Float[Tensor, "row position width"], mask: Shaped[Tensor, "row position"]) -> Float[Tensor, "row width"]:
    """Average over the positions where `mask` is 1. InputError for a row that is all padding."""
    return mean(*_ragged(x, mask, "masked_mean"))


def masked_max(x: Float[Tensor, "row position width"], mask: Shaped[Tensor, "row position"]) -> Float[Tensor, "row width"]:
    """Largest value over the positions where `mask` is 1. InputError for a row that is all padding."""
    return max(*_ragged(x, mask, "masked_max"))


def masked_first(x: Float[Tensor, "row position width"], mask: Shaped[Tensor, "row position"]) -> Float[Tensor, "row width"]:
    """The first position where `mask` is 1. InputError for a row that is all padding."""
    return first(*_ragged(x, mask, "masked_first"))


def masked_last(x: Float[Tensor, "row position width"], mask: Shaped[Tensor, "row position"]) -> Float[Tensor, "row width"]:
    """The last position where `mask` is 1. InputError for a row that is all padding."""
    return last(*_ragged(x, mask, "masked_last"))


def _ragged(x: Tensor, mask: Tensor, caller: str) -> tuple[Tensor, TokenBatch]:
    if x.ndim != 3 or x.shape[:2] != mask.shape:
        raise InputError(
            f"{caller}: x is {list(x.shape)}, mask is {list(mask.shape)}; expected [batch, position, width], [batch, position]"
        )
    real = checked_mask(mask, caller).to(x.device)
    lengths = tuple(real.sum(1).tolist())
    return x[real], TokenBatch(real.nonzero()[:, 1], lengths)


def wide(x: Tensor) -> Tensor:
    """At least float32: a mean of many bfloat16 numbers must not be rounded at every step."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
