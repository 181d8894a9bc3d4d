"""Controls: what the salient neurons of a probe must beat before their score means anything."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from spin_native.errors import InputError

Array = np.ndarray


def bottom(importance: Float[Array, "neuron"], n: int) -> Int[Array, "chosen"]:
    """The indices of the `n` least important neurons, ascending; ties go to the lower index.

    A probe refitted on these neurons should do worse than on the salient ones.
    """
    return np.sort(np.argsort(importance, kind="stable")[:n])


def random_neurons(n_neurons: int, n: int, seed: int | Sequence[int]) -> Int[Array, "chosen"]:
    """The indices of `n` different neurons out of `n_neurons`, drawn at random by `seed`, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(n_neurons)[:n])


def control_task(labels: Shaped[Array, "row *label"], seed: int) -> Shaped[Array, "row *label"]:
    """The labels in a random order, drawn by `seed`: a task with the same label counts and nothing to learn from the text.

    What a probe scores on it is memorisation; selectivity is the score on the true labels minus this one (Hewitt & Liang
    2019, "Designing and interpreting probes with control tasks"; theirs draws one label per word type, as `TokenTypeControl`
    does; this one draws per row).
    """
    return np.random.default_rng(seed).permutation(labels)


@dataclass(frozen=True)
class TokenTypeControl:
    """A control task for features per token: every token type has one random label (Hewitt & Liang 2019, section 2.1).

    A probe can learn it only by remembering which label each type has. A type's label depends on the seed, the type, and the
    labels' distribution only: training and test tokens get the same labels, whatever else is in either.

    classes, shares: the real task's labels and how often each occurs; a type's label is drawn with these probabilities. Over
    tokens the shares can differ, as frequent types count more often. seed: a whole number.
    """

    classes: Shaped[Array, "class"]
    shares: Float[Array, "class"]
    seed: int

    @classmethod
    def of(cls, labels: Shaped[Array, "token"], seed: int) -> "TokenTypeControl":
        """The control task of a real one, from its training labels. InputError for labels of one class."""
        classes, counts = np.unique(labels, return_counts=True)
        if len(classes) < 2:
            raise InputError(f"labels: {len(classes)} class over {len(labels)} tokens; expected at least two classes")
        return cls(classes, counts / counts.sum(), seed)

    def __call__(self, tokens: Shaped[Array, "token"]) -> Shaped[Array, "token"]:
        """The control label of each token. tokens: ids (whole numbers) or strings; equal ones are of one type."""
        if tokens.dtype.kind not in "iuUOT":
            raise InputError(f"tokens are {tokens.dtype}; expected ids (whole numbers) or strings")
        types, type_of = np.unique(tokens, return_inverse=True)
        drawn = np.array([self._uniform(token) for token in types.tolist()])
        # The last boundary is 1 up to rounding: it must not leave a draw without a class.
        return self.classes[np.searchsorted(np.cumsum(self.shares)[:-1], drawn, side="right")][type_of]

    def _uniform(self, token: int | str) -> float:
        """A number from 0 up to 1 that belongs to the seed and the token type."""
        digest = hashlib.sha256(f"{self.seed} {token!r}".encode("utf-8", "surrogatepass")).digest()
        return (int.from_bytes(digest[:8], "little") >> 11) / 2**53


def stability(sets: Sequence[Int[Array, "_"]]) -> float:
    """How well sets of neurons agree, such as those of several seeds: the mean over all pairs of |A and B| / |A or B|.

    1 means equal sets, 0 means sets with nothing in common (two empty sets also give 0). InputError for fewer than two sets.
    """
    if len(sets) < 2:
        raise InputError(f"stability compares sets of neurons; got {len(sets)}, expected two or more")
    overlaps = [len(np.intersect1d(one, other)) / max(1, len(np.union1d(one, other))) for one, other in combinations(sets, 2)]
    return float(np.mean(overlaps))


def kuncheva_stability(chosen: Bool[Array, "sample neuron"]) -> float:
    """The overlap beyond chance of sets of one size k: the mean over all pairs of (|A and B| - k^2 / n) / (k - k^2 / n).

    1 means equal sets, 0 what random sets have. NaN for sets of different sizes, and for sets of no neuron or of all.
    InputError for fewer than two sets. Source: Kuncheva 2007, "A stability index for feature selection".
    """
    sizes, n_neurons = _checked_sets(chosen).sum(1), chosen.shape[1]
    size = int(sizes[0])
    if (sizes != size).any() or size in (0, n_neurons):
        return float("nan")
    overlap = chosen.astype(np.float64) @ chosen.T
    pairs = overlap[np.triu_indices(len(chosen), 1)]
    by_chance = size**2 / n_neurons
    return float(np.mean((pairs - by_chance) / (size - by_chance)))


def nogueira_stability(chosen: Bool[Array, "sample neuron"]) -> float:
    """1 - (mean over neurons of the variance of being chosen) / (that of random sets of the mean size).

    1 means equal sets, 0 what random sets have (slightly less where their sizes differ much). With sets of one size it is
    `kuncheva_stability`. The variance is M / (M - 1) p (1 - p), where p is the share of the M sets that hold the neuron.
    NaN where no set holds any neuron, or every set all. InputError for fewer than two sets.
    Source: Nogueira, Sechidis & Brown 2018, "On the stability of feature selection algorithms".
    """
    frequency, n_sets = _checked_sets(chosen).mean(0), len(chosen)
    mean_share = frequency.mean()  # of the neurons, in a set
    if mean_share in (0, 1):
        return float("nan")
    variance = n_sets / (n_sets - 1) * frequency * (1 - frequency)
    return float(1 - variance.mean() / (mean_share * (1 - mean_share)))


def _checked_sets(chosen: Bool[Array, "sample neuron"]) -> Bool[Array, "sample neuron"]:
    """`chosen` itself; InputError for fewer than two sets."""
    if len(chosen) < 2:
        raise InputError(f"stability compares sets of neurons; got {len(chosen)}, expected two or more")
    return chosen
