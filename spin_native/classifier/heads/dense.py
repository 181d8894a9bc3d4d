"""The head without selection: an L2 regression on everything below a depth."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from spin_native.classifier.fitting import Standardizer
from spin_native.classifier.heads.base import LinearHead
from spin_native.classifier.parts import Neurons
from spin_native.classifier.settings import Settings
from spin_native.features.spec import FeatureKey
from spin_native.probes.importance import Cut

Array = np.ndarray
EVERYTHING = Cut("eta", 1.0)


@dataclass(frozen=True)
class DenseHead(LinearHead):
    """An L2 regression on all columns of some features. `classifier/dense.py` fits it, on Gram matrices."""

    kind = saved_kind = "dense"
    label = "dense"
    options = ("head_Cs", "final_rows")

    @classmethod
    def of(
        cls,
        settings: Settings,
        standardizers: Mapping[FeatureKey, Standardizer],
        coef: Mapping[FeatureKey, Float[Array, "score feature"]],
        intercepts: Float[Array, "score"],
        C: float,
    ) -> "DenseHead":
        """A head with these weights on the standardised features. C: the prior variance of a score."""
        neurons: Neurons = {feature: np.arange(weights.shape[1]) for feature, weights in coef.items()}
        joined = Standardizer.join([standardizers[feature] for feature in coef])
        weights = np.concatenate(list(coef.values()), axis=1).astype(np.float64)
        model = settings.task.probe_type.from_weights(weights, intercepts.astype(np.float64), C=C, l1_ratio=0.0)
        return cls(settings.task, EVERYTHING, neurons, joined, model)
