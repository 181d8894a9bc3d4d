"""Hand-written forward passes. Read `transformer.py` (the loop), `layers.py` (the parts), then a family."""

from spin_native.models.bert import Bert
from spin_native.models.config import Family, ModelConfig
from spin_native.models.distilbert import DistilBert
from spin_native.models.gpt2 import Gpt2
from spin_native.models.roberta import Roberta
from spin_native.models.transformer import Layer, Transformer, checked_depth

FAMILIES: dict[Family, type[Transformer]] = {"roberta": Roberta, "bert": Bert, "distilbert": DistilBert, "gpt2": Gpt2}

__all__ = [
    "FAMILIES",
    "Bert",
    "DistilBert",
    "Gpt2",
    "Layer",
    "ModelConfig",
    "Roberta",
    "Transformer",
    "checked_depth",
]
