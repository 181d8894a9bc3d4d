"""Pruning: the smaller checkpoint computes what the model with dropped neurons at their means computes, here and there."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
import transformers
from commands import QUICK
from safetensors.torch import load_file
from test_logits import CAUSAL, final_hidden, language_model
from tiny import (
    FAMILIES,
    USUAL,
    checkpoint,
    edit_config,
    largest_error,
    our_values,
    reference_model,
    reference_values,
    rows_of_every_length,
    values,
)

import spin_native as sn
from spin_native.analyses.prompted_skills import prompted_skill_neurons
from spin_native.analyses.skills import text_skill_neurons
from spin_native.analyses.soft_prompts import SoftPrompt
from spin_native.checkpoints import pruned
from spin_native.parity import activation_functions
from spin_native.text.batch import TokenBatch

ROWS = rows_of_every_length()
WIDTH = USUAL.d_ffn
GENERATOR = np.random.default_rng(5)
KEPT = {1: [2, 3, 31], 2: [7]}
MEANS = {layer: GENERATOR.normal(0, 0.5, WIDTH) for layer in range(USUAL.n_layers)}


def in_transformers(folder):
    return transformers.AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()


def with_means(model, kept):
    """transformers' model whose dropped neurons are set to their means by hooks."""
    for layer, module in enumerate(activation_functions(model)):
        if layer in kept:
            dropped = [neuron for neuron in range(WIDTH) if neuron not in kept[layer]]

            def replace(_module, _inputs, output, layer=layer, dropped=dropped):
                output = output.clone()
                output[..., dropped] = torch.tensor(MEANS[layer][dropped])
                return output

            module.register_forward_hook(replace)
    return model


def hidden(found):
    return {key: value for key, value in found.items() if key[0] == "hidden"}


# The numbers.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeping_all_neurons_reproduces_the_model_to_the_bit(family, dtype, tmp_path):
    folder, _ = checkpoint(family)
    model = sn.load_model(folder, dtype=dtype)
    sn.analyses.prune(model, {layer: range(WIDTH) for layer in range(3)}, out=tmp_path / "same")
    batch = TokenBatch.from_rows(ROWS)
    before, after = our_values(model, batch), our_values(sn.load_model(tmp_path / "same", dtype=dtype), batch)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("pad", [False, True])
def test_a_pruned_model_equals_transformers_model_with_dropped_neurons_at_their_means(family, pad, tmp_path):
    folder, _ = checkpoint(family)
    sn.analyses.prune(sn.load_model(folder), KEPT, mean=MEANS, out=tmp_path / "pruned", pad=pad)
    expected = reference_values(with_means(in_transformers(folder), KEPT), ROWS)
    assert largest_error(hidden(values(tmp_path / "pruned")), hidden(expected)) < 1e-13


def test_the_default_path_computes_a_pruned_model_of_different_widths(family, tmp_path):
    folder, _ = checkpoint(family)
    sn.analyses.prune(sn.load_model(folder), KEPT, mean=MEANS, out=tmp_path / "pruned")
    fast = our_values(sn.load_model(tmp_path / "pruned"), TokenBatch.from_rows(ROWS))
    assert [fast["activation", layer].shape[1] for layer in range(3)] == [WIDTH, 3, 1]
    assert largest_error(fast, values(tmp_path / "pruned")) < 1e-4


@pytest.mark.parametrize("pad", [False, True])
def test_transformers_loads_a_model_of_one_width_with_equal_hidden_states(family, pad, tmp_path):
    kept = {0: [0, 1, 2], 1: [2, 3, 31], 2: [7] if pad else [7, 8, 9]}
    sn.analyses.prune(sn.load_model(checkpoint(family)[0]), kept, mean=MEANS, out=tmp_path / "pruned", pad=pad)
    theirs = in_transformers(tmp_path / "pruned")
    assert theirs.config.to_dict().get("ffn_widths") is None
    expected = reference_values(theirs, ROWS)
    assert expected["activation", 2].shape[1] == 3
    assert largest_error(values(tmp_path / "pruned"), expected) < 1e-13


