"""The mean and scale of every feature, for models whose penalty treats all features alike."""

import numpy as np
from jaxtyping import Float, Float64

Array = np.ndarray
LEAST_SCALE = 0.01  # of a feature, as a share of the median over the features of its layer


def mean_and_scale(
    features: Float[Array, "row feature"], least: float = LEAST_SCALE
) -> tuple[Float64[Array, "feature"], Float64[Array, "feature"]]:
    """What to subtract from features and to divide them by, so that they have mean 0 and variance 1 over these rows.

    A constant feature has scale 1, and a nearly constant one keeps a smaller variance: divided by its own spread, a neuron
    would be tens of thousands in the first other row where it is active. least: the smallest scale, as a share of the median
    over the features that are not constant.
    """
    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    # Rounding gives a constant feature a spread of some ulps of its value.
    constant = scale <= 1e-6 * np.abs(mean) + np.finfo(np.float32).tiny
    floor = 0.0 if constant.all() else least * np.median(scale[~constant])
    return mean, np.where(constant, 1.0, np.maximum(scale, floor))
