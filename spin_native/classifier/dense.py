"""Dense heads: for every depth an L2 regression on all that lies below it, cross-fitted; and the candidates of head="best".

One pass over the layers: each layer's standardised features are added to the Gram matrices (grown.py), on which the candidates
of each depth are solved for all folds and all C at once (crossfit.py). The held-out loss, not the score, chooses among
candidates: it sees every row's margin, so it is less noisy. A second pass turns the chosen solutions into weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from spin_native.classifier.crossfit import CrossFit, Folds
from spin_native.classifier.curve_rows import CurveRow
from spin_native.classifier.fitting import Standardizer
from spin_native.classifier.grown import Grown, feature_weights, gram_of, source_of
from spin_native.classifier.heads import Head
from spin_native.classifier.heads.dense import DenseHead
from spin_native.classifier.heads.scaled import scaled
from spin_native.classifier.parts import ExtractedPart
from spin_native.classifier.settings import Settings, Source, View
from spin_native.classifier.tasks import Task
from spin_native.classifier.tasks.classes import balanced_weights
from spin_native.features.spec import FeatureKey
from spin_native.probes.solver import Gram

Array = np.ndarray

CS = (1.0, 3.0, 10.0)  # prior variances of a score that are tried
# With fewer rows of the rarest class than this, nothing is chosen: cross-validation would choose by chance.
FEW_ROWS, FEW_ROWS_C = 150, 3.0
HIDDEN: Source = ("hidden", "mean")
ACTIVATION: Source = ("activation", "mean")


def views_of(settings: Settings, few: bool) -> list[View]:
    """The candidates of a head. few: "best" then takes, without a choice, the upper half of the layers' hidden states."""
    hidden = tuple(source for source in settings.sources if source[0] == "hidden")
    if settings.head == "best" and few:
        return [View(hidden or settings.sources, is_upper=True)]
    if settings.head != "best" or hidden in ((), settings.sources):
        return [View(settings.sources)]
    return [View(hidden), View(settings.sources)]


def has_few_rows(settings: Settings, labels: Shaped[Array, "row *label"]) -> bool:
    """Whether the rarest class (or the whole, of values) has too few rows for a choice by cross-validation."""
    return settings.task.n_of_rarest(labels) < FEW_ROWS


def row_weights(
    settings: Settings, labels: Shaped[Array, "row *label"], *parts: ExtractedPart, learns_all: bool = True
) -> Float[Array, "row"]:
    """How many times each row of these parts, one after the other, counts in a fit.

    learns_all: "balanced" weights count all rows, otherwise those of the first part.
    """
    given = [np.ones(len(part.labels)) if part.weights is None else part.weights for part in parts]
    if settings.class_weight == "balanced" and not learns_all:
        settings = replace(settings, class_weight=tuple(balanced_weights(parts[0].labels).tolist()))
    weights = settings.row_weights(labels, np.concatenate(given))
    assert weights is not None  # sample weights were given
    return weights


@dataclass(frozen=True, eq=False)
class Solved:
    """The solution on some features, at a depth (of one hidden state alone: how many layers lie before it).

    test: scores of test rows, without the intercepts.
    """

    features: list[FeatureKey]
    depth: int
    fit: CrossFit
    test: Float32[Array, "test score"]


class Adjustment(NamedTuple):
    """Scores / temperature + shift are what outputs come from; the task decides."""

    temperature: float
    shift: Float[Array, "score"]
    task: Task


