"""A classifier on disk: `spin_classifier.json`, readable by eye, and `head.safetensors`. Nothing is pickled.

The tensors are written first and the JSON, which holds their sha256, last: half-written or mixed-up folders are noticed.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from spin_native.checkpoints import Location
from spin_native.errors import InputError
from spin_native.integration import Head, Standardizer
from spin_native.probes import LogisticProbe
from spin_native.store import write_bytes, write_json

DESCRIPTION, TENSORS = "spin_classifier.json", "head.safetensors"
FORMAT = 1


def write_classifier(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write both files; the same content gives the same bytes. InputError if the disk does not take them."""
    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / TENSORS, content)
        write_json(folder / DESCRIPTION, {"format": FORMAT, "head_sha256": _sha256(content), **description})
    except OSError as error:
        raise InputError(
            f"{folder}: the classifier could not be written ({error}); choose another folder or make room"
        ) from error


def read_classifier(location: Location) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the tensors; InputError if they are damaged or do not belong together."""
    description = location.read_json(DESCRIPTION)
    if description.get("format") != FORMAT:
        raise InputError(
            f"{location.name}/{DESCRIPTION}: format {description.get('format')!r}; expected {FORMAT}: save the classifier again"
        )
    content = location.need(TENSORS).read_bytes()
    if _sha256(content) != description.get("head_sha256"):
        raise InputError(
            f"{location.name}/{TENSORS}: not the file that {DESCRIPTION} describes (its sha256 differs): fetch or save the "
            "classifier again"
        )
    try:
        return description, load(content)
    except SafetensorError as error:
        raise InputError(f"{location.name}/{TENSORS}: damaged ({error}); save the classifier again") from error


def describe_head(head: Head) -> dict[str, Any]:
    """What a reader wants to know of a head; its numbers are in `head_tensors`."""
    return {
        "pooling": head.pooling,
        "eta": head.eta,
        "C": head.probe.C,
        "salient_neurons": {str(layer): len(neurons) for layer, neurons in head.neurons.items()},
    }


def head_tensors(head: Head) -> dict[str, np.ndarray]:
    """neurons.{layer}: salient neuron indices; mean, scale: of their features; coef [output, salient], intercept [output]."""
    neurons = {f"neurons.{layer}": indices for layer, indices in head.neurons.items()}
    mean, scale = head.standardizer.mean, head.standardizer.scale
    return {**neurons, "mean": mean, "scale": scale, "coef": head.probe.coef_, "intercept": head.probe.intercept_}


def read_head(description: Mapping[str, Any], tensors: Mapping[str, np.ndarray], n_classes: int) -> Head:
    """A head from its description and tensors; KeyError or ValueError if they do not fit together."""
    layers = sorted(int(name.removeprefix("neurons.")) for name in tensors if name.startswith("neurons."))
    neurons = {layer: tensors[f"neurons.{layer}"] for layer in layers}
    width, outputs = sum(map(len, neurons.values())), 1 if n_classes == 2 else n_classes
    shapes = {"mean": (width,), "scale": (width,), "coef": (outputs, width), "intercept": (outputs,)}
    for name, shape in shapes.items():
        if tensors[name].shape != shape or not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} is {tensors[name].shape}, expected {shape} finite numbers")
    probe = LogisticProbe.from_weights(tensors["coef"], tensors["intercept"], C=description["C"], l1_ratio=0.0)
    standardizer = Standardizer(tensors["mean"], tensors["scale"])
    return Head(description["pooling"], description["eta"], neurons, standardizer, probe)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
