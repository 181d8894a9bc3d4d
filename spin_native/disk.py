"""Writes that survive a crash: atomic files, one writer per folder, and a manifest of finished shards.

The order is always the same: write under another name, flush, rename, flush the folder, and only then list. Whatever happens (a
killed process, a full disk), a file under its own name is complete, and a shard that the manifest lists is complete too.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spin_native.errors import InputError

PARTIAL = ".partial"  # ending of a file that is still being written
LOCK = ".lock"
MANIFEST = "manifest.json"


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically: a crash leaves the old file or the whole new one."""
    write_file(path, lambda partial: partial.write_bytes(content))


def write_json(path: Path, content: object) -> None:
    """Replace a file atomically by readable JSON."""
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file atomically by what `write` puts at the path it is given. Raises what `write` raises, and OSError."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        write(partial)
        flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


@contextmanager
def own_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """A new hidden file beside `path`, named for this run alone, which becomes `path` at the end of the `with` block.

    After an error, or an interrupt, it is deleted. Raises FileExistsError at the end if `path` is there and `overwrite` is not
    given: of two runs only one can finish. Raises OSError.
    """
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}{PARTIAL}")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield partial
        flush(partial)
        if not overwrite:
            try:
                os.link(partial, path)  # fails if the name is taken
                partial.unlink()
            except FileExistsError:
                raise
            except OSError:  # a disk without hard links: take the name first
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
                os.replace(partial, path)
        else:
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's list of names."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot flush a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writer(folder: Path) -> Iterator[None]:
    """Lock a folder for writing; InputError if another process holds the lock. The lock of a killed process is free."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise InputError(f"{folder}: another process is writing here; wait for it, or choose another folder") from None


def is_unused(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but our lock and unfinished files."""
    return not folder.exists() or all(name == LOCK or name.endswith(PARTIAL) for name in os.listdir(folder))


class Manifest:
    """The list of a folder's finished shards.

    description: what the shards hold; stored beside the list. shards: one entry per finished shard, in order. is_complete:
    whether the last shard has been written.
    """

    def __init__(
        self, folder: Path, description: Mapping[str, Any], shards: Sequence[Mapping[str, Any]] = (), is_complete: bool = False
    ) -> None:
        self.folder, self.description = folder, dict(description)
        self.shards, self.is_complete = [dict(shard) for shard in shards], is_complete

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest on disk; OSError if there is none, ValueError or KeyError if it is not a manifest."""
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        shards, is_complete = content.pop("shards"), content.pop("complete")
        return cls(folder, content, shards, is_complete)

    def write(self) -> None:
        """Replace the manifest on disk."""
        write_json(self.folder / MANIFEST, {**self.description, "complete": self.is_complete, "shards": self.shards})

    def add(self, filename: str, write: Callable[[Path], object], **entry: Any) -> None:
        """Write one shard and list it with `entry`. After an error the shards before it are untouched and still listed."""
        write_file(self.folder / filename, write)
        added = Manifest(self.folder, self.description, [*self.shards, {"file": filename, **entry}])
        added.write()
        self.shards = added.shards

    def finish(self) -> None:
        """List the folder as complete."""
        if not self.is_complete:
            Manifest(self.folder, self.description, self.shards, is_complete=True).write()
            self.is_complete = True
