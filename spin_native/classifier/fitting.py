"""One linear model on the features of some rows: how they are standardised, which C are tried, which is best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped

from spin_native.classifier.settings import Scaling, Settings
from spin_native.classifier.tasks import Probe
from spin_native.probes.scaling import LEAST_SCALE, mean_and_scale

Array = np.ndarray

# Where the caller gives no Cs. L1 probes: multiples of the smallest C that gives a probe any weight (glmnet's path); one grid
# then suits 50 rows and 50,000. L2 heads: over the number of features, so that the prior variance of a logit does not grow
# with it. The baseline tries the widest grid.
PROBE_C_TIMES = (3.0, 10.0, 30.0, 100.0)
HEAD_C_TIMES = (0.3, 1.0, 3.0, 10.0)
BASELINE_C_TIMES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
TOL = 1e-4  # of the objective: a hundred times below what a validation score can see


@dataclass(frozen=True)
class Rows:
    """Features and labels of the same rows. weights: how many times each row counts in a fit; None means once."""

    features: Float32[Array, "row feature"]
    labels: Shaped[Array, "row *label"]
    weights: Float[Array, "row"] | None = None

    def joined(self, other: "Rows") -> "Rows":
        """These rows, then the others."""
        features, labels = (np.concatenate([getattr(rows, of) for rows in (self, other)]) for of in ("features", "labels"))
        if self.weights is None and other.weights is None:
            return Rows(features, labels)
        weights = [np.ones(len(rows.labels)) if rows.weights is None else rows.weights for rows in (self, other)]
        return Rows(features, labels, np.concatenate(weights))


@dataclass(frozen=True)
class Standardizer:
    """Shift and scale of every feature, taken from training rows."""

    mean: Float32[Array, "feature"]
    scale: Float32[Array, "feature"]

    @classmethod
    def of(cls, features: Float32[Array, "row feature"], scaling: Scaling, least: float = LEAST_SCALE) -> "Standardizer":
        """To mean 0 and variance 1 ("standard"), or no change ("none").

        least: the smallest scale; see `mean_and_scale`.
        """
        if scaling == "none":
            width = features.shape[1]
            return cls(np.zeros(width, np.float32), np.ones(width, np.float32))
        mean, scale = mean_and_scale(features, least)
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    def __call__(self, features: Float32[Array, "row feature"]) -> Float32[Array, "row feature"]:
        return (features - self.mean) / self.scale

    def take(self, columns: Int[Array, "column"]) -> "Standardizer":
        """That of some of the features."""
        return Standardizer(self.mean[columns], self.scale[columns])

    @staticmethod
    def join(parts: Sequence["Standardizer"]) -> "Standardizer":
        """That of several arrays side by side."""
        return Standardizer(np.concatenate([p.mean for p in parts]), np.concatenate([p.scale for p in parts]))


def best_probe(train: Rows, validation: Rows, Cs: Sequence[float], l1_ratio: float, settings: Settings) -> tuple[Probe, float]:
    """The probe whose C has the best validation score (of equals, the smallest C), and its score.

    The training rows count by their weights and class weights; every validation row counts once in the score.
    """
    probes = fitted_probes(settings.task.probe_type(l1_ratio=l1_ratio, tol=TOL), train, sorted(Cs), settings)
    scores = [settings.score(validation.labels, probe.predict(validation.features)) for probe in probes]
    best = int(np.argmax([settings.worth(score) for score in scores]))  # the first of equals
    return probes[best], scores[best]


def fitted_probes(unfitted: Probe, rows: Rows, Cs: Sequence[float], settings: Settings) -> list[Probe]:
    """A probe for each C, fitted on the rows with their weights times their class weights."""
    weights = settings.row_weights(rows.labels, rows.weights)
    return unfitted.fit_path(rows.features, rows.labels, Cs, weights)


def smallest_useful_C(
    features: Float32[Array, "row feature"],
    targets: Sequence[Shaped[Array, "row"]],
    weights: Float[Array, "row"] | None = None,
) -> float:
    """The C below which an L1 probe has no weight: one over the largest slope of the summed loss at w = 0.

    targets: of each score (`Task.one_against_rest`). weights: how many times each row counts; None means once.
    """
    slopes = []
    for target in targets:
        if weights is None:
            slope = target - target.mean()
        else:
            slope = weights * (target - np.average(target, weights=weights))
        slopes.append(float(np.abs(slope.astype(np.float32) @ features).max()))
    return 1 / max(*slopes, float(np.finfo(np.float32).tiny))
