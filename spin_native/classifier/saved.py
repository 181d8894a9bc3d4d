"""A classifier on disk: `spin_classifier.json`, readable by eye, and `head.safetensors`. Nothing is pickled.

The tensors are written first and the JSON, which holds their sha256, last: half-written or mixed-up folders are noticed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from spin_native.checkpoints import Location
from spin_native.classifier.integration import Head, Standardizer
from spin_native.classifier.perceptron import Perceptron
from spin_native.disk import write_bytes, write_json
from spin_native.errors import InputError
from spin_native.features.store import Feature
from spin_native.probes.importance import Cut
from spin_native.probes.probes import LinearProbe, LogisticProbe

DESCRIPTION, TENSORS = "spin_classifier.json", "head.safetensors"
FORMAT = 2


def write_classifier(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write both files; the same content gives the same bytes. InputError if the disk does not take them."""
    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    description = {name: plain(value) for name, value in description.items()}
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


def plain(value: Any) -> Any:
    """The same in what JSON knows: sequences and arrays are lists, NumPy's numbers Python's."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return [plain(inner) for inner in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def describe_head(head: Head) -> dict[str, Any]:
    """What a reader wants to know of a head; its numbers are in `head_tensors`."""
    return {
        "kind": head.kind,
        "reads": [{**feature._asdict(), "salient_neurons": len(neurons)} for feature, neurons in head.neurons.items()],
        "cut": {"by": head.cut.by, "amount": head.cut.amount},
        "C": head.C,
        "model": "perceptron" if isinstance(head.model, Perceptron) else "linear",
    }


def head_tensors(head: Head) -> dict[str, np.ndarray]:
    """neurons.{site}.{pooling}.{layer}: salient neuron indices; mean, scale: of their features; and the model's numbers.

    Of a linear model coef [output, salient] and intercept [output]; of a perceptron weights.{i} [from, to] and biases.{i} [to].
    """
    tensors = {f"neurons.{f.site}.{f.pooling}.{f.layer}": indices for f, indices in head.neurons.items()}
    tensors |= {"mean": head.standardizer.mean, "scale": head.standardizer.scale}
    if isinstance(head.model, Perceptron):
        tensors |= {f"weights.{i}": array for i, array in enumerate(head.model.weights)}
        return tensors | {f"biases.{i}": array for i, array in enumerate(head.model.biases)}
    return {**tensors, "coef": head.model.coef_, "intercept": head.model.intercept_}


def read_head(description: Mapping[str, Any], tensors: Mapping[str, np.ndarray], prefix: str, n_classes: int) -> Head:
    """A head from its description and tensors; KeyError or ValueError if they do not fit together.

    prefix: of the head's tensors. n_classes: 0 for a regression.
    """
    features = [Feature(read["site"], read["pooling"], read["layer"]) for read in description["reads"]]
    neurons = {f: tensors[f"{prefix}neurons.{f.site}.{f.pooling}.{f.layer}"] for f in features}
    width, outputs = sum(map(len, neurons.values())), 1 if n_classes in (0, 2) else n_classes

    def get(name: str, *shape: int) -> np.ndarray:
        tensor = tensors[prefix + name]
        if tensor.shape != shape or not np.isfinite(tensor).all():
            raise ValueError(f"{prefix}{name} is {tensor.shape}, expected {shape} finite numbers")
        return tensor

    model: LogisticProbe | LinearProbe | Perceptron
    if description["model"] == "perceptron":
        biases = [tensors[f"{prefix}biases.{i}"] for i in range(sum(name.startswith(f"{prefix}biases.") for name in tensors))]
        sizes = [width, *map(len, biases)]
        if sizes[-1] != outputs:
            raise ValueError(f"the last layer has {sizes[-1]} outputs, expected {outputs}")
        weights = tuple(get(f"weights.{i}", *sizes[i : i + 2]) for i in range(len(biases)))
        model = Perceptron(weights, tuple(get(f"biases.{i}", len(bias)) for i, bias in enumerate(biases)), n_classes)
    else:
        probe_type = LogisticProbe if n_classes else LinearProbe
        coef, intercept = get("coef", outputs, width), get("intercept", outputs)
        model = probe_type.from_weights(coef, intercept, C=description["C"], l1_ratio=0.0)
    cut = Cut(description["cut"]["by"], description["cut"]["amount"])
    return Head(description["kind"], cut, neurons, Standardizer(get("mean", width), get("scale", width)), model)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
