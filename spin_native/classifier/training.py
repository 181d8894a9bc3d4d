"""From labelled texts to trained heads: extract, probe every layer, integrate a head for every depth, choose a depth."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
from jaxtyping import Int, Shaped

from spin_native.checkpoints import Checkpoint, Dtype, load_tokenizer
from spin_native.classifier.exits import shallowest_within
from spin_native.classifier.integration import (
    Controls,
    CurveRow,
    Head,
    Layers,
    Part,
    PhaseTwo,
    Settings,
    baseline,
    constant_head,
    controls,
    curve_row,
    integrate,
    layer_curve,
    sparsify,
)
from spin_native.classifier.labels import check_all_there
from spin_native.classifier.rows import LabelledRows
from spin_native.errors import NoNeuronWarning
from spin_native.features.extract import Extractor
from spin_native.features.store import Feature

Array = np.ndarray
Wanted = dict[Feature, Int[Array, "_"] | None]


@dataclass(frozen=True)
class Trained:
    """A head and a row of the curve for every depth, the depth that was chosen, and what it compares with.

    controls: None where only the salient neurons were extracted, or there are none. unconverged: what the solver gave
    up on: the baseline, layer probes, linear heads. seconds: of each phase.
    """

    depth: int
    heads: dict[int, Head]
    curve: list[CurveRow]
    layer_curve: list[CurveRow]
    baseline: CurveRow | None
    controls: Controls | None
    unconverged: list[str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Extraction:
    """A base model and where its features go; one part of the data after the other."""

    checkpoint: Checkpoint
    dtype: Dtype
    device: str
    store: Path | None
    progress: bool | None

    def __call__(self, parts: Mapping[str, LabelledRows], wanted: Wanted) -> dict[str, Part]:
        """Each part with its wanted features; `wanted`: all neurons of a feature (None), or these."""
        depth = min(self.checkpoint.config.n_layers, 1 + max(feature.layer for feature in wanted))
        model = self.checkpoint.load(depth, self.dtype, self.device)
        tokenizer = load_tokenizer(self.checkpoint.name, revision=self.checkpoint.revision)
        extractor = Extractor(model, tokenizer, wanted)
        columns = {feature: neurons for feature, neurons in wanted.items() if neurons is not None}
        found = {}
        for name, rows in parts.items():
            store = None if self.store is None else self.store / name
            found[name] = Part(extractor.run(rows.texts, store, self.progress), rows.labels, columns or None)
        return found


@dataclass
class Training:
    """How to train. max_depth: how deep at most; chooses_depth: whether validation may take less, within `tolerance`.

    sample, phase_two, with_baseline: as SpinClassifier has them.
    """

    extract: Extraction
    settings: Settings
    max_depth: int
    chooses_depth: bool
    tolerance: float
    sample: int | None
    phase_two: PhaseTwo
    with_baseline: bool
    progress: bool | None
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, parts: Mapping[str, LabelledRows]) -> Trained:
        """parts: training, validation and perhaps test rows. Validation chooses everything; test is scored once per depth.

        The heads' last fit is on training and validation rows where `final_rows` of the settings says so.
        """
        settings = self.settings
        found, layers, train = self._sampled(parts) if self.sample is not None else self._whole(parts)
        held_out, test = found["validation"], found.get("test")
        with self._timed("integrate"):
            heads, curve = integrate(layers, train, held_out, test, self.max_depth, settings, self.progress)
        if self.max_depth not in heads:
            heads[self.max_depth], curve[self.max_depth] = self._without_neurons(train, held_out, test)
        scores = {depth: settings.worth(row.validation) for depth, row in curve.items()}
        depth = shallowest_within(scores, self.tolerance) if self.chooses_depth else self.max_depth
        compared, baseline_row, unconverged = None, None, []
        if self.sample is None and heads[depth].n_neurons:
            compared = controls(heads[depth], layers, train, held_out, settings)
        if self.with_baseline:
            baseline_row, converged = baseline(found["training"], held_out, test, self._n_layers, settings)
            unconverged = [] if converged else ["baseline"]
        return Trained(
            depth,
            heads,
            [curve[depth] for depth in sorted(curve)],
            layer_curve(layers, test, settings),
            baseline_row,
            compared,
            unconverged
            + [f"probe on {f.site} {f.pooling} of layer {f.layer}" for f, layer in layers.items() if not layer.probe.converged_]
            + [f"head at depth {depth}" for depth, head in heads.items() if not getattr(head.model, "converged_", True)],
            self.seconds,
        )

    def _whole(self, parts: Mapping[str, LabelledRows]) -> tuple[dict[str, Part], Layers, Part]:
        """All features of all rows; the layers; and the rows that the heads learn from."""
        with self._timed("extract"):
            found = self.extract(parts, self._everything | self._final)
        probed = train = found["training"]
        if self.phase_two != "seen":
            first, second = parted(train.labels, len(train.labels) // 2, self.settings)
            self._check_classes(train.labels, train.labels[first], train.labels[second])
            probed, train = train.only(first), train.only(second) if self.phase_two == "unseen" else train
        with self._timed("probe"):
            layers = sparsify(probed, found["validation"], self.max_depth, self.settings, self.progress)
        return found, layers, train

    def _sampled(self, parts: Mapping[str, LabelledRows]) -> tuple[dict[str, Part], Layers, Part]:
        """In two stages: all features of a sample of the rows, and of all rows only what its probes found salient."""
        sampled = {f"{name}-sample": self._sample_of(rows) for name, rows in parts.items() if name != "test"}
        self._check_classes(parts["training"].labels, sampled["training-sample"].labels)
        with self._timed("extract"):
            few = self.extract(sampled, self._everything)
        with self._timed("probe"):
            layers = sparsify(few["training-sample"], few["validation-sample"], self.max_depth, self.settings, self.progress)
        del few
        with self._timed("extract"):
            used: Wanted = {feature: layer.used for feature, layer in layers.items() if len(layer.used)}
            found = self.extract(parts, (used or {self._nowhere: np.empty(0, dtype=np.int64)}) | self._final)
        return found, layers, found["training"]

    @property
    def _n_layers(self) -> int:
        return self.extract.checkpoint.config.n_layers

    @property
    def _everything(self) -> Wanted:
        sources = self.settings.sources
        return {Feature(site, pooling, layer): None for layer in range(self.max_depth) for site, pooling in sources}

    @property
    def _final(self) -> Wanted:
        """What the baseline reads."""
        poolings = self.settings.poolings if self.with_baseline else ()
        return {Feature("hidden", pooling, self._n_layers): None for pooling in poolings}

    @property
    def _nowhere(self) -> Feature:
        """Where a head looks that looks at nothing."""
        return Feature(self.settings.sites[0], self.settings.poolings[0], 0)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + perf_counter() - started

    def _sample_of(self, rows: LabelledRows) -> LabelledRows:
        """At most `sample` of the rows, every class with its share."""
        assert self.sample is not None
        return rows.take(parted(rows.labels, self.sample, self.settings)[0])

    def _check_classes(self, labels: Shaped[Array, "_"], *parts: Shaped[Array, "_"]) -> None:
        """InputError if a part of the training rows lost a class."""
        for part in parts if self.settings.task == "classification" else ():
            check_all_there(part, int(labels.max()) + 1, f"a part of the {len(labels)} training rows")

    def _without_neurons(self, train: Part, validation: Part, test: Part | None) -> tuple[Head, CurveRow]:
        """What is left where no neuron is salient: the most frequent class, or the mean value, for everybody; warned of."""
        warnings.warn(
            "no neuron of any layer is salient: every text gets the same answer; give larger Cs (or rows that differ)",
            NoNeuronWarning,
            stacklevel=4,
        )
        settings = self.settings
        learnt = [train.labels] + [validation.labels] * (settings.final_rows == "all")
        head = constant_head(np.concatenate(learnt), self._nowhere, settings)
        tested = None if test is None else settings.score(test.labels, head.predict(head.read(test)))
        score = settings.score(validation.labels, head.predict(head.read(validation)))
        return head, curve_row(self.max_depth, score, tested, head)


def parted(labels: Shaped[Array, "row"], n_rows: int, settings: Settings) -> tuple[Int[Array, "_"], Int[Array, "_"]]:
    """`n_rows` of the rows (or all) and the others, each in input order; every class with its share, a row at least."""
    order = np.random.default_rng(settings.seed).permutation(len(labels))
    if settings.task == "classification":
        shares = np.empty(len(labels))
        for label in np.unique(labels):
            rows = order[labels[order] == label]
            shares[rows] = np.arange(len(rows)) / len(rows)  # each class's first row comes first
        order = order[np.argsort(shares[order], kind="stable")]
    return np.sort(order[:n_rows]), np.sort(order[n_rows:])
