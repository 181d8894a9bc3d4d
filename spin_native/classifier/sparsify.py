"""Sparsify: a linear probe for every layer, and from it an importance for every neuron."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from spin_native.classifier.fitting import PROBE_C_TIMES, Rows, Standardizer, best_probe, smallest_useful_C
from spin_native.classifier.parts import ExtractedPart, Neurons
from spin_native.classifier.settings import Settings
from spin_native.classifier.tasks import Probe
from spin_native.features.store import FeatureKey
from spin_native.probes.importance import RANKERS, Cut, importance

Array = np.ndarray


@dataclass(frozen=True)
class ProbedLayer:
    """One site and pooling of one layer: its standardizer, its probe with its validation score, each neuron's importance."""

    feature: FeatureKey
    standardizer: Standardizer
    probe: Probe
    score: float
    importance: Float[Array, "neuron"]

    @property
    def weighted(self) -> Int[Array, "neuron"]:
        """The neurons to which the probe gives any weight."""
        return np.flatnonzero((self.probe.coef_ != 0).any(0))

    @property
    def useful(self) -> Int[Array, "neuron"]:
        """The neurons with any weight or importance: all that heads and curves can ask for."""
        return np.flatnonzero((self.importance > 0) | (self.probe.coef_ != 0).any(0))

    def widest(self, cuts: Sequence[Cut]) -> Int[Array, "neuron"]:
        """The neurons that any of the cuts selects."""
        return max((cut(self.importance) for cut in cuts), key=len)  # selections of growing cuts are nested


ProbedLayers = Mapping[FeatureKey, ProbedLayer]


@dataclass(frozen=True)
class Selection:
    """The salient neurons of several layers, under one cut."""

    cut: Cut
    neurons: Neurons
    layers: ProbedLayers

    @property
    def standardizer(self) -> Standardizer:
        """That of the salient neurons side by side."""
        return Standardizer.join([self.layers[feature].standardizer.take(chosen) for feature, chosen in self.neurons.items()])


def sparsify(
    train: ExtractedPart, validation: ExtractedPart, wanted: Sequence[FeatureKey], settings: Settings, progress: bool | None
) -> dict[FeatureKey, ProbedLayer]:
    """Probe every wanted feature, and rank its neurons."""
    hidden_bar = None if progress is None else not progress
    return {
        feature: _probed(train, validation, feature, settings)
        for feature in tqdm(wanted, unit=" layers", desc="probe", disable=hidden_bar)
    }


def _probed(train: ExtractedPart, validation: ExtractedPart, feature: FeatureKey, settings: Settings) -> ProbedLayer:
    """One layer's L1 probe; validation chooses C."""
    raw = train.whole(feature)
    standardizer = Standardizer.of(raw, settings.scaling)
    fitted = Rows(standardizer(raw), train.labels, train.weights)
    held_out = Rows(standardizer(validation.whole(feature)), validation.labels)
    weights = settings.row_weights(train.labels, train.weights)
    smallest = smallest_useful_C(fitted.features, settings.task.one_against_rest(train.labels), weights)
    Cs = settings.Cs or [smallest * times for times in PROBE_C_TIMES]
    probe, score = best_probe(fitted, held_out, Cs, 1.0, settings)
    if settings.ranker in RANKERS:
        ranked = settings.task.ranked(RANKERS[settings.ranker], fitted.features, fitted.labels)
    else:
        ranked = importance(probe.coef_, settings.ranker)  # type: ignore[arg-type]
    return ProbedLayer(feature, standardizer, probe, score, ranked)


def selections(layers: Sequence[ProbedLayer], cuts: Sequence[Cut]) -> Iterator[Selection]:
    """The salient neurons of every layer that has any, for each cut; the same selection is given once."""
    seen = set()
    for cut in sorted(cuts, key=lambda cut: cut.amount):
        neurons = {layer.feature: cut(layer.importance) for layer in layers}
        neurons = {feature: chosen for feature, chosen in neurons.items() if len(chosen)}
        sizes = tuple((feature, len(chosen)) for feature, chosen in neurons.items())
        if neurons and sizes not in seen:  # selections of growing cuts are nested: equal sizes are equal sets
            seen.add(sizes)
            yield Selection(cut, neurons, {layer.feature: layer for layer in layers})
