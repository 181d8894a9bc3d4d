"""Fits of dense heads: cross-fitted on the training rows, or on validation rows where some are given."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from spin_native.classifier.baselines import BASELINE_VIEWS, measure
from spin_native.classifier.crossfit import Folds
from spin_native.classifier.dense import Adjustment, DensePath, DenseRows, Solved, has_few_rows, row_weights, views_of
from spin_native.classifier.examples import examples_of
from spin_native.classifier.exits import Exit
from spin_native.classifier.grown import MAX_MATRIX_ROWS
from spin_native.classifier.heads import Head
from spin_native.classifier.parts import ExtractedPart
from spin_native.classifier.rows import LabelledRows
from spin_native.classifier.settings import View
from spin_native.classifier.shift import Reference
from spin_native.classifier.training import Fitted, Training

Array = np.ndarray
CHOICE_ROWS = 10_000  # where there are too many rows for Gram matrices, so many training rows choose


class DenseTraining(Training):
    """All candidates at every depth, on held-out predictions of the same rows."""

    def run(self, parts: Mapping[str, LabelledRows], store: Path | None) -> Fitted:
        settings, wanted = self.settings, self.everything | self.of_baselines
        learnt = self._sampled(parts)
        extraction = self.extraction(wanted, store if learnt is parts or store is None else store / "sample")
        with self.timed("extract"):
            extracted = extraction(learnt, wanted)
        with self.timed("integrate"):
            rows = self._rows(extracted, learnt)
            few = has_few_rows(settings, rows.labels)
            views = views_of(settings, few)
            path = DensePath(rows, self.n_layers).run(
                list(dict.fromkeys([*views, *(BASELINE_VIEWS if self.with_baseline else ())])),
                self.max_depth,
                with_alone=self.with_baseline,
                progress=self.progress,
            )
            view_at = {depth: path.best(depth, views) for depth in range(1, self.max_depth + 1)}
            best = {depth: path.solved[view, depth] for depth, view in view_at.items()}
            curve = {depth: path.row(solved) for depth, solved in best.items()}
            outputs = {depth: path.held_out_outputs(solved) for depth, solved in best.items()}
            predicted = {depth: path.predictions(solved)[0] for depth, solved in best.items()}
            truth = rows.labels[rows.folds.held_out]
            is_chosen = not few or self.tolerance is not None  # few rows choose a depth only where a tolerance was given
            depth = self.depth_of(curve, truth, predicted) if is_chosen else self.max_depth
            chosen = {d: best[d] for d in self.kept(depth, list(best))}
        with self.timed("baselines"):
            baselines = measure(path, depth, *path.predictions(best[depth])) if self.with_baseline else None
        unconverged = path.unconverged(views)
        if learnt is parts:
            heads = path.heads(chosen)
        else:
            heads, further = self._fitted_on_all(
                parts, chosen, view_at, {d: path.adjustment(one) for d, one in chosen.items()}, store
            )
            unconverged += further
        return Fitted(
            task=heads[depth].task,
            depth=depth,
            heads=heads,
            depth_curve=list(curve.values()),
            layer_curve=[path.row(solved)._replace(depth=layer + 1) for layer, solved in sorted(path.alone.items())],
            baselines=baselines,
            controls=None,
            unconverged=unconverged,
            exit=Exit("fixed", depth),
            suspicious_rows=self._suspicious(rows, outputs, learnt["training"]),
            seconds=self.seconds,
            examples=examples_of(heads[depth], extracted["training"], learnt["training"], None, self.examples),
            beside_accuracy=self.beside_accuracy(
                truth, predicted[depth], "validation rows" if "validation" in extracted else "cross-validated rows"
            ),
            shift_reference=Reference.of_heads(heads, extracted["training"]),
        )

    def _sampled(self, parts: Mapping[str, LabelledRows]) -> Mapping[str, LabelledRows]:
        """The parts with few enough training rows to choose on: themselves where they are."""
        n_rows = sum(len(rows.labels) for name, rows in parts.items() if name != "test")
        if self.sample is None and n_rows <= MAX_MATRIX_ROWS:
            return parts
        limits = {"training": self.sample or CHOICE_ROWS, "validation": self.sample or MAX_MATRIX_ROWS - CHOICE_ROWS}
        if all(name == "test" or len(rows.labels) <= limits[name] for name, rows in parts.items()):
            return parts
        sampled = {}
        for name, limit in limits.items():
            if name in parts:
                chosen, _ = self.settings.task.sample(parts[name].labels, limit, self.settings.seed)
                sampled[name] = parts[name].take(chosen)
        n_training = len(parts["training"].labels)
        self.settings.task.check_part(sampled["training"].labels, f"a part of the {n_training} training rows")
        return {**parts, **sampled}

    def _rows(self, extracted: Mapping[str, ExtractedPart], parts: Mapping[str, LabelledRows]) -> DenseRows:
        """The rows, and which of them each fit learns from."""
        if "validation" in extracted:
            return DenseRows.given(extracted, self.settings)
        train, settings = parts["training"], self.settings
        weights = row_weights(settings, train.labels, extracted["training"])
        folds = Folds.crossed(settings.task, train.texts, train.labels, weights, settings.seed)
        return DenseRows(extracted, settings, train.labels, folds)

    def _fitted_on_all(
        self,
        parts: Mapping[str, LabelledRows],
        chosen: Mapping[int, Solved],
        views: Mapping[int, View],
        adjusted: Mapping[int, Adjustment],
        store: Path | None,
    ) -> tuple[dict[int, Head], list[str]]:
        """What a sample has chosen, fitted on all rows; only what the chosen heads read is extracted of them.

        Also the names of the heads whose solver gave up.
        """
        wanted = dict.fromkeys(sorted({key for one in chosen.values() for key in one.features}, key=lambda key: key.layer))
        names = ("training", "validation") if self._learns_all else ("training",)
        learnt = {name: parts[name] for name in names if name in parts}
        with self.timed("extract"):
            extracted = self.extraction(wanted, store)(learnt, wanted)
        labels = np.concatenate([rows.labels for rows in learnt.values()])
        weights = row_weights(self.settings, labels, *extracted.values())
        folds = Folds(np.full(len(labels), -1), np.ones(len(labels), dtype=bool), weights)
        heads: dict[int, Head] = {}
        unconverged = []
        with self.timed("integrate"):
            for d, solved in chosen.items():
                settings = replace(self.settings, head_Cs=(solved.fit.C,))
                path = DensePath(DenseRows(extracted, settings, labels, folds), self.n_layers)
                path.run([views[d]], d, depths=[d], with_alone=False, progress=self.progress)
                heads |= path.heads({d: path.solved[views[d], d]}, {d: adjusted[d]})
                unconverged += [f"{name}, on all rows" for name in path.unconverged([views[d]])]
        return heads, unconverged

    @property
    def _learns_all(self) -> bool:
        return self.settings.final_rows == "all"

    def _suspicious(
        self, rows: DenseRows, outputs: Mapping[int, Float[Array, "held_out output"]], training: LabelledRows
    ) -> Int[Array, "_"] | None:
        """Training rows whose held-out predictions contradict their label at every depth, the least plausible label first."""
        if "validation" in rows.parts:
            return None
        task, held_out = self.settings.task, rows.folds.held_out
        truth = rows.labels[held_out]
        contradicted = np.all([task.contradicts(output, truth) for output in outputs.values()], axis=0)
        plausibility = np.mean([task.fit_of(output, truth) for output in outputs.values()], axis=0)
        order = np.argsort(plausibility, kind="stable")
        found = held_out[order[contradicted[order]]]
        return found if training.numbers is None else training.numbers[found]
