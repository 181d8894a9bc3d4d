"""What each token of a text adds to a linear head's scores: a sum over tokens that is exact.

A linear head's score is its intercept plus a term for each neuron, weight times standardised feature: w (f - m) / s. A feature
f is made from the neuron's values a_t at the T tokens of the text, and each term goes to the tokens that made it:

- mean pooling: f is the mean of the a_t, so token t has w (a_t - m) / (s T): a token at the training mean m adds nothing;
- max pooling: the token that holds the maximum has the whole term (the first one, where several hold it);
- first and last pooling: the first or last token has the whole term.

Only the intercept belongs to no token.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64

from spin_native.classifier.deployed import TokenValues
from spin_native.classifier.heads import Head
from spin_native.features.spec import FeatureKey

Array = np.ndarray


def read_row(head: Head, read: Iterable[TokenValues], n_tokens: int) -> tuple[Float32[Array, "1 salient"], Array | None]:
    """The features of one text as the head reads them, and what each token adds to each score, [token, score] in float64.

    read: each feature of the head while the model runs; nothing of it is kept but its sums. The second is None for a head
    without weights, whose scores are no sum over tokens.
    """
    places = _places(head)
    features = np.empty((1, head.n_neurons), np.float32)
    shares = np.zeros((n_tokens, head.task.n_scores)) if head.has_weights else None
    for feature, values, pooled in read:
        here = places[feature]
        features[0, here] = pooled
        if shares is not None:
            scale = head.standardizer.scale[here]
            standardised = (pooled - head.standardizer.mean[here]) / scale  # in float32, as the head does
            shares += token_shares(feature.pooling, values, standardised, head.weights[:, here], scale)
    return features, shares


def token_shares(
    pooling: str,
    values: Float[Array, "token neuron"],
    standardised: Float[Array, "neuron"],
    weights: Float[Array, "score neuron"],
    scale: Float[Array, "neuron"],
) -> Float64[Array, "token score"]:
    """What each token adds to each score through one feature; the sum over tokens is weights times standardised features.

    values: of the neurons at every token. standardised: of their pooled values. scale: what these were divided by.
    """
    weights = weights.astype(np.float64)
    if pooling == "mean":
        # w (a_t - m) / (s T), written as an equal share of the term plus the token's distance from the text's mean: the
        # distances add up to 0, so rounding of the pooled mean does not enter the sum.
        distances = values.astype(np.float64)
        distances -= distances.mean(0)
        equal = np.einsum("sn,n->s", weights, standardised.astype(np.float64))
        return (np.einsum("tn,sn->ts", distances, weights / scale) + equal) / len(values)
    holders = _holders(pooling, values)
    shares = np.zeros((len(values), len(weights)))
    np.add.at(shares, holders, (weights * standardised).T)
    return shares


def _holders(pooling: str, values: Float[Array, "token neuron"]) -> Array:
    """Neuron -> the token that its pooled value comes from."""
    n_tokens, n_neurons = values.shape
    if pooling == "max":
        return values.argmax(0)  # the first of equals
    return np.full(n_neurons, {"first": 0, "last": n_tokens - 1}[pooling])


def _places(head: Head) -> dict[FeatureKey, slice]:
    """Feature -> its columns among those that the head reads."""
    places, start = {}, 0
    for feature, neurons in head.neurons.items():
        places[feature] = slice(start, start + len(neurons))
        start += len(neurons)
    return places


def summed_by_word(shares: Float64[Array, "token"], word_of: Array, n_words: int) -> tuple[Sequence[float], float]:
    """The sum of each word's tokens, and that of the special tokens."""
    is_special = word_of < 0
    words = np.bincount(word_of[~is_special], weights=shares[~is_special], minlength=n_words)
    return words.tolist(), float(shares[is_special].sum())
