"""A model's name or folder -> its files on this machine."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors

from spin_native.errors import InputError

EXPECTED = {
    "model": "config.json and model.safetensors, or a Hub name such as 'roberta-base'",
    "classifier": "spin_classifier.json and head.safetensors, or the Hub name of one",
}
LFS_POINTER = b"version https://git-lfs"


@dataclass
class Location:
    """A folder, or a repository on the HuggingFace Hub (read through huggingface_hub: its cache, variables, offline mode).

    Files are downloaded one by one, when they are needed. All come from one commit: that of the first file downloaded.

    what: what it should hold, "model" or "classifier", for errors.
    """

    name: str
    revision: str | None = None
    what: str = "model"
    folder: Path | None = field(init=False)
    offline: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        path = Path(self.name).expanduser()
        self.folder = path if path.is_dir() else None
        looks_like_path = self.name.startswith((".", "~", os.sep)) or self.name.count("/") > 1
        if self.folder is None and (looks_like_path or path.exists()):
            raise InputError(f"{self.what} {self.name!r}: no such folder; expected a folder with {EXPECTED[self.what]}")

    def find(self, filename: str) -> Path | None:
        """The file on this machine, downloaded if needed; None if it does not exist, or is neither cached nor in reach."""
        if self.folder is not None:
            path = self.folder / filename
            return path if path.is_file() else None
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
        self.revision = path.parts[path.parts.index("snapshots") + 1]  # from now on, this commit
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
        return InputError(f"{self.what} {self.name!r}: holds no {what}; expected a folder with {EXPECTED[self.what]}")

    def read_json(self, filename: str) -> dict[str, Any]:
        """A JSON object from one of the files."""
        path = self.need(filename)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # also undecodable bytes
            raise InputError(f"{path}: not JSON ({error}); fetch the file again") from error
        if not isinstance(content, dict):
            raise InputError(f"{path}: holds a {type(content).__name__}; expected a JSON object")
        return content


def refuse_lfs_pointer(path: Path) -> None:
    """InputError if git cloned only a pointer to the file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{path}: a git-lfs pointer, not the file itself; run `git lfs pull` in its folder")