def test_the_output_bias_takes_over_the_mean_of_the_dropped_neurons(tmp_path):
    names = {"bert": "encoder.layer.1.output.dense", "gpt2": "h.1.mlp.c_proj"}
    for family, name in names.items():
        folder, _ = checkpoint(family)
        sn.analyses.prune(sn.load_model(folder), KEPT, mean=MEANS, out=tmp_path / family)
        before, after = load_file(f"{folder}/model.safetensors"), load_file(tmp_path / family / "model.safetensors")
        weight = before[f"{name}.weight"].numpy() if family == "bert" else before[f"{name}.weight"].numpy().T
        expected = before[f"{name}.bias"].numpy().copy()
        for neuron in range(WIDTH):
            if neuron not in KEPT[1]:
                expected += MEANS[1][neuron] * weight[:, neuron]
        np.testing.assert_allclose(after[f"{name}.bias"].numpy(), expected, rtol=1e-13)
        now = after[f"{name}.weight"].numpy() if family == "bert" else after[f"{name}.weight"].numpy().T
        np.testing.assert_array_equal(now, weight[:, KEPT[1]])


def test_dropping_a_constant_neuron_changes_nothing_beyond_rounding(tiny_model, texts, tmp_path):
    model = transformers.BertModel.from_pretrained(tiny_model).double()
    with torch.no_grad():
        model.encoder.layer[1].intermediate.dense.weight[5] = 0
        model.encoder.layer[1].intermediate.dense.bias[5] = 0.7
    model.save_pretrained(tmp_path / "constant")
    (tmp_path / "constant" / "vocab.txt").write_bytes((tiny_model / "vocab.txt").read_bytes())
    ours, tokenizer = sn.load_model(tmp_path / "constant", dtype=torch.float64), sn.load_tokenizer(tmp_path / "constant")
    keep = {1: [neuron for neuron in range(32) if neuron != 5]}
    sn.analyses.prune(ours, keep, mean=texts, tokenizer=tokenizer, out=tmp_path / "pruned")
    batch = TokenBatch.from_rows(tokenizer.encode(texts).ids)
    after = our_values(sn.load_model(tmp_path / "pruned", dtype=torch.float64), batch)
    assert largest_error(hidden(our_values(ours, batch)), hidden(after)) < 1e-13


@pytest.mark.parametrize("family", FAMILIES)
def test_the_language_model_head_is_kept(family, tmp_path):
    language_model(family).save_pretrained(tmp_path / "whole")
    sn.analyses.prune(sn.load_model(tmp_path / "whole"), KEPT, mean=MEANS, out=tmp_path / "pruned", pad=True)
    model = sn.load_model(tmp_path / "pruned", dtype=torch.float64, head=True)
    auto = transformers.AutoModelForCausalLM if family in CAUSAL else transformers.AutoModelForMaskedLM
    reference, wrong = auto.from_pretrained(tmp_path / "pruned", dtype=torch.float64, output_loading_info=True)
    assert not wrong["missing_keys"]
    assert not wrong["unexpected_keys"]
    with torch.inference_mode():
        ours = model.logits(final_hidden(model, TokenBatch.from_rows(ROWS)))
        theirs = torch.cat([reference.eval()(torch.tensor([row])).logits[0] for row in ROWS])
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_a_pruned_model_can_be_pruned_again(tmp_path):
    model = sn.load_model(checkpoint("bert")[0])
    sn.analyses.prune(model, KEPT, mean=MEANS, out=tmp_path / "first")
    second = sn.analyses.prune(sn.load_model(tmp_path / "first"), {1: [1]}, mean={1: MEANS[1][KEPT[1]]}, out=tmp_path / "twice")
    assert second.widths == (WIDTH, 1, 1)
    sn.analyses.prune(model, {1: [3], 2: [7]}, mean=MEANS, out=tmp_path / "once")
    assert largest_error(values(tmp_path / "twice"), values(tmp_path / "once")) < 1e-13


def test_a_legacy_file_with_tied_tensors_can_be_pruned(tmp_path):
    model = language_model("roberta")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = sn.load_model(tmp_path, allow_pickle=True, dtype=torch.float64)
    sn.analyses.prune(loaded, KEPT, mean=MEANS, out=tmp_path / "pruned")
    expected = reference_values(with_means(model.roberta, KEPT), ROWS)
    assert largest_error(hidden(values(tmp_path / "pruned")), hidden(expected)) < 1e-13


def test_numbers_keep_the_type_they_are_stored_in(tmp_path):
    reference_model("bert").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    sn.analyses.prune(sn.load_model(tmp_path / "half"), KEPT, mean=MEANS, out=tmp_path / "pruned")
    assert {tensor.dtype for tensor in load_file(tmp_path / "pruned" / "model.safetensors").values()} == {torch.bfloat16}


