"""Files that survive a crash, and files that are not trusted when they are read back.

Writing: atomic files, one writer per folder, and a manifest of finished shards. The order is always the same: write under
another name, flush, rename, flush the folder, and only then list. Whatever happens (a killed process, a full disk), a file
under its own name is complete, and a shard that the manifest lists is complete too.

Reading: a JSON file becomes a typed record in one step (`read_record`), and a file name that was read from a file is checked
before it is used (`is_plain_name`).
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import msgspec
from filelock import FileLock, Timeout
from msgspec import Meta

from spin_native.errors import InputError

PARTIAL = ".partial"  # ending of a file that is still being written
LOCK = ".lock"
MANIFEST = "manifest.json"
# A file may unpack to twenty times its size in memory. The largest index of our families has 1 MB; a manifest has 230 bytes a
# shard; the header of a safetensors file has 100 bytes a tensor.
MAX_RECORD_BYTES, MAX_MANIFEST_BYTES, MAX_HEADER_BYTES = 4 * 2**20, 8 * 2**20, 8 * 2**20

Record = TypeVar("Record")
Count = Annotated[int, Meta(ge=0, le=2**40)]


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically: a crash leaves the old file or the whole new one."""
    write_file(path, lambda partial: partial.write_bytes(content))


def write_json(path: Path, content: object) -> None:
    """Replace a file atomically by readable JSON."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: object) -> bytes:
    """Readable JSON in UTF-8."""
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file atomically by what `write` puts at the path it is given. Raises what `write` raises, and OSError."""
    with own_file(path, overwrite=True) as partial:
        write(partial)


@contextmanager
def own_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """A new hidden file beside `path`, named for this run alone, which becomes `path` at the end of the `with` block.

    After an error, or an interrupt, it is deleted. With `overwrite` a link's target is replaced, and keeps its permissions.
    Raises InputError at the end if `path` is there and `overwrite` is not given, since of two runs only one can finish; and
    OSError.
    """
    if overwrite and path.is_symlink():
        path = path.resolve()  # replace what the link points to, not the link
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}{PARTIAL}")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield partial
        flush(partial)
        if overwrite:
            if path.exists():
                os.chmod(partial, stat.S_IMODE(path.stat().st_mode))
            os.replace(partial, path)
        else:
            _take_name(path, partial)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


def check_new_folder(path: Path) -> None:
    """InputError if a new folder cannot have this name: something has it already, or it is no name."""
    if os.path.lexists(path) or not path.name:
        raise InputError(f"{path}: already exists; expected the name of a new folder: choose another one, or delete this one")


@contextmanager
def own_folder(path: Path) -> Iterator[Path]:
    """A new hidden folder beside `path`, named for this run alone, which becomes `path` at the end of the `with` block.

    After an error, or an interrupt, it is deleted with its files. Raises InputError if `path` is there, and OSError.
    """
    check_new_folder(path)
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}{PARTIAL}")
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            flush(file)
        flush(partial)
        check_new_folder(path)
        os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after the renaming there is none
    flush(path.parent)


def _take_name(path: Path, partial: Path) -> None:
    """Give a whole file its name; InputError if another file has it by now."""
    try:
        try:
            os.link(partial, path)
            return
        except FileExistsError:
            raise
        except OSError:  # a disk without hard links: take the name first
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError as error:
        raise InputError(
            f"{path}: another run has written this file in the meantime; choose another name, or --overwrite"
        ) from error
    try:
        os.replace(partial, path)
    except BaseException:
        path.unlink()  # empty
        raise


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: no folder can be made there ({error.strerror or error}); choose another name") from error
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise InputError(f"{folder}: another process is writing here; wait for it, or choose another folder") from None


def is_unused(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but our lock and unfinished files."""
    return not folder.exists() or all(name == LOCK or name.endswith(PARTIAL) for name in os.listdir(folder))


# Reading.


def read_record(path: Path, kind: type[Record], otherwise: str) -> Record:
    """A JSON file as a typed record. Fields that the record does not have are skipped: later versions may add some.

    otherwise: the error's words where the file is JSON, but not this record.
    Raises InputError, naming the file and the field, for whatever is not a UTF-8 JSON object with these fields, each of its
    type; for a key that an object has twice; and for NaN and infinity, which are no JSON. FileNotFoundError where no file is.
    """
    return decode_record(record_bytes(path), kind, path, otherwise)


def record_bytes(path: Path, at_most: int = MAX_RECORD_BYTES) -> bytes:
    """The content of a JSON file; InputError if it is too large or cannot be read, FileNotFoundError if there is none."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a file; expected a JSON file")
        if status.st_size > at_most:
            raise InputError(f"{path}: {status.st_size} bytes; expected a JSON file of at most {at_most}")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def decode_record(content: bytes, kind: type[Record], where: object, otherwise: str) -> Record:
    """The bytes of a JSON file as a typed record; errors as of `read_record`. `where` names the file in errors."""
    try:
        content.decode()  # msgspec does not look into the texts that it skips
        record = msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        if got := re.fullmatch(r"Expected `object`, got `(\w+)`", str(error)):
            raise InputError(f"{where}: holds {_a(got[1])}; expected a JSON object: {otherwise}") from error
        raise InputError(f"{where}: {otherwise} ({error})") from error
    except RecursionError as error:
        raise InputError(f"{where}: {otherwise} (objects inside objects, too many levels deep)") from error
    except ValueError as error:  # also undecodable bytes
        raise InputError(f"{where}: not JSON ({_why_not_json(content) or error}); fetch the file again") from error
    if (twice := _key_given_twice(content)) is not None:
        raise InputError(f"{where}: {otherwise} (an object has the key {twice!r} twice)")
    return record


