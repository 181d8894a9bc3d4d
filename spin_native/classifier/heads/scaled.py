"""A head whose scores are divided by a temperature and shifted: the numbers change, nothing else does at predict time."""

from copy import copy
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from spin_native.classifier.heads.base import Head, LinearHead
from spin_native.classifier.heads.weighted import Perceptron, WeightedHead
from spin_native.errors import InputError


def scaled(head: Head, temperature: float, shift: Float[np.ndarray, "score"] | None = None) -> Head:
    """The head that gives scores / temperature + shift, where this one gives scores.

    Of a linear head the coefficients and intercepts change, of a perceptron the last layer. temperature, shift: as
    `fit_temperature` and `fit_prior_shift` give them (shift None: 0). InputError for another kind of head.
    """
    added = 0.0 if shift is None else shift
    if isinstance(head, LinearHead):
        probe = copy(head.model)
        probe.coef_, probe.intercept_ = probe.coef_ / temperature, probe.intercept_ / temperature + added
        return replace(head, model=probe)
    if isinstance(head, WeightedHead):
        *below, weights = head.model.weights
        *biases_below, biases = head.model.biases
        model = Perceptron((*below, weights / temperature), (*biases_below, biases / temperature + added))
        return replace(head, model=model)
    raise InputError(f"a {type(head).__name__} has no temperature; expected a linear head or a perceptron")
