"""DistilBERT (Sanh et al. 2019): BERT's blocks without token types."""

from jaxtyping import Float
from torch import Tensor, nn

from spin_native.models.config import ModelConfig
from spin_native.models.layers import Embedding, PostNormBlock
from spin_native.models.transformer import Transformer
from spin_native.models.weights import Copied, WeightTable
from spin_native.text.batch import TokenBatch


class DistilBert(Transformer):
    def __init__(self, config: ModelConfig, depth: int | None = None) -> None:
        super().__init__(config, depth)
        self.word_embedding = Embedding(config.n_vocab, config.d_model)
        self.position_embedding = Embedding(config.n_positions, config.d_model)
        self.embedding_norm = nn.LayerNorm(config.d_model, config.norm_eps)

    def block(self, index: int) -> PostNormBlock:
        return PostNormBlock(self.config)

    def embed(self, batch: TokenBatch) -> Float[Tensor, "token d_model"]:
        return self.embedding_norm(self.word_embedding(batch.ids) + self.position_embedding(batch.positions))

    weights = WeightTable(
        prefix="distilbert.",
        rules={
            "word_embedding.weight": Copied("embeddings.word_embeddings.weight"),
            "position_embedding.weight": Copied("embeddings.position_embeddings.weight"),
            "embedding_norm.weight": Copied("embeddings.LayerNorm.weight"),
            "embedding_norm.bias": Copied("embeddings.LayerNorm.bias"),
            "blocks.{layer}.attention.project.query.weight": Copied("transformer.layer.{layer}.attention.q_lin.weight"),
            "blocks.{layer}.attention.project.query.bias": Copied("transformer.layer.{layer}.attention.q_lin.bias"),
            "blocks.{layer}.attention.project.key.weight": Copied("transformer.layer.{layer}.attention.k_lin.weight"),
            "blocks.{layer}.attention.project.key.bias": Copied("transformer.layer.{layer}.attention.k_lin.bias"),
            "blocks.{layer}.attention.project.value.weight": Copied("transformer.layer.{layer}.attention.v_lin.weight"),
            "blocks.{layer}.attention.project.value.bias": Copied("transformer.layer.{layer}.attention.v_lin.bias"),
            "blocks.{layer}.attention.output.weight": Copied("transformer.layer.{layer}.attention.out_lin.weight"),
            "blocks.{layer}.attention.output.bias": Copied("transformer.layer.{layer}.attention.out_lin.bias"),
            "blocks.{layer}.attention_norm.weight": Copied("transformer.layer.{layer}.sa_layer_norm.weight"),
            "blocks.{layer}.attention_norm.bias": Copied("transformer.layer.{layer}.sa_layer_norm.bias"),
            "blocks.{layer}.feed_forward.up.weight": Copied("transformer.layer.{layer}.ffn.lin1.weight"),
            "blocks.{layer}.feed_forward.up.bias": Copied("transformer.layer.{layer}.ffn.lin1.bias"),
            "blocks.{layer}.feed_forward.down.weight": Copied("transformer.layer.{layer}.ffn.lin2.weight"),
            "blocks.{layer}.feed_forward.down.bias": Copied("transformer.layer.{layer}.ffn.lin2.bias"),
            "blocks.{layer}.feed_forward_norm.weight": Copied("transformer.layer.{layer}.output_layer_norm.weight"),
            "blocks.{layer}.feed_forward_norm.bias": Copied("transformer.layer.{layer}.output_layer_norm.bias"),
        },
        ignorable=("embeddings.position_ids", "vocab_*", "pre_classifier.*", "classifier.*", "qa_outputs.*"),
    )