def _why_not_json(content: bytes) -> str | None:
    """What is wrong with a text that is no JSON, where that is a known fault."""
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "it starts with a byte order mark; save it as plain UTF-8"
    if no_number := re.search(rb'"(\w+)"\s*:\s*-?(NaN|Infinity)\b', content):
        return f"{no_number[1].decode()} is {no_number[2].decode().lower()}, which JSON does not have"
    return None


def _a(kind: str) -> str:
    return {"array": "a list", "null": "null", "str": "a text", "bool": "true or false"}.get(kind, "a number")


STRING_OR_BRACE = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?|[{}]')


def _key_given_twice(content: bytes) -> str | None:
    """A key that some object of a valid JSON text has twice: readers differ in which value they take."""
    keys: list[set[str]] = []  # of each object that is open
    for token in STRING_OR_BRACE.finditer(content):
        if token[0] == b"{":
            keys.append(set())
        elif token[0] == b"}":
            keys.pop()
        elif token[2] is not None:
            key = json.loads(token[1])
            if key in keys[-1]:
                return key
            keys[-1].add(key)
    return None


def is_plain_name(name: str) -> bool:
    """Whether a file name that was read from a file names something in the same folder, on every system."""
    return re.fullmatch(r"[^/\\:\x00]+", name) is not None and name not in (".", "..")


def check_header(start: bytes) -> None:
    """ValueError if a safetensors file begins with a header larger than any real one. start: its first 8 bytes or more."""
    n_bytes = int.from_bytes(start[:8], "little")
    if n_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {n_bytes} bytes, expected at most {MAX_HEADER_BYTES}")


def sha256_of(path: Path) -> str:
    """sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


# Manifests.


class Shard(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finished shard: its file's name, its rows, a digest of the texts it was made from, and the sha256 of the file.

    sha256: None in folders of version 0.1, which did not write it.
    """

    file: str
    rows: Count
    texts: str
    sha256: str | None = None


class ListedShards(msgspec.Struct, frozen=True):
    """What every manifest holds, whatever its description."""

    complete: bool
    shards: tuple[Shard, ...]


Description = TypeVar("Description", bound=msgspec.Struct)


class Manifest(Generic[Description]):
    """The list of a folder's finished shards.

    description: what the shards hold; stored beside the list. shards: in order. is_complete: whether the last shard has been
    written.
    """

    def __init__(
        self, folder: Path, description: Description, shards: tuple[Shard, ...] = (), is_complete: bool = False
    ) -> None:
        self.folder, self.description, self.shards, self.is_complete = folder, description, shards, is_complete

    @classmethod
    def read(cls, folder: Path, kind: type[Description], otherwise: str) -> "Manifest[Description]":
        """The manifest on disk; FileNotFoundError if there is none. `kind`, `otherwise` and other errors: see `read_record`."""
        path = folder / MANIFEST
        content = record_bytes(path, MAX_MANIFEST_BYTES)
        description = decode_record(content, kind, path, otherwise)
        listed = decode_record(content, ListedShards, path, otherwise)
        return cls(folder, description, listed.shards, listed.complete)

    def write(self) -> None:
        """Replace the manifest on disk."""
        listed = msgspec.to_builtins(ListedShards(self.is_complete, self.shards))
        write_json(self.folder / MANIFEST, {**msgspec.to_builtins(self.description), **listed})

    def add(self, filename: str, write: Callable[[Path], object], rows: int, texts: str) -> None:
        """Write one shard and list it. After an error the shards before it are untouched and still listed."""
        path = self.folder / filename
        write_file(path, write)
        added = Manifest(self.folder, self.description, (*self.shards, Shard(filename, rows, texts, sha256_of(path))))
        added.write()
        self.shards = added.shards

    def finish(self) -> None:
        """List the folder as complete."""
        if not self.is_complete:
            Manifest(self.folder, self.description, self.shards, is_complete=True).write()
            self.is_complete = True
