"""A classifier on disk: `spin_classifier.json`, readable by eye, and `head.safetensors`. Nothing is pickled.

Saving is atomic as a whole. The tensors are written under a new name; then the JSON file, which holds their sha256, replaces
the old one: from that moment the new classifier is the saved one; then the tensors get their name. A reader takes the tensors
whose sha256 the JSON file holds, under either name. Half-written or mixed-up folders are noticed.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from spin_native.checkpoints import Checkpoint, Location
from spin_native.classifier.curves import Controls, CurveRow
from spin_native.classifier.exits import Exit, Promise
from spin_native.classifier.heads import describe, head_tensors, read_head
from spin_native.classifier.tasks import TASKS
from spin_native.classifier.training import Fitted
from spin_native.disk import flush, write_bytes, write_json
from spin_native.errors import InputError
from spin_native.version import __version__

DESCRIPTION, TENSORS = "spin_classifier.json", "head.safetensors"
NEW_TENSORS = TENSORS + ".new"
FORMAT = 2
# Parameters that say where, not what: a saved classifier names its base model apart, and runs where it is loaded.
PLACE = ("model", "revision", "device", "allow_pickle")


@dataclass(frozen=True)
class Saved:
    """A saved classifier, read but not yet restored."""

    name: str
    description: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @property
    def task(self) -> str | None:
        return self.description.get("task")


def save_classifier(folder: Path, fitted: Fitted, metric: str, parameters: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Write a fitted classifier to a folder; InputError if the disk does not take it.

    metric: what its scores are. parameters: the estimator's. The same classifier gives the same bytes.
    """
    location = checkpoint.location
    description = {
        "spin_native": __version__,
        "task": fitted.task.name,
        "base_model": {
            "name": location.name if location.folder is None else str(location.folder.resolve()),
            "revision": checkpoint.revision,
            "depth": fitted.depth,
            "fingerprint": checkpoint.fingerprint(fitted.depth),
            "tokenizer_fingerprint": checkpoint.tokenizer.fingerprint,
        },
        "labels": fitted.task.to_json(),
        "heads": {str(depth): describe(head) for depth, head in fitted.heads.items()},
        "exit": str(fitted.exit),
        "promise": fitted.promise and {**vars(fitted.promise), "exit": str(fitted.promise.exit)},
        "settings": {name: value for name, value in parameters.items() if name not in PLACE},
        "scores": {
            "metric": metric,
            "baseline": fitted.baseline and fitted.baseline._asdict(),
            "depth_curve": [row._asdict() for row in fitted.depth_curve],
            "layer_curve": [row._asdict() for row in fitted.layer_curve],
            "controls": fitted.controls and fitted.controls._asdict(),
            "unconverged": fitted.unconverged,
        },
    }
    tensors = {f"{depth}.{name}": t for depth, head in fitted.heads.items() for name, t in head_tensors(head).items()}
    try:
        _write(folder, description, tensors)
    except OSError as error:
        raise InputError(
            f"{folder}: the classifier could not be written ({error}); choose another folder or make room"
        ) from error


def _write(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Replace both files as one. A crash leaves the old classifier or the new one."""
    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    described = {name: _plain(value) for name, value in description.items()}
    folder.mkdir(parents=True, exist_ok=True)
    _finish_interrupted_save(folder)
    write_bytes(folder / NEW_TENSORS, content)
    write_json(folder / DESCRIPTION, {"format": FORMAT, "head_sha256": _sha256(content), **described})
    os.replace(folder / NEW_TENSORS, folder / TENSORS)
    flush(folder)


def _finish_interrupted_save(folder: Path) -> None:
    """Give the tensors of the saved classifier their name, if the last save was interrupted before it did."""
    if not (folder / NEW_TENSORS).is_file() or not (folder / DESCRIPTION).is_file():
        return
    try:
        expected = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")).get("head_sha256")
    except (ValueError, AttributeError):
        return  # no classifier of ours
    if _sha256((folder / NEW_TENSORS).read_bytes()) == expected:
        os.replace(folder / NEW_TENSORS, folder / TENSORS)
        flush(folder)


def read_saved(location: Location) -> Saved:
    """The description and the tensors; InputError if they are damaged or do not belong together."""
    description = location.read_json(DESCRIPTION)
    if description.get("format") != FORMAT:
        raise InputError(
            f"{location.name}/{DESCRIPTION}: format {description.get('format')!r}; expected {FORMAT}: save the classifier again"
        )
    content = _tensors_content(location, description.get("head_sha256"))
    try:
        return Saved(location.name, description, load(content))
    except SafetensorError as error:
        raise InputError(f"{location.name}/{TENSORS}: damaged ({error}); save the classifier again") from error


def _tensors_content(location: Location, expected: str | None) -> bytes:
    """The tensors that the description names: under their name, or under the new one if the last save was interrupted."""
    interrupted = None if location.folder is None else location.folder / NEW_TENSORS
    if interrupted is not None and interrupted.is_file():
        content = interrupted.read_bytes()
        if _sha256(content) == expected:
            return content
    content = location.need(TENSORS).read_bytes()
    if _sha256(content) != expected:
        raise InputError(
            f"{location.name}/{TENSORS}: not the file that {DESCRIPTION} describes (its sha256 differs): fetch or save the "
            "classifier again"
        )
    return content


@contextmanager
def refuse_edited(saved: Saved) -> Iterator[None]:
    """Turn errors of a description that was edited into an InputError that names the classifier."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{saved.name}: not a classifier that spin_native saved ({error!r}); save it again") from error


