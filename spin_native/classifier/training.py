"""What every fit does: extract features, choose a depth, compare with baselines; and what it learns."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from spin_native.checkpoints import Checkpoint, Dtype
from spin_native.classifier.baselines import Baseline
from spin_native.classifier.comparisons import standard_error
from spin_native.classifier.curve_rows import Controls, CurveRow
from spin_native.classifier.dense import ACTIVATION, HIDDEN
from spin_native.classifier.examples import Examples, Keeps
from spin_native.classifier.exits import Exit, shallowest_within
from spin_native.classifier.extraction import Extraction, Wanted
from spin_native.classifier.heads import Head
from spin_native.classifier.risk import AnyPromise
from spin_native.classifier.rows import LabelledRows
from spin_native.classifier.settings import PhaseTwo, Settings, Tolerance, features_below
from spin_native.classifier.shift import Reference
from spin_native.classifier.tasks import Task
from spin_native.errors import HiddenClassWarning
from spin_native.features.spec import FeatureKey
from spin_native.features.store import Features

Array = np.ndarray


@dataclass(frozen=True)
class Fitted:
    """All that a fit learns, or a saved classifier holds; the estimator has each field under its name with a _ at the end.

    heads: {depth: head}, at `depth` and at the exits. baselines: by name; None where none were wanted. controls: None where
    only the salient neurons were extracted, or there are none. unconverged: linear models whose solver gave up. seconds: of
    each phase. beside_accuracy: what accuracy does not say of held-out rows (see Task.beside_accuracy; None for a regression,
    and in earlier versions' files). suspicious_rows: training rows that look mislabelled (None: not cross-validated).
    shift_reference: what `predict` compares the texts that it reads with (None where the head at the smallest depth reads no
    neuron, and in earlier versions' files). pairs: each row was a pair of texts. examples: training rows that excite the chosen
    head's most important neurons (None: none are kept).
    """

    task: Task
    depth: int
    heads: dict[int, Head]
    depth_curve: list[CurveRow]
    layer_curve: list[CurveRow]
    baselines: dict[str, Baseline] | None
    controls: Controls | None
    unconverged: list[str]
    exit: Exit
    promise: AnyPromise | None = None
    suspicious_rows: Int[Array, "_"] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    examples: Examples | None = None
    shift_reference: Reference | None = None
    beside_accuracy: dict[str, Any] | None = None
    pairs: bool = False


@dataclass
class Training(ABC):
    """How to train.

    max_depth: the deepest head; chooses_depth: whether held-out rows may choose a shallower one, within `tolerance`. exits:
    depths below the chosen one that keep a head. sample, phase_two, with_baseline: as SpinClassifier has them. features: of all
    the texts (None: to be extracted). windows: as of `extract`. examples: as SpinClassifier has them.
    """

    checkpoint: Checkpoint
    dtype: Dtype
    device: str
    settings: Settings
    max_depth: int
    chooses_depth: bool
    tolerance: Tolerance
    exits: Sequence[int]
    sample: int | None
    phase_two: PhaseTwo
    with_baseline: bool
    progress: bool | None
    features: Features | None = None
    windows: tuple[int, int] | None = None
    examples: Keeps | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @abstractmethod
    def run(self, parts: Mapping[str, LabelledRows], store: Path | None) -> Fitted:
        """parts: training, perhaps validation and test rows; test is scored once per depth.

        store: the folder that keeps the features, if any.
        """

    def depth_of(
        self,
        curve: Mapping[int, CurveRow],
        truth: Shaped[Array, "held_out *label"],
        predicted: Mapping[int, Shaped[Array, "held_out *label"]],
    ) -> int:
        """The depth that the held-out rows choose: the shallowest one within the tolerance of the best.

        predicted: by the head at each depth. "one-se" or None: within one standard error of the best score (Breiman et al.
        1984, the one-standard-error rule).
        """
        if not self.chooses_depth:
            return self.max_depth
        scores = {depth: self.settings.worth(row.validation) for depth, row in curve.items()}
        tolerance = self.tolerance
        if tolerance in ("one-se", None):
            best = shallowest_within(scores, 0.0)
            tolerance = standard_error(self.settings, truth, predicted[best])
        return shallowest_within(scores, float(tolerance))

    def beside_accuracy(
        self, truth: Shaped[Array, "held_out *label"], predicted: Shaped[Array, "held_out *label"], what: str
    ) -> dict[str, Any] | None:
        """What accuracy does not say of the held-out rows, `what`; a HiddenClassWarning for each class that it hides."""
        task = self.settings.task
        if self.settings.metric == "accuracy":
            for sentence in task.hidden_class_warnings(truth, predicted, what):
                warnings.warn(sentence, HiddenClassWarning, stacklevel=4)
        return task.beside_accuracy(truth, predicted) or None

    def kept(self, depth: int, depths: Sequence[int]) -> list[int]:
        """Which of the depths keep a head."""
        return [d for d in sorted(depths) if d == depth or (d < depth and d in self.exits)]

    def extraction(self, wanted: Wanted, store: Path | None) -> Extraction:
        """The base model, as deep as any of the wanted features needs."""
        depth = min(self.n_layers, 1 + max(feature.layer for feature in wanted))
        return Extraction(self.checkpoint, depth, self.dtype, self.device, store, self.progress, self.features, self.windows)

    @property
    def n_layers(self) -> int:
        return self.checkpoint.config.n_layers

    @property
    def everything(self) -> Wanted:
        """All features that heads can read."""
        return dict.fromkeys(features_below(self.settings.sources, self.max_depth, self.n_layers))

    @property
    def of_baselines(self) -> Wanted:
        """The features that baselines read, where they are wanted."""
        if not self.with_baseline:
            return {}
        return dict.fromkeys(
            [*features_below((HIDDEN, ACTIVATION), self.max_depth, self.n_layers), FeatureKey(*HIDDEN, self.n_layers)]
        )

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + perf_counter() - started
