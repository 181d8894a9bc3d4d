"""DistilBERT (Sanh et al. 2019): BERT's blocks without token types."""

from jaxtyping import Float
from torch import Tensor

from spin_native.models.config import ConfigFile, ModelConfig
from spin_native.models.families.bert import post_norm_block
from spin_native.models.heads import HeadTable, MaskedHead
from spin_native.models.layers import ACTIVATIONS, Embedding, LayerNorm, TextEmbedding
from spin_native.models.transformer import Transformer
from spin_native.models.weights import Copied, WeightTable
from spin_native.text.batch import TokenBatch


class DistilBertEmbedding(TextEmbedding):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word = Embedding(config.n_vocab, config.d_model)
        self.position = Embedding(config.n_positions, config.d_model)
        self.norm = LayerNorm(config.d_model, config.norm_eps)

    def forward(self, batch: TokenBatch, words: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        return self.norm(words + self.position(batch.positions))


class DistilBert(Transformer):
    model_type = "distilbert"
    ffn_key = "hidden_dim"
    certain_names = ("*transformer.layer.0.attention.q_lin.weight",)

    def __init__(self, config: ModelConfig, depth: int | None = None) -> None:
        super().__init__(config, depth, DistilBertEmbedding(config), lambda index: post_norm_block(config, index))

    @classmethod
    def read_config(cls, file: ConfigFile) -> ModelConfig:
        file.refuse_unsupported()
        return ModelConfig(
            family=cls.model_type,
            n_layers=file.n_layers("n_layers"),
            n_heads=file.size("n_heads"),
            d_model=file.size("dim"),
            d_ffn=file.size(cls.ffn_key),
            n_vocab=file.size("vocab_size"),
            n_positions=file.size("max_position_embeddings"),
            norm_eps=1e-12,  # fixed in the published code, not in the config
            activation_function=file.activation_function("activation", "gelu"),
            pad_id=file.pad_id(),
        )

    @classmethod
    def new_head(cls, config: ModelConfig) -> MaskedHead:
        return MaskedHead(config, ACTIVATIONS[config.activation_function])

    weights = WeightTable(
        prefix="distilbert.",
        rules={
            "embedding.word.weight": Copied("embeddings.word_embeddings.weight"),
            "embedding.position.weight": Copied("embeddings.position_embeddings.weight"),
            "embedding.norm.{part}": Copied("embeddings.LayerNorm.{part}"),
            "blocks.{layer}.attention.project.query.{part}": Copied("transformer.layer.{layer}.attention.q_lin.{part}"),
            "blocks.{layer}.attention.project.key.{part}": Copied("transformer.layer.{layer}.attention.k_lin.{part}"),
            "blocks.{layer}.attention.project.value.{part}": Copied("transformer.layer.{layer}.attention.v_lin.{part}"),
            "blocks.{layer}.attention.output.{part}": Copied("transformer.layer.{layer}.attention.out_lin.{part}"),
            "blocks.{layer}.attention_norm.{part}": Copied("transformer.layer.{layer}.sa_layer_norm.{part}"),
            "blocks.{layer}.feed_forward.up.{part}": Copied("transformer.layer.{layer}.ffn.lin1.{part}"),
            "blocks.{layer}.feed_forward.down.{part}": Copied("transformer.layer.{layer}.ffn.lin2.{part}"),
            "blocks.{layer}.feed_forward_norm.{part}": Copied("transformer.layer.{layer}.output_layer_norm.{part}"),
        },
        buffers=("embeddings.position_ids",),
        heads=("vocab_*", "pre_classifier.*", "classifier.*", "qa_outputs.*"),
    )
    head_weights = HeadTable(
        {
            "dense.{part}": ("vocab_transform.{part}",),
            "norm.{part}": ("vocab_layer_norm.{part}",),
            "words.{part}": ("vocab_projector.{part}",),
        },
        embedding="embeddings.word_embeddings.weight",
    )
