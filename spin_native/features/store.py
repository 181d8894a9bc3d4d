"""Pooled features of many texts, in memory or on disk.

On disk: a folder of safetensors shards and `manifest.json`, which says what they hold and lists the finished ones
(`spin_native.disk`). An interrupted extraction resumes after the last finished shard.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from spin_native.disk import MANIFEST, Manifest, is_unused, writer
from spin_native.errors import InputError

FORMAT = 1
FeatureDtype = Literal["float32", "float16"]


class FeatureKey(NamedTuple):
    """The address of one array of pooled features [row, width]: its site, pooling and layer."""

    site: str
    pooling: str
    layer: int


@dataclass(frozen=True)
class FeatureSpec:
    """What a store was made from; two stores are the same only if all of it is.

    model_fingerprint, tokenizer_fingerprint: sha256 of the weights that were used, and of all that can change token ids.
    depth: how many layers were run. dtype: of the stored features.
    rows_per_shard, max_tokens: batch sizes, which can change the last bits of a feature on some paths.
    widths: feature -> number of columns. columns: "all", or the sha256 of the list of neurons.
    """

    model: str
    model_revision: str | None
    model_fingerprint: str
    model_dtype: str
    tokenizer_fingerprint: str
    depth: int
    dtype: FeatureDtype
    rows_per_shard: int
    max_tokens: int
    widths: dict[FeatureKey, int]
    columns: str = "all"

    def to_json(self) -> dict[str, Any]:
        features = [{**feature._asdict(), "width": width} for feature, width in self.widths.items()]
        return {**{field.name: getattr(self, field.name) for field in fields(self)}, "widths": features}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "FeatureSpec":
        content = {"columns": "all", **content}  # early stores do not say it
        values = {field.name: content[field.name] for field in fields(cls)}
        widths = {FeatureKey(f["site"], f["pooling"], f["layer"]): f["width"] for f in values["widths"]}
        return cls(**{**values, "widths": widths})


class Features:
    """Pooled features of texts in input order, held in memory.

    widths: feature -> number of columns, for every array.
    """

    def __init__(self, widths: Mapping[FeatureKey, int]) -> None:
        self.widths = dict(widths)
        self.n_rows = 0
        self._blocks: dict[FeatureKey, list[Float[np.ndarray, "row _"]]] = {feature: [] for feature in widths}

    def array(self, *, site: str, pooling: str, layer: int) -> Float32[np.ndarray, "row width"]:
        """One site, pooling and layer, rows in input order; InputError, listing the choices, if it was not extracted."""
        feature = FeatureKey(site, pooling, layer)
        blocks = self.blocks(site=site, pooling=pooling, layer=layer) or [np.empty((0, self.widths[feature]), np.float32)]
        joined = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return joined.astype(np.float32, copy=False)

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

    def append(self, block: Mapping[FeatureKey, Float[np.ndarray, "row _"]]) -> None:
        """Add the next rows."""
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
        """Open a store; InputError if the folder holds none or its manifest cannot be read."""
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            self._manifest = Manifest.read(self.folder)
            stored_format = self._manifest.description["format"]
            if stored_format != FORMAT:
                raise InputError(f"{path}: format {stored_format}; this version of spin_native reads format {FORMAT}")
            self.spec = FeatureSpec.from_json(self._manifest.description)
            super().__init__(self.spec.widths)
            self.n_rows = sum(shard["rows"] for shard in self._manifest.shards)
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{self.folder}: no activation store ({error.strerror}: {MANIFEST})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a manifest of an activation store ({error!r}); extract again") from error

    @classmethod
    def create(
        cls, folder: str | Path, spec: FeatureSpec, tokenizer_fingerprint_like: Callable[[str], str] | None = None
    ) -> "ActivationStore":
        """A new store, or the existing one if its specification is the same; InputError otherwise.

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
            return store
        if not is_unused(folder):
            raise InputError(f"{folder}: not empty and no activation store; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        Manifest(folder, {"format": FORMAT, **spec.to_json()}).write()
        return cls(folder)

    @staticmethod
    def writer(folder: str | Path) -> AbstractContextManager[None]:
        """Lock the folder for writing; InputError if another process holds the lock."""
        return writer(Path(folder))

    @property
    def is_complete(self) -> bool:
        """Whether the extraction has finished."""
        return self._manifest.is_complete

    @property
    def texts_digests(self) -> list[str]:
        """Which texts each finished shard was made from."""
        return [shard["texts"] for shard in self._manifest.shards]

    def append(self, block: Mapping[FeatureKey, Float[np.ndarray, "row _"]], texts_digest: str = "") -> None:
        """Write the next rows as one shard; InputError if the disk does not take it, with all finished shards kept."""
        rows = len(next(iter(block.values())))
        tensors = {_key(feature): np.ascontiguousarray(array) for feature, array in block.items()}
        name = f"rows-{self.n_rows:010d}.safetensors"
        try:
            self._manifest.add(name, lambda path: save_file(tensors, path), rows=rows, texts=texts_digest)
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
        for shard in self._manifest.shards:
            path = self.folder / shard["file"]
            try:
                # The torch reader maps the file; the numpy one would copy it.
                array = safe_open(path, framework="pt").get_tensor(_key(feature)).numpy()
            except (OSError, SafetensorError) as error:
                raise InputError(
                    f"{path}: this shard is gone or damaged ({error}); delete the folder and extract again"
                ) from error
            if array.shape != (shard["rows"], self.widths[feature]):
                raise InputError(f"{path}: {_key(feature)} is {list(array.shape)}, not what {MANIFEST} says; extract again")
            yield array


def _key(feature: FeatureKey) -> str:
    return f"{feature.site}.{feature.pooling}.{feature.layer}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
