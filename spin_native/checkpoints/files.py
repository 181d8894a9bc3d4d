"""Weight files as tensors that are read one by one, when asked for."""

import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor

from spin_native.checkpoints.hub import Location, refuse_lfs_pointer
from spin_native.disk import check_header, is_plain_name
from spin_native.errors import InputError, as_input_error

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LEGACY, LEGACY_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ZIP_START = b"PK\x03\x04"

Reader = Callable[[], Shaped[Tensor, "..."]]


class ShardIndex(msgspec.Struct):
    """What we read of an index: which file holds each tensor."""

    weight_map: dict[str, str]


def open_tensors(location: Location, *, allow_pickle: bool) -> dict[str, Reader]:
    """Every tensor name of a checkpoint, with a function that reads that tensor.

    Opens model.safetensors; or the shards that model.safetensors.index.json names, each when one of its tensors is read;
    or, only with `allow_pickle`, pytorch_model.bin (whole or sharded), unpickled with torch's weights_only reader.
    """
    if path := location.find(SINGLE):
        return _readers(_SafetensorsFile(path))
    if location.find(INDEX):
        return _sharded(location, INDEX, _SafetensorsFile)
    if not allow_pickle:
        raise InputError(
            f"{location.lacks(SINGLE)}; if it has a legacy {LEGACY}, which is a pickle, and you trust it, pass "
            "allow_pickle=True (--allow-pickle)"
        )
    if path := location.find(LEGACY):
        return _readers(_LegacyFile(path))
    if location.find(LEGACY_INDEX):
        return _sharded(location, LEGACY_INDEX, _LegacyFile)
    raise location.lacks(f"{SINGLE} and no {LEGACY}")


class _SafetensorsFile:
    """One safetensors file; the library checks the header against the file's size."""

    def __init__(self, path: Path) -> None:
        refuse_lfs_pointer(path)
        problem = f"damaged or cut short at {path.stat().st_size} bytes, not a whole safetensors file"
        with as_input_error(path, problem, "fetch it again"):
            with path.open("rb") as start:
                check_header(start.read(8))
            with safe_open(path, framework="pt") as file:
                self.names = frozenset(file.keys())
        self.path = path

    def read(self, name: str) -> Tensor:
        # Opened anew for every tensor: as long as a file stays open, pages of tensors already copied stay in memory.
        with (
            as_input_error(self.path, f"{name} cannot be read", "fetch the file again"),
            safe_open(self.path, framework="pt") as file,
        ):
            return file.get_tensor(name)


class _LegacyFile:
    """One pytorch_model.bin, mapped into memory where its format allows."""

    def __init__(self, path: Path) -> None:
        refuse_lfs_pointer(path)
        with as_input_error(
            path, "damaged, or more than tensors in it", "fetch it again, or convert it to safetensors where you trust it"
        ):
            self._tensors = checked_state_dict(_unpickled(path), path)
        self.names, self.path = frozenset(self._tensors), path

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def _unpickled(path: Path) -> Any:
    """The content of a file that torch.save wrote, with the unpickler that calls no function of the file's choice."""
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_START)) == ZIP_START
    if is_zip:
        _refuse_compressed(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unusual pickle protocols: what cannot be read is refused
        # Before torch 1.6 the file was no zip archive, and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _refuse_compressed(path: Path) -> None:
    """torch.save compresses nothing; a compressed file could unpack to a thousand times its size."""
    n_bytes = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > n_bytes:
                raise InputError(f"{path}: {entry.filename} is compressed; expected a file that torch.save wrote")


def checked_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """`content` itself; InputError unless it is a dict from names to plain tensors, and says what it is instead."""
    expected = "expected what torch.save(model.state_dict()) writes"
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no state dict of tensors but a {type(content).__name__}; {expected}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            nested = [key for key, value in content.items() if isinstance(value, dict)]
            hint = f": save its {nested[0]!r} alone" if nested else ""
            raise InputError(
                f"{path}: holds no state dict of tensors ({name!r} is a {type(tensor).__name__}); {expected}{hint}"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise InputError(f"{path}: {name} is a sparse, quantised or empty tensor; expected plain numbers")
    return content


_WeightFile = _SafetensorsFile | _LegacyFile


def _readers(file: _WeightFile) -> dict[str, Reader]:
    return {name: partial(file.read, name) for name in file.names}


def _sharded(location: Location, index: str, open_file: Callable[[Path], _WeightFile]) -> dict[str, Reader]:
    shard_of = location.read_record(index, ShardIndex, "expected a weight_map from tensor names to file names").weight_map
    for shard in set(shard_of.values()):
        if not is_plain_name(shard):  # a hostile index must not lead out of the folder
            raise InputError(f"{location.where(index)}: {shard!r} is no plain file name; expected a file in the same folder")
    opened: dict[str, _WeightFile] = {}

    def read(name: str) -> Tensor:
        shard = shard_of[name]
        if shard not in opened:
            opened[shard] = open_file(location.need(shard))
        if name not in opened[shard].names:
            raise InputError(f"{opened[shard].path}: holds no {name}, which {index} places there; fetch both again")
        return opened[shard].read(name)

    return {name: partial(read, name) for name in shard_of}
