"""How every token of a ragged batch looks at its own row, without padding.

Rows of one length stand side by side (`TokenBatch.runs`), so a run of them is a [row, position] view for one fused kernel;
a batch whose rows do not stand longest first is put in that order, and back, by copying.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spin_native.text.batch import Run, TokenBatch

# CPU kernels take keys 16 at a time; what is left over is handled number by number, at twice the cost of the whole.
KEYS_AT_A_TIME = 16


def attend(
    query: Float[Tensor, "token d_model"],
    key: Float[Tensor, "token d_model"],
    value: Float[Tensor, "token d_model"],
    batch: TokenBatch,
    *,
    n_heads: int,
    causal: bool,
    scale: float,
) -> Float[Tensor, "token d_model"]:
    """softmax(scale q k^T) v, head by head: each token over its own row, or over its own past where causal."""
    query, key, value = (x.unflatten(-1, (n_heads, -1)) for x in (query, key, value))  # [token, head, d_head]
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % 8 == 0 and _cuda_varlen():
        longest, window = max(batch.lengths), (-1, 0) if causal else (-1, -1)
        mixed = _cuda_varlen()(query, key, value, batch.bounds, batch.bounds, longest, longest, scale=scale, window_size=window)
        return mixed.flatten(1)
    if batch.longest_first is not None:
        query, key, value = (x[batch.longest_first] for x in (query, key, value))
    mixed = torch.cat([part for run in batch.runs for part in _attend_run(query, key, value, run, causal, scale)])
    return mixed if batch.input_order is None else mixed[batch.input_order]


@lru_cache
def _cuda_varlen() -> Any:
    """torch's kernel for ragged batches, heads of a multiple of 8; None in a torch without it. Slow to import."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _attend_run(
    query: Float[Tensor, "token head d_head"],
    key: Float[Tensor, "token head d_head"],
    value: Float[Tensor, "token head d_head"],
    run: Run,
    causal: bool,
    scale: float,
) -> list[Float[Tensor, "_ _"]]:
    """The rows of one run; on a CPU in two parts: those whose keys can be read in whole steps, and the others.

    A window of keys that is longer than its row ends in the next row's tokens, which are hidden: by the mask, or by the
    future being out of sight. The batch's last rows have nothing after them and get zeros: a row's bits do not depend on its
    neighbours. float16, which overflows easily, is left alone: a row that is not finite must not spoil its neighbour.
    """
    width, n_wide = run.length, run.n_rows
    if query.dtype in (torch.float32, torch.bfloat16) and not (query.is_cuda or torch.is_grad_enabled()):
        width = -(-run.length // KEYS_AT_A_TIME) * KEYS_AT_A_TIME
        n_wide = min(max(0, (len(query) - run.start - width) // run.length + 1), run.n_rows)
    hide = None if causal or width == run.length else _beyond(run.length, width, query.dtype)
    parts = []
    for first, last, n_keys in ((0, n_wide, width), (n_wide, run.n_rows, run.length)):
        if first < last:
            q, k, v = (
                _rows(x, run.start + first * run.length, last - first, run.length, n_positions)
                for x, n_positions in ((query, run.length), (key, n_keys), (value, n_keys))
            )  # [row, head, position, d_head]
            if n_keys < width:
                k, v = (F.pad(x, (0, 0, 0, width - n_keys)) for x in (k, v))
            heads = F.scaled_dot_product_attention(q, k, v, hide, is_causal=causal, scale=scale)
            parts.append(heads.transpose(1, 2).flatten(2).flatten(0, 1))
    return parts


def _rows(
    x: Float[Tensor, "token head d_head"], start: int, n_rows: int, length: int, n_positions: int
) -> Float[Tensor, "row head position d_head"]:
    """A view: `n_positions` tokens from the beginning of each of some rows of one length."""
    token, head, number = x.stride()
    size, stride = (n_rows, x.shape[1], n_positions, x.shape[2]), (length * token, head, token, number)
    return x.as_strided(size, stride, x.storage_offset() + start * token)


@lru_cache(maxsize=1024)
def _beyond(length: int, width: int, dtype: torch.dtype) -> Float[Tensor, "1 1 1 width"]:
    """Added to the scores: nothing for a row's own keys, minus infinity for those after its end."""
    return torch.zeros(1, 1, 1, width, dtype=dtype).masked_fill(torch.arange(width) >= length, float("-inf"))
