"""Controls: what the salient neurons of a probe must beat before their score means anything."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int, Shaped

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


def control_task(labels: Shaped[Array, "row"], seed: int) -> Shaped[Array, "row"]:
    """The labels in a random order, drawn by `seed`: a task with the same label counts and nothing to learn from the text.

    What a probe scores on it is memorisation; selectivity is the score on the true labels minus this one (Hewitt & Liang
    2019, "Designing and interpreting probes with control tasks"; theirs draws one label per word type, this one per row).
    """
    return np.random.default_rng(seed).permutation(labels)


def stability(sets: Sequence[Int[Array, "_"]]) -> float:
    """How well sets of neurons agree, such as those of several seeds: the mean over all pairs of |A and B| / |A or B|.

    1 means equal sets, 0 means sets with nothing in common (two empty sets also give 0). InputError for fewer than two sets.
    """
    if len(sets) < 2:
        raise InputError(f"stability compares sets of neurons; got {len(sets)}, expected two or more")
    overlaps = [len(np.intersect1d(one, other)) / max(1, len(np.union1d(one, other))) for one, other in combinations(sets, 2)]
    return float(np.mean(overlaps))
