"""Read neurons out of language models: native activations, linear probes, early-exit classifiers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spin_native.version import __version__

if TYPE_CHECKING:
    from spin_native import analyses
    from spin_native.checkpoints import load_model, load_tokenizer
    from spin_native.classifier.estimators import SpinClassifier, SpinMultilabelClassifier, SpinRegressor
    from spin_native.errors import InputError
    from spin_native.features import pooling
    from spin_native.features.extract import extract
    from spin_native.features.pooling import masked_first, masked_last, masked_max, masked_mean
    from spin_native.features.store import ActivationStore
    from spin_native.inspection import inspect
    from spin_native.parity import verify_parity
    from spin_native.probes import LinearProbe, LogisticProbe
    from spin_native.serving.predict import predict_files
    from spin_native.text.batch import TokenBatch

# Public name -> its module, imported when the name is first used: torch and scikit-learn take seconds that
# `spin-native --help` need not wait for.
_MODULES = {
    "ActivationStore": "features.store",
    "InputError": "errors",
    "LinearProbe": "probes",
    "LogisticProbe": "probes",
    "SpinClassifier": "classifier.estimators",
    "SpinMultilabelClassifier": "classifier.estimators",
    "SpinRegressor": "classifier.estimators",
    "TokenBatch": "text.batch",
    "analyses": "analyses",  # the module itself
    "extract": "features.extract",
    "inspect": "inspection",
    "load_model": "checkpoints",
    "load_tokenizer": "checkpoints",
    "masked_first": "features.pooling",
    "masked_last": "features.pooling",
    "masked_max": "features.pooling",
    "masked_mean": "features.pooling",
    "pooling": "features.pooling",  # the module itself
    "predict_files": "serving.predict",
    "verify_parity": "parity",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'spin_native' has no attribute {name!r}")
    module = import_module(f"spin_native.{_MODULES[name]}")
    globals()[name] = value = module if name in ("analyses", "pooling") else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
