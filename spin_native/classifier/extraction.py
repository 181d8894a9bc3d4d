"""Texts of each part of the data to features: from the base model, from a store, or from features that the caller gives."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int

from spin_native.checkpoints import Checkpoint, Dtype
from spin_native.classifier.parts import ExtractedPart
from spin_native.classifier.rows import LabelledRows
from spin_native.errors import InputError
from spin_native.features.extract import Extractor
from spin_native.features.selection import Selection, difference, rows_of_texts
from spin_native.features.spec import FeatureKey
from spin_native.features.store import Features
from spin_native.models import Transformer

Array = np.ndarray
Wanted = dict[FeatureKey, Int[Array, "_"] | None]


@dataclass
class Extraction:
    """A base model, loaded once, and where its features are kept (store); one call for each stage of a fit.

    depth: how many layers any stage runs. given: features of all the texts, from which each stage takes its own; the model is
    not loaded then. windows: as of `extract`.
    """

    checkpoint: Checkpoint
    depth: int
    dtype: Dtype
    device: str
    store: Path | None
    progress: bool | None
    given: Features | None = None
    windows: tuple[int, int] | None = None

    @cached_property
    def model(self) -> Transformer:
        return self.checkpoint.load(self.depth, self.dtype, self.device)

    def __call__(self, parts: Mapping[str, LabelledRows], wanted: Wanted) -> dict[str, ExtractedPart]:
        """The wanted features of each part; `wanted`: all neurons of a feature (None), or these."""
        if self.given is not None:
            return self._taken(self.given, parts, wanted)
        depth = min(self.checkpoint.config.n_layers, 1 + max(feature.layer for feature in wanted))
        extractor = Extractor(self.model, self.checkpoint.tokenizer, wanted, depth=depth, windows=self.windows)
        columns = {feature: neurons for feature, neurons in wanted.items() if neurons is not None}
        extracted = {}
        for name, rows in parts.items():
            store = None if self.store is None else self.store / name
            with rows.named_in_errors():
                features = extractor.run(rows.texts, store, self.progress)
            extracted[name] = ExtractedPart(rows.labels, features, columns or None, weights=rows.weights)
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
                "and for the baselines all mean hidden states and activations, or fit with baseline=False"
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
            windows=self.windows,
        )
        everything: Wanted = dict.fromkeys(wanted)
        n_layers = self.checkpoint.config.n_layers
        if differing := difference(needed, made_from, everything, self.checkpoint.fingerprint, n_layers):
            raise InputError(
                f"features: {differing} is {str(getattr(made_from, differing))[:40]}, this fit needs "
                f"{str(getattr(needed, differing))[:40]}; extract them with the model, tokenizer, dtype and windows of this fit"
            )
        taken = {}
        for name, rows in parts.items():
            with rows.named_in_errors():
                features = Selection(given, everything, rows_of_texts(given, rows.texts))
            taken[name] = ExtractedPart(rows.labels, features, weights=rows.weights)
        return taken
