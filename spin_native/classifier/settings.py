"""What a fit tries, and how it compares: the estimator's parameters, checked and in one place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from spin_native.classifier.tasks import Metric, Task
from spin_native.classifier.tasks.base import Array
from spin_native.classifier.tasks.classes import balanced_weights
from spin_native.errors import InputError
from spin_native.features.spec import FeatureKey
from spin_native.given import plain
from spin_native.probes.importance import Cut

Scaling = Literal["standard", "none"]
HeadName = Literal["best", "dense", "refit", "frozen", "weighted"]
PUBLISHED = ("refit", "frozen", "weighted")  # heads on salient neurons, chosen by validation rows as their papers do
Mixing = Literal["apart", "together", "best"]
PhaseTwo = Literal["seen", "unseen", "both"]
FinalRows = Literal["all", "training"]
Source = tuple[str, str]  # (site, pooling)
Tolerance = float | Literal["one-se"] | None

# What is read where the caller names no sites and poolings.
PUBLISHED_SOURCES: tuple[Source, ...] = (("activation", "mean"), ("activation", "max"))
DENSE_SOURCES: tuple[Source, ...] = (("hidden", "mean"), *PUBLISHED_SOURCES)
ClassWeights = Literal["balanced"] | tuple[float, ...] | None  # a tuple: one weight per class, in the order of the classes

ETAS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)  # where the caller gives no etas, top_k or top_share


@dataclass(frozen=True)
class Settings:
    """What a fit tries, and how it compares. See SpinClassifier for each."""

    task: Task
    sources: tuple[Source, ...]
    mixing: Mixing
    head: HeadName
    ranker: str
    cuts: tuple[Cut, ...]
    Cs: tuple[float, ...] | None
    head_Cs: tuple[float, ...] | None
    scaling: Scaling
    final_rows: FinalRows
    metric: Metric
    seed: int
    class_weight: ClassWeights = None

    @property
    def poolings(self) -> list[str]:
        """Of any source."""
        return list(dict.fromkeys(pooling for _, pooling in self.sources))

    @property
    def views(self) -> list[list[Source]]:
        """What one head may read of a layer: one source, or all of them."""
        apart = [[source] for source in self.sources]
        together = [list(self.sources)] if len(self.sources) > 1 or self.mixing == "together" else []
        return {"apart": apart, "together": together, "best": apart + together}[self.mixing]

    def row_weights(
        self, labels: Shaped[Array, "row *label"], sample_weight: Float[Array, "row"] | None = None
    ) -> Float[Array, "row"] | None:
        """How many times each row counts in a fit on these rows: its own weight times its class's. None: every row once.

        "balanced": n rows / (n classes * rows of the class), counted among these rows, as in scikit-learn.
        """
        if self.class_weight is None:
            return sample_weight
        of_class = np.array(self.class_weight) if self.class_weight != "balanced" else balanced_weights(labels)
        return of_class[labels] if sample_weight is None else of_class[labels] * sample_weight

    def score(self, truth: Shaped[Array, "row *label"], predicted: Shaped[Array, "row *label"]) -> float:
        """The metric of encoded predictions."""
        return self.task.score(self.metric, truth, predicted)

    def worth(self, score: float) -> float:
        """A score such that more is better."""
        return self.task.worth(self.metric, score)


class View(NamedTuple):
    """What a dense head reads below its depth: the layers of these sources, or only the upper half of the layers of each."""

    sources: tuple[Source, ...]
    is_upper: bool = False

    def __str__(self) -> str:
        return ("the upper half of " if self.is_upper else "") + " and ".join(map(" ".join, self.sources))

    def features(self, depth: int, n_layers: int) -> list[FeatureKey]:
        """Layer by layer."""
        below = features_below(self.sources, depth, n_layers)
        if not self.is_upper:
            return below
        layers = {source: [key.layer for key in below if (key.site, key.pooling) == source] for source in self.sources}
        return [key for key in below if key.layer in layers[key.site, key.pooling][len(layers[key.site, key.pooling]) // 2 :]]


def features_below(sources: Sequence[Source], depth: int, n_layers: int) -> list[FeatureKey]:
    """What a head at a depth may read, layer by layer: at the depth of the whole model also the final hidden state."""
    below = [FeatureKey(site, pooling, layer) for layer in range(depth) for site, pooling in sources]
    if depth == n_layers:
        below += [FeatureKey(site, pooling, depth) for site, pooling in sources if site == "hidden"]
    return below


def class_weights_of(given: Any, task: Task) -> ClassWeights:
    """The weight of each class in the order of the classes; a class that is not named has weight 1, as in scikit-learn.

    InputError for a label that the training rows do not have.
    """
    if not isinstance(given, Mapping):
        return given
    labels = task.to_json()
    weights = [1.0] * len(labels)
    for label, weight in ((plain(label), weight) for label, weight in given.items()):
        places = [place for place, known in enumerate(labels) if known == label and type(known) is type(label)]
        if not places:  # for Python, True is 1
            raise InputError(f"class_weight: no training row has the label {label!r}; known are {', '.join(map(repr, labels))}")
        weights[places[0]] = float(weight)
    return tuple(weights)
