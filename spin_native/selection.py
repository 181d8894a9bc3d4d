"""From a probe's weights to the salient neurons of a layer."""

import numpy as np
from jaxtyping import Float, Int

from spin_native.errors import InputError

Array = np.ndarray


def importance(weights: Float[Array, "output neuron"]) -> Float[Array, "neuron"]:
    """A neuron's squared L2 norm of outgoing weights (Liu; SPIN, section 3.2: w^2 for two classes)."""
    return np.square(weights, dtype=np.float64).sum(axis=0)


def salient(importance: Float[Array, "neuron"], eta: float) -> Int[Array, "salient"]:
    """The fewest neurons, most important first, that hold `eta` of the total importance; their indices, sorted.

    Equal importances are taken by index. No neuron is taken where all importances are zero, and none of importance zero ever.
    Raises InputError for eta outside (0, 1].
    """
    if not 0 < eta <= 1:
        raise InputError(f"eta is {eta}; expected a share above 0 and up to 1")
    order = np.argsort(-importance, kind="stable")
    reached = np.cumsum(importance[order])
    # At eta = 1 rounding must not decide: every neuron with any importance counts.
    needed = np.searchsorted(reached, eta * reached[-1]) + 1 if eta < 1 else len(order)
    return np.sort(order[: min(needed, np.count_nonzero(importance))])
