"""A model's name or folder -> its files on this machine."""

import os
from pathlib import Path
from typing import Any, Literal, TypeVar

import huggingface_hub
from huggingface_hub import errors

from spin_native.disk import read_record
from spin_native.errors import InputError, as_input_error

LFS_POINTER = b"version https://git-lfs"
Record = TypeVar("Record")
What = Literal["model", "classifier"]
# What the folder of each holds: its files, and whose they are.
HOLDS: dict[What, tuple[str, str]] = {
    "model": ("config.json and model.safetensors", "a HuggingFace checkpoint"),
    "classifier": ("spin_classifier.json and head.safetensors", "a saved classifier"),
}
EXAMPLES: dict[What, str] = {"model": "roberta-base", "classifier": "me/my-classifier"}


class Location:
    """A folder, or a repository on the HuggingFace Hub (read through huggingface_hub: its cache, variables, offline mode).

    name: a folder (str, where `~` is the home folder, or Path), or a Hub name (str). what: what it should hold, for errors.
    Files are downloaded one by one, when they are needed. All come from one commit: that of the first file downloaded.
    """

    def __init__(self, name: str | os.PathLike[str], revision: str | None = None, what: What = "model") -> None:
        self.what: What = what
        self.name = os.fsdecode(name) if isinstance(name, (str, os.PathLike)) else ""
        self.revision = revision
        self.offline = False
        path = os.path.expanduser(self.name)
        self.folder = Path(path) if self.name and os.path.isdir(path) else None
        expected = f"expected a folder with {HOLDS[what][0]}, or a Hub name such as {EXAMPLES[what]!r}"
        if not self.name:
            raise InputError(f"{what} {name!r}: no name; {expected}")
        if self.folder is None and os.path.exists(path):
            raise InputError(f"{what} {self.name!r}: a file, not a folder; {expected}")
        if self.folder is None and (isinstance(name, os.PathLike) or _looks_like_path(self.name)):
            raise InputError(f"{what} {self.name!r}: no such folder; {expected}")
        if revision is not None and (not isinstance(revision, str) or ".." in revision or revision.startswith("/")):
            raise InputError(f"{what} {self.name!r}: revision is {revision!r}; expected a branch, tag or commit")

    def where(self, filename: str) -> str:
        """A file's name for errors."""
        return f"{self.name}/{filename}" if self.folder is None else str(self.folder / filename)

    def find(self, filename: str) -> Path | None:
        """The file on this machine, downloaded if needed; None if it does not exist, or is neither cached nor in reach."""
        if self.folder is not None:
            path = self.folder / filename
            return path if os.path.isfile(path) else None
        try:
            downloaded = huggingface_hub.hf_hub_download(
                self.name, filename, revision=self.revision, local_files_only=self.offline
            )
        except errors.LocalEntryNotFoundError:  # not cached, and the Hub is out of reach: do not try again
            self.offline = True
            return None
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise InputError(f"{self.what} {self.name!r}: access is restricted; ask for it on the Hub and log in") from error
        except errors.RepositoryNotFoundError as error:
            raise InputError(
                f"{self.what} {self.name!r}: no folder of that name, and no such repository on the Hub (or it is private: log "
                "in)"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise InputError(f"{self.what} {self.name!r}: the repository has no revision {self.revision!r}") from error
        except errors.HFValidationError as error:
            raise InputError(f"{self.what} {self.name!r}: neither a folder nor a valid Hub name") from error
        except OSError as error:
            raise InputError(f"{self.what} {self.name!r}: {filename} could not be downloaded ({error})") from error
        path = Path(downloaded)
        self.revision = path.parent.name  # .../snapshots/COMMIT/filename: from now on, this commit
        return path

    def need(self, filename: str) -> Path:
        """Like `find`, but InputError if there is no such file."""
        if path := self.find(filename):
            return path
        raise self.lacks(filename)

    def lacks(self, what: str) -> InputError:
        """The error that says this location has no such file."""
        if self.offline:
            return InputError(
                f"{self.what} {self.name!r}: no folder of that name, {what} is not in the local cache, and the Hub cannot be "
                "reached; connect, or give a folder"
            )
        return InputError(f"{self.what} {self.name!r}: holds no {what}; expected the files of {HOLDS[self.what][1]}")

    def read_record(self, filename: str, kind: type[Record], otherwise: str) -> Record:
        """A JSON file as a typed record; errors as of `disk.read_record`, and InputError if there is no such file."""
        return read_record(self.need(filename), kind, otherwise)

    def read_json(self, filename: str) -> dict[str, Any]:
        """A JSON object whose fields the caller checks; errors as of `read_record`."""
        return self.read_record(filename, dict, "no settings")


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.endswith(("/", os.sep)) or name.count("/") > 1


def refuse_lfs_pointer(path: Path) -> None:
    """InputError if git cloned only a pointer to the file."""
    with as_input_error(path, "cannot be read", "check its permissions"), path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{path}: a git-lfs pointer, not the file itself; run `git lfs pull` in its folder")
