"""Classifiers of strangers, their checksums forged to fit: every index, number and name is checked, and the fault is named."""

import hashlib
import json

import numpy as np
import pytest
from old_classifier import LINEAR, PERCEPTRON, write_old
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

import spin_native as sn


def forge(folder, change=None, edit=None):
    """Change the tensors and the description, and give the description the new tensors' sha256."""
    tensors = load_arrays(folder / "head.safetensors")
    if change:
        change(tensors)
    save_arrays({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "head.safetensors")
    description = json.loads((folder / "spin_classifier.json").read_text())
    description["head_sha256"] = hashlib.sha256((folder / "head.safetensors").read_bytes()).hexdigest()
    if edit:
        edit(description)
    (folder / "spin_classifier.json").write_text(json.dumps(description))


@pytest.fixture
def linear(tiny_model, tmp_path):
    """A classifier with linear heads at depths 1 and 2; the neurons of the second are 3 and 17 of layer 0 and 5 of layer 1."""
    write_old(tmp_path, tiny_model, "refit", LINEAR)
    return tmp_path


NEURONS, WEIGHTS = "2.neurons.activation.mean.0", "2.coef"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({NEURONS: np.array([17, 3])}), "neurons.activation.mean.0 is int64 .*expected 2 ascending int64"),
        (lambda t: t.update({NEURONS: np.array([3, 3])}), "expected 2 ascending int64 numbers from 0"),
        (lambda t: t.update({NEURONS: np.array([-1, 3])}), "expected 2 ascending int64 numbers from 0"),
        (lambda t: t.update({NEURONS: np.array([3.0, 17.0])}), "neurons.activation.mean.0 is float64"),
        (lambda t: t.update({NEURONS: np.array([3])}), r"neurons.activation.mean.0 is int64 \(1,\), expected 2"),
        (lambda t: t.update({NEURONS: np.array([[3, 17]])}), r"neurons.activation.mean.0 is int64 \(1, 2\)"),
        (lambda t: t.update({NEURONS: np.array([3, 32])}), "holds neuron 32, a layer has 0 to 31"),
        (lambda t: t.update({NEURONS: np.array([3, 2**62])}), "holds neuron 4611686018427387904, a layer has 0 to 31"),
        (lambda t: t.update({"2.neurons.hidden.mean.1": np.array([16])}), "holds neuron 16, a layer has 0 to 15"),
        (lambda t: t["2.scale"].__setitem__(1, 0), "scale holds a number that is not positive"),
        (lambda t: t["2.scale"].__setitem__(1, -1), "scale holds a number that is not positive"),
        (lambda t: t["2.mean"].__setitem__(1, np.nan), "mean is .*expected .*finite"),
        (lambda t: t[WEIGHTS].__setitem__((0, 1), np.inf), "coef is .*expected .*finite"),
        (lambda t: t.update({WEIGHTS: t[WEIGHTS].T}), r"coef is float64 \(3, 1\), expected \(1, 3\)"),
        (lambda t: t.update({WEIGHTS: t[WEIGHTS].astype(np.int64)}), "coef is int64"),
        (lambda t: t.update({WEIGHTS: np.zeros((2, 3))}), r"coef is float64 \(2, 3\), expected \(1, 3\)"),
        (lambda t: t.pop("2.intercept"), "'intercept'"),
        (lambda t: t.update({"2.more": np.zeros(2)}), "no head reads its tensor 2.more"),
        (lambda t: t.update({"3.coef": np.zeros(2)}), "no head reads its tensor 3.coef"),
    ],
)
def test_forged_tensors_are_refused_by_name(linear, change, message):
    forge(linear, change)
    with pytest.raises(sn.InputError, match=message):
        sn.SpinClassifier.from_pretrained(linear)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["heads"]["2"]["reads"][0].update(layer=2), "the head at depth 2 reads .*layers below 2"),
        (lambda d: d["heads"]["2"]["reads"].append(d["heads"]["2"]["reads"][0]), "expected different features"),
        (lambda d: d["heads"]["2"]["reads"][0].update(site="attention"), r"'attention' - at .*\.reads\[0\]\.site`"),
        (lambda d: d["heads"]["2"]["reads"][0].update(pooling="median"), "Invalid enum value 'median'"),
        (lambda d: d["heads"]["2"].update(kind="forest"), "Invalid enum value 'forest'"),
        (lambda d: d["heads"]["2"].update(model="perceptron"), "a refit head is a perceptron model; expected linear"),
        (lambda d: d["heads"]["2"]["cut"].update(amount=0), r"top_k is 0; expected a whole number.*\.cut`"),
        (lambda d: d["heads"]["2"].update(C=-1), "Expected `float` > 0"),
        (lambda d: d.update(heads={"2": d["heads"]["2"], "1": d["heads"]["1"]}), "at depths 2, 1; expected ascending"),
        (lambda d: d.update(heads={"1": d["heads"]["1"]}), "its deepest head is at 1, its depth is 2|no head reads"),
        (lambda d: d.update(heads={"x": d["heads"]["1"]}), "its heads are at depths x"),
        (lambda d: d["base_model"].update(depth=10**30), r"at `\$\.base_model\.depth`"),
        (lambda d: d["base_model"].update(name=3), r"Expected `str`, got `int` - at `\$\.base_model\.name`"),
        (lambda d: d.update(labels=["a", "a"]), "expected different ones of one type"),
        (lambda d: d.update(labels=["a", 1]), "expected different ones of one type"),
        (lambda d: d.update(labels=[1.5, 2.5]), r"at `\$\.labels"),
        (lambda d: d.update(labels=["a", "b", "c"]), r"coef is float64 \(1, 0\), expected \(3, 0\)"),
        (lambda d: d.update(task="ranking"), "Invalid enum value 'ranking'"),
        (lambda d: d.update(exit="fixed:7"), "no head at depth 7; there are heads at 1, 2"),
        (lambda d: d.update(exit="patience:2"), "patience 2 needs more than the 2 heads"),
        (lambda d: d["promise"].update(n_harmed=400), "400 of 500 rows harmed are too many to promise a drop of at most 0.01"),
        (lambda d: d["promise"].update(n_texts=10**6), "are too many to promise"),  # more texts than its 500 rows
        (lambda d: d["promise"].update(n_harmed=-1), r"at `\$\.promise\.n_harmed`"),
        (lambda d: d["promise"].update(confidence=1.0), r"at `\$\.promise\.confidence`"),
        (lambda d: d["settings"].update(metric="luck"), "metric is 'luck'"),
        (lambda d: d["settings"].update(allow_pickle=True), "settings name allow_pickle"),
        (lambda d: d["settings"].update(surprise=1), "surprise"),
        (lambda d: d["scores"].update(baselines={}), "its baselines are without final_hidden"),
        (lambda d: d["scores"].update(depth_curve=[{"depth": 1}]), r"missing required field .*scores\.depth_curve\[0\]`"),
    ],
)
def test_a_forged_description_is_refused_by_the_field(linear, edit, message, unchecked):
    forge(linear, edit=edit)
    with pytest.raises(sn.InputError, match=rf"not a classifier that spin_native saved .*({message})"):
        sn.SpinClassifier.from_pretrained(linear)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"2.weights.1": np.zeros((3, 1))}), r"weights.1 is float64 \(3, 1\), expected \(2, 1\)"),
        (lambda t: t.update({"2.biases.1": np.zeros(2), "2.weights.1": np.zeros((2, 2))}), "has 2 outputs, expected 1"),
        (lambda t: [t.pop(name) for name in PERCEPTRON], "the last of 0 layers"),
        (lambda t: t.update({"2.biases.0": np.zeros((1, 2))}), "a bias is no list of numbers"),
    ],
)
def test_a_perceptron_whose_layers_do_not_chain_is_refused(tiny_model, tmp_path, change, message):
    write_old(tmp_path, tiny_model, "weighted", PERCEPTRON)
    forge(tmp_path, change)
    with pytest.raises(sn.InputError, match=message):
        sn.SpinClassifier.from_pretrained(tmp_path)


def test_fields_of_a_later_version_are_skipped(linear):
    forge(linear, edit=lambda d: (d.update(later={"x": [1]}), d["heads"]["2"].update(later=1)))
    assert sn.SpinClassifier.from_pretrained(linear).depth_ == 2
