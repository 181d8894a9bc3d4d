"""A trained classifier at work: the layers its heads need, the salient neurons, and each row's way out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from spin_native.checkpoints import Checkpoint, Dtype, load_tokenizer
from spin_native.classifier.exits import Exit, Leaving
from spin_native.classifier.integration import Head
from spin_native.errors import InputError
from spin_native.features.extract import Extractor
from spin_native.features.store import Feature

Array = np.ndarray
Read = Callable[[Feature], Float[Array, "row _"]]  # the extracted neurons of a feature


class Deployed:
    """The first layers of a base model under one head or several.

    Of the last layer only the salient neurons are held, where nothing is written after it. `heads`: depth -> head.
    """

    def __init__(self, checkpoint: Checkpoint, heads: Mapping[int, Head], dtype: Dtype, device: str) -> None:
        self.checkpoint, self.heads = checkpoint, dict(sorted(heads.items()))
        self.depth = max(heads)
        union: dict[Feature, Int[Array, "_"]] = {}
        for head in self.heads.values():
            for feature, neurons in head.neurons.items():
                union[feature] = np.union1d(union[feature], neurons) if feature in union else neurons
        # Where each head's neurons stand among those that are extracted.
        self._columns = {
            depth: {feature: np.searchsorted(union[feature], neurons) for feature, neurons in head.neurons.items()}
            for depth, head in self.heads.items()
        }
        last = [feature for feature in union if feature.layer == self.depth - 1 and feature.site == "activation"]
        held = np.unique(np.concatenate([union[feature] for feature in last])) if last else None
        if self.depth == checkpoint.config.n_layers or held is None or not len(held):
            held = None  # a whole model writes after its last layer, too
        if held is not None:
            union |= {feature: np.searchsorted(held, union[feature]) for feature in last}
        wanted = {
            feature: None if held is not None and feature in last and len(neurons) == len(held) else neurons
            for feature, neurons in sorted(union.items(), key=lambda item: item[0].layer)
        }
        model = checkpoint.load(self.depth, dtype, device, last_neurons=held)
        self.extractor = Extractor(model, load_tokenizer(checkpoint.name, revision=checkpoint.revision), wanted)

    def checked(self, exit_: Exit) -> Exit:
        """An exit that these heads can take, the depth of a fixed one filled in; InputError otherwise."""
        if exit_.by == "fixed" and exit_.value is None:
            return Exit("fixed", self.depth)
        if exit_.by == "fixed" and exit_.value not in self.heads:
            raise InputError(f"no head at depth {exit_.value:g}; there are heads at {', '.join(map(str, self.heads))}")
        if exit_.by == "patience" and exit_.value >= len(self.heads):  # type: ignore[operator]
            raise InputError(f"patience {exit_.value:g} needs more than the {len(self.heads)} heads there are: fit with exits")
        return exit_

    def blocks(
        self, texts: Iterable[str], exit_: Exit, progress: bool | None
    ) -> Iterator[tuple[Float[Array, "row _"], Int[Array, "row"]]]:
        """Probabilities [row, class], or values [row, 1], of a stream of texts, and the depth at which each row left."""
        exit_ = self.checked(exit_)
        if exit_ == Exit("fixed", self.depth):
            for features in self.extractor.blocks(texts, progress):
                outputs = self.output(features.__getitem__, self.depth)
                yield outputs, np.full(len(outputs), self.depth)
            return

        def start(n_rows: int) -> "_Way":
            return _Way(self, Leaving(exit_, n_rows))

        for features, depths in self.extractor.leaving_blocks(texts, start, progress):
            found = None
            for depth in self.heads:
                rows = np.flatnonzero(depths == depth)
                there = {feature: features[feature][rows] for feature in self._columns[depth]}
                outputs = self.output(there.__getitem__, depth)
                found = np.empty((len(depths), outputs.shape[1])) if found is None else found
                found[rows] = outputs
            assert found is not None
            yield found, depths

    def salient_features(self, read: Read, depth: int) -> Float[Array, "row salient"]:
        """What the head at a depth reads."""
        return np.concatenate([read(feature)[:, columns] for feature, columns in self._columns[depth].items()], axis=1)

    def output(self, read: Read, depth: int) -> Float[Array, "row _"]:
        """What the head at a depth says."""
        return self.heads[depth].output(self.salient_features(read, depth))

    def all_outputs(self, texts: Sequence[str]) -> dict[int, Float[Array, "row _"]]:
        """What every head says about every text."""
        reads = [features.__getitem__ for features in self.extractor.blocks(texts, False)]
        return {depth: np.concatenate([self.output(read, depth) for read in reads]) for depth in self.heads}


class _Way:
    """One batch's way through the heads."""

    def __init__(self, deployed: Deployed, leaving: Leaving) -> None:
        self._deployed, self._leaving = deployed, leaving

    def __call__(self, layer: int, read: Read) -> Bool[Array, "row"] | None:
        depth = layer + 1
        return self._leaving(self._deployed.output(read, depth), depth) if depth in self._deployed.heads else None
