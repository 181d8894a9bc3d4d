"""Which neurons stand out at a token: a z-score against the other tokens of the text, or against a corpus."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from spin_native.errors import InputError
from spin_native.features.store import Features

MIN_OTHERS = 2  # tokens, or rows of a corpus: a standard deviation needs two


class NeuronScore(NamedTuple):
    """How much a neuron stands out at a token: score = (activation - mean) / std.

    mean, std: of the neuron over the other tokens of the text without special ones, or over the rows of the reference. `std` is
    at least the average standard deviation of the layer's neurons: a neuron that hardly ever changes does not stand out.
    """

    layer: int
    neuron: int
    activation: float
    mean: float
    std: float
    score: float


Statistics = tuple[Float64[np.ndarray, "_ d_ffn"], Float64[np.ndarray, "_ d_ffn"]]


def of_other_tokens(activation: Float[np.ndarray, "token d_ffn"], is_text: Bool[np.ndarray, "token"]) -> Statistics:
    """Mean and standard deviation of every neuron over the text's tokens without the token itself: [token, d_ffn] each.

    is_text: which tokens are counted: not the special ones.
    """
    wide = activation.astype(np.float64)
    centre = np.median(wide[is_text], axis=0)  # sums about it lose no digits to one token with a huge activation
    centred = (wide - centre) * is_text[:, None]
    n_others = (is_text.sum() - is_text)[:, None]
    mean = _sum_of_others(centred) / n_others
    variance = _sum_of_others(centred**2) / n_others - mean**2
    return centre + mean, np.sqrt(variance.clip(min=0))


def of_corpus(reference: Features, layer: int, d_ffn: int) -> Statistics:
    """Mean and standard deviation of every neuron over a corpus's rows, from its mean pooling: [1, d_ffn] each."""
    if not isinstance(reference, Features):
        raise InputError(f"reference is a {type(reference).__name__}; expected the Features that sn.extract returns")
    blocks = reference.blocks(site="activation", pooling="mean", layer=layer)
    n_rows = sum(map(len, blocks))
    if n_rows < MIN_OTHERS or blocks[0].shape[1] != d_ffn:
        width = blocks[0].shape[1] if blocks else 0
        raise InputError(
            f"reference: layer {layer} has {n_rows} rows of {width} neurons; expected at least {MIN_OTHERS} rows of {d_ffn}, "
            "extracted with the same model"
        )
    mean = sum(block.sum(0, dtype=np.float64) for block in blocks) / n_rows
    variance = sum(np.square(block - mean).sum(0) for block in blocks) / n_rows
    return mean[None], np.sqrt(variance)[None]


def strongest(
    activations: Sequence[Float[np.ndarray, "token _"]],
    statistics: Sequence[Statistics],
    layers: Sequence[int],
    positions: Sequence[int],
    n: int,
) -> list[list[NeuronScore]]:
    """For each position the `n` neurons of the given layers with the largest absolute score, largest first."""
    found: list[list[NeuronScore]] = [[] for _ in positions]
    for layer, activation, (mean, std) in zip(layers, activations, statistics, strict=True):
        std = np.maximum(std, std.mean(1, keepdims=True))
        difference = activation - mean
        score = np.divide(difference, std, out=np.zeros_like(difference), where=std > 0)
        for scores, position in zip(found, positions, strict=True):
            row = min(position, len(mean) - 1)  # a corpus has one row of statistics for all tokens
            best = np.argsort(-np.abs(score[position]), kind="stable")[:n]
            values = (activation[position], mean[row], std[row], score[position])
            scores += [NeuronScore(layer, int(i), *(float(value[i]) for value in values)) for i in best]
    return [sorted(scores, key=lambda neuron: -abs(neuron.score))[:n] for scores in found]


def _sum_of_others(x: Float64[np.ndarray, "token d_ffn"]) -> Float64[np.ndarray, "token d_ffn"]:
    """For each token the sum over all others: those before it, plus those after it."""
    before, after = np.zeros_like(x), np.zeros_like(x)
    np.cumsum(x[:-1], axis=0, out=before[1:])
    np.cumsum(x[:0:-1], axis=0, out=after[-2::-1])
    return before + after
