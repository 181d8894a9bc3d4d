"""A trained classifier at work: the layers its heads need, the salient neurons, and where each row exits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from spin_native.checkpoints import Checkpoint, Dtype
from spin_native.classifier.exits import Exit, ExitDecision, checked_exit
from spin_native.classifier.heads import Head
from spin_native.classifier.parts import Neurons
from spin_native.classifier.shift import ShiftWatch
from spin_native.features.extract import Block, Extractor, Pooled
from spin_native.features.pooling import wide
from spin_native.features.store import FeatureKey
from spin_native.models import Edit, Layer
from spin_native.text.pairs import GivenText

Array = np.ndarray


class TokenValues(NamedTuple):
    """What a head reads of one feature of one text: its neurons' values at every token, and what pooling makes of them."""

    feature: FeatureKey
    values: Float[Array, "token neuron"]
    pooled: Float[Array, "neuron"]


class Deployed:
    """The first layers of a base model under one or several heads, {depth: head}.

    Where no later layer reads it, the last layer keeps its salient neurons only. windows: as of `extract`. reads_pairs: each
    text must be a pair.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        heads: Mapping[int, Head],
        dtype: Dtype,
        device: str,
        windows: tuple[int, int] | None = None,
        reads_pairs: bool = False,
    ) -> None:
        self.checkpoint, self.heads = checkpoint, dict(sorted(heads.items()))
        self.depth = max(heads)
        self.task = self.heads[self.depth].task
        read = _read_by_any(self.heads.values())
        # Where each head's neurons are among those that are read.
        self._columns = {
            depth: {feature: np.searchsorted(read[feature], neurons) for feature, neurons in head.neurons.items()}
            for depth, head in self.heads.items()
        }
        # At which layer all that a head reads is known; heads are asked in the order of their depths.
        self._heads_at: dict[int, list[int]] = {}
        layer = 0
        for depth, head in self.heads.items():
            layer = max(layer, *(feature.layer for feature in head.neurons))
            self._heads_at.setdefault(layer, []).append(depth)
        self._kept, wanted = _without_unread_neurons(read, self.depth, checkpoint.config.n_layers)
        model = checkpoint.load(self.depth, dtype, device, last_neurons=self._kept)
        self._wanted = wanted
        self.extractor = Extractor(model, checkpoint.tokenizer, wanted, windows=windows)
        self.extractor.reads_pairs = reads_pairs

    @property
    def dtype(self) -> str:
        """What the base model runs in."""
        return str(self.extractor.model.dtype).removeprefix("torch.")

    def checked(self, exit_: Exit) -> Exit:
        """The exit, with the depth of a fixed one filled in; InputError if these heads cannot decide it."""
        self.task.check_exit(exit_)
        return checked_exit(exit_, list(self.heads))

    def blocks(
        self, texts: Iterable[GivenText], exit_: Exit, progress: bool | None, watch: ShiftWatch | None = None
    ) -> Iterator[tuple[Float[Array, "row output"], Int[Array, "row"]]]:
        """The outputs of a stream of texts, and the depth at which each row exited, block by block.

        watch: what counts the features for the shift alarm; the caller finishes it.
        """
        exit_ = self.checked(exit_)
        for block in self.extractor.encoded(texts, progress):
            yield self.run(block, exit_, watch=watch)

    def run(
        self, block: Block, exit_: Exit, edit: Edit | None = None, watch: ShiftWatch | None = None
    ) -> tuple[Float[Array, "row output"], Int[Array, "row"]]:
        """The outputs of a block of texts, and the depth at which each row exited.

        exit_: as `checked` gives it. edit: changes neurons while the model runs, in its own columns (see `columns_of`).
        watch: as in `blocks`.
        """
        outputs = np.empty((len(block.ids), self.task.n_outputs))
        depths = np.zeros(len(block.ids), dtype=np.int64)
        for depth, rows, output in self._heads_of(block, exit_, edit, watch):
            outputs[rows], depths[rows] = output, depth  # a deeper head overwrites this for the rows that run on
        if watch is not None:
            watch.end_block(len(block.row_of))
        return block.per_text(outputs), block.per_text(depths)

    @property
    def widths(self) -> dict[int, int]:
        """Layer -> how many neurons it has in the checkpoint."""
        model = self.extractor.model
        widths = {layer: model.width("activation", layer) for layer in range(self.depth)}
        return widths if self._kept is None else widths | {self.depth - 1: model.config.ffn_width(self.depth - 1)}

    def columns_of(self, neurons: Mapping[int, Int[Array, "_"]]) -> dict[int, Int[Array, "_"]]:
        """Where neurons of the checkpoint are in the running model. Those that its last layer does not keep are left out."""
        columns = dict(neurons)
        if self._kept is not None and self.depth - 1 in columns:
            columns[self.depth - 1] = np.flatnonzero(np.isin(self._kept, columns[self.depth - 1]))
        return {layer: chosen for layer, chosen in columns.items() if len(chosen)}

    def all_outputs(self, texts: Sequence[GivenText]) -> dict[int, Float[Array, "row output"]]:
        """The outputs of every head for every text."""
        blocks: dict[int, list[Array]] = {depth: [] for depth in self.heads}
        for block in self.extractor.encoded(texts, False):
            outputs = {depth: np.empty((len(block.ids), self.task.n_outputs)) for depth in self.heads}
            for depth, rows, output in self._heads_of(block, None):
                outputs[depth][rows] = output
            for depth, values in outputs.items():
                blocks[depth].append(block.per_text(values))
        return {depth: np.concatenate(values) for depth, values in blocks.items()}

    def salient_features(self, text: GivenText, depth: int) -> Float[Array, "1 salient"]:
        """What the head at a depth reads of one text."""
        (features,) = self.extractor.blocks([text], False)
        return self._salient(features, depth)

    def token_ids(self, text: GivenText) -> Block:
        """One text, cut to what the base model holds, as token ids. Warns if it was cut."""
        (block,) = self.extractor.encoded([text], False)
        return block

    def token_values(self, block: Block, depth: int) -> Iterator[TokenValues]:
        """What the head at a depth reads of one text (see `token_ids`), feature by feature while the layers run."""
        columns = self._columns[depth]
        last = max(feature.layer for feature in columns)
        ((rows, batch),) = self.extractor.batches(block)
        for layer, pooled in self.extractor.pooled(block, rows, batch, last):
            for feature in (feature for feature in columns if feature.layer == layer.index):
                chosen = columns[feature]
                yield TokenValues(feature, self._at_tokens(layer, feature, chosen), pooled[feature][0, chosen])
            del layer

    def _at_tokens(self, layer: Layer, feature: FeatureKey, chosen: Int[Array, "neuron"]) -> Float[Array, "token neuron"]:
        """Some of the read neurons of a layer, at every token of the batch."""
        values = layer.hidden if feature.site == "hidden" else layer.activation
        assert values is not None  # the extractor has pooled it
        read = self._wanted[feature]
        columns = torch.from_numpy(chosen if read is None else read[chosen]).to(values.device)
        return wide(values[:, columns]).cpu().numpy()

    def _heads_of(
        self, block: Block, exit_: Exit | None, edit: Edit | None = None, watch: ShiftWatch | None = None
    ) -> Iterator[tuple[int, Int[Array, "row"], Float[Array, "row output"]]]:
        """Run a block: each head's depth, the rows that reached it, and its outputs for them.

        exit_: rows stop running when they exit (None: every row runs to the deepest head).
        """
        asked = {int(exit_.value or 0)} if exit_ is not None and exit_.by == "fixed" else set(self.heads)
        deepest = max(asked)
        first_layer, (first_depth, *_) = next(iter(self._heads_at.items()))
        for rows, batch in self.extractor.batches(block):
            decision = None if exit_ is None else ExitDecision(exit_, len(rows), self.task)
            known: Pooled = {}  # of the rows that still run
            for layer, pooled in self.extractor.pooled(block, rows, batch, edit=edit):
                known |= pooled
                if watch is not None and layer.index == first_layer:  # before any row exits
                    watch.add(self._salient(known, first_depth).take(watch.reference.columns, axis=1))
                running = np.arange(len(rows))  # which of the layer's rows run on
                for depth in (depth for depth in self._heads_at.get(layer.index, ()) if depth in asked):
                    output = self.heads[depth].output(self._salient(known, depth))
                    yield depth, rows, output
                    if depth == deepest:
                        running = running[:0]
                    elif decision is not None:
                        stays = ~decision(output, depth)
                        rows, running = rows[stays], running[stays]
                        known = {feature: values[stays] for feature, values in known.items()}
                if not len(running):
                    del layer
                    break
                if len(running) < layer.batch.texts.n_rows:  # all windows of a text exit together
                    layer.keep(layer.batch.rows_of(torch.from_numpy(running).to(layer.batch.ids.device)))
                del layer

    def _salient(self, features: Mapping[FeatureKey, Array], depth: int) -> Float[Array, "row salient"]:
        """What the head at a depth reads of the features, side by side."""
        columns = self._columns[depth]
        return np.concatenate([features[feature][:, chosen] for feature, chosen in columns.items()], axis=1)


def _read_by_any(heads: Iterable[Head]) -> Neurons:
    """The neurons of each feature that one of the heads reads, or several."""
    read: Neurons = {}
    for head in heads:
        for feature, neurons in head.neurons.items():
            read[feature] = np.union1d(read[feature], neurons) if feature in read else neurons
    return read


def _without_unread_neurons(
    read: Neurons, depth: int, n_layers: int
) -> tuple[Int[Array, "_"] | None, dict[FeatureKey, Int[Array, "_"] | None]]:
    """The neurons that the model's last layer keeps (None: all), and which columns of each feature to read then.

    A whole model keeps all: its last layer writes to the final hidden state.
    """
    last = [feature for feature in read if feature.layer == depth - 1 and feature.site == "activation"]
    kept = np.unique(np.concatenate([read[feature] for feature in last])) if last else None
    if depth == n_layers or kept is None or not len(kept):
        kept = None
    if kept is not None:
        read = read | {feature: np.searchsorted(kept, read[feature]) for feature in last}
    wanted = {
        feature: None if kept is not None and feature in last and len(neurons) == len(kept) else neurons
        for feature, neurons in sorted(read.items(), key=lambda item: item[0].layer)
    }
    return kept, wanted
