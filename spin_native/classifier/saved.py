"""A classifier on disk: `spin_classifier.json`, readable by eye, and `head.safetensors`. Nothing is pickled.

Saving is atomic as a whole. The tensors are written under a new name; then the JSON file, which holds their sha256, replaces
the old one: from that moment the new classifier is the saved one; then the tensors get their name. A reader takes the tensors
whose sha256 the JSON file holds, under either name. Half-written or mixed-up folders are noticed.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import load, save

from spin_native.checkpoints import Checkpoint, Location
from spin_native.classifier.baselines import NAMES, Baseline, baselines_for_json
from spin_native.classifier.comparisons import Comparison
from spin_native.classifier.curve_rows import Controls, CurveRow
from spin_native.classifier.examples import Examples
from spin_native.classifier.exits import Exit, Promise, checked_exit
from spin_native.classifier.heads import Head, describe, head_tensors, read_head
from spin_native.classifier.records import Description, ErrorPromiseRecord, FormatRecord, ScoresRecord, TensorsRecord
from spin_native.classifier.risk import AnyPromise, ErrorPromise
from spin_native.classifier.settings import class_weights_of
from spin_native.classifier.shift import PREFIX, Reference
from spin_native.classifier.tasks import TASKS, Classes, Task
from spin_native.classifier.training import Fitted
from spin_native.disk import check_header, decode_record, flush, json_bytes, read_record, record_bytes, write_bytes
from spin_native.errors import InputError, as_input_error
from spin_native.version import __version__

DESCRIPTION, TENSORS = "spin_classifier.json", "head.safetensors"
NEW_TENSORS = TENSORS + ".new"
FORMAT = 2
# Parameters that say where, not what: a saved classifier names its base model apart, and runs where it is loaded.
PLACE = ("model", "revision", "device", "allow_pickle")
NOT_OURS = "not a classifier that spin_native saved"


@dataclass(frozen=True)
class Saved:
    """A saved classifier, read but not yet restored."""

    name: str
    description: Description
    tensors: dict[str, np.ndarray]

    @property
    def task(self) -> str:
        return self.description.task


def save_classifier(
    folder: Path,
    fitted: Fitted,
    metric: str,
    parameters: Mapping[str, Any],
    checkpoint: Checkpoint,
    base_model: str | None = None,
) -> None:
    """Write a fitted classifier to a folder; InputError if the disk does not take it. See `pack` for the arguments."""
    description, tensors = pack(fitted, metric, parameters, checkpoint, base_model)
    try:
        _write(folder, description, tensors)
    except OSError as error:
        raise InputError(
            f"{folder}: the classifier could not be written ({error}); choose another folder or make room"
        ) from error


def pack(
    fitted: Fitted, metric: str, parameters: Mapping[str, Any], checkpoint: Checkpoint, base_model: str | None = None
) -> tuple[bytes, bytes]:
    """A fitted classifier as the content of its two files: the JSON description, and the tensors that it names by sha256.

    metric: what its scores are. parameters: the estimator's. base_model: the name to give the base model (None: its own).
    The same classifier gives the same bytes. InputError if the base model's files are gone.
    """
    location = checkpoint.location
    name = location.name if location.folder is None else str(location.folder.resolve())
    try:
        fingerprint = checkpoint.fingerprint(fitted.depth)
    except (InputError, OSError) as error:
        raise InputError(
            f"the base model {checkpoint.name!r} cannot be read any more ({error}); bring its files back"
        ) from error
    description = {
        "spin_native": __version__,
        "task": fitted.task.name,
        "base_model": {
            "name": base_model or name,
            "revision": None if base_model else checkpoint.revision,
            "depth": fitted.depth,
            "fingerprint": fingerprint,
            "tokenizer_fingerprint": checkpoint.tokenizer.fingerprint,
        },
        "labels": fitted.task.to_json(),
        "heads": {str(depth): describe(head) for depth, head in fitted.heads.items()},
        "exit": str(fitted.exit),
        **_described_promise(fitted.promise),
        "settings": _settings_for_json(parameters, fitted.task),
        "class_priorities": getattr(fitted.task, "priorities", None),
        "pairs": fitted.pairs,
        "scores": {
            "metric": metric,
            "baselines": baselines_for_json(fitted.baselines),
            "depth_curve": [row._asdict() for row in fitted.depth_curve],
            "layer_curve": [row._asdict() for row in fitted.layer_curve],
            "beside_accuracy": fitted.beside_accuracy,
            "controls": fitted.controls and fitted.controls._asdict(),
            "unconverged": fitted.unconverged,
            "suspicious_rows": fitted.suspicious_rows,
        },
        "examples": fitted.examples and fitted.examples.to_json(),
    }
    tensors = {f"{depth}.{name}": t for depth, head in fitted.heads.items() for name, t in head_tensors(head).items()}
    tensors |= fitted.shift_reference.tensors() if fitted.shift_reference else {}
    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    described = {name: _plain(value) for name, value in description.items()}
    try:
        return json_bytes({"format": FORMAT, "head_sha256": _sha256(content), **described}), content
    except UnicodeEncodeError as error:
        raise InputError(
            f"{error.object[max(0, error.start - 20) : error.end + 20]!r} holds half a character (a lone surrogate), which no "
            "JSON file can: correct the label or the name of the base model's folder"
        ) from error


def _settings_for_json(parameters: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The parameters but for PLACE. Weights of classes become a list in the order of the labels: JSON's keys are text only."""
    settings = {name: value for name, value in parameters.items() if name not in PLACE}
    if isinstance(settings.get("class_weight"), Mapping):
        settings["class_weight"] = list(class_weights_of(settings["class_weight"], task) or ())
    return settings


