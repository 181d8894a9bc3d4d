"""GPT-2 (Radford et al. 2019), every size: causal, pre-norm, no embedding norm, a norm at the end."""

from jaxtyping import Float
from torch import Tensor, nn

from spin_native.models.config import ModelConfig
from spin_native.models.layers import Embedding, PreNormBlock
from spin_native.models.transformer import Transformer
from spin_native.models.weights import Copied, Third, Transposed, WeightTable
from spin_native.text.batch import TokenBatch


class Gpt2(Transformer):
    def __init__(self, config: ModelConfig, depth: int | None = None) -> None:
        super().__init__(config, depth)
        self.word_embedding = Embedding(config.n_vocab, config.d_model)
        self.position_embedding = Embedding(config.n_positions, config.d_model)
        if self.is_whole:
            self.last_norm = nn.LayerNorm(config.d_model, config.norm_eps)

    def block(self, index: int) -> PreNormBlock:
        return PreNormBlock(self.config, index)

    def embed(self, batch: TokenBatch) -> Float[Tensor, "token d_model"]:
        return self.word_embedding(batch.ids) + self.position_embedding(batch.positions)

    def final_norm(self, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        return self.last_norm(hidden)

    weights = WeightTable(
        prefix="transformer.",
        rules={
            "word_embedding.weight": Copied("wte.weight"),
            "position_embedding.weight": Copied("wpe.weight"),
            "blocks.{layer}.attention_norm.weight": Copied("h.{layer}.ln_1.weight"),
            "blocks.{layer}.attention_norm.bias": Copied("h.{layer}.ln_1.bias"),
            "blocks.{layer}.attention.project.query.weight": Third("h.{layer}.attn.c_attn.weight", 0),
            "blocks.{layer}.attention.project.query.bias": Third("h.{layer}.attn.c_attn.bias", 0),
            "blocks.{layer}.attention.project.key.weight": Third("h.{layer}.attn.c_attn.weight", 1),
            "blocks.{layer}.attention.project.key.bias": Third("h.{layer}.attn.c_attn.bias", 1),
            "blocks.{layer}.attention.project.value.weight": Third("h.{layer}.attn.c_attn.weight", 2),
            "blocks.{layer}.attention.project.value.bias": Third("h.{layer}.attn.c_attn.bias", 2),
            "blocks.{layer}.attention.output.weight": Transposed("h.{layer}.attn.c_proj.weight"),
            "blocks.{layer}.attention.output.bias": Copied("h.{layer}.attn.c_proj.bias"),
            "blocks.{layer}.feed_forward_norm.weight": Copied("h.{layer}.ln_2.weight"),
            "blocks.{layer}.feed_forward_norm.bias": Copied("h.{layer}.ln_2.bias"),
            "blocks.{layer}.feed_forward.up.weight": Transposed("h.{layer}.mlp.c_fc.weight"),
            "blocks.{layer}.feed_forward.up.bias": Copied("h.{layer}.mlp.c_fc.bias"),
            "blocks.{layer}.feed_forward.down.weight": Transposed("h.{layer}.mlp.c_proj.weight"),
            "blocks.{layer}.feed_forward.down.bias": Copied("h.{layer}.mlp.c_proj.bias"),
            "last_norm.weight": Copied("ln_f.weight"),
            "last_norm.bias": Copied("ln_f.bias"),
        },
        # attn.bias is the causal mask, stored as a tensor; attn.masked_bias the number once written over hidden scores.
        ignorable=("h.*.attn.bias", "h.*.attn.masked_bias", "lm_head.*", "score.*"),
    )
