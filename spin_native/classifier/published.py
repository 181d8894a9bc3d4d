"""Fits of the published heads (SPIN, Liu, SIREN): probe every layer, sparsify, integrate, all chosen by validation rows."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int

from spin_native.classifier.baselines import BASELINE_VIEWS, measure
from spin_native.classifier.curve_rows import CurveRow
from spin_native.classifier.curves import columns_of_heads, columns_of_test, controls, layer_curve
from spin_native.classifier.dense import DensePath, DenseRows
from spin_native.classifier.examples import examples_of
from spin_native.classifier.exits import Exit
from spin_native.classifier.extraction import Wanted
from spin_native.classifier.fitting import Rows
from spin_native.classifier.heads import ConstantHead
from spin_native.classifier.heads.base import no_neurons
from spin_native.classifier.integrate import Integrated, integrate
from spin_native.classifier.parts import ExtractedPart, GatheredPart, Part
from spin_native.classifier.rows import LabelledRows
from spin_native.classifier.shift import Reference
from spin_native.classifier.sparsify import ProbedLayer, ProbedLayers, sparsify
from spin_native.classifier.splits import halves
from spin_native.classifier.training import Fitted, Training
from spin_native.errors import NoNeuronWarning
from spin_native.features.spec import FeatureKey

Array = np.ndarray


class PublishedTraining(Training):
    """Probes on training rows; validation rows choose everything."""

    def run(self, parts: Mapping[str, LabelledRows], store: Path | None) -> Fitted:
        settings = self.settings
        extracted, layers = (self._whole if self.sample is None else self._sampled)(parts, store)
        with self.timed("baselines"):
            compared_with = self._baseline_path(extracted)
        with self.timed("integrate"):
            train, validation, tested = self._gathered(extracted, layers)
            learnt_from = extracted["heads"].rows
            del extracted  # from here on only the gathered columns are read
            found = integrate(layers, train, validation, tested, self.max_depth, self.n_layers, settings, self.progress)
        if self.max_depth not in found:
            found[self.max_depth] = self._without_neurons(train, validation, tested)
        curve = {depth: integrated.row for depth, integrated in found.items()}
        held_out = {depth: settings.task.decide(integrated.held_out) for depth, integrated in found.items()}
        depth = self.depth_of(curve, validation.labels, held_out)
        head = found[depth].head
        salient = None
        if self.sample is None and head.n_neurons:
            salient = controls(head, layers, train, validation, settings)
        baselines = None
        if compared_with is not None:
            predicted = held_out[depth][:0] if tested is None else head.predict(head.read(tested))
            baselines = measure(compared_with, depth, held_out[depth], predicted)
        kept = self.kept(depth, list(found))
        return Fitted(
            task=settings.task,
            depth=depth,
            heads={d: found[d].head for d in kept},
            depth_curve=[curve[d] for d in sorted(curve)],
            layer_curve=layer_curve(layers, tested, settings),
            baselines=baselines,
            controls=salient,
            unconverged=[
                *(f"probe on {f.site} {f.pooling} of layer {f.layer}" for f, one in layers.items() if not one.probe.converged_),
                *(f"head at depth {d}" for d, one in found.items() if not one.head.converged),
                *([] if compared_with is None else compared_with.unconverged(())),
            ],
            exit=Exit("fixed", depth),
            seconds=self.seconds,
            examples=examples_of(head, train, parts["training"], learnt_from, self.examples),
            beside_accuracy=self.beside_accuracy(validation.labels, held_out[depth], "validation rows"),
            shift_reference=Reference.of_heads({d: found[d].head for d in kept}, train),
        )

    def _whole(
        self, parts: Mapping[str, LabelledRows], store: Path | None
    ) -> tuple[dict[str, ExtractedPart], dict[FeatureKey, ProbedLayer]]:
        """All features of all rows, and the layers. Adds the part "heads": the training rows that the heads learn from."""
        wanted = self.everything | self.of_baselines
        with self.timed("extract"):
            extracted = self.extraction(wanted, store)(parts, wanted)
        probed = train = extracted["training"]
        if self.phase_two != "seen":
            first, second = halves(self.settings.task, parts["training"].texts, train.labels, self.settings.seed)
            probed, train = train.only(first), train.only(second) if self.phase_two == "unseen" else train
        with self.timed("probe"):
            layers = sparsify(probed, extracted["validation"], list(self.everything), self.settings, self.progress)
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
        extract = self.extraction(self.everything | self.of_baselines, store)
        with self.timed("extract"):
            few = extract(sampled, self.everything)
        with self.timed("probe"):
            train, validation = few["training-sample"], few["validation-sample"]
            layers = sparsify(train, validation, list(self.everything), self.settings, self.progress)
        del few, train, validation
        useful: Wanted = {feature: layer.useful for feature, layer in layers.items() if len(layer.useful)}
        if not useful:
            useful = {next(iter(layers)): no_neurons()}
        with self.timed("extract"):
            extracted = extract(parts, useful | self.of_baselines)
        return extracted | {"heads": extracted["training"]}, layers

    @property
    def of_baselines(self) -> Wanted:
        """With a sample, all rows keep little: only the final hidden state."""
        wanted = super().of_baselines
        return wanted if self.sample is None else {key: None for key in wanted if key.layer == self.n_layers}

    def _baseline_path(self, extracted: Mapping[str, ExtractedPart]) -> DensePath | None:
        """The baselines' models, if they are wanted, on the rows that the heads learn from and are validated on."""
        if not self.with_baseline:
            return None
        named = {name: part for name, part in extracted.items() if name != "heads"}
        path = DensePath(DenseRows.given(named, self.settings), self.n_layers)
        views = BASELINE_VIEWS if self.sample is None else ()
        return path.run(views, self.max_depth, with_alone=True, progress=self.progress)

    def _gathered(
        self, extracted: Mapping[str, ExtractedPart], layers: ProbedLayers
    ) -> tuple[GatheredPart, GatheredPart, GatheredPart | None]:
        """The columns that are still needed of the training, validation and test part; each array is read once."""
        columns = columns_of_heads(layers, self.settings, with_controls=self.sample is None)
        test = extracted.get("test")
        tested = None if test is None else test.gathered(columns_of_test(layers, self.settings))
        return extracted["heads"].gathered(columns), extracted["validation"].gathered(columns), tested

    def _check_part(self, labels: Array, rows: Int[Array, "_"]) -> None:
        """InputError if a part of the training rows lost a class."""
        self.settings.task.check_part(labels[rows], f"a part of the {len(labels)} training rows")

    def _without_neurons(self, train: Part, validation: Part, test: Part | None) -> Integrated:
        """A constant head, for data where no neuron is salient; warns of it."""
        warnings.warn(
            "no neuron of any layer is salient: every text gets the same answer; give larger Cs (or rows that differ)",
            NoNeuronWarning,
            stacklevel=4,
        )
        settings = self.settings
        seen, held_out = (
            Rows(np.empty((len(part.labels), 0), np.float32), part.labels, part.weights) for part in (train, validation)
        )
        learnt_from = seen.joined(held_out) if settings.final_rows == "all" else seen
        head = ConstantHead.of(learnt_from.labels, settings, learnt_from.weights)
        tested = None if test is None else settings.score(test.labels, head.predict(head.read(test)))
        outputs = head.output(head.read(validation))
        score = settings.score(validation.labels, settings.task.decide(outputs))
        return Integrated(head, CurveRow.of_head(self.max_depth, score, tested, head), outputs)
