"""`sn.inspect`: one text through a model, with everything that it computes on the way."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spin_native.errors import InputError
from spin_native.features.extract import Extractor
from spin_native.features.store import Features
from spin_native.given import is_whole
from spin_native.inspection import show
from spin_native.inspection.standout import MIN_OTHERS, NeuronScore, of_corpus, of_other_tokens, strongest
from spin_native.models import Layer, Transformer
from spin_native.models.attention import Attention
from spin_native.text.batch import TokenBatch
from spin_native.text.tokenizer import Tokenizer


def inspect(model: Transformer, tokenizer: Tokenizer, text: str) -> "Inspection":
    """Run one text through the model and keep all of it: queries, keys, values, attention, activations, hidden states.

    Works on every model that `load_model` returns; of one with fewer layers (depth), those are inspected. A text longer than
    the model reads is cut, with a TruncationWarning. Printed, the result is a table of tokens with the neurons that stand out;
    in a notebook it is HTML.

    Raises InputError for what is no str, a text without tokens, a tokenizer of another model, and values that are not finite.
    """
    if not isinstance(text, str):
        raise InputError(f"inspect: text is a {type(text).__name__}; expected one str: call it once for each text")
    Extractor(model, tokenizer, {})  # raises InputError where the two do not belong together
    encoded = tokenizer.encode([text])
    offsets = tokenizer.offsets(text)
    if not any(offsets):
        raise InputError(f"inspect: the text {text!r} has no tokens; expected at least one word")
    tokenizer.warn_truncated(sum(encoded.truncated), 1)
    layers, final_hidden = [], None
    with torch.inference_mode():
        for layer in model.layers(TokenBatch.from_rows(encoded.ids, model.device)):
            if layer.activation is None:
                final_hidden = _array(layer.hidden, "the final hidden state")
            else:
                layers.append(_inspected(model, layer))
    tokens = tokenizer.token_strings(encoded.ids[0])
    return Inspection(text, encoded.ids[0], tokens, offsets, layers, final_hidden, model, tokenizer)


@dataclass(frozen=True, eq=False)
class InspectedLayer:
    """One layer's inside. Arrays are float32; those of a float64 model are float64.

    index: the layer, from 0.
    hidden: what enters the layer, [token, d_model].
    query, key, value: [token, head, d_head].
    attended: the residual stream after attention, [token, d_model]; in BERT-like families normalised.
    activation: the FFN's neurons, [token, d_ffn].
    """

    index: int
    hidden: Float[np.ndarray, "token d_model"]
    query: Float[np.ndarray, "token head d_head"]
    key: Float[np.ndarray, "token head d_head"]
    value: Float[np.ndarray, "token head d_head"]
    attended: Float[np.ndarray, "token d_model"]
    activation: Float[np.ndarray, "token d_ffn"]
    _attend: Attention = field(repr=False)
    _device: torch.device = field(repr=False)

    @cached_property
    def attention(self) -> Float[np.ndarray, "head query key"]:
        """How much each token (query) takes from each (key): positive, sums to 1 over the keys. Computed when first used."""
        with torch.inference_mode():
            query, key = (torch.tensor(x, device=self._device) for x in (self.query, self.key))
            return _array(self._attend.weights(query, key), f"the attention of layer {self.index}")

    def __repr__(self) -> str:
        n_tokens, n_heads, d_head = self.query.shape
        return (
            f"InspectedLayer({self.index}: {n_tokens} tokens, {n_heads} heads of {d_head}, {self.activation.shape[1]} neurons)"
        )


@dataclass(frozen=True, eq=False)
class LogitLens:
    """What the language-model head says at every layer (nostalgebraist 2020), the `n` most probable words per token.

    The first axis is the layer that the hidden state enters: 0 is the embedding, the last one is the final hidden state, whose
    logits are those of `model.logits`. Inner states pass the model's final norm first, where the family has one (GPT-2).
    A masked model's head names the word at the token itself, GPT-2's the next word.
    """

    tokens: list[str]
    words: list[list[list[str]]]
    ids: Int[np.ndarray, "layer token n"]
    logits: Float[np.ndarray, "layer token n"]
    probabilities: Float[np.ndarray, "layer token n"]

    def __str__(self) -> str:
        return show.lens(self)

    __repr__ = __str__


@dataclass(frozen=True, eq=False)
class Inspection:
    """One text inside a model.

    tokens: as the vocabulary spells them. offsets: their place in the text, text[start:end]; None for special tokens.
    layers: one InspectedLayer per layer. final_hidden: after the last layer, [token, d_model]; None if the model was loaded
        with fewer layers.
    """

    text: str
    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int] | None]
    layers: list[InspectedLayer]
    final_hidden: Float[np.ndarray, "token d_model"] | None
    model: Transformer
    tokenizer: Tokenizer

    def top(
        self, token: str | int, n: int = 10, *, reference: Features | None = None, layer: int | None = None
    ) -> list[NeuronScore]:
        """The `n` neurons that stand out at a token, by absolute score, over all layers or in one.

        token: a word as it stands in the text, a token as the vocabulary spells it, or a position (from 0).
        reference: features of a corpus (activations, mean pooling), to compare with instead of the text's other tokens.
        Scores: see NeuronScore. Raises InputError for a token that is not there or several times, and for too short a text.
        """
        return self.tops([self.position(token)], n, reference=reference, layer=layer)[0]

    def tops(
        self, positions: Iterable[int], n: int, *, reference: Features | None = None, layer: int | None = None
    ) -> list[list[NeuronScore]]:
        """`top` for several positions."""
        n, positions = _whole("n", n, 1, None), [self.position(position) for position in positions]
        layers = self.layers if layer is None else [self.checked_layer(layer)]
        is_text = np.array([place is not None for place in self.offsets])
        if reference is None:
            n_others = int(min(is_text.sum() - is_text[positions]))
            if n_others < MIN_OTHERS:
                raise InputError(
                    f"top: the text has {n_others} other tokens to compare with; expected at least {MIN_OTHERS}: use a longer "
                    "text, or give reference=sn.extract(...) of a corpus"
                )
            statistics = [of_other_tokens(one.activation, is_text) for one in layers]
        else:
            statistics = [of_corpus(reference, one.index, one.activation.shape[1]) for one in layers]
        return strongest([one.activation for one in layers], statistics, [one.index for one in layers], positions, n)

    def position(self, token: str | int) -> int:
        """Where a token stands, from 0. A word as the text spells it comes before a token as the vocabulary spells it."""
        if not isinstance(token, str):
            return _whole("token", token, 0, len(self.tokens) - 1)
        matches = [i for i, place in enumerate(self.offsets) if place and self.text[slice(*place)] == token]
        matches = matches or [i for i, string in enumerate(self.tokens) if string == token]
        if not matches:
            raise InputError(f"no token {token!r} in this text; its tokens are {' '.join(self.tokens[: show.MAX_TOKENS])}")
        if len(matches) > 1:
            positions = ", ".join(map(str, matches))
            raise InputError(f"{token!r} is several tokens, at positions {positions}: give one of these numbers as the token")
        return matches[0]

    def neuron(self, layer: int, index: int) -> Float[np.ndarray, "token"]:
        """One neuron's activation at every token."""
        activation = self.checked_layer(layer).activation
        return activation[:, _whole("neuron", index, 0, activation.shape[1] - 1)]

    def attention(self, layer: int, head: int) -> Float[np.ndarray, "query key"]:
        """One head's attention weights."""
        attention = self.checked_layer(layer).attention
        return attention[_whole("head", head, 0, len(attention) - 1)]

    def logit_lens(self, n: int = 5) -> LogitLens:
        """The head's `n` most probable words at every layer and token; InputError without a head (load_model(head=True))."""
        n = _whole("n", n, 1, self.model.config.n_vocab)
        words, parts = [], []
        with torch.inference_mode():
            for hidden, is_final in [*((layer.hidden, False) for layer in self.layers), (self.final_hidden, True)]:
                state = torch.tensor(hidden, device=self.model.device, dtype=self.model.dtype)
                logits = self.model.logits(state if is_final else self.model.final_norm(state))
                best = logits.topk(n)
                wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
                probabilities = wide.softmax(-1).gather(1, best.indices)
                words.append([[self._spelled(i) for i in row] for row in best.indices.tolist()])
                parts.append((best.indices.cpu().numpy(), _array(best.values, "logits"), _array(probabilities, "logits")))
        ids, logits_, probabilities_ = (np.stack(arrays) for arrays in zip(*parts, strict=True))
        return LogitLens(self.tokens, words, ids, logits_, probabilities_)

    def to_json(self, n: int = 5, *, layer: int | None = None) -> dict[str, Any]:
        """Text, tokens and the `n` neurons that stand out at each, as `json.dumps` takes it. Arrays are in `layers`."""
        if layer is not None:
            self.checked_layer(layer)
        neurons = self.tops(range(len(self.tokens)), n, layer=layer) if self.is_comparable else [[] for _ in self.tokens]
        tokens = [
            {
                "token": token,
                "id": i,
                "start": place and place[0],
                "end": place and place[1],
                "neurons": [s._asdict() for s in top],
            }
            for token, i, place, top in zip(self.tokens, self.ids, self.offsets, neurons, strict=True)
        ]
        return {"model": self.model_name, "depth": len(self.layers), "text": self.text, "tokens": tokens}

    def to_html(
        self,
        n: int = 3,
        *,
        layer: int | None = None,
        neuron: tuple[int, int] | None = None,
        attention: tuple[int, int] | None = None,
    ) -> str:
        """HTML without scripts: the text coloured by one neuron, and a table of tokens with the `n` neurons that stand out.

        layer: list neurons of this layer only.
        neuron: (layer, index); None: the one with the largest score. attention: (layer, head), to show its weights as well.
        """
        return show.html(self, n, layer, neuron, attention)

    @property
    def model_name(self) -> str:
        return "model" if self.model.source is None else self.model.source.name

    @property
    def is_comparable(self) -> bool:
        """Whether every token has other tokens to be compared with."""
        return sum(place is not None for place in self.offsets) > MIN_OTHERS

    def __str__(self) -> str:
        return show.text(self, 2)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.to_html()

    def checked_layer(self, layer: int) -> InspectedLayer:
        """One layer; InputError for one that is not there."""
        return self.layers[_whole("layer", layer, 0, len(self.layers) - 1)]

    def _spelled(self, token_id: int) -> str:
        """A word of the vocabulary; the embedding may have more rows than the tokenizer has words."""
        try:
            return self.tokenizer.token_strings([token_id])[0]
        except InputError:
            return f"<id {token_id}>"


