"""Texts through a model, layer by layer: every wanted feature is pooled while the layers run.

Three steps, each an iterator: `Extractor.encoded` turns a stream of texts into blocks of token ids, `batches` packs a block
under a token budget, `pooled` runs the model on one batch and yields every layer with its pooled features. A caller that needs
only some layers stops iterating; a caller whose rows exit at different layers calls `layer.keep`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spin_native.disk import MANIFEST
from spin_native.errors import InputError, TextError
from spin_native.features.blocks import Block, ahead, progress_bar, text_ids, texts_digest
from spin_native.features.places import Place, Places
from spin_native.features.pooling import POOLINGS, Pooling, at, wide
from spin_native.features.selection import Selection, selection
from spin_native.features.spec import FeatureDtype, FeatureKey, FeatureSpec, Site
from spin_native.features.store import ActivationStore, Features
from spin_native.given import is_whole, path_of
from spin_native.models import Edit, Layer, Transformer, checked_depth
from spin_native.models.transformer import checked_edit
from spin_native.text.batch import TokenBatch
from spin_native.text.packing import WINDOW, pack, several, windows
from spin_native.text.pairs import GivenText, OneKind
from spin_native.text.tokenizer import Tokenizer

# Which columns of each feature are wanted: all (None), or these neurons.
Wanted = Mapping[FeatureKey, Int[np.ndarray, "_"] | None]
Pooled = dict[FeatureKey, Float[np.ndarray, "row _"]]
PerToken = Literal["tokens"]

# Of one layer's activation; measured on CPUs (all shapes from width 384 to 1600, float32 and bfloat16), a guess for CUDA.
ACTIVATION_BYTES = {False: 12 * 2**20, True: 192 * 2**20}
BLOCK_BYTES = 256 * 2**20  # pooled features in memory before they are handed on; a killed process loses at most these


def extract(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[GivenText],
    *,
    sites: Sequence[Site] = ("activation",),
    poolings: Sequence[Pooling | Place | PerToken] = ("mean", "max"),
    depth: int | None = None,
    positions: Iterable[int] | None = None,
    windows: tuple[int, int] | None = None,
    edit: Edit | None = None,
    store: str | Path | None = None,
    dtype: FeatureDtype = "float32",
    max_tokens: int | None = None,
    progress: bool | None = None,
) -> Features:
    """Pooled activations of every text at every layer below `depth` (None: all that the model holds).

    texts: each one a str; or all of them pairs, a tuple or list of two str each, which are read as `Tokenizer` describes it.
    sites: "activation" (FFN neurons, width d_ffn) and "hidden" (what enters a layer, width d_model; run to the end of a whole
        model, also the final hidden state, as layer n_layers).
    poolings: over all tokens of a text "mean", "max", "first" and "last"; "mask", the value at the mask token, which every text
        has exactly once (texts are then read as prompts: "[MASK]" is the mask token); "position", the value at the text's entry
        of `positions` (from 0, special tokens included). Or "tokens" alone: the result is a TokenFeatures, a row per token.
    windows: (size, stride), to read long texts to their end; None: a text is cut at what the model holds, with a warning. size:
        tokens of a window, special tokens included; a text with more is read as several windows, each with its own special
        tokens, which do not attend to one another. stride: how many text tokens later the next window starts. Features are
        pooled over the tokens of all windows as over those of one text: a mean counts a token once for each window that holds
        it. All windows of a text run in one batch, whose memory grows with the text: about 8 * d_ffn bytes (float32) per token,
        0.7 GB for 60,000 tokens with d_ffn 1536.
    edit: changes each layer's activation, as in `Transformer.layers`; what it returns is pooled and written by the layer. For
        example an `analyses.ablation.Ablation`.
    store: a folder to keep the features in, as an ActivationStore, instead of memory. An interrupted extraction resumes when
        it is started again with the same texts. A complete store answers smaller questions without running the model: fewer
        layers, sites or poolings, and some of its texts in any order.
    dtype: of the kept features. max_tokens: the batch size, in tokens (None: `token_budget`).
    progress: show a progress bar on stderr (None: if that is a terminal).

    Raises InputError for a text that is neither a str nor a pair and for texts beside pairs (naming the row), a tokenizer that
    does not fit the model, a store that holds something else or is being written by another process, a store together with
    edit, positions or "tokens", windows that the model cannot read or that come with pairs, "mask", "position" or "tokens", and
    for an Ablation of layers or neurons that the model does not have.
    """
    from spin_native.features.tokens import TokenExtractor  # it is built on Extractor

    _check_loaded(model, tokenizer)
    wanted = dict.fromkeys(features_of(model, sites, poolings, depth))
    kind = TokenExtractor if "tokens" in poolings else Extractor
    extractor = kind(
        model, tokenizer, wanted, dtype=dtype, max_tokens=max_tokens, positions=positions, edit=edit, windows=windows
    )
    return extractor.run(texts, store, progress)


def _check_loaded(model: object, tokenizer: object) -> None:
    """InputError for names in place of what load_model and load_tokenizer return."""
    for given, kind, what in ((model, Transformer, "model"), (tokenizer, Tokenizer, "tokenizer")):
        if not isinstance(given, kind):
            raise InputError(f"{what} is a {type(given).__name__}; expected what sn.load_{what} returns")


def features_of(
    model: Transformer, sites: Sequence[Site], poolings: Sequence[Pooling | Place | PerToken], depth: int | None
) -> list[FeatureKey]:
    """The features that `depth` layers of a model offer, layer by layer."""
    check_choices(sites, get_args(Site), "sites")
    check_choices(poolings, (*get_args(Pooling), *get_args(Place), *get_args(PerToken)), "poolings")
    if "tokens" in poolings and len(poolings) > 1:
        raise InputError(f"poolings is {poolings!r}; 'tokens' gives a row per token, the others one per text: take it alone")
    depth = checked_depth(depth, model.depth)
    offered = [FeatureKey(site, pooling, layer) for layer in range(depth) for site in sites for pooling in poolings]
    if "hidden" in sites and depth == model.config.n_layers:
        offered += [FeatureKey("hidden", pooling, depth) for pooling in poolings]
    return offered


def check_choices(given: Sequence[str], choices: Sequence[str], what: str) -> None:
    """InputError unless `given` holds one or more of the choices, each once."""
    is_sequence = isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, str)
    listed = list(given) if is_sequence else []
    if not listed or any(not isinstance(name, str) or name not in choices or listed.count(name) > 1 for name in listed):
        raise InputError(f"{what} is {given!r}; expected a sequence of one or more of {', '.join(choices)}, each once")


class Extractor:
    """A model, its tokenizer, and the features to read while it runs.

    wanted: the features to read; of each, all columns (None) or these neurons, in this order.
    depth: how many of the model's layers a store names as its source (None: all that the model holds).
    positions, edit, windows: as of `extract`.
    n_truncated counts the texts cut so far. reads_pairs: whether every text must be a pair, or none (None: the first decides).
    """

    reads_pairs: bool | None = None  # set for a classifier, which reads what it was fitted on

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        wanted: Wanted,
        *,
        dtype: FeatureDtype = "float32",
        max_tokens: int | None = None,
        depth: int | None = None,
        positions: Iterable[int] | None = None,
        edit: Edit | None = None,
        windows: tuple[int, int] | None = None,
    ) -> None:
        _check_loaded(model, tokenizer)
        if not isinstance(dtype, str) or dtype not in get_args(FeatureDtype):
            raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(get_args(FeatureDtype))}")
        if max_tokens is not None and not (is_whole(max_tokens) and max_tokens >= 1):
            raise InputError(f"max_tokens is {max_tokens!r}; expected at least 1, a whole number")
        if tokenizer.n_ids > model.config.n_vocab or tokenizer.max_tokens > model.config.max_tokens:
            raise InputError(
                f"the tokenizer has {tokenizer.n_ids} ids and rows of up to {tokenizer.max_tokens} tokens, the model "
                f"{model.config.n_vocab} and {model.config.max_tokens}: they do not belong together"
            )
        last = model.depth if model.is_whole else model.depth - 1  # a whole model also gives its final hidden state
        for feature in wanted:
            if feature.layer > last or (feature.site == "activation" and feature.layer >= model.depth):
                raise InputError(f"no {feature.site} of layer {feature.layer} in a model of depth {model.depth}")
        if edit is not None and not callable(edit):
            raise InputError(f"edit is a {type(edit).__name__}; expected a function of a Layer, for example an Ablation")
        if callable(check := getattr(edit, "check", None)):  # an Ablation has one; it cannot be imported here
            check(model)
        self.model, self.tokenizer, self.dtype, self.edit = model, tokenizer, dtype, edit
        self._wanted = dict(wanted)
        self._places = Places(tokenizer, (feature.pooling for feature in wanted), positions, windows)
        self._has_positions = positions is not None
        self.max_tokens = token_budget(model) if max_tokens is None else int(max_tokens)
        self.n_truncated = 0
        self.widths = {f: model.width(f.site, f.layer) if neurons is None else len(neurons) for f, neurons in wanted.items()}
        self._depth = model.depth if depth is None else depth
        self._by_layer: dict[int, list[tuple[FeatureKey, Tensor | None]]] = {}
        for feature, neurons in wanted.items():
            columns = None if neurons is None else torch.as_tensor(neurons, device=model.device)
            self._by_layer.setdefault(feature.layer, []).append((feature, columns))

    @property
    def rows_per_block(self) -> int:
        """As many rows as BLOCK_BYTES hold, in a range that keeps batches of near-equal rows and memory small."""
        row_bytes = sum(self.widths.values()) * np.dtype(self.dtype).itemsize
        return min(max(BLOCK_BYTES // max(row_bytes, 1), 64), WINDOW)

    def run(self, texts: Iterable[GivenText], store: str | Path | None = None, progress: bool | None = None) -> Features:
        """The features of all texts, in memory or in a store."""
        if store is None:
            features = Features(self.widths)
            if self.model.source is not None and self.edit is None and not self._has_positions:
                features.set_spec(self._unsigned_spec(), partial(self.model.source.fingerprint, self._depth))
            for encoded in self.encoded(texts, progress):
                features.append(self.features(encoded), text_ids(encoded.texts))
            return features
        for what, is_given in (("edit", self.edit is not None), ("positions", self._has_positions)):
            if is_given:
                raise InputError(
                    f"store and {what}: a store cannot record which {what} it was made with; leave one of them out"
                )
        store = path_of(store, "store")
        with ActivationStore.writer(store):
            spec = self._spec()
            if (store / MANIFEST).exists() and (kept := ActivationStore(store)).is_complete:
                texts = list(several(texts))
                if (answer := self._answer(kept, spec, texts)) is not None:
                    return answer
            opened = ActivationStore.create(store, spec, self.tokenizer.fingerprint_like)
            for encoded in self.encoded(texts, progress, opened):
                opened.append(self.features(encoded), text_ids(encoded.texts), texts_digest(encoded.texts))
            return opened

    def _answer(self, store: ActivationStore, spec: FeatureSpec, texts: Sequence[GivenText]) -> Selection | None:
        """The wanted features of these texts out of a complete store that holds them and more; None for any other store."""
        source = self.model.source
        assert source is not None  # checked by `_spec`
        spec = replace(spec, tokenizer_fingerprint=self.tokenizer.fingerprint_like(store.spec.tokenizer_fingerprint))
        return selection(store, spec, self._wanted, texts, source.fingerprint, self.model.config.n_layers)

    def blocks(self, texts: Iterable[GivenText], progress: bool | None = None) -> Iterator[Pooled]:
        """The features of a stream of texts, a block of texts at a time, in input order."""
        for block in self.encoded(texts, progress):
            yield self.features(block)

    def encoded(
        self, texts: Iterable[GivenText], progress: bool | None = None, store: ActivationStore | None = None
    ) -> Iterator[Block]:
        """A stream of texts as blocks of token ids.

        store: skip the blocks that it holds already, and mark it complete at the end. Warns once, at the end, how many texts
        were cut. Raises InputError for a text that is not a str (naming the row), and for a store of other texts.
        """
        texts = several(texts)
        n_texts, truncated_before = 0, self.n_truncated
        kind = OneKind(self.reads_pairs, "those that the classifier was fitted on")
        blocks = windows(texts, self.rows_per_block)
        with progress_bar(texts, progress) as bar:
            for digest, block in zip(() if store is None else store.texts_digests, blocks):  # noqa: B905 (more blocks follow)
                if texts_digest(block) != digest:
                    raise InputError(
                        f"{store and store.folder}: rows {n_texts} to {n_texts + len(block) - 1} were extracted from other "
                        "texts; choose another folder, or delete this one"
                    )
                bar.update(len(block))
                n_texts += len(kind.checked(block, n_texts))
            for encoded in ahead(partial(self._places.block, kind=kind), blocks, n_texts, self._has_several_blocks(texts)):
                self.n_truncated += int(encoded.copies @ encoded.is_truncated)
                yield replace(encoded, bar=bar)
                n_texts += len(encoded.texts)
        if store is not None:
            if n_texts < store.n_rows:
                raise InputError(f"{store.folder}: holds {store.n_rows} rows, but only {n_texts} texts were given")
            store.finish()
        self._places.check_number(n_texts)
        self.tokenizer.warn_truncated(self.n_truncated - truncated_before, n_texts)

    def batches(self, block: Block) -> Iterator[tuple[Int[np.ndarray, "row"], TokenBatch]]:
        """A block's rows of ids, packed under the token budget: which rows, and their tokens."""
        copies = block.copies
        for rows in pack([len(ids) for ids in block.ids], self.max_tokens):
            yield np.array(rows), block.batch(rows, self.model.device)
            if block.bar is not None:
                block.bar.update(int(copies[rows].sum()))

    def pooled(
        self,
        block: Block,
        rows: Int[np.ndarray, "row"],
        batch: TokenBatch,
        until: int | None = None,
        edit: Edit | None = None,
    ) -> Iterator[tuple[Layer, Pooled]]:
        """Run the model on one batch of a block: every layer, with its wanted features of the rows that still run.

        until: the last layer to run (None: all that the model holds). A caller that stops iterating stops the model, too; after
        `layer.keep`, later layers run the kept rows only. The caller deletes each layer before it asks for the next one, so
        that one layer's activation is in memory at a time. Raises InputError for a feature that is not finite.

        edit: changes each layer's activation; what it returns is both pooled and written by the layer. None: the extractor's.
        """
        edit = edit or self.edit
        layers = self.model.layers(batch, edit=None if edit is None else _activation)
        while True:
            with torch.inference_mode():  # not around the yield: the mode would stay on while the caller works
                layer = next(layers, None)
                if layer is None:
                    return
                if edit is not None and layer.activation is not None:
                    layer.activation = checked_edit(edit(layer), layer.activation)
                wanted = self._by_layer.get(layer.index, ())
                places = {name: torch.from_numpy(at[rows]).to(batch.ids.device) for name, at in block.places.items()}
                features = {feature: self._pool(layer, feature, columns, places) for feature, columns in wanted}
            self._check_finite(features, block, rows)
            yield layer, features
            if layer.index == until:
                return
            if layer.rows_kept is not None:
                rows = rows[layer.batch.texts_of(layer.rows_kept).cpu().numpy()]
            del layer, features

    def features(self, block: Block, edit: Edit | None = None) -> Pooled:
        """The features of a block's texts. edit: as of `pooled`."""
        features = {feature: np.empty((len(block.ids), width), self.dtype) for feature, width in self.widths.items()}
        last = max(self._by_layer)
        for rows, batch in self.batches(block):
            for layer, pooled in self.pooled(block, rows, batch, last, edit):
                for feature, values in pooled.items():
                    features[feature][rows] = values
                del layer
        return {feature: block.per_text(values) for feature, values in features.items()}

    def _pool(
        self, layer: Layer, feature: FeatureKey, columns: Tensor | None, places: Mapping[str, Tensor]
    ) -> Float[np.ndarray, "_ width"]:
        """g(A_l): one pooling of a site of a layer, or some columns of it. places: see Block, of the layer's rows."""
        values = layer.hidden if feature.site == "hidden" else layer.activation
        assert values is not None  # only the final hidden state comes without an activation
        if feature.pooling == "tokens":
            pooled = wide(values)
        elif feature.pooling in places:
            pooled = at(values, layer.batch, places[feature.pooling])
        else:
            pooled = POOLINGS[cast(Pooling, feature.pooling)](values, layer.batch.texts)
        if columns is not None:
            pooled = pooled[:, columns]  # cheaper than picking the columns of every token
        with np.errstate(over="ignore"):  # a value too large for float16 is refused by name later
            return pooled.cpu().numpy().astype(self.dtype, copy=False)

    def _check_finite(self, features: Pooled, block: Block, rows: Int[np.ndarray, "row"]) -> None:
        """InputError that names a neuron that is not finite, and the first text of the batch with such a neuron."""
        for feature, values in features.items():
            if not np.isfinite(values).all():
                bad, columns = np.nonzero(~np.isfinite(values))
                texts = [int(np.argmax(block.row_of == row)) for row in rows[bad]]
                first = int(np.argmin(texts))
                raise TextError(
                    block.first_row + texts[first],
                    f": {feature.site} {columns[first]} of layer {feature.layer} is not a finite {self.dtype}; use "
                    "dtype='float32', and a wider dtype for the model",
                )

    def _has_several_blocks(self, texts: Iterable[GivenText]) -> bool:
        """Whether more than one block of texts is in memory already."""
        return isinstance(texts, Sequence) and len(texts) > self.rows_per_block

    def _spec(self) -> FeatureSpec:
        source = self.model.source
        if source is None:
            raise InputError("a store names the model it was made from: load the model with load_model")
        return replace(self._unsigned_spec(), model_fingerprint=source.fingerprint(self._depth))

    def _unsigned_spec(self) -> FeatureSpec:
        """What the features are made from, without the fingerprint of the weights, which costs time."""
        source = self.model.source
        assert source is not None  # the callers have looked
        return FeatureSpec(
            model=source.name,
            model_revision=source.revision,
            model_fingerprint="",
            model_dtype=str(self.model.dtype).removeprefix("torch."),
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            depth=max(self._by_layer) + 1,
            dtype=self.dtype,
            rows_per_shard=self.rows_per_block,
            max_tokens=self.max_tokens,
            widths=self.widths,
            columns=self._columns(),
            reads="prompts" if self._places.reads_prompts else "texts",
            windows=self._places.windows,
        )

    def _columns(self) -> str:
        """Which neurons are wanted of each feature: a digest, or "all"."""
        wanted = [pair for pairs in self._by_layer.values() for pair in pairs]
        chosen = [(*feature, columns.tolist()) for feature, columns in wanted if columns is not None]
        return hashlib.sha256(json.dumps(chosen).encode()).hexdigest() if chosen else "all"


def _activation(layer: Layer) -> Float[Tensor, "token d_ffn"]:
    """What a layer writes where its activation has been changed already."""
    assert layer.activation is not None  # the loop asks only layers that have an FFN
    return layer.activation


def token_budget(model: Transformer) -> int:
    """Tokens per batch: as many as keep a layer's activation at ACTIVATION_BYTES.

    Larger batches leave the caches, smaller ones leave cores idle and pay each operation's fixed cost more often. The number
    depends on nothing but the model and its device: the same texts make the same batches, and the same bits, everywhere.
    """
    # The FFN's activation is the widest, unless the model was pruned: then query, key and value, side by side.
    bytes_per_token = max(model.config.d_ffn, 3 * model.config.d_model) * model.dtype.itemsize
    return max(1, ACTIVATION_BYTES[model.device.type == "cuda"] // bytes_per_token)