@dataclass
class DenseRows:
    """The rows of a fit: training rows, then validation rows where some are given; and test rows.

    parts: the extracted features. folds: of training and validation rows. labels: theirs.
    """

    parts: Mapping[str, ExtractedPart]
    settings: Settings
    labels: Shaped[Array, "row *label"]
    folds: Folds
    standardizers: dict[FeatureKey, Standardizer] = field(default_factory=dict)
    widths: Mapping[FeatureKey, int] = field(init=False)

    def __post_init__(self) -> None:
        self.widths = dict(self.parts["training"].features.widths)  # features may be freed before the last table is written

    @classmethod
    def given(cls, parts: Mapping[str, ExtractedPart], settings: Settings) -> "DenseRows":
        """With validation rows of their own, which the last fit learns from as final_rows says."""
        training, validation = parts["training"], parts["validation"]
        labels, learns_all = np.concatenate([training.labels, validation.labels]), settings.final_rows == "all"
        weights = row_weights(settings, labels, training, validation, learns_all=learns_all)
        folds = Folds.given(len(training.labels), len(validation.labels), weights, learns_all)
        return cls(parts, settings, labels, folds)

    def read(self, feature: FeatureKey) -> tuple[Float32[Tensor, "row width"], Float32[Tensor, "test width"]]:
        """Standardised features, of the rows and of the test rows; mean and variance are those of the training rows."""
        raw = self.parts["training"].whole(feature)
        if feature not in self.standardizers:
            self.standardizers[feature] = Standardizer.of(raw, self.settings.scaling)
        standardizer = self.standardizers[feature]
        read = [standardizer(raw)]
        if "validation" in self.parts:
            read.append(standardizer(self.parts["validation"].whole(feature)))
        rows = np.concatenate(read) if len(read) > 1 else read[0]
        test = self.parts.get("test")
        tested = rows[:0] if test is None else standardizer(test.whole(feature))
        return torch.from_numpy(rows), torch.from_numpy(tested)

    @property
    def n_test(self) -> int:
        return len(self.parts["test"].labels) if "test" in self.parts else 0


