"""MPNet (Song et al. 2020): RoBERTa's positions, no token types, and one relative-position bias shared by all layers."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spin_native.errors import InputError
from spin_native.models.attention import Attention, PositionBias
from spin_native.models.config import ConfigFile, ModelConfig
from spin_native.models.families.bert import post_norm_block, read_sizes
from spin_native.models.families.roberta import Roberta, positions_after
from spin_native.models.heads import MaskedHead
from spin_native.models.layers import Embedding, LayerNorm, PostNormBlock, TextEmbedding, gelu
from spin_native.models.transformer import Transformer
from spin_native.models.weights import Copied, WeightTable
from spin_native.text.batch import TokenBatch

# Fixed in the published code: the id after which positions start, whatever config.json says; rows of the relative-position
# table; and the distance from which all share the last bucket.
PAD_ID, N_BUCKETS, MAX_DISTANCE = 1, 32, 128


class MpnetConfig(ModelConfig):
    @property
    def max_tokens(self) -> int:
        return self.n_positions - PAD_ID - 1


class MpnetEmbedding(TextEmbedding):
    def __init__(self, config: MpnetConfig) -> None:
        super().__init__()
        self.word = Embedding(config.n_vocab, config.d_model)
        self.position = Embedding(config.n_positions, config.d_model)
        self.norm = LayerNorm(config.d_model, config.norm_eps)

    def forward(self, batch: TokenBatch, words: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        return self.norm(words + self.position(positions_after(PAD_ID, batch)))


class DistanceBias(PositionBias):
    """One number per head and bucket of distances from query to key (T5, Raffel et al. 2020, section 2.1)."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.of_bucket = Embedding(N_BUCKETS, n_heads)

    def forward(self, length: int) -> Float[Tensor, "head query key"]:
        position = torch.arange(length, device=self.of_bucket.weight.device)
        distance = position[None, :] - position[:, None]  # [query, key]; positive where the key comes later
        return self.of_bucket(self.bucket(distance)).permute(2, 0, 1)

    def bucket(self, distance: Int[Tensor, "query key"]) -> Int[Tensor, "query key"]:
        """Half of the buckets are for later keys. Of each half, one part counts single steps, the rest grows by a factor."""
        n_each_way = N_BUCKETS // 2
        n_exact = n_each_way // 2
        steps = distance.abs()
        # In float32, as published: at the borders of buckets other precisions may round to the other side.
        growth = (steps.float() / n_exact).log() / math.log(MAX_DISTANCE / n_exact)
        far = (n_exact + (growth * (n_each_way - n_exact)).long()).clamp(max=n_each_way - 1)
        return n_each_way * (distance > 0) + torch.where(steps < n_exact, steps, far)


class Mpnet(Transformer):
    model_type = "mpnet"
    certain_names = ("*encoder.relative_attention_bias.weight", "*encoder.layer.0.attention.attn.q.weight")

    def __init__(self, config: MpnetConfig, depth: int | None = None) -> None:
        bias = DistanceBias(config.n_heads)

        def block(index: int) -> PostNormBlock:
            return post_norm_block(config, index, Attention(config.n_heads, scale=config.d_head**-0.5, bias=bias))

        super().__init__(config, depth, MpnetEmbedding(config), block)
        self.distance_bias = bias

    @classmethod
    def read_config(cls, file: ConfigFile) -> MpnetConfig:
        if (n_buckets := file.size("relative_attention_num_buckets", N_BUCKETS)) != N_BUCKETS:
            raise InputError(f"{file.where}: relative_attention_num_buckets is {n_buckets}; supported is {N_BUCKETS}")
        return MpnetConfig(**vars(read_sizes(file, cls.model_type)))

    @classmethod
    def new_head(cls, config: ModelConfig) -> MaskedHead:
        return MaskedHead(config, gelu)

    weights = WeightTable(
        prefix="mpnet.",
        rules={
            "embedding.word.weight": Copied("embeddings.word_embeddings.weight"),
            "embedding.position.weight": Copied("embeddings.position_embeddings.weight"),
            "embedding.norm.{part}": Copied("embeddings.LayerNorm.{part}"),
            "distance_bias.of_bucket.weight": Copied("encoder.relative_attention_bias.weight"),
            "blocks.{layer}.attention.project.query.{part}": Copied("encoder.layer.{layer}.attention.attn.q.{part}"),
            "blocks.{layer}.attention.project.key.{part}": Copied("encoder.layer.{layer}.attention.attn.k.{part}"),
            "blocks.{layer}.attention.project.value.{part}": Copied("encoder.layer.{layer}.attention.attn.v.{part}"),
            "blocks.{layer}.attention.output.{part}": Copied("encoder.layer.{layer}.attention.attn.o.{part}"),
            "blocks.{layer}.attention_norm.{part}": Copied("encoder.layer.{layer}.attention.LayerNorm.{part}"),
            "blocks.{layer}.feed_forward.up.{part}": Copied("encoder.layer.{layer}.intermediate.dense.{part}"),
            "blocks.{layer}.feed_forward.down.{part}": Copied("encoder.layer.{layer}.output.dense.{part}"),
            "blocks.{layer}.feed_forward_norm.{part}": Copied("encoder.layer.{layer}.output.LayerNorm.{part}"),
        },
        buffers=("embeddings.position_ids",),
        heads=("pooler.*", "lm_head.*", "classifier.*", "qa_outputs.*"),
    )
    head_weights = Roberta.head_weights
