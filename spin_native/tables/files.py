"""Which files a table is in, and the lines of text in them."""

import codecs
import glob
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from spin_native.errors import InputError

# Ending of a file's name -> format.
FORMATS = {
    ".csv": "CSV",
    ".tsv": "CSV",
    ".csv.gz": "CSV",
    ".tsv.gz": "CSV",
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".jsonl.gz": "JSONL",
    ".ndjson.gz": "JSONL",
    ".parquet": "Parquet",
}
MAX_CELL = 64 * 2**20  # characters
MAX_LINE = 2 * MAX_CELL
SAMPLE = 2**16  # bytes that an encoding is recognised by

Given = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def ending_of(path: Path) -> str:
    """The ending that says the format, such as ".csv.gz"; InputError for another ending."""
    for ending in FORMATS:
        if path.name.lower().endswith(ending):
            return ending
    raise InputError(f"{path}: unknown file format; expected a name that ends in {', '.join(FORMATS)}")


def default_delimiter(path: Path) -> str:
    """A tab for .tsv, a comma for the other endings."""
    return "\t" if ".tsv" in ending_of(path) else ","


def files_of(source: Given) -> list[Path]:
    """The files of a table: one file, the files of a folder or a glob sorted by name, or all of these in a sequence.

    Raises InputError for what is not there, for files of several formats, and for a file that is named twice.
    """
    listed = _listed(source)
    if not listed:
        raise InputError("no files were given; expected the name of a file, a folder or a glob")
    files = [file for given in listed for file in _expanded(Path(given))]
    kinds = {(FORMATS[ending_of(file)], default_delimiter(file)): file for file in files}
    if len(kinds) > 1:
        first, second = list(kinds.values())[:2]
        raise InputError(f"{first} and {second} are of different formats; expected files of one format")
    seen: set[str] = set()
    for file in files:
        if (real := os.path.realpath(file)) in seen:
            raise InputError(f"{file}: given twice; name each file once")
        seen.add(real)
    return files


def _listed(source: Given) -> list[str | os.PathLike[str]]:
    listed = [source] if isinstance(source, (str, os.PathLike)) else list(source) if isinstance(source, Sequence) else None
    for given in [source] if listed is None else listed:
        if not isinstance(given, (str, os.PathLike)):
            raise InputError(f"a table's file is given as {given!r:.60} ({type(given).__name__}); expected a name or a Path")
    return listed or []


