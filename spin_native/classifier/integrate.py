"""Integrate: for every depth, one head over the salient neurons of the layers below it (SPIN, arXiv 2311.15983).

The validation rows choose what each head reads (views, cuts) and its C. What was chosen may be fitted once more on training and
validation rows together (final_rows). The test rows are read once, for the curve.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from spin_native.classifier.curve_rows import CurveRow
from spin_native.classifier.fitting import Rows
from spin_native.classifier.heads import PUBLISHED_HEADS
from spin_native.classifier.heads.base import SelectedHead
from spin_native.classifier.parts import Neurons, Part
from spin_native.classifier.settings import Settings, features_below
from spin_native.classifier.sparsify import ProbedLayer, ProbedLayers, Selection, selections


class Integrated(NamedTuple):
    """The head at a depth after its last fit, its row of the curve, and its outputs for validation rows before that fit."""

    head: SelectedHead
    row: CurveRow
    held_out: Float[np.ndarray, "validation output"]


def integrate(
    layers: ProbedLayers,
    train: Part,
    validation: Part,
    test: Part | None,
    max_depth: int,
    n_layers: int,
    settings: Settings,
    progress: bool | None,
) -> dict[int, Integrated]:
    """A head for every depth from 1 to `max_depth` at which some neuron is salient."""
    integrated: dict[int, Integrated] = {}
    hidden_bar = None if progress is None else not progress
    for depth in tqdm(range(1, max_depth + 1), unit=" depths", desc="integrate", disable=hidden_bar):
        readable = set(features_below(settings.sources, depth, n_layers))
        below = [layer for layer in layers.values() if layer.feature in readable]
        best = _best_head(below, train, validation, settings)
        if best is not None:
            held_out = best[0].output(best[0].read(validation))
            head = _last_fit(best[0], layers, train, validation, settings)
            tested = None if test is None else settings.score(test.labels, head.predict(head.read(test)))
            integrated[depth] = Integrated(head, CurveRow.of_head(depth, best[1], tested, head), held_out)
    return integrated


def _best_head(
    layers: Sequence[ProbedLayer], train: Part, validation: Part, settings: Settings
) -> tuple[SelectedHead, float] | None:
    """The head with the best validation score (of equals, the fewest neurons), and that score; None if no neuron is salient."""
    candidates = []
    for view in settings.views:
        seen = [layer for layer in layers if (layer.feature.site, layer.feature.pooling) in view]
        candidates += _heads_of_view(list(selections(seen, settings.cuts)), train, validation, settings)
    return max(
        candidates, key=lambda candidate: (settings.worth(candidate[1]), -candidate[0].n_neurons), default=None
    )  # the first of equals


def _heads_of_view(
    tried: Sequence[Selection], train: Part, validation: Part, settings: Settings
) -> list[tuple[SelectedHead, float]]:
    """A head with its score for every selection of one view."""
    if not tried:
        return []
    # Larger cuts contain the smaller ones: gather and standardise once.
    widest = _widest(tried)
    wide = [widest.standardizer(part.side_by_side(widest.neurons)) for part in (train, validation)]
    starts = dict(zip(widest.neurons, np.cumsum([0, *map(len, widest.neurons.values())]), strict=False))
    fitted = []
    for selection in tried:
        columns = np.concatenate(
            [starts[f] + np.searchsorted(widest.neurons[f], chosen) for f, chosen in selection.neurons.items()]
        )
        seen, held_out = (
            Rows(features.take(columns, axis=1), part.labels, part.weights)
            for features, part in zip(wide, (train, validation), strict=True)
        )
        fitted.append(PUBLISHED_HEADS[settings.head].fit(selection, seen, held_out, settings))
    return fitted


def _widest(tried: Sequence[Selection]) -> Selection:
    """All neurons that any of the selections holds, in the order of the layers."""
    neurons: Neurons = {}
    for selection in tried:
        for feature, chosen in selection.neurons.items():
            neurons[feature] = np.union1d(neurons.get(feature, chosen), chosen)
    layers = tried[0].layers
    return Selection(tried[-1].cut, {feature: neurons[feature] for feature in layers if feature in neurons}, layers)


def _last_fit(head: SelectedHead, layers: ProbedLayers, train: Part, validation: Part, settings: Settings) -> SelectedHead:
    """The chosen head, fitted on the validation rows as well: nothing is left for them to choose."""
    if settings.final_rows == "training":
        return head
    seen, held_out = (Rows(head.standardizer(head.read(part)), part.labels, part.weights) for part in (train, validation))
    return head.fit_again(layers, seen.joined(held_out), settings)
