"""The parts of a transformer block, each as its equation says it, and the two block orders.

A block is cut where its neurons can be seen: `read` runs up to the FFN activation, `write` continues from it.
A neuron reads a pattern, then writes a vector (Geva et al. 2021, who call the two a key and a value, not those of attention).
`fast.py` replaces parts by faster ones after loading; these are what they must equal.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spin_native.errors import InputError
from spin_native.models.attention import Attention
from spin_native.models.config import ActivationFunction, ModelConfig
from spin_native.text.batch import TokenBatch


def gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x times the share of a standard normal distribution below x (Hendrycks & Gimpel 2016): exact GELU."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """GPT-2's approximation of GELU. It differs from the exact one by up to 5e-4: they must not be confused."""
    return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return x.clamp(min=0)


ACTIVATIONS: dict[ActivationFunction, Callable[[Tensor], Tensor]] = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}


class LayerNorm(nn.Module):
    """Each token's numbers to mean 0 and variance 1, then a learned gain and bias (Ba et al. 2016)."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(d_model))
        self.bias = nn.Parameter(torch.empty(d_model))

    def forward(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # float16 overflows at the square of 256
        centred = wide - wide.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        normed = self.weight * centred / (variance + self.eps).sqrt() + self.bias
        return normed.to(x.dtype)


class Embedding(nn.Embedding):
    """One vector per index. Skips initialisation: weights are overwritten, and on meta it would import torch's compiler."""

    def reset_parameters(self) -> None:
        pass


class TextEmbedding(nn.Module):
    """A family's embedding: to each word's vector it adds what the family knows of the token's place."""

    word: Embedding

    def forward(self, batch: TokenBatch, words: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What enters layer 0. words: the vectors of the batch's ids, or others in their place."""
        raise NotImplementedError


class ResidualLinear(nn.Linear):
    """A sublayer's last product, added to the residual stream."""

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "token d_in"], residual: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, "token d_out"]:
        return residual + super().forward(x)


class Projections(nn.Module):
    """What a token looks for (query), what it offers to be matched (key), and what it passes on (value)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)

    def forward(
        self, hidden: Float[Tensor, "token d_model"]
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
        return self.query(hidden), self.key(hidden), self.value(hidden)


class SelfAttention(nn.Module):
    """Multi-head self-attention over a ragged batch: a token sees only the tokens of its own row."""

    def __init__(self, d_model: int, attend: Attention) -> None:
        super().__init__()
        self.project = Projections(d_model)
        self.attend = attend
        self.output = ResidualLinear(d_model, d_model)

    def forward(
        self, x: Float[Tensor, "token d_model"], batch: TokenBatch, residual: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, "token d_model"]:
        """`residual` plus what the tokens gather from their rows."""
        query, key, value = self.project(x)
        return self.output(self.attend(query, key, value, batch), residual)


class FeedForward(nn.Module):
    """Where a neuron lives: a row of `up` is the pattern that it reads, a column of `down` the vector that it writes."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.ffn_width(layer)
        self.up = nn.Linear(config.d_model, width)
        self.down: ResidualLinear | None = ResidualLinear(width, config.d_model)
        self.activation_function = ACTIVATIONS[config.activation_function]

    def read(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_ffn"]:
        """Neuron activations A = f(x W1^T + b1)."""
        return self.activation_function(self.up(x))

    def write(
        self, activation: Float[Tensor, "token d_ffn"], residual: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, "token d_model"]:
        """`residual` plus what the neurons write: A W2^T + b2."""
        if self.down is None:
            raise InputError("the last layer of a model loaded at a smaller depth has no down-projection; load one more layer")
        return self.down(activation, residual)

    def restrict_to(self, neurons: Int[Tensor, "kept"]) -> None:
        """Compute these neurons only. For a last layer that writes nothing, where the others are not needed."""
        up = nn.Linear(self.up.in_features, len(neurons), device="meta")
        up.weight = nn.Parameter(self.up.weight[neurons], requires_grad=False)
        up.bias = nn.Parameter(self.up.bias[neurons], requires_grad=False)
        self.up = up


class Block(nn.Module):
    """One layer, from parts that its family hands it."""

    def __init__(
        self, attention: SelfAttention, attention_norm: LayerNorm, feed_forward: FeedForward, feed_forward_norm: LayerNorm
    ) -> None:
        super().__init__()
        self.attention, self.attention_norm = attention, attention_norm
        self.feed_forward, self.feed_forward_norm = feed_forward, feed_forward_norm

    def read(
        self, hidden: Float[Tensor, "token d_model"], batch: TokenBatch
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_ffn"]]:
        """The residual stream after attention, and the FFN activation."""
        raise NotImplementedError

    def attention_input(self, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What query, key and value are projected from."""
        return hidden

    def write(
        self, attended: Float[Tensor, "token d_model"], activation: Float[Tensor, "token d_ffn"]
    ) -> Float[Tensor, "token d_model"]:
        """What enters the next layer."""
        raise NotImplementedError

    def drop_write(self) -> None:
        """Drop the parts that only `write` uses: the block becomes the last one of a shallower model."""
        self.feed_forward.down = None


class PostNormBlock(Block):
    """RoBERTa, BERT, DistilBERT, MPNet: normalise after each residual sum."""

    def read(
        self, hidden: Float[Tensor, "token d_model"], batch: TokenBatch
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_ffn"]]:
        attended = self.attention_norm(self.attention(hidden, batch, residual=hidden))
        return attended, self.feed_forward.read(attended)

    def write(
        self, attended: Float[Tensor, "token d_model"], activation: Float[Tensor, "token d_ffn"]
    ) -> Float[Tensor, "token d_model"]:
        return self.feed_forward_norm(self.feed_forward.write(activation, residual=attended))

    def drop_write(self) -> None:
        super().drop_write()
        del self.feed_forward_norm


class PreNormBlock(Block):
    """GPT-2: normalise what each sublayer reads, and leave the residual stream alone."""

    def attention_input(self, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        return self.attention_norm(hidden)

    def read(
        self, hidden: Float[Tensor, "token d_model"], batch: TokenBatch
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_ffn"]]:
        attended = self.attention(self.attention_input(hidden), batch, residual=hidden)
        return attended, self.feed_forward.read(self.feed_forward_norm(attended))

    def write(
        self, attended: Float[Tensor, "token d_model"], activation: Float[Tensor, "token d_ffn"]
    ) -> Float[Tensor, "token d_model"]:
        return self.feed_forward.write(activation, residual=attended)
