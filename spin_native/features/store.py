"""Pooled features of many texts, in memory or on disk.

On disk: a folder of safetensors shards and `manifest.json`, which says what they hold and lists the finished ones
(`spin_native.disk`). An interrupted extraction resumes after the last finished shard.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from spin_native.disk import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Manifest,
    Shard,
    check_header,
    decode_record,
    is_unused,
    record_bytes,
    sha256_of,
    writer,
)
from spin_native.errors import InputError, as_input_error
from spin_native.features import tables
from spin_native.features.spec import FORMAT, FeatureKey, FeatureSpec, StoreFormat, StoreRecord

if TYPE_CHECKING:
    import pandas as pd

DAMAGED = "this shard is gone or damaged", "delete the folder and extract again"  # problem and remedy
TEXT_IDS = "text_ids"  # the tensor of a shard that recognises its texts
NO_MANIFEST = "not a manifest of an activation store; extract again"


class Features:
    """Pooled features of texts in input order, held in memory.

    widths: feature -> number of columns, for every array.
    """

    def __init__(self, widths: Mapping[FeatureKey, int]) -> None:
        self.widths = dict(widths)
        self.n_rows = 0
        self._blocks: dict[FeatureKey, list[Float[np.ndarray, "row _"]]] = {feature: [] for feature in widths}
        self._text_ids: list[UInt8[np.ndarray, "_ 16"]] = []
        self._made_from: tuple[FeatureSpec, Callable[[], str]] | None = None

    def array(self, *, site: str, pooling: str, layer: int) -> Float32[np.ndarray, "row width"]:
        """One site, pooling and layer, rows in input order; InputError, listing the choices, if it was not extracted."""
        feature = FeatureKey(site, pooling, layer)
        blocks = self.blocks(site=site, pooling=pooling, layer=layer) or [np.empty((0, self.widths[feature]), np.float32)]
        joined = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return joined.astype(np.float32, copy=False)

    def __getitem__(self, key: tuple[str, str, int]) -> Float32[np.ndarray, "row width"]:
        """features["activation", "mean", 3]: the same as `array`."""
        if not isinstance(key, tuple) or len(key) != 3:
            raise InputError(f"features[{key!r}]: {self._address()}")
        return self.array(**FeatureKey(*key)._asdict())

    def blocks(self, *, site: str, pooling: str, layer: int) -> list[Float[np.ndarray, "_ width"]]:
        """The same array as blocks of rows: a store's shards, mapped from the disk. A solver's Design reads them unjoined."""
        feature = FeatureKey(site, pooling, layer)
        if feature not in self.widths:
            there_is = "; ".join(
                f"{name}s {', '.join(str(v) for v in dict.fromkeys(getattr(f, name) for f in self.widths))}"
                for name in FeatureKey._fields
            )
            raise InputError(f"no features for site={site!r}, pooling={pooling!r}, layer={layer!r}; there are {there_is}")
        return list(self._read(feature))

    def to_pandas(self) -> "pd.DataFrame":
        """One row per text in input order, and a float32 column per neuron: "activation.mean.3.17" is neuron 17 of layer 3.

        Raises InputError where pandas is not installed.
        """
        return tables.to_frame(self._beside(slice(None)), {f.name: self.array(**f._asdict()) for f in self.widths})

    def to_parquet(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a Parquet file, a block of rows at a time: a column "row" (the text's number from 0), and per feature a column
        such as "activation.mean.3" whose values are vectors (lists of a fixed length, float32).

        Raises InputError for a name that does not end in .parquet, a file that exists (unless `overwrite`), and one that
        cannot be written.
        """
        blocks = self._row_blocks()
        tables.write_parquet(path, ((self._written_beside(rows), arrays) for rows, arrays in blocks), overwrite=overwrite)

    def _row_blocks(self) -> Iterator[tuple[slice, dict[str, Float[np.ndarray, "row _"]]]]:
        """All features of a block of rows, block by block, in input order."""
        arrays = {feature.name: self.array(**feature._asdict()) for feature in self.widths}
        for rows in tables.slices(self.n_rows, 4 * sum(self.widths.values())):
            yield rows, {name: array[rows] for name, array in arrays.items()}

    def _beside(self, rows: slice) -> dict[str, Any]:
        """What a frame says of some rows beside their features."""
        return {}

    def _written_beside(self, rows: slice) -> dict[str, Any]:
        """What a file says of some rows beside their features."""
        return {"row": np.arange(rows.start, rows.stop)}

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """What np.asarray gives: the array, if there is one only; InputError if there are several."""
        if len(self.widths) != 1:
            raise self._several()
        (feature,) = self.widths
        return np.array(self.array(**feature._asdict()), dtype, copy=copy)

    def __iter__(self) -> Iterator[Any]:
        raise self._several()

    def __len__(self) -> int:
        """The number of rows."""
        return self.n_rows

    def _several(self) -> InputError:
        """The error of a caller who takes all arrays for one."""
        return InputError(self._address())

    def _address(self) -> str:
        """How to take one array."""
        first = next(iter(self.widths), FeatureKey("activation", "mean", 0))
        address = ", ".join(f"{name}={value!r}" for name, value in first._asdict().items())
        return f"Features hold one array per layer and pooling ({len(self.widths)} here): take one with .array({address})"

    @property
    def spec(self) -> FeatureSpec | None:
        """What these were made from; None where that is not known, and for an edited model."""
        if self._made_from is None:
            return None
        spec, fingerprint = self._made_from
        return replace(spec, model_fingerprint=fingerprint())

    def set_spec(self, spec: FeatureSpec, fingerprint: Callable[[], str]) -> None:
        """Set `spec`. fingerprint: gives that of the model's weights, when it is asked for."""
        self._made_from = spec, fingerprint

    @property
    def text_ids(self) -> UInt8[np.ndarray, "row 16"] | None:
        """What recognises each row's text (`blocks.text_ids`); None where that was not kept."""
        ids = np.concatenate([np.empty((0, 16), np.uint8), *self._text_ids])
        return ids if len(ids) == self.n_rows else None

    def append(
        self, block: Mapping[FeatureKey, Float[np.ndarray, "row _"]], text_ids: UInt8[np.ndarray, "row 16"] | None = None
    ) -> None:
        """Add the next rows. text_ids: of their texts."""
        if text_ids is not None:
            self._text_ids.append(text_ids)
        for feature, blocks in self._blocks.items():
            blocks.append(block[feature])
        self.n_rows += len(next(iter(block.values())))

    def drop(self, feature: FeatureKey) -> None:
        """Free the memory of one feature, which cannot be read any more. Nothing happens to a file."""
        self.widths.pop(feature, None)
        self._blocks.pop(feature, None)

    def _read(self, feature: FeatureKey) -> Iterator[Float[np.ndarray, "row width"]]:
        blocks = self._blocks[feature]
        if len(blocks) > 1:  # join once, and free the pieces
            blocks[:] = [np.concatenate(blocks)]
        return iter(blocks)