def _expanded(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            return _files_in(path)
        is_glob = glob.has_magic(str(path)) and not path.exists()
        files = sorted(map(Path, glob.glob(str(path), recursive=True))) if is_glob else [path]
        for file in files:
            if not file.exists():
                raise InputError(f"{file}: no such file")
            ending_of(file)
            if not file.is_file():
                raise InputError(f"{file}: not a file; expected files of a table")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
    if not files:
        raise InputError(f"{path}: no file has such a name")
    return files


def _files_in(folder: Path) -> list[Path]:
    """Names that start with a dot or an underscore are no tables (as Spark and Hadoop have it)."""
    children = sorted(child for child in folder.iterdir() if not child.name.startswith((".", "_")))
    for child in children:
        if child.is_dir():
            raise InputError(f"{child}: a folder inside the folder of a table; name the files, for example '{folder}/**/*.csv'")
        ending_of(child)
    if not children:
        raise InputError(f"{folder}: this folder holds no files of a table; expected names that end in {', '.join(FORMATS)}")
    return children


def would_read(source: Given, files: Sequence[Path], path: Path) -> bool:
    """Whether a folder or a glob among the names of a table would take in a new file with this path."""
    folder = os.path.realpath(path.parent)
    for given in map(Path, _listed(source)):
        if given.is_dir():
            folders, is_of_it = {os.path.realpath(given)}, not path.name.startswith((".", "_"))
        else:
            folders = {os.path.realpath(file.parent) for file in files}
            is_of_it = given not in files and fnmatch(path.name, given.name)
        if is_of_it and folder in folders:
            return True
    return False


# Text.


def checked_encoding(encoding: str | None) -> str:
    """The name of an encoding (None: UTF-8); InputError if Python does not know it."""
    try:
        b"a".decode(encoding or "utf-8")
    except LookupError:
        raise InputError(f"encoding {encoding!r} is not known; expected a name such as utf-8, utf-16, cp1252") from None
    except UnicodeError:
        pass  # one byte is no whole character of this encoding
    return encoding or "utf-8"


def lines_of(path: Path, encoding: str, newline: str) -> Iterator[str]:
    """The lines of a text file with their endings, without the byte order mark.

    newline: "\\n" if only that ends a line; "" if also "\\r" and "\\r\\n" do.
    Raises InputError if the file is not in this encoding, naming the line and the likely encoding; for a damaged gzip file; and
    for a line of more than MAX_LINE characters.
    """
    try:
        with open_binary(path) as binary:
            check_start(path, binary.peek(SAMPLE)[:SAMPLE], encoding)
            text = io.TextIOWrapper(binary, encoding, newline=newline)
            lines = iter(partial(text.readline, MAX_LINE + 1), "")
            for number, line in enumerate(lines, 1):
                if len(line) > MAX_LINE:
                    raise unreadable(path, f"line {number} has more than {MAX_LINE} characters")
                yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        raise _undecodable(path, encoding, error) from error
    except DAMAGED as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


DAMAGED = EOFError, zlib.error, gzip.BadGzipFile


def _damaged(path: Path, error: Exception) -> InputError:
    return unreadable(path, f"damaged, or not a gzip file ({error})")


def unreadable(path: Path, why: str) -> InputError:
    """The error for a file that is not what the ending of its name says."""
    return InputError(f"{path}: not readable as {FORMATS[ending_of(path)]}: {why}")


def open_binary(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """A file's bytes, unpacked if its name ends in .gz."""
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


# First bytes -> encoding, and the names that may be given for it. UTF-32 first: its mark starts as that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: ("utf-32", ("utf-32", "utf-32-le")),
    codecs.BOM_UTF32_BE: ("utf-32", ("utf-32", "utf-32-be")),
    codecs.BOM_UTF16_LE: ("utf-16", ("utf-16", "utf-16-le")),
    codecs.BOM_UTF16_BE: ("utf-16", ("utf-16", "utf-16-be")),
    codecs.BOM_UTF8: ("utf-8", ("utf-8", "utf-8-sig")),
}
OTHER_FILES = {b"\x1f\x8b": "a gzip file: end its name in .gz", b"PK\x03\x04": "a zip or Excel file", b"PAR1": "a Parquet file"}
LATIN = ("cp1252", "iso8859-1", "iso8859-15", "mac-roman")


def check_start(path: Path | str, start: bytes, encoding: str) -> None:
    """InputError if a file's first bytes show that it is in another encoding, or no text."""
    for magic, kind in OTHER_FILES.items():
        if start.startswith(magic):
            raise InputError(f"{path}: is {kind}; expected text, as the ending of its name says")
    likely, allowed = _recognised(start)
    name = codecs.lookup(encoding).name
    if likely is not None and name not in allowed:
        raise InputError(f"{path}: is in {likely}, not in {encoding}; {_remedy(likely)}")
    looks_like_utf_8 = likely is None and bool(start) and b"\0" not in start and _is_utf_8(start)
    if looks_like_utf_8 and (name.startswith(("utf-16", "utf-32")) or (name in LATIN and not start.isascii())):
        raise InputError(f"{path}: is in utf-8, not in {encoding}; {_remedy('utf-8')}")


def _recognised(start: bytes) -> tuple[str | None, tuple[str, ...]]:
    """The encoding that a byte order mark or the places of zero bytes show, and the names that may be given for it."""
    for mark, recognised in MARKS.items():
        if start.startswith(mark):
            return recognised
    even, odd = start[::2].count(0), start[1::2].count(0)
    if even + odd > len(start) / 5:  # half the bytes of English text in UTF-16
        if odd > 4 * even:
            return "utf-16-le", ("utf-16-le", "utf-16")
        if even > 4 * odd:
            return "utf-16-be", ("utf-16-be",)
    return None, ()


def _is_utf_8(start: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


def undecodable(sample: bytes, encoding: str) -> str:
    """What to do about bytes that are not in this encoding."""
    likely = _recognised(sample)[0]
    if likely is None and codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig") and _is_utf_8(sample):
        likely = "utf-8"
    if likely is None:
        try:
            sample.decode("cp1252")
            likely = "cp1252"
        except UnicodeDecodeError:
            likely = "latin-1"
    return f"it is probably {likely}: {_remedy(likely)}"


def _remedy(encoding: str) -> str:
    return "leave out --encoding" if encoding == "utf-8" else f"give --encoding {encoding}"


def _undecodable(path: Path, encoding: str, error: UnicodeError) -> InputError:
    """The error that names the first line which is not in this encoding, or a damaged gzip file. Reads the file once more."""
    decoder = codecs.getincrementaldecoder(encoding)()
    n_lines, sample = 1, b""
    try:
        with open_binary(path) as binary:
            while True:
                chunk = binary.read(SAMPLE)
                sample = chunk or sample
                try:
                    n_lines += decoder.decode(chunk, final=not chunk).count("\n")
                except UnicodeDecodeError as bad:
                    n_lines += bad.object[: bad.start].decode(encoding, "ignore").count("\n")
                    sample, error = bad.object[max(bad.start - 1000, 0) : bad.start + 1000], bad
                    break
                except UnicodeError:
                    break
                if not chunk:
                    break
    except DAMAGED as damage:
        return _damaged(path, damage)
    return unreadable(path, f"line {n_lines} is not {encoding} text ({_reason(error)}); {undecodable(sample, encoding)}")


def _reason(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02x}: {error.reason}"
    return str(error)
