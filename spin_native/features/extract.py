"""Texts through a model, layer by layer; what is kept is pooled while the layers run."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from spin_native.errors import InputError
from spin_native.features.pooling import POOLINGS, Pooling
from spin_native.features.store import ActivationStore, Feature, FeatureDtype, Features, FeatureSpec
from spin_native.models import Layer, Transformer, checked_depth
from spin_native.text.batch import TokenBatch
from spin_native.text.packing import WINDOW, pack, windows
from spin_native.text.tokenizer import Encoded, Tokenizer, check_text

Site = Literal["activation", "hidden"]
# Which columns of each feature are wanted: all (None), or these neurons.
Wanted = Mapping[Feature, Int[np.ndarray, "_"] | None]

# Told a layer, and how to read a feature of the rows of a batch that are still there: which of them leave (None: none does).
Leave = Callable[[int, Callable[[Feature], Float[np.ndarray, "row _"]]], Bool[np.ndarray, "row"] | None]

# Of one layer's activation; measured on CPUs (all shapes from width 384 to 1600, float32 and bfloat16), a guess for CUDA.
ACTIVATION_BYTES = {False: 12 * 2**20, True: 192 * 2**20}
BLOCK_BYTES = 256 * 2**20  # pooled features gathered before they are handed on: what a killed process loses at most


def extract(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    sites: Sequence[Site] = ("activation",),
    poolings: Sequence[Pooling] = ("mean", "max"),
    depth: int | None = None,
    store: str | Path | None = None,
    dtype: FeatureDtype = "float32",
    max_tokens: int | None = None,
    progress: bool | None = None,
) -> Features:
    """Pooled activations of every text at every layer below `depth` (None: all that the model holds).

    sites: "activation" (FFN neurons, width d_ffn) and "hidden" (what enters a layer, width d_model; run to the end of a whole
        model, also the final hidden state, as layer n_layers).
    store: a folder to keep the features in, as an ActivationStore, instead of memory. A run that was interrupted goes on
        where it stopped when it is started again with the same texts.
    dtype: of the kept features. max_tokens: the batch size, in tokens (None: `token_budget`).
    progress: show a progress bar on stderr (None: if that is a terminal).

    Raises InputError for a text that is no text (naming the row), a tokenizer that does not fit the model, and a store that
    holds something else or is being written by another process.
    """
    wanted = dict.fromkeys(features_of(model, sites, poolings, depth))
    return Extractor(model, tokenizer, wanted, dtype=dtype, max_tokens=max_tokens).run(texts, store, progress)


def features_of(model: Transformer, sites: Sequence[Site], poolings: Sequence[Pooling], depth: int | None) -> list[Feature]:
    """The features that `depth` layers of a model offer, layer by layer."""
    check_choices(sites, get_args(Site))
    check_choices(poolings, get_args(Pooling))
    depth = checked_depth(depth, model.depth)
    found = [Feature(site, pooling, layer) for layer in range(depth) for site in sites for pooling in poolings]
    if "hidden" in sites and depth == model.config.n_layers:
        found += [Feature("hidden", pooling, depth) for pooling in poolings]
    return found


def check_choices(given: Sequence[str], choices: Sequence[str]) -> None:
    """InputError unless `given` holds one or more of the choices, each once."""
    if isinstance(given, str) or not len(given) or not set(given) <= set(choices) or len(set(given)) < len(given):
        raise InputError(f"got {given!r}; expected a sequence of one or more of {', '.join(choices)}, each once")


class Extractor:
    """A model, its tokenizer, and what to keep of a pass through them.

    wanted: the features to keep; for each, all its columns (None) or these neurons, in this order.
    n_truncated counts the texts that were cut so far.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        wanted: Wanted,
        *,
        dtype: FeatureDtype = "float32",
        max_tokens: int | None = None,
    ) -> None:
        if dtype not in get_args(FeatureDtype):
            raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(get_args(FeatureDtype))}")
        if tokenizer.n_vocab > model.config.n_vocab or tokenizer.max_tokens > model.config.max_tokens:
            raise InputError(
                f"the tokenizer has {tokenizer.n_vocab} ids and rows of up to {tokenizer.max_tokens} tokens, the model "
                f"{model.config.n_vocab} and {model.config.max_tokens}: they do not belong together"
            )
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype
        self.max_tokens = token_budget(model) if max_tokens is None else max_tokens
        self.n_truncated = 0
        self.widths = {f: model.width(f.site, f.layer) if neurons is None else len(neurons) for f, neurons in wanted.items()}
        self._by_layer: dict[int, list[tuple[Feature, Tensor | None]]] = {}
        for feature, neurons in wanted.items():
            columns = None if neurons is None else torch.as_tensor(neurons, device=self._device)
            self._by_layer.setdefault(feature.layer, []).append((feature, columns))

    @property
    def rows_per_block(self) -> int:
        """As many rows as BLOCK_BYTES hold, in a range that keeps batches of near-equal rows and memory small."""
        row_bytes = sum(self.widths.values()) * np.dtype(self.dtype).itemsize
        return min(max(BLOCK_BYTES // max(row_bytes, 1), 64), WINDOW)

    def run(self, texts: Iterable[str], store: str | Path | None = None, progress: bool | None = None) -> Features:
        """The features of all texts, in memory or in a store."""
        if store is None:
            features = Features(self.widths)
            for block in self.blocks(texts, progress):
                features.append(block)
            return features
        with ActivationStore.writer(store):
            return self._run_into(ActivationStore.create(store, self._spec()), texts, progress)

    def blocks(self, texts: Iterable[str], progress: bool | None = None) -> Iterator[dict[Feature, Float[np.ndarray, "row _"]]]:
        """The features of a stream of texts, a block of rows at a time, in input order."""
        for features, _ in self.leaving_blocks(texts, None, progress):
            yield features

    def leaving_blocks(
        self, texts: Iterable[str], start: Callable[[int], Leave] | None, progress: bool | None = None
    ) -> Iterator[tuple[dict[Feature, Float[np.ndarray, "row _"]], Int[np.ndarray, "row"]]]:
        """`blocks`, of rows that may leave early, and how many layers each row was run.

        start: called with a batch's number of rows for what tells who leaves it; what a row left before is 0. None: no row
            leaves.
        """
        n_texts, cut_before = 0, self.n_truncated
        with _progress_bar(texts, progress) as bar:
            for encoded in _encoded(self._encode, windows(texts, self.rows_per_block), 0, self._several_blocks(texts)):
                yield self._block(encoded, n_texts, bar, start)
                n_texts += len(encoded.row_of)
        self.tokenizer.warn_truncated(self.n_truncated - cut_before, n_texts)

    def _several_blocks(self, texts: Iterable[str]) -> bool:
        """Whether more than one block lies in memory."""
        return isinstance(texts, Sequence) and len(texts) > self.rows_per_block

    def _encode(self, texts: Sequence[str], first_row: int) -> "_Block":
        """Token ids of the texts that differ; `first_row` numbers the first text in errors."""
        places: dict[str, int] = {}
        for row, text in enumerate(texts, first_row):
            check_text(text, row)
        row_of = np.array([places.setdefault(text, len(places)) for text in texts])
        try:
            return _Block(self.tokenizer.encode(list(places)), row_of, texts)
        except InputError:
            self.tokenizer.encode(texts, first_row)  # to name the right row
            raise

    @torch.inference_mode()
    def _block(
        self, block: "_Block", first_row: int, bar: "tqdm[None]", start: Callable[[int], Leave] | None = None
    ) -> tuple[dict[Feature, Float[np.ndarray, "row _"]], Int[np.ndarray, "row"]]:
        """The features of some texts, and how many layers each was run; each is computed once, however often it is there."""
        ids, n_copies = block.encoded.ids, np.bincount(block.row_of)
        self.n_truncated += int(n_copies @ block.encoded.truncated)
        kept = {feature: np.zeros((len(ids), width), self.dtype) for feature, width in self.widths.items()}
        depths = np.zeros(len(ids), dtype=np.int64)
        for rows in pack([len(row) for row in ids], self.max_tokens):
            batch = TokenBatch.from_rows([ids[row] for row in rows], self._device)
            self._run_batch(batch, np.array(rows), kept, depths, None if start is None else start(len(rows)))
            bar.update(int(n_copies[rows].sum()))
        for feature, array in kept.items():
            if not np.isfinite(array).all():
                row, column = np.argwhere(~np.isfinite(array))[0]
                raise InputError(
                    f"text {first_row + int(np.argmax(block.row_of == row))}: {feature.site} {column} of layer {feature.layer} "
                    f"is not a finite {self.dtype}; use dtype='float32', and a wider dtype for the model"
                )
        if len(ids) == len(block.row_of):
            return kept, depths
        return {f: array[block.row_of] for f, array in kept.items()}, depths[block.row_of]

    def _run_batch(
        self,
        batch: TokenBatch,
        rows: Int[np.ndarray, "row"],
        kept: Mapping[Feature, Float[np.ndarray, "_ _"]],
        depths: Int[np.ndarray, "_"],
        leave: Leave | None,
    ) -> None:
        """Pool every wanted feature of one batch while the layers run.

        rows: where the batch's rows stand in `kept` and `depths`, which are filled.
        """
        # Who may leave is asked at every layer; otherwise nothing past the last wanted one is run.
        last = max(self._by_layer) if leave is None else self.model.depth - 1
        for layer in self.model.layers(batch):
            for feature, columns in self._by_layer.get(layer.index, ()):
                with np.errstate(over="ignore"):  # what float16 cannot hold is refused later, by name
                    kept[feature][rows] = _pool(layer, feature, columns, layer.batch).cpu().numpy()
            depths[rows] = layer.index + 1
            if layer.index == last:
                return
            leaves = None if leave is None else leave(layer.index, partial(_take, kept, rows))
            if leaves is not None and leaves.any():
                if leaves.all():
                    return
                rows = rows[~leaves]
                layer.keep(torch.from_numpy(np.flatnonzero(~leaves)).to(self._device))
            del layer  # one layer's activation alive at a time

    def _run_into(self, store: ActivationStore, texts: Iterable[str], progress: bool | None) -> ActivationStore:
        finished = store.texts_digests
        n_texts, cut_before = 0, self.n_truncated
        blocks = windows(texts, self.rows_per_block)
        with _progress_bar(texts, progress) as bar:
            for digest, block in zip(finished, blocks):  # noqa: B905 (a run that goes on has more texts than are finished)
                if _digest(block) != digest:
                    raise InputError(
                        f"{store.folder}: rows {n_texts} to {n_texts + len(block) - 1} were extracted from other texts; "
                        "choose another folder, or delete this one"
                    )
                bar.update(len(block))
                n_texts += len(block)
            for encoded in _encoded(self._encode, blocks, n_texts, self._several_blocks(texts)):
                store.append(self._block(encoded, n_texts, bar)[0], _digest(encoded.texts))
                n_texts += len(encoded.row_of)
        if n_texts < store.n_rows:
            raise InputError(f"{store.folder}: holds {store.n_rows} rows, but only {n_texts} texts were given")
        store.finish()
        self.tokenizer.warn_truncated(self.n_truncated - cut_before, n_texts)
        return store

    def _spec(self) -> FeatureSpec:
        source = self.model.source
        if source is None:
            raise InputError("a store names the model it was made from: load the model with load_model")
        return FeatureSpec(
            model=source.name,
            model_revision=source.revision,
            model_fingerprint=source.fingerprint(self.model.depth),
            model_dtype=str(self.model.dtype).removeprefix("torch."),
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            depth=max(self._by_layer) + 1,
            dtype=self.dtype,
            rows_per_shard=self.rows_per_block,
            max_tokens=self.max_tokens,
            widths=self.widths,
            columns=self._columns(),
        )

    def _columns(self) -> str:
        """Which neurons are wanted of each feature: a digest, or "all"."""
        wanted = [pair for pairs in self._by_layer.values() for pair in pairs]
        chosen = [(*feature, columns.tolist()) for feature, columns in wanted if columns is not None]
        return hashlib.sha256(json.dumps(chosen).encode()).hexdigest() if chosen else "all"

    @property
    def _device(self) -> torch.device:
        return self.model.device


class _Block(NamedTuple):
    """Consecutive texts: the ids of those that differ, and for every text which of them it is."""

    encoded: Encoded
    row_of: Int[np.ndarray, "row"]
    texts: Sequence[str]


def token_budget(model: Transformer) -> int:
    """Tokens per batch: as many as keep a layer's activation at ACTIVATION_BYTES.

    Larger batches leave the caches, smaller ones leave cores idle and pay each operation's fixed cost more often. The number
    depends on nothing but the model and its device: the same texts make the same batches, and the same bits, everywhere.
    """
    bytes_per_token = model.config.d_ffn * model.dtype.itemsize
    return max(1, ACTIVATION_BYTES[model.device.type == "cuda"] // bytes_per_token)


def _encoded(
    encode: Callable[[Sequence[str], int], "_Block"], blocks: Iterable[list[str]], first_row: int, ahead: bool
) -> Iterator["_Block"]:
    """Blocks of texts as token ids; `ahead`: each one is encoded while the one before it is in use.

    Not for a stream: its next texts may be long in coming, and what is here already must not wait for them.
    """
    with ThreadPoolExecutor(1) as worker:
        waiting: Future[_Block] | None = None
        for block in blocks:
            coming = worker.submit(encode, block, first_row) if ahead else None
            first_row += len(block)
            if coming is None:
                yield encode(block, first_row - len(block))
            elif waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


def _take(
    kept: Mapping[Feature, Float[np.ndarray, "_ _"]], rows: Int[np.ndarray, "row"], feature: Feature
) -> Float[np.ndarray, "row _"]:
    return kept[feature][rows]


def _pool(layer: Layer, feature: Feature, columns: Tensor | None, batch: TokenBatch) -> Float[Tensor, "row width"]:
    """g(A_l): one pooling of what is seen at a layer, or of some columns of it."""
    values = layer.hidden if feature.site == "hidden" else layer.activation
    assert values is not None  # only the final hidden state comes without an activation
    pooled = POOLINGS[cast(Pooling, feature.pooling)](values, batch)
    return pooled if columns is None else pooled[:, columns]  # cheaper than picking the columns of every token


def _progress_bar(texts: Iterable[str], progress: bool | None) -> "tqdm[None]":
    total = len(texts) if isinstance(texts, Sized) else None
    return tqdm(total=total, unit=" rows", disable=None if progress is None else not progress)


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
