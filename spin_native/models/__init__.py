"""Hand-written forward passes. Read `families/bert.py`, then `layers.py`, `attention.py`, and the loop in `transformer.py`."""

from spin_native.models.config import ConfigFile, ModelConfig
from spin_native.models.families import FAMILIES, family_of, new_model, read_config
from spin_native.models.transformer import Edit, Layer, Transformer, checked_depth

__all__ = [
    "FAMILIES",
    "ConfigFile",
    "Edit",
    "Layer",
    "ModelConfig",
    "Transformer",
    "checked_depth",
    "family_of",
    "new_model",
    "read_config",
]
