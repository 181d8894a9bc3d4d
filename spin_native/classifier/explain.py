"""Why a head gave its answer: what each word and each neuron added, and what weight each neuron has."""

from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from spin_native.classifier.deployed import Deployed
from spin_native.classifier.examples import Examples, places_of
from spin_native.classifier.explanation import NO_WORDS, Contribution, Explanation, Parts, Token, Word
from spin_native.classifier.heads import Head
from spin_native.classifier.heads.base import LinearHead
from spin_native.classifier.token_shares import read_row, summed_by_word
from spin_native.classifier.words import words_of_tokens
from spin_native.text.pairs import Text
from spin_native.text.pairs import parts as parts_of

Array = np.ndarray


def explain(deployed: Deployed, text: Text, depth: int, n_neurons: int, examples: Examples | None) -> Explanation:
    """The answer that the head at a depth gives to one text, explained. The model runs once, to that head's last layer."""
    head = deployed.heads[depth]
    block = deployed.token_ids(text)
    features, shares = read_row(head, deployed.token_values(block, depth), len(block.ids[0]))
    scores = head.scores(np.ascontiguousarray(head.standardizer(features)))
    output = head.task.outputs(scores)
    score, sign = head.task.explained(output[0])
    described = head.task.described(output[0])
    parts, no_words = None, NO_WORDS
    if isinstance(text, tuple) or (block.windows is not None and len(block.windows[0]) > 1):
        no_words = "the classifier read a pair of texts, or several windows of one: words are of a single text in one piece"
    elif shares is not None and isinstance(head, LinearHead):
        bias = float(sign * head.model.intercept_[score])
        parts = _parts(deployed, text, block.ids[0], sign * shares[:, score], bias)
    kept = {} if examples is None else examples.by_neuron()
    neurons = tuple(_contributions(head, sign * head.contributions(features, score), n_neurons))
    explained_label = head.task.output_names[score] if "labels" in described else None
    return Explanation(
        text=" | ".join(parts_of(text)),
        answer=head.task.answers(output)[0],
        output=described,
        depth=depth,
        logit=float(sign * scores[0, score]),
        explained_label=explained_label,
        neurons=neurons,
        parts=parts,
        no_words=no_words,
        examples=kept,
    )


def _parts(deployed: Deployed, text: str, ids: list[int], shares: Float64[Array, "token"], bias: float) -> Parts:
    """Words and tokens with what each adds."""
    tokenizer = deployed.extractor.tokenizer
    offsets = tokenizer.offsets(text)
    spans, word_of = words_of_tokens(text, offsets)
    sums, special = summed_by_word(shares, word_of, len(spans))
    words = tuple(Word(text[start:end], start, end, added) for (start, end), added in zip(spans, sums, strict=True))
    tokens = tuple(
        Token(token, span and span[0], span and span[1], added)
        for token, span, added in zip(tokenizer.token_strings(ids), offsets, shares.tolist(), strict=True)
    )
    return Parts(bias, special, words, tokens)


def _contributions(head: Head, added: Float[Array, "salient"], n_neurons: int) -> list[Contribution]:
    """The neurons that added most to the head's answer for one row, largest first. added: by each neuron."""
    columns = np.argsort(-added, kind="stable")[:n_neurons]
    return [
        Contribution(feature.layer, neuron, float(added[column]), feature.site, feature.pooling)
        for column, (feature, neuron) in zip(columns, places_of(head, columns), strict=True)
    ]


def neuron_weights(head: Head) -> list[dict[str, Any]]:
    """Every salient neuron with its weight for each of the task's `output_names`; InputError for a perceptron."""
    return [
        {"layer": feature.layer, "neuron": neuron, "site": feature.site, "pooling": feature.pooling, "weights": weights}
        for (feature, neuron), weights in zip(head.places, head.weights.T.tolist(), strict=True)
    ]


def salient_neurons(head: Head) -> dict[int, Array]:
    """Layer -> sorted neurons that the head reads under any pooling (FFN neurons, where it reads both sites)."""
    site = "activation" if "activation" in {feature.site for feature in head.neurons} else "hidden"
    neurons: dict[int, Array] = {}
    for feature, chosen in head.neurons.items():
        if feature.site == site and len(chosen):
            neurons[feature.layer] = np.union1d(neurons.get(feature.layer, chosen), chosen)
    return neurons