def _write(folder: Path, description: bytes, tensors: bytes) -> None:
    """Replace both files as one. A crash leaves the old classifier or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    _finish_interrupted_save(folder)
    write_bytes(folder / NEW_TENSORS, tensors)
    write_bytes(folder / DESCRIPTION, description)
    os.replace(folder / NEW_TENSORS, folder / TENSORS)
    flush(folder)


def _finish_interrupted_save(folder: Path) -> None:
    """Give the tensors of the saved classifier their name, if the last save was interrupted before it did."""
    if not (folder / NEW_TENSORS).is_file() or not (folder / DESCRIPTION).is_file():
        return
    try:
        expected = read_record(folder / DESCRIPTION, TensorsRecord, NOT_OURS).head_sha256
    except InputError:
        return  # no classifier of ours
    if _sha256((folder / NEW_TENSORS).read_bytes()) == expected:
        os.replace(folder / NEW_TENSORS, folder / TENSORS)
        flush(folder)


def read_saved(location: Location) -> Saved:
    """The description and the tensors; InputError if they are damaged or do not belong together."""
    read = _decoded(record_bytes(location.need(DESCRIPTION)), location.where(DESCRIPTION))
    return _saved(location.name, read, _tensors_content(location, read.head_sha256))


def unpack(name: str, description: bytes, tensors: bytes) -> Saved:
    """What `pack` gave, read again; `name` names it in errors. See `read_saved` for these."""
    read = _decoded(description, name)
    if _sha256(tensors) != read.head_sha256:
        raise InputError(f"{name}: its tensors are not those that its description names (their sha256 differs)")
    return _saved(name, read, tensors)


def _decoded(content: bytes, where: str) -> Description:
    stored = decode_record(content, FormatRecord, where, NOT_OURS).format
    if stored != FORMAT:
        raise InputError(f"{where}: format {stored!r}; expected {FORMAT}: save the classifier again")
    return decode_record(content, Description, where, NOT_OURS)


def _saved(name: str, description: Description, tensors: bytes) -> Saved:
    with as_input_error(f"{name}/{TENSORS}", "damaged", "save the classifier again"):
        check_header(tensors)
        return Saved(name, description, load(tensors))


def _tensors_content(location: Location, expected: str) -> bytes:
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
        raise InputError(f"{saved.name}: {NOT_OURS} ({error}); save it again") from error


def parameters_of(saved: Saved, base_model: str | Path | None) -> dict[str, Any]:
    """The estimator's parameters that a classifier was saved with, PLACE apart from model and revision left out.

    base_model: where the base model is now, if it moved. InputError if the file was edited.
    """
    with refuse_edited(saved):
        base = saved.description.base_model
        given = {"final_rows": "training"} | saved.description.settings  # the only choice when it was not saved yet
        parameters: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        if not parameters.keys().isdisjoint(PLACE):
            raise ValueError(f"settings name {', '.join(parameters.keys() & set(PLACE))}")
        if parameters.get("top_k") is not None or parameters.get("top_share") is not None:
            parameters["etas"] = None  # once saved with their default beside what replaced them
        if isinstance(weights := parameters.get("class_weight"), tuple):  # one for each label, in their order
            parameters["class_weight"] = dict(zip(saved.description.labels, weights, strict=True))
        if parameters["depth"] != "best":
            parameters["tolerance"] = 0.0  # once saved, but never used, with a fixed depth
        place = {"model": base_model, "revision": None} if base_model else {"model": base.name, "revision": base.revision}
        return parameters | place


def restored(saved: Saved) -> Fitted:
    """What the classifier had learnt; InputError if the file was edited."""
    with refuse_edited(saved):
        description, scores = saved.description, saved.description.scores
        task = _task(description)
        heads = _heads(saved, task)
        depth = description.base_model.depth
        if max(heads) != depth:
            raise ValueError(f"its deepest head is at {max(heads)}, its depth is {depth}")
        exit_ = _exit(description.exit, task, heads)
        return Fitted(
            task=task,
            depth=depth,
            heads=heads,
            depth_curve=[_numbers(CurveRow, row) for row in scores.depth_curve],
            layer_curve=[_numbers(CurveRow, row) for row in scores.layer_curve],
            baselines=_baselines(scores),
            suspicious_rows=None if scores.suspicious_rows is None else np.array(scores.suspicious_rows, dtype=np.int64),
            beside_accuracy=None if scores.beside_accuracy is None else msgspec.to_builtins(scores.beside_accuracy),
            controls=scores.controls and _numbers(Controls, scores.controls),
            unconverged=scores.unconverged,
            exit=exit_,
            promise=_promise(description, task, heads),
            shift_reference=Reference.from_tensors(saved.tensors, heads[min(heads)].n_neurons),
            pairs=description.pairs,
            examples=None if description.examples is None else Examples.from_record(description.examples),
        )


def _task(description: Description) -> Task:
    """What the labels mean; ValueError unless they are of one type, distinct, and as they will be given back."""
    labels = description.labels
    if len({type(label) for label in labels}) > 1 or len(set(labels)) < len(labels):
        raise ValueError(f"its labels are {labels}; expected different ones of one type")
    task = TASKS[description.task].from_json(labels)
    if task.to_json() != labels:
        raise ValueError(f"its labels are {labels}; read back they are {task.to_json()}")
    if (priorities := description.class_priorities) is not None:
        if not isinstance(task, Classes) or len(priorities) != len(labels):
            raise ValueError(f"it has {len(priorities)} class priorities for {len(labels)} labels")
        task = Classes(task.classes, np.array(priorities))
    return task


def _heads(saved: Saved, task: Task) -> dict[int, Head]:
    """The heads by depth; ValueError unless the depths ascend and every tensor belongs to a head."""
    depths = [int(at) if at.isascii() and at.isdecimal() else 0 for at in saved.description.heads]
    if depths != sorted(set(depths)) or depths[0] < 1:
        raise ValueError(f"its heads are at depths {', '.join(saved.description.heads)}; expected ascending numbers from 1")
    heads = {}
    unread = {name for name in saved.tensors if not name.startswith(PREFIX)}
    for depth, record in zip(depths, saved.description.heads.values(), strict=True):
        prefix = f"{depth}."
        tensors = {name.removeprefix(prefix): t for name, t in saved.tensors.items() if name.startswith(prefix)}
        heads[depth] = read_head(record, tensors, task, depth)
        unread -= {prefix + name for name in head_tensors(heads[depth])}
    if unread:
        raise ValueError(f"no head reads its tensor {min(unread)}")
    return heads


def _exit(written: str, task: Task, heads: Mapping[int, Head]) -> Exit:
    exit_ = Exit.parse(written)
    task.check_exit(exit_)
    return checked_exit(exit_, list(heads))


def _described_promise(promise: AnyPromise | None) -> dict[str, Any]:
    """The result of a calibration under the name of its kind; no promise is a "promise" of null."""
    described = promise and {**vars(promise), "exit": str(promise.exit)}
    return {"promise": None, "error_promise": described} if isinstance(promise, ErrorPromise) else {"promise": described}


def _promise(description: Description, task: Task, heads: Mapping[int, Head]) -> AnyPromise | None:
    """The result of a calibration; ValueError unless its own counts support it."""
    record = description.promise
    if description.error_promise is not None:
        return _error_promise(description.error_promise, description, task, heads)
    if record is None:
        return None
    promise = Promise(**{**msgspec.structs.asdict(record), "exit": _exit(record.exit, task, heads)})
    if promise.dtype is None:  # older promises do not say it: they were made in the classifier's, where that is known
        dtype = str(description.settings["dtype"])
        promise = replace(promise, dtype=None if dtype == "auto" else dtype)
    if not promise.is_kept(deepest=max(heads)):
        raise ValueError(
            f"{promise.n_harmed} of {promise.n_rows} rows harmed are too many to promise a drop of at most "
            f"{promise.max_accuracy_drop:g} with confidence {promise.confidence:g}"
        )
    return promise


def _baselines(scores: ScoresRecord) -> dict[str, Baseline] | None:
    """The baselines by name; earlier versions saved one, the final hidden state's."""
    if scores.baselines is not None:
        if "final_hidden" not in scores.baselines:
            raise ValueError("its baselines are without final_hidden")
        return {
            name: Baseline(
                _numbers(CurveRow, one.row),
                None if one.held_out is None else _numbers(Comparison, one.held_out),
                None if one.test is None else _numbers(Comparison, one.test),
            )
            for name, one in scores.baselines.items()
            if name in NAMES
        }
    return scores.baseline and {"final_hidden": Baseline(_numbers(CurveRow, scores.baseline), None, None)}


