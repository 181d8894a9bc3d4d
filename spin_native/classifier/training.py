"""From labelled texts to trained heads: extract, probe every layer, integrate a head for every depth, choose a depth."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter

import numpy as np
from jaxtyping import Int

from spin_native.checkpoints import Checkpoint, Dtype
from spin_native.classifier.curves import (
    Controls,
    CurveRow,
    baseline,
    columns_of_heads,
    columns_of_test,
    controls,
    layer_curve,
)
from spin_native.classifier.examples import Examples, Keeps, examples_of
from spin_native.classifier.exits import Exit, Promise, shallowest_within
from spin_native.classifier.heads import ConstantHead, Head
from spin_native.classifier.heads.base import no_neurons
from spin_native.classifier.integrate import integrate
from spin_native.classifier.parts import ExtractedPart, GatheredPart, Part
from spin_native.classifier.rows import LabelledRows
from spin_native.classifier.settings import PhaseTwo, Settings
from spin_native.classifier.sparsify import ProbedLayer, ProbedLayers, sparsify
from spin_native.classifier.splits import halves
from spin_native.classifier.tasks import Task
from spin_native.errors import InputError, NoNeuronWarning
from spin_native.features.extract import Extractor
from spin_native.features.selection import Selection, difference, rows_of_texts
from spin_native.features.spec import FeatureKey
from spin_native.features.store import Features
from spin_native.models import Transformer

Array = np.ndarray
Wanted = dict[FeatureKey, Int[Array, "_"] | None]


@dataclass(frozen=True)
class Fitted:
    """All that a fit learns, or a saved classifier holds; the estimator has each field under its name with a _ at the end.

    heads: {depth: head}, at `depth` and at the exits. controls: None where only the salient neurons were extracted, or there
    are none. unconverged: linear models whose solver gave up. seconds: of each phase. examples: training rows that excite the
    chosen head's most important neurons (None: none are kept).
    """

    task: Task
    depth: int
    heads: dict[int, Head]
    depth_curve: list[CurveRow]
    layer_curve: list[CurveRow]
    baseline: CurveRow | None
    controls: Controls | None
    unconverged: list[str]
    exit: Exit
    promise: Promise | None = None
    examples: Examples | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Extraction:
    """A base model, loaded once, and where its features are kept (store); one call for each stage of a fit.

    depth: how many layers any stage runs. given: features of all the texts, from which each stage takes its own; the model is
    not loaded then.
    """

    checkpoint: Checkpoint
    depth: int
    dtype: Dtype
    device: str
    store: Path | None
    progress: bool | None
    given: Features | None = None

    @cached_property
    def model(self) -> Transformer:
        return self.checkpoint.load(self.depth, self.dtype, self.device)

    def __call__(self, parts: Mapping[str, LabelledRows], wanted: Wanted) -> dict[str, ExtractedPart]:
        """The wanted features of each part; `wanted`: all neurons of a feature (None), or these."""
        if self.given is not None:
            return self._taken(self.given, parts, wanted)
        depth = min(self.checkpoint.config.n_layers, 1 + max(feature.layer for feature in wanted))
        extractor = Extractor(self.model, self.checkpoint.tokenizer, wanted, depth=depth)
        columns = {feature: neurons for feature, neurons in wanted.items() if neurons is not None}
        extracted = {}
        for name, rows in parts.items():
            store = None if self.store is None else self.store / name
            with rows.named_in_errors():
                features = extractor.run(rows.texts, store, self.progress)
            extracted[name] = ExtractedPart(rows.labels, features, columns or None)
        return extracted

    def _taken(self, given: Features, parts: Mapping[str, LabelledRows], wanted: Wanted) -> dict[str, ExtractedPart]:
        """The wanted features of each part out of the given ones; InputError if these are not what this model would give."""
        made_from = given.spec
        if made_from is None or given.text_ids is None:
            raise InputError(
                "features: they do not say which model and which texts they are of (edited, per token, at given positions, or "
                "of an early version); expected what extract returns, unedited, with one row per text"
            )
        if missing := [feature for feature in wanted if feature not in given.widths]:
            raise InputError(
                f"features: they hold no {missing[0].name}, which this fit reads; extract all its layers, sites and poolings, "
                "and for the baseline the final hidden state, or fit with baseline=False"
            )
        needed = replace(
            made_from,
            model_fingerprint=self.checkpoint.fingerprint(self.depth),
            model_dtype=str(self.dtype).removeprefix("torch."),
            tokenizer_fingerprint=self.checkpoint.tokenizer.fingerprint_like(made_from.tokenizer_fingerprint),
            dtype="float32",
            widths={feature: given.widths[feature] for feature in wanted},
            columns="all",
            reads="texts",
        )
        everything: Wanted = dict.fromkeys(wanted)
        n_layers = self.checkpoint.config.n_layers
        if differing := difference(needed, made_from, everything, self.checkpoint.fingerprint, n_layers):
            raise InputError(
                f"features: {differing} is {str(getattr(made_from, differing))[:40]}, this fit needs "
                f"{str(getattr(needed, differing))[:40]}; extract them with the model, tokenizer and dtype of this fit"
            )
        taken = {}
        for name, rows in parts.items():
            with rows.named_in_errors():
                features = Selection(given, everything, rows_of_texts(given, rows.texts))
            taken[name] = ExtractedPart(rows.labels, features)
        return taken


@dataclass
class Training:
    """How to train.

    max_depth: the deepest head; chooses_depth: whether validation may choose a shallower one, within `tolerance`. exits: depths
    below the chosen one that keep a head. sample, phase_two, with_baseline, examples: as SpinClassifier has
    them. features: of all the
    texts (None: to be extracted).
    """

    checkpoint: Checkpoint
    dtype: Dtype
    device: str
    settings: Settings
    max_depth: int
    chooses_depth: bool
    tolerance: float
    exits: Sequence[int]
    sample: int | None
    phase_two: PhaseTwo
    with_baseline: bool
    progress: bool | None
    features: Features | None = None
    examples: Keeps | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, parts: Mapping[str, LabelledRows], store: Path | None) -> Fitted:
        """parts: training, validation and perhaps test rows. Validation chooses everything; test is scored once per depth.

        store: the folder that keeps the features, if any.
        """
        settings = self.settings
        extracted, layers = (self._whole if self.sample is None else self._sampled)(parts, store)
        baseline_row, unconverged = self._baseline(extracted)
        with self._timed("integrate"):
            train, validation, tested = self._gathered(extracted, layers)
            learnt_from = extracted["heads"].rows
            del extracted  # from here on only the gathered columns are read
            heads, curve = integrate(layers, train, validation, tested, self.max_depth, settings, self.progress)
        if self.max_depth not in heads:
            heads[self.max_depth], curve[self.max_depth] = self._without_neurons(train, validation, tested)
        scores = {depth: settings.worth(row.validation) for depth, row in curve.items()}
        depth = shallowest_within(scores, self.tolerance) if self.chooses_depth else self.max_depth
        compared = None
        if self.sample is None and heads[depth].n_neurons:
            compared = controls(heads[depth], layers, train, validation, settings)
        unconverged += [
            f"probe on {f.site} {f.pooling} of layer {f.layer}" for f, layer in layers.items() if not layer.probe.converged_
        ]
        unconverged += [f"head at depth {depth}" for depth, head in heads.items() if not head.converged]
        return Fitted(
            task=settings.task,
            depth=depth,
            heads={d: head for d, head in sorted(heads.items()) if d == depth or (d < depth and d in self.exits)},
            depth_curve=[curve[depth] for depth in sorted(curve)],
            layer_curve=layer_curve(layers, tested, settings),
            baseline=baseline_row,
            controls=compared,
            unconverged=unconverged,
            exit=Exit("fixed", depth),
            examples=examples_of(heads[depth], train, parts["training"], learnt_from, self.examples),
            seconds=self.seconds,
        )

    def _whole(
        self, parts: Mapping[str, LabelledRows], store: Path | None
    ) -> tuple[dict[str, ExtractedPart], dict[FeatureKey, ProbedLayer]]:
        """All features of all rows, and the layers. Adds the part "heads": the training rows that the heads learn from."""
        wanted = self._everything | self._final
        with self._timed("extract"):
            extracted = self._extraction(wanted, store)(parts, wanted)
        probed = train = extracted["training"]
        if self.phase_two != "seen":
            first, second = halves(self.settings.task, parts["training"].texts, train.labels, self.settings.seed)
            probed, train = train.only(first), train.only(second) if self.phase_two == "unseen" else train
        with self._timed("probe"):
            layers = sparsify(probed, extracted["validation"], self.max_depth, self.settings, self.progress)
        return extracted | {"heads": train}, layers

    def _sampled(
        self, parts: Mapping[str, LabelledRows], store: Path | None
    ) -> tuple[dict[str, ExtractedPart], dict[FeatureKey, ProbedLayer]]:
        """In two stages: all features of a sample of the rows, and of all rows only the neurons its probes make useful."""
        sampled = {}
        for name in ("training", "validation"):
            labels = parts[name].labels
            chosen, _ = self.settings.task.sample(labels, self.sample or 0, self.settings.seed)
            if name == "training":
                self._check_part(labels, chosen)
            sampled[f"{name}-sample"] = parts[name].take(chosen)
        extract = self._extraction(self._everything | self._final, store)
        with self._timed("extract"):
            few = extract(sampled, self._everything)
        with self._timed("probe"):
            layers = sparsify(few["training-sample"], few["validation-sample"], self.max_depth, self.settings, self.progress)
        del few
        useful: Wanted = {feature: layer.useful for feature, layer in layers.items() if len(layer.useful)}
        if not useful:
            useful = {next(iter(layers)): no_neurons()}
        with self._timed("extract"):
            extracted = extract(parts, useful | self._final)
        return extracted | {"heads": extracted["training"]}, layers

    def _baseline(self, extracted: Mapping[str, ExtractedPart]) -> tuple[CurveRow | None, list[str]]:
        """The baseline's row, if one is wanted; and its name if its solver gave up."""
        if not self.with_baseline:
            return None, []
        parts = extracted["training"], extracted["validation"], extracted.get("test")
        row, converged = baseline(*parts, self._n_layers, self.settings)
        return row, [] if converged else ["baseline"]

    def _gathered(
        self, extracted: Mapping[str, ExtractedPart], layers: ProbedLayers
    ) -> tuple[GatheredPart, GatheredPart, GatheredPart | None]:
        """The columns that are still needed of the training, validation and test part; each array is read once."""
        columns = columns_of_heads(layers, self.settings, with_controls=self.sample is None)
        test = extracted.get("test")
        tested = None if test is None else test.gathered(columns_of_test(layers, self.settings))
        return extracted["heads"].gathered(columns), extracted["validation"].gathered(columns), tested

    def _extraction(self, wanted: Wanted, store: Path | None) -> Extraction:
        depth = min(self._n_layers, 1 + max(feature.layer for feature in wanted))
        return Extraction(self.checkpoint, depth, self.dtype, self.device, store, self.progress, self.features)

    @property
    def _n_layers(self) -> int:
        return self.checkpoint.config.n_layers

    @property
    def _everything(self) -> Wanted:
        """All features of the layers that heads can read."""
        sources = self.settings.sources
        return {FeatureKey(site, pooling, layer): None for layer in range(self.max_depth) for site, pooling in sources}

    @property
    def _final(self) -> Wanted:
        """The features that the baseline reads."""
        poolings = self.settings.poolings if self.with_baseline else ()
        return {FeatureKey("hidden", pooling, self._n_layers): None for pooling in poolings}

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + perf_counter() - started

    def _check_part(self, labels: Array, rows: Int[Array, "_"]) -> None:
        """InputError if a part of the training rows lost a class."""
        self.settings.task.check_part(labels[rows], f"a part of the {len(labels)} training rows")

    def _without_neurons(self, train: Part, validation: Part, test: Part | None) -> tuple[Head, CurveRow]:
        """A constant head, for data where no neuron is salient; warns of it."""
        warnings.warn(
            "no neuron of any layer is salient: every text gets the same answer; give larger Cs (or rows that differ)",
            NoNeuronWarning,
            stacklevel=4,
        )
        settings = self.settings
        learnt_from = [train.labels] + [validation.labels] * (settings.final_rows == "all")
        head = ConstantHead.of(np.concatenate(learnt_from), settings)
        tested = None if test is None else settings.score(test.labels, head.predict(head.read(test)))
        score = settings.score(validation.labels, head.predict(head.read(validation)))
        return head, CurveRow.of_head(self.max_depth, score, tested, head)
