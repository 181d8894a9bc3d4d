"""One object per kind of head: how it is fitted, what it gives, how it is explained and saved, which options it uses."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from spin_native.classifier.fitting import Standardizer
from spin_native.classifier.heads.base import OPTIONS, Head, checked, describe, head_tensors
from spin_native.classifier.heads.constant import ConstantHead
from spin_native.classifier.heads.frozen import FrozenHead
from spin_native.classifier.heads.refit import RefitHead
from spin_native.classifier.heads.weighted import WeightedHead
from spin_native.classifier.tasks import Task
from spin_native.errors import InputError
from spin_native.features.store import FeatureKey
from spin_native.probes.importance import Cut

HEADS: dict[str, type[Head]] = {head.kind: head for head in (RefitHead, FrozenHead, WeightedHead)}

__all__ = ["HEADS", "ConstantHead", "Head", "RefitHead", "check_options", "describe", "head_tensors", "read_head"]


def check_options(name: str, given: Mapping[str, Any]) -> None:
    """InputError for an option that this kind of head does not use.

    given: the estimator's parameters by name.
    """
    for option, neutral in OPTIONS.items():
        value = given[option]
        asks_nothing = (value is None or isinstance(value, str)) and value in neutral
        if option not in HEADS[name].options and not asks_nothing:
            users = " or ".join(repr(kind) for kind, head in HEADS.items() if option in head.options)
            raise InputError(f"{option}={value!r} is for head={users}; head={name!r} does not use it: leave it out")


def read_head(description: Mapping[str, Any], tensors: Mapping[str, np.ndarray], task: Task) -> Head:
    """A head from its description and its tensors; KeyError or ValueError if they do not fit together."""
    features = [FeatureKey(read["site"], read["pooling"], read["layer"]) for read in description["reads"]]
    neurons = {f: tensors[f"neurons.{f.site}.{f.pooling}.{f.layer}"] for f in features}
    width = sum(map(len, neurons.values()))
    kind = HEADS[description["kind"]] if width else ConstantHead
    if description["model"] != kind.saved_model:
        raise ValueError(f"a {description['kind']} head is a {description['model']} model; expected {kind.saved_model}")
    cut = Cut(description["cut"]["by"], description["cut"]["amount"])
    standardizer = Standardizer(checked(tensors, "mean", width), checked(tensors, "scale", width))
    return kind.from_tensors(task, cut, neurons, standardizer, description["C"], tensors)