def _error_promise(record: ErrorPromiseRecord, description: Description, task: Task, heads: Mapping[int, Head]) -> ErrorPromise:
    """The result of a calibration with max_error; ValueError unless its own counts support it."""
    if description.promise is not None:
        raise ValueError("it has a promise and an error_promise; expected one of them")
    promise = ErrorPromise(**{**msgspec.structs.asdict(record), "exit": _exit(record.exit, task, heads)})
    if not promise.is_kept(deepest=max(heads)):
        raise ValueError(
            f"{promise.n_wrong} wrong of {promise.n_answered} answered of {promise.n_texts} texts are too many to promise an "
            f"error of at most {promise.max_error:g} with confidence {promise.confidence:g} under exit {promise.exit}"
        )
    return promise


def _numbers(kind: Any, record: msgspec.Struct) -> Any:
    """A row of scores. null stands for a required score that was no finite number."""
    values = msgspec.structs.asdict(record)
    required = ("validation",) if kind is CurveRow else kind._fields
    return kind(**{name: math.nan if value is None and name in required else value for name, value in values.items()})


def check_base_model(saved: Saved, checkpoint: Checkpoint) -> None:
    """InputError unless weights and tokenizer are, to the bit, those the classifier was fitted on. Loads no weights."""
    base, config = saved.description.base_model, checkpoint.config
    if base.depth > config.n_layers:
        raise InputError(
            f"{saved.name}: runs {base.depth} layers, base model {checkpoint.name!r} has {config.n_layers}: it was fitted on "
            "another one; name that with base_model"
        )
    expected = {"weights": base.fingerprint, "tokenizer": base.tokenizer_fingerprint}
    tokenizer = checkpoint.tokenizer.fingerprint_like(base.tokenizer_fingerprint)
    now = {"weights": checkpoint.fingerprint(base.depth), "tokenizer": tokenizer}
    for what, was in expected.items():
        if was != now[what]:
            raise InputError(
                f"{saved.name}: the {what} of base model {checkpoint.name!r} changed since the classifier was fitted "
                f"(sha256 {now[what][:12]}..., expected {was[:12]}...); bring back the old files, name them with "
                "base_model, or fit again"
            )
    for name, tensor in saved.tensors.items():
        _, *feature = name.split(".")
        if feature[0] != "neurons" or not len(tensor):
            continue
        width = config.d_model if feature[1] == "hidden" else config.ffn_width(int(feature[3]))
        if int(tensor.max()) >= width:
            raise InputError(f"{saved.name}: {name} holds neuron {int(tensor.max())}, a layer has 0 to {width - 1}; {NOT_OURS}")


def _plain(value: Any) -> Any:
    """The same value as JSON knows it: sequences and arrays are lists, NumPy's numbers Python's, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_plain(inner) for inner in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
