"""A classifier as version 0.1 wrote it, with numbers that can be computed by hand."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file as save_arrays

from spin_native.checkpoints import Checkpoint, Location

OLD = """{
 "format": 2, "head_sha256": "SHA", "spin_native": "0.1.0", "task": "classification",
 "base_model": {"name": "MODEL", "revision": null, "depth": 2, "fingerprint": "WEIGHTS", "tokenizer_fingerprint": "TOKENIZER"},
 "labels": ["negative", "positive"],
 "heads": {
  "1": {"kind": "refit", "reads": [{"site": "activation", "pooling": "mean", "layer": 0, "salient_neurons": 0}],
        "cut": {"by": "top_k", "amount": 2}, "C": 1.0, "model": "linear"},
  "2": {"kind": "KIND", "reads": [{"site": "activation", "pooling": "mean", "layer": 0, "salient_neurons": 2},
                                  {"site": "hidden", "pooling": "mean", "layer": 1, "salient_neurons": 1}],
        "cut": {"by": "top_k", "amount": 2}, "C": 0.5, "model": "ARCHITECTURE"}
 },
 "exit": "confidence:0.75",
 "promise": {"exit": "confidence:0.75", "max_accuracy_drop": 0.01, "confidence": 0.95, "n_rows": 500, "n_harmed": 0,
             "mean_depth": 1.5},
 "settings": {"depth": "best", "tolerance": 0.0, "sites": ["activation", "hidden"], "poolings": ["mean"], "mixing": "best",
              "head": "KIND", "phase_two": "seen", "ranker": "squared", "etas": [0.2, 0.4, 0.6, 0.8, 0.9, 1.0], "top_k": [2],
              "top_share": null, "Cs": null, "head_Cs": null, "scaling": "standard", "final_rows": null, "metric": null,
              "validation_share": 0.2, "sample": null, "exits": "all", "baseline": true, "dtype": "float32", "seed": 0},
 "scores": {
  "metric": "accuracy",
  "baseline": {"depth": 3, "validation": 0.75, "test": null, "n_neurons": 16, "pooling": "mean", "eta": null, "C": 0.1,
               "site": "hidden"},
  "depth_curve": [{"depth": 2, "validation": 0.5, "test": null, "n_neurons": 3, "pooling": "mean", "eta": 2, "C": 0.5,
                   "site": "activation+hidden"}],
  "layer_curve": [],
  "controls": {"salient": 0.5, "random": 0.25, "bottom": 0.25, "shuffled": 0.125, "selectivity": 0.375},
  "unconverged": []
 }
}"""
LINEAR = {"2.coef": np.array([[2.0, -1.0, 0.5]]), "2.intercept": np.array([0.25])}
PERCEPTRON = {
    "2.weights.0": np.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.25]]),
    "2.biases.0": np.array([0.1, -0.2]),
    "2.weights.1": np.array([[1.5], [-0.5]]),
    "2.biases.1": np.array([0.3]),
}


def write_old(folder: Path, base_model: Path, kind: str, model: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Write it to a folder; its tensors. Heads at depths 1 (a constant) and 2. model: LINEAR or PERCEPTRON."""
    tensors = {
        "1.neurons.activation.mean.0": np.empty(0, np.int64),
        "1.mean": np.empty(0, np.float32),
        "1.scale": np.empty(0, np.float32),
        "1.coef": np.zeros((1, 0)),
        "1.intercept": np.array([-0.5]),
        "2.neurons.activation.mean.0": np.array([3, 17]),
        "2.neurons.hidden.mean.1": np.array([5]),
        "2.mean": np.array([0.1, -0.2, 0.3], np.float32),
        "2.scale": np.array([0.5, 1.0, 2.0], np.float32),
        **model,
    }
    save_arrays(tensors, folder / "head.safetensors")
    checkpoint = Checkpoint(Location(base_model))
    text = OLD.replace("SHA", hashlib.sha256((folder / "head.safetensors").read_bytes()).hexdigest())
    text = text.replace("MODEL", str(base_model)).replace("WEIGHTS", checkpoint.fingerprint(2)).replace("KIND", kind)
    text = text.replace("TOKENIZER", checkpoint.tokenizer.fingerprint)
    (folder / "spin_classifier.json").write_text(
        text.replace("ARCHITECTURE", "perceptron" if model is PERCEPTRON else "linear")
    )
    return tensors
