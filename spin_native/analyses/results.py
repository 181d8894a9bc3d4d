"""What every analysis returns: named arrays over named axes, as numpy arrays or as one tidy table, and how they were made."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Shaped

from spin_native.disk import write_json
from spin_native.errors import InputError
from spin_native.models import Transformer
from spin_native.tables import open_arrow_writer
from spin_native.text.tokenizer import Tokenizer
from spin_native.version import __version__

METADATA_KEY = b"spin_native"  # of a Parquet file's schema metadata, and so of `pyarrow.Table.schema.metadata`


@dataclass(frozen=True, eq=False)
class Result:
    """Arrays that share their axes.

    axes: name of an axis -> the coordinate of each of its places (row numbers, layer indices, shifts, ...), in the order of the
        arrays' dimensions.
    arrays: name -> array over all axes.
    metadata: the settings, the seed if there is one, the versions, and the model with its sha256. Only what JSON can hold.
    """

    axes: Mapping[str, Shaped[np.ndarray, "_"]]
    arrays: Mapping[str, Shaped[np.ndarray, "..."]]
    metadata: Mapping[str, Any]

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "..."]:
        """One array, over all axes; InputError, listing the choices, if there is none of that name."""
        if name not in self.arrays:
            raise InputError(f"no array {name!r}; there are {', '.join(map(repr, self.arrays))}")
        return self.arrays[name]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.axes.values()))

    def to_table(self) -> pa.Table:
        """A tidy table: one row per place, a column per axis with its coordinate, and a column per array.

        The metadata is in the schema's metadata under b"spin_native", as JSON.
        """
        grids = np.meshgrid(*self.axes.values(), indexing="ij", copy=False)
        columns = {name: grid.ravel() for name, grid in zip(self.axes, grids, strict=True)}
        columns |= {name: np.broadcast_to(array, self.shape).ravel() for name, array in self.arrays.items()}
        return with_metadata(pa.table(columns), self.metadata)

    def to_pandas(self) -> Any:
        """The tidy table as a pandas.DataFrame."""
        return self.to_table().to_pandas()

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """The tidy table as a CSV, JSONL or Parquet file, by the name's ending; see `write_table`."""
        write_table(self.to_table(), Path(path), overwrite=overwrite)


def with_metadata(table: pa.Table, metadata: Mapping[str, Any]) -> pa.Table:
    """The table with the metadata as JSON in its schema's metadata, under METADATA_KEY."""
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(dict(metadata), ensure_ascii=False)})


def write_table(table: pa.Table, path: Path, *, overwrite: bool = False) -> None:
    """Write a table atomically. A CSV or JSONL file cannot hold metadata: that goes to a file beside it, NAME.metadata.json.

    Raises InputError if the file exists (unless `overwrite`), its ending is unknown, or it cannot be written.
    """
    with open_arrow_writer(path, overwrite) as writer:
        writer.write(table)
    write_metadata(path, json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}")))


def write_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """The metadata of a file whose format has no place for it, as JSON beside it."""
    if path.suffix.lower() != ".parquet":
        write_json(path.with_name(path.name + ".metadata.json"), dict(metadata))


def provenance(model: Transformer, tokenizer: Tokenizer | None, **settings: Any) -> dict[str, Any]:
    """What a result's metadata says of the model, the versions and the machine, followed by the analysis's own settings."""
    source = model.source
    return {
        **versions(),
        "model": None if source is None else source.name,
        "model_revision": None if source is None else source.revision,
        "model_fingerprint": None if source is None else source.fingerprint(model.depth, head=model.head is not None),
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "tokenizer_fingerprint": None if tokenizer is None else tokenizer.fingerprint,
        **settings,
    }


def versions() -> dict[str, Any]:
    """The versions that can change a number."""
    return {
        "spin_native": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