class ActivationStore(Features):
    """Pooled features on disk, mapped into memory when read. `extract(..., store=folder)` writes one."""

    def __init__(self, folder: str | Path) -> None:
        """Open a store; InputError if the folder holds none or its manifest cannot be read. See `verify` for its shards."""
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            stored = decode_record(record_bytes(path, MAX_MANIFEST_BYTES), StoreFormat, path, NO_MANIFEST)
            if stored.format != FORMAT:
                raise InputError(f"{path}: format {stored.format}; this version of spin_native reads format {FORMAT}")
            self._manifest = Manifest.read(self.folder, StoreRecord, NO_MANIFEST)
        except FileNotFoundError as error:
            raise InputError(f"{self.folder}: no activation store ({error.strerror}: {MANIFEST})") from error
        try:
            spec = FeatureSpec.from_record(self._manifest.description)
            super().__init__(spec.widths)
            self._spec = spec
            for shard in self._manifest.shards:
                if shard.file != (expected := _shard_name(self.n_rows)):  # a manifest must not lead out of the folder
                    raise ValueError(f"the shard of row {self.n_rows} is {shard.file!r}; expected {expected!r}")
                self.n_rows += shard.rows
        except ValueError as error:
            raise InputError(f"{path}: {NO_MANIFEST} ({error})") from error

    @classmethod
    def create(
        cls, folder: str | Path, spec: FeatureSpec, tokenizer_fingerprint_like: Callable[[str], str] | None = None
    ) -> "ActivationStore":
        """A new store, or the existing one, verified, if its specification is the same; InputError otherwise.

        tokenizer_fingerprint_like: see `Tokenizer.fingerprint_like`; for stores of earlier versions.
        """
        folder = Path(folder)
        if (folder / MANIFEST).exists():
            store = cls(folder)
            if tokenizer_fingerprint_like is not None:
                spec = replace(spec, tokenizer_fingerprint=tokenizer_fingerprint_like(store.spec.tokenizer_fingerprint))
            differing = [field.name for field in fields(spec) if getattr(spec, field.name) != getattr(store.spec, field.name)]
            if differing:
                name = differing[0]
                raise InputError(
                    f"{folder}: holds features of another extraction ({name} is {_short(getattr(store.spec, name))}, now "
                    f"{_short(getattr(spec, name))}); choose another folder, or delete this one"
                )
            store.verify()
            return store
        if not is_unused(folder):
            raise InputError(f"{folder}: not empty and no activation store; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        Manifest(folder, spec.to_record()).write()
        return cls(folder)

    @property
    def spec(self) -> FeatureSpec:
        """What the store was made from."""
        return self._spec

    def verify(self) -> None:
        """Read every shard; InputError unless it is, to the bit, the file that was listed.

        Version 0.1 listed no checksums: of such shards only the sizes are compared.
        """
        for shard in self._manifest.shards:
            path = self._path(shard)
            with as_input_error(path, *DAMAGED):
                digest = None if shard.sha256 is None else sha256_of(path)
            if digest != shard.sha256:
                raise InputError(
                    f"{path}: this shard was changed or damaged (its sha256 is not the one in {MANIFEST}); delete the folder "
                    "and extract again"
                )
            for feature in self.widths:
                self._array(shard, feature)

    @staticmethod
    def writer(folder: str | Path) -> AbstractContextManager[None]:
        """Lock the folder for writing; InputError if another process holds the lock."""
        return writer(Path(folder))

    @property
    def is_complete(self) -> bool:
        """Whether the extraction has finished."""
        return self._manifest.is_complete

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The finished shards."""
        return self._manifest.shards

    @property
    def texts_digests(self) -> list[str]:
        """Which texts each finished shard was made from."""
        return [shard.texts for shard in self._manifest.shards]

    @property
    def text_ids(self) -> UInt8[np.ndarray, "row 16"] | None:
        """As of Features. Early stores did not keep it."""
        ids = [self._ids_of(shard) for shard in self._manifest.shards]
        if any(of_shard is None for of_shard in ids):
            return None
        return np.concatenate([np.empty((0, 16), np.uint8), *(of_shard for of_shard in ids if of_shard is not None)])

    def append(
        self,
        block: Mapping[FeatureKey, Float[np.ndarray, "row _"]],
        text_ids: UInt8[np.ndarray, "row 16"] | None = None,
        texts_digest: str = "",
    ) -> None:
        """Write the next rows as one shard; InputError if the disk does not take it, with all finished shards kept."""
        rows = len(next(iter(block.values())))
        tensors = {feature.name: np.ascontiguousarray(array) for feature, array in block.items()}
        if text_ids is not None:
            tensors[TEXT_IDS] = text_ids
        try:
            self._manifest.add(_shard_name(self.n_rows), lambda path: save_file(tensors, path), rows, texts_digest)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{self.folder}: rows {self.n_rows} to {self.n_rows + rows - 1} could not be written ({error}); the "
                f"{self.n_rows} rows before them are safe: make room and run the same command again"
            ) from error
        self.n_rows += rows

    def finish(self) -> None:
        """Mark the store complete: these are all the texts."""
        self._manifest.finish()

    def _read(self, feature: FeatureKey) -> Iterator[Float[np.ndarray, "row width"]]:
        return (self._array(shard, feature) for shard in self._manifest.shards)

    def _row_blocks(self) -> Iterator[tuple[slice, dict[str, Float[np.ndarray, "row _"]]]]:
        first_row = 0
        if not self._manifest.shards:
            yield from super()._row_blocks()
        for shard in self._manifest.shards:  # one shard mapped at a time
            arrays = {feature.name: self._array(shard, feature) for feature in self.widths}
            yield slice(first_row, first_row + shard.rows), arrays
            first_row += shard.rows

    def _array(self, shard: Shard, feature: FeatureKey) -> Float[np.ndarray, "row width"]:
        """One feature's rows in one shard, mapped from the disk."""
        path, key = self._path(shard), feature.name
        with as_input_error(path, *DAMAGED):
            with path.open("rb") as file:
                check_header(file.read(8))
            # The torch reader maps the file; the numpy one would copy it.
            array = safe_open(path, framework="pt").get_tensor(key).numpy()
        if array.shape != (shard.rows, self.widths[feature]) or array.dtype != self.spec.dtype:
            raise InputError(
                f"{path}: {key} is {array.dtype} {list(array.shape)}; expected {self.spec.dtype} "
                f"{[shard.rows, self.widths[feature]]}, as {MANIFEST} says: extract again"
            )
        return array

    def _ids_of(self, shard: Shard) -> UInt8[np.ndarray, "row 16"] | None:
        """What recognises the texts of one shard's rows; None if the shard does not hold it."""
        path = self._path(shard)
        with as_input_error(path, *DAMAGED):
            with path.open("rb") as file:
                check_header(file.read(8))
            with safe_open(path, framework="numpy") as tensors:
                ids = tensors.get_tensor(TEXT_IDS) if TEXT_IDS in tensors.keys() else None  # noqa: SIM118 (no mapping)
        if ids is not None and (ids.shape != (shard.rows, 16) or ids.dtype != np.uint8):
            raise InputError(
                f"{path}: {TEXT_IDS} is {ids.dtype} {list(ids.shape)}; expected uint8 {[shard.rows, 16]}: extract again"
            )
        return ids

    def _path(self, shard: Shard) -> Path:
        """Where a shard is; InputError for a link that leads out of the folder, and for what is no file."""
        path = self.folder / shard.file
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise InputError(f"{path}: no ordinary file; expected a shard: extract again")
        if path.is_symlink() and path.resolve().parent != self.folder.resolve():
            raise InputError(f"{path}: a link out of the folder; expected the shard itself: extract again")
        return path


def _shard_name(first_row: int) -> str:
    return f"rows-{first_row:010d}.safetensors"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
