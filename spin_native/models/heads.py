"""Language-model heads: a token's final hidden state -> one logit per word of the vocabulary. Loaded only with `head=True`.

A head is tied where its word vectors are the embedding's (`tie_word_embeddings` of config.json, true unless it says otherwise).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from spin_native.models.config import ModelConfig
from spin_native.models.layers import LayerNorm


class MaskedHead(nn.Module):
    """BERT's head (Devlin et al. 2019, section 3.1): a dense layer, activation and norm, then the product with every word."""

    def __init__(self, config: ModelConfig, activation_function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.norm = LayerNorm(config.d_model, config.norm_eps)
        self.words = nn.Linear(config.d_model, config.n_vocab)
        self.activation_function = activation_function

    def forward(self, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocab"]:
        return self.words(self.norm(self.activation_function(self.dense(hidden))))


class CausalHead(nn.Module):
    """GPT-2's head: the final hidden state times the vector of every word. The logits at a token are for the next one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.words = nn.Linear(config.d_model, config.n_vocab, bias=False)

    def forward(self, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocab"]:
        return self.words(hidden)


@dataclass(frozen=True)
class HeadTable:
    """Where a family's checkpoints keep their language-model head.

    stored: parameter, with `{part}` for weight and bias -> names under which it may be stored. A tied head has one tensor under
    several names, which must be equal, its `words` also under `embedding`; of an untied one the first that is stored counts.
    """

    stored: Mapping[str, tuple[str, ...]]
    embedding: str

    def names(self, parameter: str, *, tied: bool) -> tuple[str, ...]:
        """The names of a head's parameter in a checkpoint."""
        stem, _, part = parameter.rpartition(".")
        templates = self.stored[parameter] if parameter in self.stored else self.stored[stem + ".{part}"]
        names = tuple(template.format(part=part) for template in templates)
        return (self.embedding, *names) if tied and parameter == "words.weight" else names