def _inspected(model: Transformer, layer: Layer) -> InspectedLayer:
    """Query, key and value by the block's own parts; the rest as the loop yields it."""
    block, where = model.blocks[layer.index], f"layer {layer.index}"
    attend = block.attention.attend
    assert layer.attended is not None
    assert layer.activation is not None
    projected = block.attention.project(block.attention_input(layer.hidden))
    query, key, value = (_array(x.unflatten(-1, (attend.n_heads, -1)), where) for x in projected)
    hidden, attended, activation = (_array(x, where) for x in (layer.hidden, layer.attended, layer.activation))
    return InspectedLayer(layer.index, hidden, query, key, value, attended, activation, attend, model.device)


def _array(x: Tensor, where: str) -> Float[np.ndarray, "..."]:
    """On the CPU, in float32 or float64; InputError for a value that is not finite."""
    if not bool(x.isfinite().all()):
        raise InputError(f"{where} holds values that are not finite in {x.dtype}: load the model with dtype=torch.float32")
    return x.to("cpu", torch.promote_types(x.dtype, torch.float32)).numpy()


def _whole(name: str, value: Any, low: int, high: int | None) -> int:
    """`value` as an int; InputError outside low..high (None: no limit)."""
    expected = f"a whole number from {low} to {high}" if high is not None else f"a whole number of at least {low}"
    if not is_whole(value) or value < low or (high is not None and value > high):
        raise InputError(f"{name} is {value!r}; expected {expected}")
    return int(value)
