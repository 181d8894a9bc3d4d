"""One explained answer: what each word and each token added to it, the neurons that spoke for it, and what excites these."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import click

from spin_native.classifier.examples import NeuronExamples
from spin_native.errors import InputError
from spin_native.features.spec import FeatureKey

# Colours of a terminal with 256 of them, from weak to strong: (background, letters).
RED = ((224, 16), (217, 16), (210, 16), (203, 16), (196, 16))
BLUE = ((189, 16), (147, 16), (105, 16), (63, 231), (21, 231))
UNCOLOURED = 0.1  # words that add less than this share of the largest contribution stay plain
SHOWN_CHARACTERS = 60  # of the text of a training row


class Contribution(NamedTuple):
    """How much one neuron added to the predicted class's logit, or to the value."""

    layer: int
    neuron: int
    contribution: float
    site: str
    pooling: str


class Word(NamedTuple):
    """How much one word added: text[start:end]."""

    word: str
    start: int
    end: int
    contribution: float


class Token(NamedTuple):
    """How much one token added. token: as the vocabulary spells it. start, end: None for a special token."""

    token: str
    start: int | None
    end: int | None
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """Why a classifier gave one answer. Iterating over it, and `len`, give its neurons.

    answer: the predicted class as it was labelled, or the value. output: the same for JSON, with probabilities. depth: of the
        head that was asked.
    logit: the predicted class's (of two classes, that it is this one and not the other), or the value. Of several labels per
        text it is that of the most probable label among those that are given; where none is, that the text does not have the
        most probable label.
    explained_label: that label; None for other tasks.
    bias: the head's intercept. special: the sum of the special tokens, such as [CLS].
    words, tokens: what each adds; bias + special + all words = bias + all tokens = logit. Of a text that was cut, only what
        was read. InputError for a perceptron, whose logit is no such sum, for pairs, and for a text in several windows.
    neurons: those that added most, largest first. examples: by (feature, neuron), training rows that excite it most and least.
    """

    text: str
    answer: Any
    output: Mapping[str, Any]
    depth: int
    logit: float
    neurons: tuple[Contribution, ...]
    parts: "Parts | None"
    no_words: str
    examples: Mapping[tuple[FeatureKey, int], NeuronExamples]
    explained_label: str | None = None

    @property
    def words(self) -> tuple[Word, ...]:
        return self._parts.words

    @property
    def tokens(self) -> tuple[Token, ...]:
        return self._parts.tokens

    @property
    def bias(self) -> float:
        return self._parts.bias

    @property
    def special(self) -> float:
        return self._parts.special

    @property
    def _parts(self) -> "Parts":
        if self.parts is None:
            raise InputError(f"{self.no_words}; its neurons are in .neurons")
        return self.parts

    def __iter__(self) -> Iterator[Contribution]:
        return iter(self.neurons)

    def __len__(self) -> int:
        return len(self.neurons)

    def example(self, neuron: Contribution) -> NeuronExamples | None:
        """The training rows that excite one of the neurons most and least, if the classifier keeps them."""
        return self.examples.get((FeatureKey(neuron.site, neuron.pooling, neuron.layer), neuron.neuron))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: text, label and probabilities (or value), depth, logit, bias, special, words, tokens, neurons.

        With several labels per text also explained_label, the one that the logit is about. bias, special, words and tokens are
        None for a perceptron.
        """
        parts = self.parts
        return {
            "text": self.text,
            **self.output,
            "depth": self.depth,
            **({} if self.explained_label is None else {"explained_label": self.explained_label}),
            "logit": self.logit,
            "bias": parts and parts.bias,
            "special": parts and parts.special,
            "words": parts and [word._asdict() for word in parts.words],
            "tokens": parts and [token._asdict() for token in parts.tokens],
            "neurons": [self._neuron_record(neuron) for neuron in self.neurons],
        }

    def shown(self, color: bool = False) -> str:
        """For a terminal: the answer, the words and the neurons.

        color: the text with a red background where words speak for the answer, and a blue one where they speak against it;
        without it, a line for each word.
        """
        lines = [f"{self._shown_answer()} {self.logit:+.2f}"]
        if self.parts is None:
            lines.append(self.no_words)
        else:
            words = sum(word.contribution for word in self.words)
            lines[0] += f" = bias {self.bias:+.2f}, special tokens {self.special:+.2f}, words {words:+.2f}"
            if color:
                legend = (click.style(f" {side} ", **_style(sign, 1.0)) for side, sign in (("for", 1.0), ("against", -1.0)))
                lines += [" ".join(legend), self._coloured()]
            else:
                lines += [f"{word.contribution:+.2f} {word.word}" for word in self.words]
        if self.neurons:
            lines += ["neurons (layer.neuron, and what they added):", *map(self._neuron_line, self.neurons)]
        return "\n".join(lines)

    def _shown_answer(self) -> str:
        """The answer with its probability, and what the number after it is."""
        if "value" in self.output:
            return f"{self.answer:.4f}: value"
        shares = self.output["probabilities"]
        if "label" in self.output:
            label = str(self.output["label"])  # with priorities of classes not always the most probable one
            return f"{label} ({shares[label]:.4f}): logit"
        if not self.output["labels"]:
            label = str(self.explained_label)
            return f"no label ({label} {shares[label]:.4f}): logit that it is not {label}"
        labels = map(str, self.output["labels"])
        return f"{', '.join(f'{label} ({shares[label]:.4f})' for label in labels)}: logit of {self.explained_label}"

    def _coloured(self) -> str:
        """The whole text with a background behind its words."""
        largest = max((abs(word.contribution) for word in self.words), default=0.0)
        pieces, end = [], 0
        for word in self.words:
            style = _style(word.contribution, largest)
            pieces += [self.text[end : word.start], click.style(word.word, **style) if style else word.word]
            end = word.end
        return "".join([*pieces, self.text[end:]])

    def _neuron_record(self, neuron: Contribution) -> dict[str, Any]:
        example = self.example(neuron)
        return {**neuron._asdict(), "examples": example and example.to_dict()}

    def _neuron_line(self, neuron: Contribution) -> str:
        line = f"  {neuron.contribution:+.2f} {neuron.layer}.{neuron.neuron} ({neuron.site}, {neuron.pooling})"
        example = self.example(neuron)
        if example is None:
            return line
        return f"{line}\n    largest in training {_rows(example.highest)}\n    smallest in training {_rows(example.lowest)}"


class Parts(NamedTuple):
    """What adds up to a logit; see Explanation."""

    bias: float
    special: float
    words: tuple[Word, ...]
    tokens: tuple[Token, ...]


NO_WORDS = "the head is a perceptron (head='weighted'): its logit is no sum over words"


def _rows(rows: Mapping[int, str | None]) -> str:
    """rows 3, 17; with their texts where these are kept, a line each."""
    if all(text is None for text in rows.values()):
        return f"rows {', '.join(map(str, rows))}"
    return "rows" + "".join(f"\n      {row}: {_shortened(text or '')}" for row, text in rows.items())


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def _style(contribution: float, largest: float) -> dict[str, Any]:
    """The colours behind and of a word."""
    share = abs(contribution) / largest if largest else 0.0
    if share < UNCOLOURED:
        return {}
    colours = RED if contribution > 0 else BLUE
    background, letters = colours[min(int(share * len(colours)), len(colours) - 1)]
    return {"bg": background, "fg": letters}
