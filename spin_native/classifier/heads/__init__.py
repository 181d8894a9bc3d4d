"""One object per kind of head: how it is fitted, what it gives, how it is explained and saved, which options it uses."""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from spin_native.classifier.fitting import Standardizer
from spin_native.classifier.heads.base import (
    OF_SELECTION,
    OPTIONS,
    Head,
    SelectedHead,
    checked,
    checked_neurons,
    describe,
    head_tensors,
)
from spin_native.classifier.heads.constant import ConstantHead
from spin_native.classifier.heads.dense import DenseHead
from spin_native.classifier.heads.frozen import FrozenHead
from spin_native.classifier.heads.refit import RefitHead
from spin_native.classifier.heads.weighted import WeightedHead
from spin_native.classifier.records import HeadRecord
from spin_native.classifier.settings import HeadName
from spin_native.classifier.tasks import Task
from spin_native.errors import InputError
from spin_native.features.store import FeatureKey

PUBLISHED_HEADS: dict[str, type[SelectedHead]] = {head.kind: head for head in (RefitHead, FrozenHead, WeightedHead)}
HEADS: dict[str, type[Head]] = {DenseHead.kind: DenseHead, **PUBLISHED_HEADS}

__all__ = [
    "HEADS",
    "PUBLISHED_HEADS",
    "ConstantHead",
    "Head",
    "RefitHead",
    "check_options",
    "describe",
    "head_name",
    "head_tensors",
    "read_head",
]


def head_type(name: str) -> type[Head]:
    """The kind of head; "best" is the best of several dense ones."""
    return HEADS["dense" if name == "best" else name]


def head_name(given: Mapping[str, Any]) -> str:
    """The kind of head that the estimator's parameters ask for.

    None is "best"; or "refit", which selects neurons as SPIN does, where an option of the selection is given.
    """
    if given["head"] is not None:
        return given["head"]
    return "best" if all(_asks_nothing(option, given[option]) for option in OF_SELECTION) else "refit"


def _asks_nothing(option: str, value: Any) -> bool:
    return (value is None or isinstance(value, (str, float))) and value in OPTIONS[option]


def check_options(name: str, given: Mapping[str, Any]) -> None:
    """InputError for an option that this kind of head does not use.

    given: the estimator's parameters by name.
    """
    options = head_type(name).options
    for option in OPTIONS:
        value = given[option]
        if option not in options and not _asks_nothing(option, value):
            users = ", ".join(repr(kind) for kind in get_args(HeadName) if option in head_type(kind).options)
            raise InputError(f"{option}={value!r} is for head={users}; head={name!r} does not use it: leave it out")


def read_head(record: HeadRecord, tensors: Mapping[str, np.ndarray], task: Task, depth: int) -> Head:
    """The head at a depth, from its record and its tensors; KeyError or ValueError if they do not fit together."""
    neurons = {}
    for read in record.reads:
        feature = FeatureKey(read.site, read.pooling, read.layer)
        if feature in neurons or read.layer >= depth + (read.site == "hidden"):
            raise ValueError(
                f"the head at depth {depth} reads {feature}; expected different features of layers below {depth}, or the "
                "hidden state after them"
            )
        neurons[feature] = checked_neurons(tensors, f"neurons.{read.site}.{read.pooling}.{read.layer}", read.salient_neurons)
    width = sum(map(len, neurons.values()))
    kind = HEADS[record.kind] if width else ConstantHead
    if record.model != kind.saved_model:
        raise ValueError(f"a {record.kind} head is a {record.model} model; expected {kind.saved_model}")
    scale = checked(tensors, "scale", width)
    if not (scale > 0).all():
        raise ValueError("scale holds a number that is not positive")
    standardizer = Standardizer(checked(tensors, "mean", width), scale)
    return kind.from_tensors(task, record.cut, neurons, standardizer, record.C, tensors)
