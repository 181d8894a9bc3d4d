"""Attention, as the equation says it: softmax(scale q k^T) v, each row of the batch by itself."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spin_native.text.batch import TokenBatch


class PositionBias(nn.Module):
    """Added to the attention scores: one number per head, query position and key position of a row of `length` tokens."""

    def forward(self, length: int) -> Float[Tensor, "head query key"]:
        raise NotImplementedError


class Attention(nn.Module):
    """softmax(scale q k^T + bias) v (Vaswani et al. 2017, equation 1), head by head.

    causal: a token sees only itself and the tokens before it. bias: shared by all layers, so the model owns it.
    """

    def __init__(self, n_heads: int, *, scale: float, causal: bool = False, bias: PositionBias | None = None) -> None:
        super().__init__()
        self.n_heads, self.scale, self.causal = n_heads, scale, causal
        self.bias = None if bias is None else bias.forward  # a method, so that its weight is not registered in every layer

    def forward(
        self,
        query: Float[Tensor, "token d_model"],
        key: Float[Tensor, "token d_model"],
        value: Float[Tensor, "token d_model"],
        batch: TokenBatch,
    ) -> Float[Tensor, "token d_model"]:
        query, key, value = (x.unflatten(-1, (self.n_heads, -1)) for x in (query, key, value))  # [token, head, d_head]
        rows = zip(*(x.split(batch.lengths) for x in (query, key, value)), strict=True)
        return torch.cat([self.attend(*row) for row in rows]).flatten(1)

    def attend(
        self,
        query: Float[Tensor, "query head d_head"],
        key: Float[Tensor, "key head d_head"],
        value: Float[Tensor, "key head d_head"],
    ) -> Float[Tensor, "query head d_head"]:
        """One row: every token gathers values, weighted by how well its query matches their keys."""
        return torch.einsum("hqk,khd->qhd", self.weights(query, key), value)

    def weights(
        self, query: Float[Tensor, "query head d_head"], key: Float[Tensor, "key head d_head"]
    ) -> Float[Tensor, "head query key"]:
        """One row: how much each token takes from each; over the keys they sum to 1."""
        scores = self.scale * torch.einsum("qhd,khd->hqk", query, key)  # [head, query, key]
        if self.bias is not None:
            scores = scores + self.bias(len(query))
        if self.causal:
            future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)  # [query, key]
            scores = scores.masked_fill(future, float("-inf"))
        return softmax(scores)


def softmax(scores: Float[Tensor, "*axes key"]) -> Float[Tensor, "*axes key"]:
    """Positive weights that sum to 1 over the keys. Subtracting the largest score changes nothing but prevents overflow."""
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)
