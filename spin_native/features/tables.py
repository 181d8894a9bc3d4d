"""Features as a pandas frame (one column per neuron) or a Parquet file (one column of vectors per feature)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spin_native.errors import InputError
from spin_native.tables import FORMATS, open_arrow_writer
from spin_native.tables.files import ending_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

WRITTEN_BYTES = 64 * 2**20  # features that are turned into a Parquet row group at a time


def to_frame(beside: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The columns `beside` (masked ones as pandas' Int64), then one float32 column NAME.COLUMN per column of every array.

    arrays: name -> [row, width].

    Raises InputError where pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise InputError("to_pandas needs pandas, which is not installed: pip install pandas") from None
    names = [f"{name}.{column}" for name, array in arrays.items() for column in range(array.shape[1])]
    values = np.concatenate(list(arrays.values()), axis=1)
    frame = pd.DataFrame(values, columns=names, copy=False)
    if not beside:
        return frame
    first = {
        name: pd.arrays.IntegerArray(column.data, np.ma.getmaskarray(column))
        if isinstance(column, np.ma.MaskedArray)
        else column
        for name, column in beside.items()
    }
    return pd.concat([pd.DataFrame(first), frame], axis=1)


def check_parquet(path: str | Path) -> Path:
    """The path; InputError unless its name ends as that of a Parquet file."""
    path = Path(path)
    if FORMATS[ending_of(path)] != "Parquet":
        raise InputError(f"{path}: is not named as a Parquet file; expected a name that ends in .parquet")
    return path


def write_parquet(
    path: str | Path, blocks: Iterable[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]], *, overwrite: bool = False
) -> None:
    """Blocks of rows as one file: plain columns, then of every array [row, width] a column of lists of `width` float32.

    Raises InputError for a path that does not end in .parquet, and as `open_arrow_writer` does.
    """
    with open_arrow_writer(check_parquet(path), overwrite) as writer:
        for beside, arrays in blocks:
            writer.write(_table(beside, arrays))


def _table(beside: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {name: pa.array(column) for name, column in beside.items()}  # masked values become nulls
    for name, array in arrays.items():
        flat = pa.array(np.ascontiguousarray(array, np.float32).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    return pa.table(columns)


def slices(n_rows: int, row_bytes: int) -> Iterator[slice]:
    """Consecutive rows, as many as WRITTEN_BYTES hold; one empty slice for no rows."""
    size = max(WRITTEN_BYTES // max(row_bytes, 1), 1)
    for start in range(0, max(n_rows, 1), size):
        yield slice(start, min(start + size, n_rows))
