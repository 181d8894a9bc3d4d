"""GPT-2 (Radford et al. 2019), every size: causal, pre-norm, no embedding norm, a norm at the end."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from spin_native.models.attention import Attention
from spin_native.models.config import ConfigFile, ModelConfig
from spin_native.models.heads import CausalHead, HeadTable
from spin_native.models.layers import Embedding, FeedForward, LayerNorm, PreNormBlock, SelfAttention, TextEmbedding
from spin_native.models.transformer import Transformer
from spin_native.models.weights import Copied, Third, Transposed, WeightTable
from spin_native.text.batch import TokenBatch


@dataclass(frozen=True)
class Gpt2Config(ModelConfig):
    """scales_attention: divide scores by sqrt(d_head). scales_attention_by_layer: divide them by layer index + 1 as well."""

    scales_attention: bool
    scales_attention_by_layer: bool


class Gpt2Embedding(TextEmbedding):
    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.word = Embedding(config.n_vocab, config.d_model)
        self.position = Embedding(config.n_positions, config.d_model)

    def forward(self, batch: TokenBatch, words: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        return words + self.position(batch.positions)


def gpt2_block(config: Gpt2Config, index: int) -> PreNormBlock:
    scale = config.d_head**-0.5 if config.scales_attention else 1.0
    if config.scales_attention_by_layer:
        scale /= index + 1
    return PreNormBlock(
        SelfAttention(config.d_model, Attention(config.n_heads, scale=scale, causal=True)),
        LayerNorm(config.d_model, config.norm_eps),
        FeedForward(config, index),
        LayerNorm(config.d_model, config.norm_eps),
    )


class Gpt2(Transformer):
    model_type = "gpt2"
    ffn_key = "n_inner"
    certain_names = ("*wte.weight", "*wpe.weight", "*h.0.attn.c_attn.weight")

    def __init__(self, config: Gpt2Config, depth: int | None = None) -> None:
        final_norm = LayerNorm(config.d_model, config.norm_eps)
        super().__init__(config, depth, Gpt2Embedding(config), lambda index: gpt2_block(config, index), final_norm)

    @classmethod
    def read_config(cls, file: ConfigFile) -> Gpt2Config:
        file.refuse_unsupported(except_for="is_decoder")  # GPT-2 is causal by construction; transformers ignores it too
        d_model = file.size("n_embd")
        return Gpt2Config(
            family=cls.model_type,
            n_layers=file.n_layers("n_layer"),
            n_heads=file.size("n_head"),
            d_model=d_model,
            d_ffn=4 * d_model if file.content.get(cls.ffn_key) is None else file.size(cls.ffn_key),
            n_vocab=file.size("vocab_size"),
            n_positions=file.size("n_positions"),
            norm_eps=file.norm_eps("layer_norm_epsilon", 1e-5),
            activation_function=file.activation_function("activation_function", "gelu_new"),
            pad_id=file.pad_id(),
            scales_attention=file.flag("scale_attn_weights", True),
            scales_attention_by_layer=file.flag("scale_attn_by_inverse_layer_idx", False),
        )

    @classmethod
    def new_head(cls, config: ModelConfig) -> CausalHead:
        return CausalHead(config)

    weights = WeightTable(
        prefix="transformer.",
        rules={
            "embedding.word.weight": Copied("wte.weight"),
            "embedding.position.weight": Copied("wpe.weight"),
            "blocks.{layer}.attention_norm.{part}": Copied("h.{layer}.ln_1.{part}"),
            "blocks.{layer}.attention.project.query.{part}": Third("h.{layer}.attn.c_attn.{part}", 0),
            "blocks.{layer}.attention.project.key.{part}": Third("h.{layer}.attn.c_attn.{part}", 1),
            "blocks.{layer}.attention.project.value.{part}": Third("h.{layer}.attn.c_attn.{part}", 2),
            "blocks.{layer}.attention.output.weight": Transposed("h.{layer}.attn.c_proj.weight"),
            "blocks.{layer}.attention.output.bias": Copied("h.{layer}.attn.c_proj.bias"),
            "blocks.{layer}.feed_forward_norm.{part}": Copied("h.{layer}.ln_2.{part}"),
            "blocks.{layer}.feed_forward.up.weight": Transposed("h.{layer}.mlp.c_fc.weight"),
            "blocks.{layer}.feed_forward.up.bias": Copied("h.{layer}.mlp.c_fc.bias"),
            "blocks.{layer}.feed_forward.down.weight": Transposed("h.{layer}.mlp.c_proj.weight"),
            "blocks.{layer}.feed_forward.down.bias": Copied("h.{layer}.mlp.c_proj.bias"),
            "final_norm.{part}": Copied("ln_f.{part}"),
        },
        # attn.bias is the causal mask stored as a tensor, attn.masked_bias the number once written over hidden scores.
        buffers=("h.*.attn.bias", "h.*.attn.masked_bias"),
        heads=("lm_head.*", "score.*", "classifier.*", "qa_outputs.*", "multiple_choice_head.*"),
    )
    head_weights = HeadTable({"words.weight": ("lm_head.weight",)}, embedding="wte.weight")
