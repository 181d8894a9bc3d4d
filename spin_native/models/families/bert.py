"""BERT (Devlin et al. 2019): learned positions, token types, post-norm blocks."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from spin_native.errors import InputError
from spin_native.models.attention import Attention
from spin_native.models.config import ConfigFile, ModelConfig
from spin_native.models.heads import HeadTable, MaskedHead
from spin_native.models.layers import (
    ACTIVATIONS,
    Embedding,
    FeedForward,
    LayerNorm,
    PostNormBlock,
    SelfAttention,
    TextEmbedding,
)
from spin_native.models.transformer import Transformer
from spin_native.models.weights import Copied, WeightTable
from spin_native.text.batch import TokenBatch


@dataclass(frozen=True)
class BertConfig(ModelConfig):
    n_token_types: int


class BertEmbedding(TextEmbedding):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word = Embedding(config.n_vocab, config.d_model)
        self.position = Embedding(config.n_positions, config.d_model)
        self.token_type = Embedding(config.n_token_types, config.d_model)
        self.norm = LayerNorm(config.d_model, config.norm_eps)

    def forward(self, batch: TokenBatch, words: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        token_type = self.of_types(batch)
        return self.norm(words + self.position(self.positions(batch)) + token_type)

    def of_types(self, batch: TokenBatch) -> Float[Tensor, "*token d_model"]:
        """The vector of each token's type: 0 for a single text and the first one of a pair, 1 for the second one."""
        types = batch.token_types
        if types is None:
            return self.token_type.weight[0]
        low, high = (int(bound) for bound in types.aminmax())
        if low < 0 or high >= self.token_type.num_embeddings:
            raise InputError(
                f"token types run from {low} to {high}, the model has types 0 to {self.token_type.num_embeddings - 1}: "
                "tokenizer and model do not belong together"
            )
        return self.token_type(types)

    def positions(self, batch: TokenBatch) -> Tensor:
        return batch.positions


def post_norm_block(config: ModelConfig, layer: int, attend: Attention | None = None) -> PostNormBlock:
    """BERT's block; RoBERTa and DistilBERT have the same."""
    return PostNormBlock(
        SelfAttention(config.d_model, attend or Attention(config.n_heads, scale=config.d_head**-0.5)),
        LayerNorm(config.d_model, config.norm_eps),
        FeedForward(config, layer),
        LayerNorm(config.d_model, config.norm_eps),
    )


def read_sizes(file: ConfigFile, family: str) -> ModelConfig:
    """The keys of BERT's config.json that RoBERTa and MPNet use, too."""
    file.refuse_unsupported()
    return ModelConfig(
        family=family,
        n_layers=file.n_layers("num_hidden_layers"),
        n_heads=file.size("num_attention_heads"),
        d_model=file.size("hidden_size"),
        d_ffn=file.size("intermediate_size"),
        n_vocab=file.size("vocab_size"),
        n_positions=file.size("max_position_embeddings"),
        norm_eps=file.norm_eps("layer_norm_eps", 1e-12),
        activation_function=file.activation_function("hidden_act", "gelu"),
        pad_id=file.pad_id(),
    )


class Bert(Transformer):
    model_type = "bert"
    certain_names = ("bert.encoder.layer.0.attention.self.query.weight",)

    def __init__(self, config: BertConfig, depth: int | None = None) -> None:
        super().__init__(config, depth, BertEmbedding(config), lambda index: post_norm_block(config, index))

    @classmethod
    def read_config(cls, file: ConfigFile) -> BertConfig:
        return BertConfig(**vars(read_sizes(file, cls.model_type)), n_token_types=file.size("type_vocab_size", 2))

    @classmethod
    def new_head(cls, config: ModelConfig) -> MaskedHead:
        return MaskedHead(config, ACTIVATIONS[config.activation_function])

    weights = WeightTable(
        prefix="bert.",
        rules={
            "embedding.word.weight": Copied("embeddings.word_embeddings.weight"),
            "embedding.position.weight": Copied("embeddings.position_embeddings.weight"),
            "embedding.token_type.weight": Copied("embeddings.token_type_embeddings.weight"),
            "embedding.norm.{part}": Copied("embeddings.LayerNorm.{part}"),
            "blocks.{layer}.attention.project.query.{part}": Copied("encoder.layer.{layer}.attention.self.query.{part}"),
            "blocks.{layer}.attention.project.key.{part}": Copied("encoder.layer.{layer}.attention.self.key.{part}"),
            "blocks.{layer}.attention.project.value.{part}": Copied("encoder.layer.{layer}.attention.self.value.{part}"),
            "blocks.{layer}.attention.output.{part}": Copied("encoder.layer.{layer}.attention.output.dense.{part}"),
            "blocks.{layer}.attention_norm.{part}": Copied("encoder.layer.{layer}.attention.output.LayerNorm.{part}"),
            "blocks.{layer}.feed_forward.up.{part}": Copied("encoder.layer.{layer}.intermediate.dense.{part}"),
            "blocks.{layer}.feed_forward.down.{part}": Copied("encoder.layer.{layer}.output.dense.{part}"),
            "blocks.{layer}.feed_forward_norm.{part}": Copied("encoder.layer.{layer}.output.LayerNorm.{part}"),
        },
        buffers=("embeddings.position_ids",),
        heads=("pooler.*", "cls.*", "classifier.*", "qa_outputs.*"),
    )
    head_weights = HeadTable(
        {
            "dense.{part}": ("cls.predictions.transform.dense.{part}",),
            "norm.{part}": ("cls.predictions.transform.LayerNorm.{part}",),
            "words.weight": ("cls.predictions.decoder.weight",),
            "words.bias": ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        },
        embedding="embeddings.word_embeddings.weight",
    )
