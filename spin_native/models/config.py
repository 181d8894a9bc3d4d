"""`config.json` read with care: what every family needs, and errors that name the file, the key and the value."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from spin_native.errors import InputError

ActivationFunction = Literal["gelu", "gelu_tanh", "relu"]

# The names that config.json files use; "gelu_new" and "gelu_pytorch_tanh" are one formula.
ACTIVATION_FUNCTIONS: dict[str, ActivationFunction] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
# Settings that change the arithmetic and are not implemented here: key -> the values that leave it unchanged.
REFUSED_UNLESS: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
}
# No published model comes near these; a hostile config must not make us build a million blocks, or overflow a size.
MAX_LAYERS, MAX_SIZE = 1000, 2**24

Config = TypeVar("Config", bound="ModelConfig")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices that every family has; a family adds its own in a subclass.

    n_positions: rows of the position table. pad_id: the padding token's id, if the checkpoint names one.
    d_ffn: neurons of every layer's FFN; of the widest one where `ffn_widths` lists them layer by layer (a pruned model).
    """

    family: str
    n_layers: int
    n_heads: int
    d_model: int
    d_ffn: int
    n_vocab: int
    n_positions: int
    norm_eps: float
    activation_function: ActivationFunction
    pad_id: int | None
    ffn_widths: tuple[int, ...] | None = field(default=None, kw_only=True)

    def ffn_width(self, layer: int) -> int:
        """How many neurons the FFN of a layer has."""
        return self.d_ffn if self.ffn_widths is None else self.ffn_widths[layer]

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def max_tokens(self) -> int:
        """The longest row that the position table holds."""
        return self.n_positions


@dataclass(frozen=True)
class ConfigFile:
    """A parsed `config.json`; `where` names it in errors. Every reader raises InputError for a missing or unusable value."""

    content: Mapping[str, Any]
    where: str

    def refuse_unsupported(self, *, except_for: str = "") -> None:
        """InputError for a setting that changes the arithmetic and is not implemented; `except_for`: a key to skip."""
        for key, harmless in REFUSED_UNLESS.items():
            if key != except_for and self.content.get(key) not in harmless:
                raise InputError(
                    f"{self.where}: {key} is {_short(self.content[key])}, which this forward pass does not compute; use a "
                    "checkpoint without it"
                )

    def size(self, key: str, default: int | None = None, at_most: int = MAX_SIZE) -> int:
        value = self.content.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{self.where}: {key} is {_short(value)}; expected a whole number of at least 1")
        if value > at_most:
            raise InputError(f"{self.where}: {key} is {_short(value)}; expected at most {at_most}")
        return value

    def n_layers(self, key: str) -> int:
        return self.size(key, at_most=MAX_LAYERS)

    def ffn_widths(self, n_layers: int, widest: int) -> tuple[int, ...] | None:
        """The key "ffn_widths" of a pruned checkpoint: neurons of each layer's FFN, the widest as the family's key says.

        transformers does not know this key. None where it is absent: all layers have the same width.
        """
        widths = self.content.get("ffn_widths")
        if widths is None:
            return None
        listed = widths if isinstance(widths, list) else []
        is_whole = all(isinstance(width, int) and not isinstance(width, bool) for width in listed)
        if not is_whole or len(listed) != n_layers or min(listed) < 1 or max(listed) != widest:
            raise InputError(
                f"{self.where}: ffn_widths is {_short(widths)}; expected {n_layers} whole numbers, one per layer, from 1 to "
                f"the width of the widest FFN, {widest}"
            )
        return tuple(listed)

    def flag(self, key: str, default: bool) -> bool:
        value = self.content.get(key, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.where}: {key} is {_short(value)}; expected true or false")
        return value

    def norm_eps(self, key: str, default: float) -> float:
        eps = self.content.get(key, default)
        if not isinstance(eps, float) or not 0 < eps < 1:
            raise InputError(f"{self.where}: {key} is {_short(eps)}; expected a small positive number")
        return eps

    def activation_function(self, key: str, default: str) -> ActivationFunction:
        name = self.content.get(key, default)
        if not isinstance(name, str) or name not in ACTIVATION_FUNCTIONS:
            raise InputError(f"{self.where}: {key} is {_short(name)}; supported are {', '.join(ACTIVATION_FUNCTIONS)}")
        return ACTIVATION_FUNCTIONS[name]

    def pad_id(self) -> int | None:
        pad_id = self.content.get("pad_token_id")
        return pad_id if isinstance(pad_id, int) and not isinstance(pad_id, bool) else None

    def pad_id_before_positions(self, n_positions: int) -> int:
        """The padding id of a family whose positions start after it (fairseq's convention)."""
        pad_id = self.content.get("pad_token_id", 1)
        if not isinstance(pad_id, int) or isinstance(pad_id, bool) or not 0 <= pad_id < n_positions - 1:
            raise InputError(f"{self.where}: pad_token_id is {_short(pad_id)}; expected 0 to {n_positions - 2}")
        return pad_id

    def checked(self, config: Config) -> Config:
        """`config` with the widths of its FFNs; InputError if its sizes cannot belong together."""
        if config.d_model % config.n_heads:
            raise InputError(f"{self.where}: a width of {config.d_model} cannot be split over {config.n_heads} heads")
        return replace(config, ffn_widths=self.ffn_widths(config.n_layers, config.d_ffn))


def _short(value: object) -> str:
    """A value of a stranger's file in an error: never a page of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