@dataclass
class DensePath:
    """All candidates, solved at every depth; and hidden states alone.

    solved: (view, depth) -> solution. alone: the mean hidden state of one layer alone, by layer.
    """

    rows: DenseRows
    n_layers: int
    solved: dict[tuple[View, int], Solved] = field(default_factory=dict)
    alone: dict[int, Solved] = field(default_factory=dict)
    _adjustments: dict[Solved, Adjustment] = field(default_factory=dict)

    def run(
        self,
        views: Sequence[View],
        max_depth: int,
        *,
        with_alone: bool,
        progress: bool | None,
        depths: Sequence[int] | None = None,
    ) -> "DensePath":
        """Solve the candidates at depths 1 to max_depth (or only at `depths`). with_alone: also single hidden states, and the
        final one."""
        solved_at = range(1, max_depth + 1) if depths is None else depths
        keys = sorted({key for view in views for d in solved_at for key in view.features(d, self.n_layers)}, key=_by_layer)
        left_out = {source for view in views if view.is_upper for source in view.sources}
        kept = Grown(len(self.rows.labels), {key: self.rows.widths[key] for key in keys}, left_out)
        hidden_bar = None if progress is None else not progress
        for depth in tqdm(range(1, max_depth + 1), unit=" depths", desc="integrate", disable=hidden_bar):
            for key in keys:
                if key.layer == depth - 1 or depth == self.n_layers == key.layer:
                    self._add(kept, key, with_alone)
            for view in views if depth in solved_at else ():
                features = view.features(depth, self.n_layers)
                fit = self._fit(kept.gram(features))
                test = kept.test_scores(features, torch.from_numpy(fit.a)).numpy()
                self.solved[view, depth] = Solved(features, depth, fit, test)
        final = FeatureKey(*HIDDEN, self.n_layers)
        if with_alone and final.layer not in self.alone:
            self._solve_alone(final, *self.rows.read(final))
        return self

    def _add(self, kept: Grown, key: FeatureKey, with_alone: bool) -> None:
        """One more feature; and what it gives alone."""
        features, test = self.rows.read(key)
        kept.add(key, features, test)
        if with_alone and source_of(key) == HIDDEN:
            self._solve_alone(key, features, test)

    def _solve_alone(
        self, key: FeatureKey, features: Float32[Tensor, "row width"], test: Float32[Tensor, "test width"]
    ) -> None:
        fit = self._fit(gram_of(features))
        w = features.T @ torch.from_numpy(fit.a) / features.shape[1]
        self.alone[key.layer] = Solved([key], key.layer, fit, (test @ w).numpy())

    def _fit(self, gram: Gram) -> CrossFit:
        settings = self.rows.settings
        loss, _ = settings.task.loss(self.rows.labels)
        Cs = settings.head_Cs or ((FEW_ROWS_C,) if has_few_rows(settings, self.rows.labels) else CS)
        return CrossFit.on(gram, loss, self.rows.folds, Cs)

    def best(self, depth: int, views: Sequence[View]) -> View:
        """The candidate with the smallest held-out loss at a depth (the first of equals)."""
        return min(views, key=lambda view: self.solved[view, depth].fit.loss)

    def unconverged(self, heads: Sequence[View]) -> list[str]:
        """The names of the models whose solver gave up. heads: the candidates of a head; the others are baselines."""
        failed = [
            f"{'head' if view in heads else 'baseline'} on {view} below depth {depth}"
            for (view, depth), one in self.solved.items()
            if not one.fit.converged
        ]
        return failed + [f"baseline on hidden state {layer}" for layer, one in self.alone.items() if not one.fit.converged]

    # What a solution gives.

    def adjustment(self, solved: Solved) -> Adjustment:
        """What its held-out rows ask of its scores and decisions; temperature and shift only where no class has a weight."""
        if solved not in self._adjustments:
            rows, settings = self.rows, self.rows.settings
            scores, labels = solved.fit.scores[rows.folds.held_out], rows.labels[rows.folds.held_out]
            temperature, shift = 1.0, np.zeros(settings.task.n_scores)
            if settings.class_weight is None and len(labels):
                temperature, shift = settings.task.calibration(scores, labels)
            plain = Adjustment(temperature, shift, settings.task)
            outputs = self._outputs(scores, plain)
            self._adjustments[solved] = plain._replace(task=settings.task.tuned(settings.metric, outputs, labels))
        return self._adjustments[solved]

    def held_out_outputs(self, solved: Solved) -> Float[Array, "held_out output"]:
        """What users would see of each held-out row."""
        return self._outputs(solved.fit.scores[self.rows.folds.held_out], self.adjustment(solved))

    def test_outputs(self, solved: Solved) -> Float[Array, "test output"]:
        return self._outputs(solved.test + solved.fit.intercepts, self.adjustment(solved))

    def row(self, solved: Solved) -> CurveRow:
        """Its row in a table. Of a single hidden state, depth is how many layers lie before it."""
        sites, poolings = ("+".join(dict.fromkeys(getattr(key, of) for key in solved.features)) for of in ("site", "pooling"))
        held_out, test = self.predictions(solved)
        truth, settings = self.rows.labels[self.rows.folds.held_out], self.rows.settings
        tested = settings.score(self.rows.parts["test"].labels, test) if "test" in self.rows.parts else None
        width = sum(self.rows.widths[key] for key in solved.features)
        return CurveRow(solved.depth, settings.score(truth, held_out), tested, width, poolings, None, solved.fit.C, sites)

    def predictions(self, solved: Solved) -> tuple[Shaped[Array, "held_out *label"], Shaped[Array, "test *label"]]:
        """Of the held-out rows, and of the test rows."""
        decide = self.adjustment(solved).task.decide
        return decide(self.held_out_outputs(solved)), decide(self.test_outputs(solved))

    def _outputs(self, scores: Float[Array, "row score"], adjusted: Adjustment) -> Float[Array, "row output"]:
        scores = scores.astype(np.float64) / adjusted.temperature + adjusted.shift
        return self.rows.settings.task.outputs(scores + self._offset)

    @property
    def _offset(self) -> Float[Array, "score"]:
        return self.rows.settings.task.loss(self.rows.labels)[1]

    def heads(self, chosen: Mapping[int, Solved], adjusted: Mapping[int, Adjustment] | None = None) -> dict[int, Head]:
        """The heads of some depths: w = X^T a, one pass over the features.

        adjusted: temperatures, shifts and the task that decides (None: those of these solutions' own held-out rows); all heads
        decide as the deepest one.
        """
        settings = self.rows.settings
        adjusted = {d: self.adjustment(solved) for d, solved in chosen.items()} if adjusted is None else adjusted
        settings = replace(settings, task=adjusted[max(adjusted)].task)
        widths = self.rows.widths
        coefs: dict[int, dict[FeatureKey, Array]] = {depth: {} for depth in chosen}
        for key in sorted({key for solved in chosen.values() for key in solved.features}, key=_by_layer):
            features, _ = self.rows.read(key)
            for depth, solved in chosen.items():
                if key in solved.features:
                    weight = feature_weights({one: widths[one] for one in solved.features})[key]
                    coefs[depth][key] = (weight * (torch.from_numpy(solved.fit.a).T @ features)).numpy()
        heads: dict[int, Head] = {}
        for depth, solved in chosen.items():
            intercepts = solved.fit.intercepts + self._offset
            head = DenseHead.of(settings, self.rows.standardizers, coefs[depth], intercepts, solved.fit.C)
            shift = adjusted[depth].shift + self._offset * (1 - 1 / adjusted[depth].temperature)
            heads[depth] = scaled(head, adjusted[depth].temperature, shift)
        return heads


def _by_layer(key: FeatureKey) -> int:
    return key.layer
