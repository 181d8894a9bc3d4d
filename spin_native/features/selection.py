"""A smaller question to features that are there already: fewer arrays, fewer neurons, some of the texts in another order."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from spin_native.errors import InputError, TextError
from spin_native.features.blocks import text_ids, texts_digests
from spin_native.features.spec import FeatureKey, FeatureSpec
from spin_native.features.store import ActivationStore, Features
from spin_native.text.pairs import GivenText, OneKind

Wanted = Mapping[FeatureKey, Int[np.ndarray, "_"] | None]


class Selection(Features):
    """Some rows and columns of other features, in an order of their own; nothing is copied before it is read.

    wanted: of each feature all columns (None), or these neurons. rows: of `source` (None: all, in their order).
    """

    def __init__(self, source: Features, wanted: Wanted, rows: Int[np.ndarray, "row"] | None) -> None:
        super().__init__({f: source.widths[f] if neurons is None else len(neurons) for f, neurons in wanted.items()})
        self._source, self._wanted, self._rows = source, dict(wanted), rows
        self.n_rows = source.n_rows if rows is None else len(rows)

    @property
    def spec(self) -> FeatureSpec | None:
        """What `source` was made from."""
        return self._source.spec

    @property
    def text_ids(self) -> UInt8[np.ndarray, "row 16"] | None:
        ids = self._source.text_ids
        return ids if ids is None or self._rows is None else ids[self._rows]

    def _read(self, feature: FeatureKey) -> Iterator[Float[np.ndarray, "_ width"]]:
        blocks = self._source.blocks(**feature._asdict())
        neurons = self._wanted[feature]
        if neurons is not None:
            blocks = [block.take(neurons, axis=1) for block in blocks]
        return iter(blocks if self._rows is None else [_rows_of(blocks, self._rows, self.widths[feature])])


def _rows_of(
    blocks: Sequence[Float[np.ndarray, "_ width"]], rows: Int[np.ndarray, "row"], width: int
) -> Float[np.ndarray, "row width"]:
    """Some rows of an array that is cut into blocks."""
    chosen = np.empty((len(rows), width), blocks[0].dtype if blocks else np.float32)
    start = 0
    for block in blocks:
        here = np.flatnonzero((rows >= start) & (rows < start + len(block)))
        chosen[here] = block[rows[here] - start]
        start += len(block)
    return chosen


def rows_of_texts(features: Features, texts: Sequence[GivenText]) -> Int[np.ndarray, "row"] | None:
    """The row of each text; None if the features do not say which texts they are of. TextError for a text without a row."""
    ids = features.text_ids
    if ids is None:
        return None
    row_of: dict[bytes, int] = {}
    for row, text_id in enumerate(ids):
        row_of.setdefault(text_id.tobytes(), row)
    rows = [row_of.get(text_id.tobytes(), -1) for text_id in text_ids(texts)]
    if -1 in rows:
        raise TextError(rows.index(-1), "is not among the texts of these features")
    return np.array(rows, np.int64)


def difference(
    spec: FeatureSpec, stored: FeatureSpec, wanted: Wanted, fingerprint: Callable[[int], str], n_layers: int
) -> str | None:
    """Why features made as `stored` do not hold those that `spec` would make; None where they do.

    Not compared: how many rows a shard has. fingerprint: the sha256 of the model's weights, as a model of some depth has them.
    n_layers: of the whole model.
    """
    for name in ("model_dtype", "tokenizer_fingerprint", "dtype", "max_tokens", "reads", "windows"):
        if getattr(spec, name) != getattr(stored, name):
            return name
    if spec.columns != stored.columns and stored.columns != "all":
        return "columns"
    for feature, width in spec.widths.items():
        if feature not in stored.widths or (wanted[feature] is None and stored.widths[feature] != width):
            return f"widths ({feature.name})"
    # A fingerprint covers the layers of the model that was loaded then: as many as now, as were extracted, or all.
    loaded = (min(stored.depth, n_layers), n_layers)
    if spec.model_fingerprint != stored.model_fingerprint and all(fingerprint(k) != stored.model_fingerprint for k in loaded):
        return "model_fingerprint"
    return None


def selection(
    store: ActivationStore,
    spec: FeatureSpec,
    wanted: Wanted,
    texts: Sequence[GivenText],
    fingerprint: Callable[[int], str],
    n_layers: int,
) -> Selection | None:
    """The wanted features of these texts out of a complete store, verified, that holds them and more; None for any other store.

    spec: of the wanted features. fingerprint, n_layers: as of `difference`. Raises InputError for a text that is not a str, for
    a text that a store of more features does not hold, and for a damaged store.
    """
    texts = OneKind().checked(texts)
    if difference(spec, store.spec, wanted, fingerprint, n_layers) is not None:
        return None
    is_same = spec == store.spec
    rows = None
    if len(texts) == store.n_rows and texts_digests(texts, [shard.rows for shard in store.shards]) == store.texts_digests:
        if is_same:
            return None  # no smaller question: the store itself
    else:
        try:
            rows = rows_of_texts(store, texts)
        except TextError as error:
            if is_same:
                return None  # more texts than before, perhaps: to be extracted
            raise InputError(
                f"{store.folder}: text {error.row} is not among the {store.n_rows} texts of this store; choose another folder, "
                "or delete this one"
            ) from None
        if rows is None:
            return None
    store.verify()
    return Selection(store, {f: None if spec.columns == store.spec.columns else chosen for f, chosen in wanted.items()}, rows)
