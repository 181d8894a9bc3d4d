"""The parts of a transformer block: attention, the feed-forward network in which a neuron lives, and the two block orders.

A block is cut where its neurons can be seen: `read` goes as far as the FFN activation, `write` goes on from it.
Geva et al. (2021) call the two halves of an FFN keys and values: a neuron reads a pattern, then writes a vector.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spin_native.models.attention import attend
from spin_native.models.config import ActivationFunction, ModelConfig
from spin_native.text.batch import TokenBatch

ACTIVATIONS: dict[ActivationFunction, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Embedding(nn.Embedding):
    """One vector per index. No numbers are drawn for it: to do that on the meta device torch would load its compiler."""

    def reset_parameters(self) -> None:
        pass


class ResidualLinear(nn.Linear):
    """A sublayer's last product, which is added to the residual stream."""

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "token d_in"], residual: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, "token d_out"]:
        return residual + super().forward(x)


class Projections(nn.Module):
    """What a token looks for (query), what it offers to be found by (key), and what it passes on (value)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.d_model, config.d_model)
        self.key = nn.Linear(config.d_model, config.d_model)
        self.value = nn.Linear(config.d_model, config.d_model)

    def forward(
        self, hidden: Float[Tensor, "token d_model"]
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
        return self.query(hidden), self.key(hidden), self.value(hidden)


class SelfAttention(nn.Module):
    """Multi-head self-attention over a ragged batch: a token sees its own row only, and only its past when causal."""

    def __init__(self, config: ModelConfig, *, causal: bool, scale: float) -> None:
        super().__init__()
        self.n_heads, self.causal, self.scale = config.n_heads, causal, scale
        self.project = Projections(config)
        self.output = ResidualLinear(config.d_model, config.d_model)

    def forward(
        self, x: Float[Tensor, "token d_model"], batch: TokenBatch, residual: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, "token d_model"]:
        """`residual` plus what the tokens gather from their rows."""
        query, key, value = self.project(x)
        mixed = attend(query, key, value, batch, n_heads=self.n_heads, causal=self.causal, scale=self.scale)
        return self.output(mixed, residual)


class FeedForward(nn.Module):
    """Where a neuron lives: `up` holds one key per neuron, `down` one value per neuron."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ffn)
        self.down: ResidualLinear | None = ResidualLinear(config.d_ffn, config.d_model)
        self.activation_function = ACTIVATIONS[config.activation_function]

    def read(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_ffn"]:
        """Neuron activations A = f(x W1^T + b1)."""
        return self.activation_function(self.up(x))

    def write(
        self, activation: Float[Tensor, "token d_ffn"], residual: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, "token d_model"]:
        """`residual` plus what the neurons add up to: A W2^T + b2."""
        assert self.down is not None, "the last layer of a model loaded at a smaller depth has nothing to write to"
        return self.down(activation, residual)

    def keep(self, neurons: Int[Tensor, "kept"]) -> None:
        """Read these neurons only: where nothing is written, the others need not be multiplied."""
        kept = nn.Linear(self.up.in_features, len(neurons), device="meta")
        kept.weight = nn.Parameter(self.up.weight[neurons], requires_grad=False)
        kept.bias = nn.Parameter(self.up.bias[neurons], requires_grad=False)
        self.up = kept


class PostNormBlock(nn.Module):
    """RoBERTa, BERT, DistilBERT: normalise after each residual sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config, causal=False, scale=config.d_head**-0.5)
        self.attention_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm: nn.LayerNorm | None = nn.LayerNorm(config.d_model, config.norm_eps)

    def read(
        self, hidden: Float[Tensor, "token d_model"], batch: TokenBatch
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_ffn"]]:
        attended = self.attention_norm(self.attention(hidden, batch, residual=hidden))
        return attended, self.feed_forward.read(attended)

    def write(
        self, attended: Float[Tensor, "token d_model"], activation: Float[Tensor, "token d_ffn"]
    ) -> Float[Tensor, "token d_model"]:
        assert self.feed_forward_norm is not None
        return self.feed_forward_norm(self.feed_forward.write(activation, residual=attended))

    def drop_write(self) -> None:
        """Keep the reading half only: the block becomes the last one of a shallower model."""
        self.feed_forward.down = self.feed_forward_norm = None


class PreNormBlock(nn.Module):
    """GPT-2: normalise what each sublayer reads, and leave the residual stream alone."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        scale = config.d_head**-0.5 if config.scales_attention else 1.0
        if config.scales_attention_by_layer:
            scale /= layer_index + 1
        self.attention_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.attention = SelfAttention(config, causal=True, scale=scale)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def read(
        self, hidden: Float[Tensor, "token d_model"], batch: TokenBatch
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_ffn"]]:
        attended = self.attention(self.attention_norm(hidden), batch, residual=hidden)
        return attended, self.feed_forward.read(self.feed_forward_norm(attended))

    def write(
        self, attended: Float[Tensor, "token d_model"], activation: Float[Tensor, "token d_ffn"]
    ) -> Float[Tensor, "token d_model"]:
        return self.feed_forward.write(activation, residual=attended)

    def drop_write(self) -> None:
        """Keep the reading half only: the block becomes the last one of a shallower model."""
        self.feed_forward.down = None
