"""One file per family: its config reader, embedding, block, weight table and head table. A new family adds a line here."""

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from spin_native.errors import InputError
from spin_native.models.config import ConfigFile, ModelConfig
from spin_native.models.families.bert import Bert
from spin_native.models.families.distilbert import DistilBert
from spin_native.models.families.gpt2 import Gpt2
from spin_native.models.families.mpnet import Mpnet
from spin_native.models.families.roberta import Roberta
from spin_native.models.families.xlm_roberta import XlmRoberta
from spin_native.models.transformer import Transformer

FAMILIES: dict[str, type[Transformer]] = {
    family.model_type: family
    for family in (
        Roberta,
        Bert,
        DistilBert,
        Gpt2,
        Mpnet,
        XlmRoberta,
    )
}


def read_config(content: Mapping[str, Any], where: str) -> ModelConfig:
    """A parsed `config.json` (`where` names it in errors) as its family's config.

    Raises InputError, by name, for a model type or setting that is not implemented, and for missing or impossible sizes.
    """
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{where}: model_type is {model_type!r}; supported are {', '.join(FAMILIES)}")
    file = ConfigFile(content, where)
    return file.checked(FAMILIES[model_type].read_config(file))


def family_of(names: Iterable[str], where: str) -> str:
    """The model_type of a checkpoint whose config.json (`where`) does not say it, from its tensors' names.

    Raises InputError, with the line to add, where the names are those of no family or of several.
    """
    names = list(names)
    certain = [
        family.model_type
        for family in FAMILIES.values()
        if family.certain_names and all(any(fnmatchcase(n, pattern) for n in names) for pattern in family.certain_names)
    ]
    if len(certain) == 1:
        return certain[0]
    possible = [family.model_type for family in FAMILIES.values() if family.weights.fit(names)]
    lines = " or ".join(f'"model_type": {json.dumps(name)}' for name in possible or FAMILIES)
    raise InputError(
        f"{where}: names no model_type, and its tensors' names fit {', '.join(possible) or 'no family'}; add the line of its "
        f"family to it: {lines}"
    )


def new_model(config: ModelConfig, depth: int | None = None) -> Transformer:
    """The model of a config, with parameters that are yet to be filled."""
    family: Any = FAMILIES[config.family]  # every family's constructor takes (config, depth)
    return family(config, depth)