# Means and importance.


@pytest.fixture(scope="module")
def activations(tiny_model, texts):
    """transformers' activations of every text's tokens: layer -> list of [token, neuron]."""
    reference = transformers.BertModel.from_pretrained(tiny_model).double().eval()
    ids = sn.load_tokenizer(tiny_model).encode(texts).ids
    by_text = [reference_values(reference, [row]) for row in ids]
    return {layer: [found["activation", layer].numpy() for found in by_text] for layer in range(3)}


def test_means_of_texts_are_over_all_their_tokens(tiny_model, texts, activations):
    model, tokenizer = sn.load_model(tiny_model, dtype=torch.float64), sn.load_tokenizer(tiny_model)
    measured = sn.analyses.activation_means(model, tokenizer, texts, layers=[0, 2])
    assert set(measured.mean) == {0, 2}
    for layer in (0, 2):
        tokens = np.concatenate(activations[layer])
        assert measured.n_tokens == len(tokens)
        np.testing.assert_allclose(measured.mean[layer], tokens.mean(0), atol=1e-13)
        np.testing.assert_allclose(measured.absolute[layer], np.abs(tokens).mean(0), atol=1e-13)


def test_means_of_features_are_over_the_texts_means(tiny_model, texts, activations, tmp_path):
    model, tokenizer = sn.load_model(tiny_model), sn.load_tokenizer(tiny_model)
    features = sn.extract(model, tokenizer, texts, poolings=("mean",))
    sn.analyses.prune(model, {1: [4]}, mean=features, out=tmp_path / "ours")
    means = np.mean([of_text.mean(0) for of_text in activations[1]], axis=0)
    sn.analyses.prune(model, {1: [4]}, mean={1: means}, out=tmp_path / "hand")
    ours, hand = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "hand"))
    for name in ours:
        torch.testing.assert_close(ours[name], hand[name], atol=1e-6, rtol=0)


def test_a_share_keeps_the_most_important_neurons_of_each_layer(tmp_path):
    importance = {0: np.arange(WIDTH), 2: np.r_[9.0, np.ones(WIDTH - 2), 9.0]}
    model = sn.load_model(checkpoint("bert")[0])
    result = sn.analyses.prune(model, importance=importance, share=0.06, mean=MEANS, out=tmp_path / "pruned")
    assert {layer: neurons.tolist() for layer, neurons in result.kept.items()} == {0: [37, 38, 39], 2: [0, 1, 39]}
    assert result.widths == (3, WIDTH, 3)


def test_the_folder_records_the_kept_neurons_and_the_model_before(tmp_path):
    model = sn.load_model(checkpoint("bert")[0])
    result = sn.analyses.prune(model, KEPT, mean=MEANS, out=tmp_path / "pruned")
    record = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    assert record == result.metadata
    assert record["kept"] == {"1": [2, 3, 31], "2": [7]}
    assert record["model_fingerprint"] == model.source.fingerprint(3)
    assert record["spin_native"] == sn.__version__


# config.json.


@pytest.mark.parametrize(
    "widths",
    [[40, 3], [40, 3, 1, 1], [40, 3, 0], [40, 3, -1], [40, 3, 1.0], [40, 3, True], [41, 3, 1], [39, 3, 1], "40,3,1", {}, [], 3],
)
def test_widths_that_do_not_fit_the_model_are_refused(widths, tmp_path):
    sn.analyses.prune(sn.load_model(checkpoint("gpt2")[0]), KEPT, mean=MEANS, out=tmp_path / "pruned")
    edit_config(tmp_path / "pruned", ffn_widths=widths)
    with pytest.raises(sn.InputError, match=r"ffn_widths is .*; expected 3 whole numbers, one per layer, from 1 to .*, 40"):
        sn.load_model(tmp_path / "pruned")


def test_widths_that_differ_from_the_tensors_are_refused(tmp_path):
    sn.analyses.prune(sn.load_model(checkpoint("bert")[0]), KEPT, mean=MEANS, out=tmp_path / "pruned")
    edit_config(tmp_path / "pruned", ffn_widths=[40, 4, 1])
    with pytest.raises(sn.InputError, match=r"layer.1.intermediate.dense.weight is \[3, 16\], config.json implies \[4, 16\]"):
        sn.load_model(tmp_path / "pruned")


