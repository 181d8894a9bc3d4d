"""Read neurons out of language models: native activations, linear probes, early-exit classifiers."""

from spin_native.checkpoints import load_model, load_tokenizer
from spin_native.classifier.estimators import SpinClassifier, SpinRegressor
from spin_native.errors import InputError
from spin_native.features import pooling
from spin_native.features.extract import extract
from spin_native.features.pooling import masked_first, masked_last, masked_max, masked_mean
from spin_native.features.store import ActivationStore
from spin_native.parity import verify_parity
from spin_native.probes.probes import LinearProbe, LogisticProbe
from spin_native.text.batch import TokenBatch
from spin_native.version import __version__

__all__ = [
    "ActivationStore",
    "InputError",
    "LinearProbe",
    "LogisticProbe",
    "SpinClassifier",
    "SpinRegressor",
    "TokenBatch",
    "__version__",
    "extract",
    "load_model",
    "load_tokenizer",
    "masked_first",
    "masked_last",
    "masked_max",
    "masked_mean",
    "pooling",
    "verify_parity",
]
