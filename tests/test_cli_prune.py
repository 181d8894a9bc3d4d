"""The `prune` command: which neurons it keeps, and what it refuses."""

import json

import numpy as np
import pytest
import transformers
from commands import Spin, labelled, write
from tiny import reference_values

import spin_native as sn
from spin_native.analyses import pruning


@pytest.fixture(scope="module")
def activations(tiny_model, texts):
    """transformers' activations of every text's tokens: layer -> list of [token, neuron]."""
    reference = transformers.BertModel.from_pretrained(tiny_model).double().eval()
    ids = sn.load_tokenizer(tiny_model).encode(texts).ids
    by_text = [reference_values(reference, [row]) for row in ids]
    return {layer: [found["activation", layer].numpy() for found in by_text] for layer in range(3)}


@pytest.fixture
def spin(capsys):
    return Spin(capsys)


@pytest.fixture
def data(texts, labels, tmp_path):
    return write(tmp_path / "texts.csv", labelled(texts, labels))


def test_the_command_keeps_the_neurons_of_largest_mean_absolute_activation(spin, tiny_model, data, activations, tmp_path):
    options = ("--data", data, "--keep", 0.1, "--layers", "0,1-1", "--out", tmp_path / "pruned", "--by", "activation")
    code, out, err = spin("prune", tiny_model, *options)
    assert (code, out) == (0, "")
    assert "40 of 96 neurons kept, 2 layers pruned" in err
    kept = json.loads((tmp_path / "pruned" / "pruning.json").read_text())["kept"]
    for layer in (0, 1):
        order = np.argsort(-np.abs(np.concatenate(activations[layer])).mean(0))
        assert kept[str(layer)] == sorted(order[:4].tolist())
    assert sn.load_model(tmp_path / "pruned").config.ffn_widths == (4, 4, 32)
    assert sn.load_tokenizer(tmp_path / "pruned").encode(["good film"]) == sn.load_tokenizer(tiny_model).encode(["good film"])


def test_the_command_keeps_the_neurons_that_predict_the_label(spin, tiny_model, data, labels, activations, tmp_path):
    options = ("--keep", 0.1, "--by", "predictivity", "--out", tmp_path / "pruned")
    assert spin("prune", tiny_model, "--data", data, *options)[0] == 0
    kept = json.loads((tmp_path / "pruned" / "pruning.json").read_text())["kept"]
    positive = np.array(labels) == "positive"
    for layer in range(3):
        pooled = np.array([tokens.mean(0) for tokens in activations[layer]])
        accuracy = ((pooled > pooled.mean(0)) == positive[:, None]).mean(0)
        best = np.maximum(accuracy, 1 - accuracy)
        assert min(best[kept[str(layer)]]) >= sorted(best)[-4] - 1e-12
        assert len(kept[str(layer)]) == 4
    assert transformers.BertModel.from_pretrained(tmp_path / "pruned").config.intermediate_size == 4


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_the_command_keeps_the_neurons_of_a_table(spin, tiny_model, data, ending, tmp_path):
    rows = [{"layer": 2, "neuron": neuron, "importance": float(neuron % 7)} for neuron in range(31, 20, -1)]
    table = write(tmp_path / f"neurons{ending}", rows)
    options = ("--importance", table, "--keep", 0.05, "--pad", "--out", tmp_path / "pruned")
    assert spin("prune", tiny_model, "--data", data, *options)[0] == 0
    record = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    assert record["kept"] == {"2": [26, 27]}
    assert transformers.BertModel.from_pretrained(tmp_path / "pruned").config.intermediate_size == 32


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], ("--keep", "0"), "share is 0.0; expected a number above 0"),
        ([], ("--layers", "1-3"), "--layers: no layer 3; the model has layers 0 to 2"),
        ([], ("--by", "predictivity", "--label", "text", "--text", "none"), "none"),
        ([{"layer": 3, "neuron": 1, "importance": 1}], (), "row 0: no layer 3"),
        ([{"layer": 2, "neuron": 32, "importance": 1}], (), "row 0: neuron 32 of layer 2; expected 0 to 31"),
        ([{"layer": 2, "neuron": 1.5, "importance": 1}], (), "row 0: neuron is '1.5'; expected a whole number"),
        ([{"layer": 2, "neuron": 1, "importance": "nan"}], (), "row 0: importance is 'nan'; expected a number"),
        ([{"layer": 2, "neuron": 1, "importance": 1}] * 2, (), "row 1: neuron 1 of layer 2 is listed twice"),
        ([{"layer": 2, "neuron": 1, "importance": 1}], ("--keep", "0.1"), "a share of 0.1 keeps 4"),
        ([{"layer": 2, "neuron": 1, "importance": 1}], ("--layers", "0"), "lists no neuron of layer 0"),
        ([{"layer": 2, "neuron": 1, "importance": 1}], ("--by", "activation"), "--by and --importance both"),
    ],
)
def test_the_command_refuses_bad_input_in_one_sentence(spin, tiny_model, data, rows, options, message, tmp_path):
    table = ("--importance", write(tmp_path / "neurons.csv", rows)) if rows else ()
    arguments = ("--data", data, "--keep", 0.02, *table, *options, "--out", tmp_path / "pruned")
    assert message in spin.fails("prune", tiny_model, *arguments)
    assert not (tmp_path / "pruned").exists()


def test_the_command_refuses_labels_of_one_class(spin, tiny_model, texts, tmp_path):
    data = write(tmp_path / "one.csv", labelled(texts, ["same"] * len(texts)))
    options = ("--data", data, "--keep", 0.02, "--by", "predictivity", "--out", tmp_path / "pruned")
    assert "all rows have the label 'same'" in spin.fails("prune", tiny_model, *options)


def test_layers_that_are_no_ranges_are_refused(spin, tiny_model, data, tmp_path):
    for given in ("a", "3-", "-3", "5-2", "", "²"):
        code, _, err = spin("prune", tiny_model, "--data", data, "--keep", 0.1, "--layers", given, "--out", tmp_path / "pruned")
        assert code == 2
        assert "Invalid value for '--layers'" in err


def test_a_neuron_of_a_table_that_is_not_listed_is_never_kept(tiny_model, tmp_path):
    table = write(tmp_path / "neurons.csv", [{"layer": 0, "neuron": 3, "score": -5}])
    importance = pruning.read_importance(table, sn.load_model(tiny_model), column="score")
    assert importance[0][3] == -5
    assert np.isneginf(np.delete(importance[0], 3)).all()