def parameters_of(saved: Saved, base_model: str | None) -> dict[str, Any]:
    """The estimator's parameters that a classifier was saved with, PLACE apart from model and revision left out.

    base_model: where the base model is now, if it moved. InputError if the file was edited.
    """
    with refuse_edited(saved):
        base = saved.description["base_model"]
        given = {"final_rows": "training"} | saved.description["settings"]  # the only choice when it was not saved yet
        parameters = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        if parameters.get("top_k") is not None or parameters.get("top_share") is not None:
            parameters["etas"] = None  # once saved with their default beside what replaced them
        if parameters["depth"] != "best":
            parameters["tolerance"] = 0.0  # once saved, but never used, with a fixed depth
        place = {"model": base_model, "revision": None} if base_model else {"model": base["name"], "revision": base["revision"]}
        return parameters | place


def restored(saved: Saved) -> Fitted:
    """What the classifier had learnt; InputError if the file was edited."""
    with refuse_edited(saved):
        description, scores = saved.description, saved.description["scores"]
        task = TASKS[description["task"]].from_json(description["labels"])
        depth, promise = description["base_model"]["depth"], description["promise"]
        heads = {int(at): read_head(head, _tensors_of(saved, at), task) for at, head in description["heads"].items()}
        if max(heads) != depth:
            raise ValueError(f"its deepest head is at {max(heads)}, its depth is {depth}")
        return Fitted(
            task=task,
            depth=depth,
            heads=heads,
            depth_curve=[CurveRow(**row) for row in scores["depth_curve"]],
            layer_curve=[CurveRow(**row) for row in scores["layer_curve"]],
            baseline=scores["baseline"] and CurveRow(**scores["baseline"]),
            controls=scores["controls"] and Controls(**scores["controls"]),
            unconverged=scores["unconverged"],
            exit=Exit.parse(description["exit"]),
            promise=promise and Promise(**{**promise, "exit": Exit.parse(promise["exit"])}),
        )


def check_base_model(saved: Saved, checkpoint: Checkpoint) -> None:
    """InputError unless weights and tokenizer are, to the bit, those the classifier was fitted on. Loads no weights."""
    with refuse_edited(saved):
        base = saved.description["base_model"]
        expected = {"weights": base["fingerprint"], "tokenizer": base["tokenizer_fingerprint"]}
    tokenizer = checkpoint.tokenizer.fingerprint_like(base["tokenizer_fingerprint"])
    now = {"weights": checkpoint.fingerprint(base["depth"]), "tokenizer": tokenizer}
    for what, was in expected.items():
        if was != now[what]:
            raise InputError(
                f"{saved.name}: the {what} of base model {checkpoint.name!r} changed since the classifier was fitted "
                f"(sha256 {now[what][:12]}..., expected {was[:12]}...); bring back the old files, name them with "
                "base_model, or fit again"
            )


def _tensors_of(saved: Saved, depth: str) -> dict[str, np.ndarray]:
    """The tensors of the head at a depth."""
    prefix = f"{depth}."
    return {name.removeprefix(prefix): tensor for name, tensor in saved.tensors.items() if name.startswith(prefix)}


def _plain(value: Any) -> Any:
    """The same value as JSON knows it: sequences and arrays are lists, NumPy's numbers Python's."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return [_plain(inner) for inner in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
