"""BERT (Devlin et al. 2019)."""

from jaxtyping import Float
from torch import Tensor, nn

from spin_native.models.config import ModelConfig
from spin_native.models.layers import Embedding, PostNormBlock
from spin_native.models.transformer import Transformer
from spin_native.models.weights import Copied, WeightTable
from spin_native.text.batch import TokenBatch

# RoBERTa's checkpoints use the same names.
BLOCK_RULES = {
    "blocks.{layer}.attention.project.query.weight": Copied("encoder.layer.{layer}.attention.self.query.weight"),
    "blocks.{layer}.attention.project.query.bias": Copied("encoder.layer.{layer}.attention.self.query.bias"),
    "blocks.{layer}.attention.project.key.weight": Copied("encoder.layer.{layer}.attention.self.key.weight"),
    "blocks.{layer}.attention.project.key.bias": Copied("encoder.layer.{layer}.attention.self.key.bias"),
    "blocks.{layer}.attention.project.value.weight": Copied("encoder.layer.{layer}.attention.self.value.weight"),
    "blocks.{layer}.attention.project.value.bias": Copied("encoder.layer.{layer}.attention.self.value.bias"),
    "blocks.{layer}.attention.output.weight": Copied("encoder.layer.{layer}.attention.output.dense.weight"),
    "blocks.{layer}.attention.output.bias": Copied("encoder.layer.{layer}.attention.output.dense.bias"),
    "blocks.{layer}.attention_norm.weight": Copied("encoder.layer.{layer}.attention.output.LayerNorm.weight"),
    "blocks.{layer}.attention_norm.bias": Copied("encoder.layer.{layer}.attention.output.LayerNorm.bias"),
    "blocks.{layer}.feed_forward.up.weight": Copied("encoder.layer.{layer}.intermediate.dense.weight"),
    "blocks.{layer}.feed_forward.up.bias": Copied("encoder.layer.{layer}.intermediate.dense.bias"),
    "blocks.{layer}.feed_forward.down.weight": Copied("encoder.layer.{layer}.output.dense.weight"),
    "blocks.{layer}.feed_forward.down.bias": Copied("encoder.layer.{layer}.output.dense.bias"),
    "blocks.{layer}.feed_forward_norm.weight": Copied("encoder.layer.{layer}.output.LayerNorm.weight"),
    "blocks.{layer}.feed_forward_norm.bias": Copied("encoder.layer.{layer}.output.LayerNorm.bias"),
}


class Bert(Transformer):
    def __init__(self, config: ModelConfig, depth: int | None = None) -> None:
        super().__init__(config, depth)
        self.word_embedding = Embedding(config.n_vocab, config.d_model)
        self.position_embedding = Embedding(config.n_positions, config.d_model)
        self.token_type_embedding = Embedding(config.n_token_types, config.d_model)
        self.embedding_norm = nn.LayerNorm(config.d_model, config.norm_eps)

    def block(self, index: int) -> PostNormBlock:
        return PostNormBlock(self.config)

    def embed(self, batch: TokenBatch) -> Float[Tensor, "token d_model"]:
        summed = (
            self.word_embedding(batch.ids)
            + self.position_embedding(batch.positions)
            + self.token_type_embedding.weight[0]  # single texts are all of type 0
        )
        return self.embedding_norm(summed)

    weights = WeightTable(
        prefix="bert.",
        rules={
            "word_embedding.weight": Copied("embeddings.word_embeddings.weight"),
            "position_embedding.weight": Copied("embeddings.position_embeddings.weight"),
            "token_type_embedding.weight": Copied("embeddings.token_type_embeddings.weight"),
            "embedding_norm.weight": Copied("embeddings.LayerNorm.weight"),
            "embedding_norm.bias": Copied("embeddings.LayerNorm.bias"),
            **BLOCK_RULES,
        },
        ignorable=("embeddings.position_ids", "pooler.*", "cls.*", "classifier.*", "qa_outputs.*"),
    )
