"""Weight files as tensors that are read one by one, when asked for."""

import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spin_native.checkpoints.hub import Location, refuse_lfs_pointer
from spin_native.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LEGACY, LEGACY_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

Reader = Callable[[], Shaped[Tensor, "..."]]


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
    """One open safetensors file; the library checks the header against the file's size."""

    def __init__(self, path: Path) -> None:
        refuse_lfs_pointer(path)
        try:
            with safe_open(path, framework="pt") as file:
                self.names = frozenset(file.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path}: damaged or cut short at {path.stat().st_size} bytes, not a whole safetensors file ({error}); "
                "fetch it again"
            ) from error
        self.path = path

    def read(self, name: str) -> Tensor:
        # Opened anew for every tensor: as long as a file stays open, pages of tensors already copied stay in memory.
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)


class _LegacyFile:
    """One pytorch_model.bin, mapped into memory where its format allows."""

    def __init__(self, path: Path) -> None:
        refuse_lfs_pointer(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of unusual pickle protocols: what cannot be read is refused below
                try:
                    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                except RuntimeError:  # written before torch 1.6: no zip file, cannot be mapped
                    tensors = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
            raise InputError(
                f"{path}: damaged, or more than tensors in it ({str(error).splitlines()[0]}); fetch it again, or convert it "
                "to safetensors where you trust it"
            ) from error
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise InputError(f"{path}: holds no state dict of tensors; expected what torch.save(model.state_dict()) writes")
        self.names = frozenset(tensors)
        self.path = path
        self._tensors = tensors

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


_WeightFile = _SafetensorsFile | _LegacyFile


def _readers(file: _WeightFile) -> dict[str, Reader]:
    return {name: partial(file.read, name) for name in file.names}


def _sharded(location: Location, index: str, open_file: Callable[[Path], _WeightFile]) -> dict[str, Reader]:
    shard_of = location.read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise InputError(f"{location.name}/{index}: expected a weight_map from tensor names to file names")
    opened: dict[str, _WeightFile] = {}

    def read(name: str) -> Tensor:
        shard = shard_of[name]
        if shard not in opened:
            if Path(shard).name != shard:  # a hostile index must not lead out of the folder
                raise InputError(f"{location.name}/{index}: {shard!r} is no plain file name")
            opened[shard] = open_file(location.need(shard))
        if name not in opened[shard].names:
            raise InputError(f"{opened[shard].path}: holds no {name}, which {index} places there; fetch both again")
        return opened[shard].read(name)

    return {name: partial(read, name) for name in shard_of}