def test_the_fingerprint_of_a_model_of_one_width_does_not_know_of_widths():
    folder, _ = checkpoint("distilbert", USUAL)
    settings = {
        "family": "distilbert",
        "n_layers": 3,
        "n_heads": 2,
        "d_model": 16,
        "d_ffn": 40,
        "n_vocab": 50,
        "n_positions": 9,
        "norm_eps": 1e-12,
        "activation_function": "gelu",
        "pad_id": 0,
        "n_token_types": 0,
        "scales_attention": True,
        "scales_attention_by_layer": False,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(load_file(f"{folder}/model.safetensors").items()):
        digest.update(f"{name} torch.float64 {list(tensor.shape)}".encode() + tensor.numpy().tobytes())
    assert sn.load_model(folder).source.fingerprint(3) == digest.hexdigest()


def test_a_classifier_on_a_pruned_model_predicts_the_same_after_loading(tiny_model, texts, labels, tmp_path):
    model, tokenizer = sn.load_model(tiny_model), sn.load_tokenizer(tiny_model)
    keep = {0: range(20), 1: range(9), 2: range(3)}
    sn.analyses.prune(model, keep, mean=texts, tokenizer=tokenizer, out=tmp_path / "base")
    clf = sn.SpinClassifier(str(tmp_path / "base"), depth=3, **QUICK).fit(texts, labels)
    clf.save_pretrained(tmp_path / "clf")
    loaded = sn.SpinClassifier.from_pretrained(tmp_path / "clf")
    np.testing.assert_array_equal(loaded.predict_proba(texts), clf.predict_proba(texts))


def test_a_classifier_on_a_pruned_model_ablates_neurons_that_its_layers_have(tiny_model, texts, labels, tmp_path):
    keep = {0: range(20), 1: range(9), 2: range(3)}
    model, tokenizer = sn.load_model(tiny_model), sn.load_tokenizer(tiny_model)
    sn.analyses.prune(model, keep, mean=texts, tokenizer=tokenizer, out=tmp_path / "base")
    clf = sn.SpinClassifier(str(tmp_path / "base"), depth=2, **QUICK).fit(texts, labels)
    effects = clf.ablate(texts[:4], neurons={1: range(9)}, n_draws=2)
    for run in effects.runs:  # as many as are chosen: all
        assert run.neurons[1].tolist() == list(range(9))
    with pytest.raises(sn.InputError, match="neurons: layer 1 has no neuron 9; expected 0 to 8"):
        clf.ablate(texts[:4], neurons={1: [9]})


def test_skill_neurons_of_layers_of_different_widths_are_refused_in_one_sentence(tiny_model, texts, labels, tmp_path):
    model, tokenizer = sn.load_model(tiny_model), sn.load_tokenizer(tiny_model)
    keep = {0: range(9), 1: range(9), 2: range(3)}
    sn.analyses.prune(model, keep, mean=texts, tokenizer=tokenizer, out=tmp_path / "base")
    pruned_model = sn.load_model(tmp_path / "base")
    refused = pytest.raises(sn.InputError, match="the layers have from 3 to 9 neurons; expected one width")
    features = sn.extract(pruned_model, tokenizer, texts)
    with refused:
        sn.analyses.skill_neurons(features, labels, (features, labels))
    with refused:
        text_skill_neurons(pruned_model, tokenizer, (texts, labels), (texts, labels))
    prompt = SoftPrompt(torch.zeros(2, 16), ("negative", "positive"), ("bad", "good"), (5, 6), 0.5, {}, "")
    with refused:
        prompted_skill_neurons(pruned_model, tokenizer, [prompt], texts, (texts, labels))
    skill = sn.analyses.skill_neurons(features, labels, (features, labels), layers=[0, 1])
    assert skill["predictivity"].shape == (1, 1, 2, 9)


def test_gradients_of_all_layers_of_different_widths_are_refused_in_one_sentence(tmp_path):
    language_model("gpt2").save_pretrained(tmp_path / "whole")
    sn.analyses.prune(sn.load_model(tmp_path / "whole"), KEPT, mean=MEANS, out=tmp_path / "pruned")
    model = sn.load_model(tmp_path / "pruned", head=True, prepack="kernels")
    with pytest.raises(sn.InputError, match="the layers have different numbers of neurons; choose layers of one width"):
        sn.analyses.neuron_gradients(model, None, [[1, 2]], [3])
    assert sn.analyses.neuron_gradients(model, None, [[1, 2]], [3], layers=[1])["gradient"].shape == (1, 1, 1, 3)


# The folder.


def test_after_a_failed_write_there_is_no_folder(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(pruned, "save_file", fail)
    with pytest.raises(sn.InputError, match=r"pruned: the pruned model could not be written \(no space left\)"):
        sn.analyses.prune(sn.load_model(checkpoint("bert")[0]), KEPT, mean=MEANS, out=tmp_path / "pruned")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either keep, or importance and share"),
        ({"keep": KEPT, "importance": MEANS, "share": 0.5}, "give either keep, or importance and share"),
        ({"importance": MEANS}, "give either keep, or importance and share"),
        ({"keep": KEPT, "share": 0.5}, "give either keep, or importance and share"),
        ({"keep": [1, 2]}, "keep is a list; expected a dict"),
        ({"keep": {}}, "keep is a dict; expected a dict with one or more layers"),
        ({"keep": {3: [1]}}, "keep: no layer 3; the model has layers 0 to 2"),
        ({"keep": {-1: [1]}}, "keep: no layer -1; the model has layers 0 to 2"),
        ({"keep": {"1": [1]}}, "keep: no layer '1'"),
        ({"keep": {1: []}}, "layer 1 has no list of neurons; expected the indices of one neuron or more"),
        ({"keep": {1: [0, 40]}}, "keep: layer 1 holds int64 numbers from 0 to 40; expected whole numbers from 0 to 39"),
        ({"keep": {1: [0.5]}}, "keep: layer 1 holds float64 numbers"),
        ({"keep": {1: ["a"]}}, r"keep: layer 1 holds .*'a'.*; expected whole numbers from 0 to 39"),
        ({"keep": {1: [[1], [2, 3]]}}, r"keep: layer 1 has \[\[1\], \[2, 3\]\]; expected one list of numbers"),
        ({"keep": {1: [4, 4]}}, "keep: layer 1 names a neuron twice"),
        ({"importance": MEANS, "share": 0}, "share is 0; expected a number above 0 and up to 1"),
        ({"importance": MEANS, "share": 1.5}, "share is 1.5; expected a number above 0 and up to 1"),
        ({"importance": MEANS, "share": math.nan}, "share is nan; expected a number above 0 and up to 1"),
        ({"importance": {1: [1.0, 2.0]}, "share": 0.5}, r"importance: layer 1 has float64 \[2\]; expected 40 numbers"),
        ({"importance": {1: np.full(WIDTH, math.nan)}, "share": 0.5}, "importance: layer 1 holds NaN or infinity"),
        ({"keep": KEPT, "mean": None}, "there is no mean to put in their place"),
        ({"keep": KEPT, "mean": {1: MEANS[1]}}, "mean: layer 2 loses neurons, but has no means"),
        ({"keep": KEPT, "mean": {1: MEANS[1], 2: np.full(WIDTH, -math.inf)}}, "mean: layer 2 holds NaN or infinity"),
        ({"keep": KEPT, "mean": ["a text"]}, "need the model's tokenizer"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_pruned_is_refused(arguments, message, tmp_path):
    model = sn.load_model(checkpoint("bert")[0])
    with pytest.raises(sn.InputError, match=message):
        sn.analyses.prune(model, **{"mean": MEANS, **arguments}, out=tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_a_model_that_is_not_whole_or_has_no_files_is_refused(tmp_path):
    with pytest.raises(sn.InputError, match="the model holds 2 of 3 layers; expected all: load it with depth=None"):
        sn.analyses.prune(sn.load_model(checkpoint("bert")[0], 2), KEPT, mean=MEANS, out=tmp_path / "pruned")
    model = sn.load_model(checkpoint("bert")[0])
    model.source = None
    with pytest.raises(sn.InputError, match="the model was not loaded from a checkpoint"):
        sn.analyses.prune(model, KEPT, mean=MEANS, out=tmp_path / "pruned")


def test_a_folder_that_exists_is_refused_even_if_it_is_empty(tmp_path):
    with pytest.raises(sn.InputError, match="already exists; expected the name of a new folder"):
        sn.analyses.prune(sn.load_model(checkpoint("bert")[0]), KEPT, mean=MEANS, out=tmp_path)
