"""What a forward pass needs to know about a checkpoint, read from its `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from spin_native.errors import InputError

Family = Literal["roberta", "bert", "distilbert", "gpt2"]
ActivationFunction = Literal["gelu", "gelu_tanh", "relu"]

ACTIVATION_FUNCTIONS: dict[str, ActivationFunction] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",  # the same formula under two names
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

# Field -> key of config.json.
BERT_KEYS = {
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_model": "hidden_size",
    "d_ffn": "intermediate_size",
    "n_vocab": "vocab_size",
    "n_positions": "max_position_embeddings",
}
SIZE_KEYS: dict[Family, dict[str, str]] = {
    "roberta": BERT_KEYS,
    "bert": BERT_KEYS,
    "distilbert": {
        **BERT_KEYS,
        "n_layers": "n_layers",
        "n_heads": "n_heads",
        "d_model": "dim",
        "d_ffn": "hidden_dim",
    },
    "gpt2": {
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "d_model": "n_embd",
        "n_vocab": "vocab_size",
        "n_positions": "n_positions",
    },
}
ACTIVATION_KEY: dict[Family, str] = {
    "roberta": "hidden_act",
    "bert": "hidden_act",
    "distilbert": "activation",
    "gpt2": "activation_function",
}
# Settings that change the arithmetic in a way these forward passes do not follow: key -> the values that are harmless.
REFUSED_UNLESS: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
}
MAX_LAYERS = 1000  # the deepest published GPT-2 has 48; a hostile config must not make us build a million blocks


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of one checkpoint.

    n_positions counts the rows of the position table; `max_tokens` is how long a text may be (RoBERTa: fewer).
    """

    family: Family
    n_layers: int
    n_heads: int
    d_model: int
    d_ffn: int
    n_vocab: int
    n_positions: int
    n_token_types: int
    norm_eps: float
    activation_function: ActivationFunction
    pad_id: int | None
    scales_attention: bool = True
    scales_attention_by_layer: bool = False

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def first_position(self) -> int:
        """RoBERTa's positions start at pad_id + 1: fairseq kept the rows before it."""
        return self.pad_id + 1 if self.family == "roberta" and self.pad_id is not None else 0

    @property
    def max_tokens(self) -> int:
        """The longest row the position table holds."""
        return self.n_positions - self.first_position

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], where: str) -> "ModelConfig":
        """Read a parsed `config.json`; `where` names it in errors.

        Raises InputError, by name, for a model type or setting that these forward passes do not compute, and for sizes that
        are missing or make no sense.
        """
        family = config.get("model_type")
        if family not in get_args(Family):
            raise InputError(f"{where}: model_type is {family!r}; supported are {', '.join(get_args(Family))}")
        family = cast(Family, family)
        for key, harmless in REFUSED_UNLESS.items():
            # GPT-2 is causal by construction: transformers ignores is_decoder there.
            if config.get(key) not in harmless and not (family == "gpt2" and key == "is_decoder"):
                raise InputError(
                    f"{where}: {key} is {config[key]!r}, which this forward pass does not compute; use a checkpoint without it"
                )
        sizes = {field: _size(config, key, where) for field, key in SIZE_KEYS[family].items()}
        if family == "gpt2":
            sizes["d_ffn"] = 4 * sizes["d_model"] if config.get("n_inner") is None else _size(config, "n_inner", where)
        if sizes["d_model"] % sizes["n_heads"]:
            raise InputError(f"{where}: a width of {sizes['d_model']} cannot be split over {sizes['n_heads']} heads")
        if sizes["n_layers"] > MAX_LAYERS:
            raise InputError(f"{where}: {sizes['n_layers']} layers; expected at most {MAX_LAYERS}")
        named = config.get(ACTIVATION_KEY[family], "gelu_new" if family == "gpt2" else "gelu")
        if not isinstance(named, str) or named not in ACTIVATION_FUNCTIONS:
            raise InputError(f"{where}: {ACTIVATION_KEY[family]} is {named!r}; supported are {', '.join(ACTIVATION_FUNCTIONS)}")
        return cls(
            family=family,
            **sizes,
            n_token_types=_size(config, "type_vocab_size", where, 2) if family in ("bert", "roberta") else 0,
            norm_eps=_norm_eps(config, family, where),
            activation_function=ACTIVATION_FUNCTIONS[named],
            pad_id=_pad_id(config, family, sizes, where),
            scales_attention=family != "gpt2" or bool(config.get("scale_attn_weights", True)),
            scales_attention_by_layer=family == "gpt2" and bool(config.get("scale_attn_by_inverse_layer_idx", False)),
        )


def _size(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{where}: {key} is {value!r}; expected a whole number of at least 1")
    return value


def _norm_eps(config: Mapping[str, Any], family: Family, where: str) -> float:
    if family == "distilbert":
        return 1e-12  # fixed in the published code, not in the config
    key, default = ("layer_norm_epsilon", 1e-5) if family == "gpt2" else ("layer_norm_eps", 1e-12)
    eps = config.get(key, default)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise InputError(f"{where}: {key} is {eps!r}; expected a small positive number")
    return eps


def _pad_id(config: Mapping[str, Any], family: Family, sizes: Mapping[str, int], where: str) -> int | None:
    pad_id = config.get("pad_token_id", 1 if family == "roberta" else None)
    if family != "roberta":
        return pad_id if isinstance(pad_id, int) else None
    # RoBERTa's positions depend on it.
    if not isinstance(pad_id, int) or not 0 <= pad_id < sizes["n_positions"] - 1:
        raise InputError(f"{where}: pad_token_id is {pad_id!r}; expected 0 to {sizes['n_positions'] - 2}")
    return pad_id
