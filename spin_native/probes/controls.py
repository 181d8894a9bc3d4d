"""Controls: what the salient neurons of a probe must beat."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int, Shaped

from spin_native.errors import InputError

Array = np.ndarray


def bottom(importance: Float[Array, "neuron"], n: int) -> Int[Array, "chosen"]:
    """The `n` least important neurons, sorted: what must not do as well as the salient ones."""
    return np.sort(np.argsort(importance, kind="stable")[:n])


def random_neurons(n_neurons: int, n: int, seed: int) -> Int[Array, "chosen"]:
    """`n` of a layer's neurons drawn by `seed`, sorted."""
    return np.sort(np.random.default_rng(seed).permutation(n_neurons)[:n])


def control_task(labels: Shaped[Array, "row"], seed: int) -> Shaped[Array, "row"]:
    """The same labels in another order (Hewitt & Liang 2019): what a probe learns of these it learns by heart."""
    return np.random.default_rng(seed).permutation(labels)


def stability(sets: Sequence[Int[Array, "_"]]) -> float:
    """How much sets of neurons, as of several seeds, agree: intersection over union, mean over all pairs; 1 is the same set."""
    if len(sets) < 2:
        raise InputError(f"stability compares sets of neurons; got {len(sets)}, expected two or more")
    shares = [len(np.intersect1d(one, other)) / max(1, len(np.union1d(one, other))) for one, other in combinations(sets, 2)]
    return float(np.mean(shares))
