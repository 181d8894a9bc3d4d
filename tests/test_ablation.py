"""Ablation: outputs equal transformers' under hooks; a planted neuron is missed, random ones are not; controls; bad input."""

import copy
import csv
import json
import re

import numpy as np
import pytest
import torch
import transformers
from commands import QUICK, Spin, labelled, write
from conftest import BAD, GOOD, VOCAB
from sklearn.metrics import accuracy_score, r2_score
from test_logits import language_model
from tiny import FAMILIES, rows_of_every_length

import spin_native as sn
from spin_native.analyses.ablation import Ablation, text_digest
from spin_native.errors import InputError
from spin_native.models.transformer import Layer
from spin_native.parity import activation_functions

ROWS = [row for row in rows_of_every_length() if len(row) > 1]
OTHERS = [[7, 8, 9], [10, 11, 12, 13, 14], [15]]
TARGETS = [[5 + row, 20 + row] for row in range(len(ROWS))]
NEURONS = {0: [3], 1: [39, 0], 2: [17, 4, 5]}


def replaced(values):
    """A hook that writes values (or 0) into columns of an FFN activation."""

    def hook(_module, _inputs, output):
        output = output.clone()
        for neuron, value in values.items():
            output[..., neuron] = value
        return output

    return hook


def changed_by_hooks(model, values):
    """transformers' model with {layer: {neuron: value}} written at every token, as a list of handles."""
    functions = activation_functions(model.base_model)
    return [functions[layer].register_forward_hook(replaced(of_layer)) for layer, of_layer in values.items()]


def reference_means(model, rows):
    """{layer: {neuron: mean over all tokens of all rows}} from transformers' own activations."""
    kept = {layer: [] for layer in NEURONS}
    functions = activation_functions(model.base_model)
    handles = [
        functions[layer].register_forward_hook(lambda _m, _i, out, layer=layer: kept[layer].append(out[0])) for layer in NEURONS
    ]
    with torch.inference_mode():
        for row in rows:
            model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    means = {layer: torch.cat(values).mean(0) for layer, values in kept.items()}
    return {layer: {neuron: float(means[layer][neuron]) for neuron in neurons} for layer, neurons in NEURONS.items()}


@pytest.mark.parametrize("how", ["zero", "mean"])
@pytest.mark.parametrize(("dtype", "prepack", "tolerance"), [(torch.float64, False, 1e-12), (torch.float32, "auto", 1e-6)])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers_with_hooks(family, dtype, prepack, tolerance, how, tmp_path):
    """On the default model, too, whose weights may be reordered."""
    reference = language_model(family)
    reference.save_pretrained(tmp_path)
    model = sn.load_model(str(tmp_path), dtype=dtype, head=True, prepack=prepack)
    values = {layer: dict.fromkeys(neurons, 0.0) for layer, neurons in NEURONS.items()}
    if how == "mean":
        values = reference_means(reference, OTHERS)
    effects = sn.analyses.ablate_logits(
        model,
        None,
        ROWS,
        TARGETS,
        neurons=NEURONS,
        how=how,
        values_from=OTHERS,
        of="logit",
        position="last",
        n_draws=1,
        max_tokens=12,
    )
    for name in ("before", "after"):
        with torch.inference_mode():
            logits = torch.stack([reference(torch.tensor([row])).logits[0, -1] for row in ROWS])
        expected = logits.gather(1, torch.tensor(TARGETS))
        assert np.abs(effects[name][0] - expected.numpy()).max() <= tolerance * logits.abs().max()
        changed_by_hooks(reference, values)
    assert np.abs(effects["after"][0] - effects["before"][0]).max() > 1e-3


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A tiny GPT-2 with its head, in float64."""
    folder = tmp_path_factory.mktemp("gpt2")
    language_model("gpt2").save_pretrained(folder)
    return sn.load_model(str(folder), dtype=torch.float64, head=True, prepack=False)


def ablated(model, **given):
    return sn.analyses.ablate_logits(model, None, ROWS, TARGETS, **{"neurons": NEURONS, "n_draws": 3, **given})


# Measures and controls.


def test_measures_equal_a_hand_calculation_from_the_outputs(gpt2):
    effects = sn.analyses.ablate_logits(gpt2, None, ROWS, [[9, 8]] * len(ROWS), neurons=NEURONS, n_draws=3)
    assert effects.axes["output"].tolist() == ["9", "8"]
    before = effects["before"][0]
    for run, after in enumerate(effects["after"]):
        largest = before.argmax(1)
        assert effects.measures["changed"][run] == np.mean(after.argmax(1) != largest)
        assert effects.measures["mean_absolute_change"][run] == pytest.approx(np.abs(after - before).mean(), rel=1e-12)
        rows = np.arange(len(ROWS))
        expected = (after[rows, largest] - before[rows, largest]).mean()
        assert effects.measures["mean_change"][run] == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_controls_change_as_many_neurons_of_each_layer(gpt2):
    importance = {layer: np.random.default_rng(layer).random(40) for layer in range(3)}
    effects = ablated(gpt2, importance=importance, n_draws=4, seed=5)
    assert [(run.which, run.draw) for run in effects.runs] == [
        ("chosen", 0),
        *(("random", draw) for draw in range(4)),
        ("least", 0),
    ]
    for run in effects.runs:
        assert {layer: len(set(neurons.tolist())) for layer, neurons in run.neurons.items()} == {0: 1, 1: 2, 2: 3}
    least = effects.runs[-1].neurons
    assert {layer: set(neurons.tolist()) for layer, neurons in least.items()} == {
        layer: set(np.argsort(importance[layer])[: len(NEURONS[layer])].tolist()) for layer in NEURONS
    }
    assert len({str(run.neurons) for run in effects.runs[1:5]}) == 4
    again = ablated(gpt2, n_draws=4, seed=5)
    np.testing.assert_array_equal(again["after"], effects["after"][:5])


def test_a_random_run_is_the_run_of_its_neurons(gpt2):
    effects = ablated(gpt2)
    alone = ablated(gpt2, neurons=effects.runs[2].neurons)
    np.testing.assert_array_equal(effects["after"][2], alone["after"][0])


def test_the_interval_holds_percentiles_of_the_draws(gpt2):
    effects = ablated(gpt2, n_draws=7)
    summary = effects.summary()
    assert summary.axes["which"].tolist() == ["chosen", "random"]
    place = summary.axes["measure"].tolist().index("mean_absolute_change")
    draws = effects.measures["mean_absolute_change"][1:]
    np.testing.assert_allclose(summary["mean"][1, place], draws.mean())
    np.testing.assert_allclose([summary["low"][1, place], summary["high"][1, place]], np.quantile(draws, [0.025, 0.975]))
    assert summary["n_draws"][:, place].tolist() == [1, 7]
    assert summary["low"][0, place] == summary["high"][0, place] == effects.measures["mean_absolute_change"][0]


def test_noise_and_resampling_are_drawn_anew_in_every_draw_whatever_the_batch(gpt2):
    for how in ("noise", "resample"):
        given = {"how": how, "values_from": OTHERS, "noise": 0.5}
        effects = ablated(gpt2, **given)
        assert [run.which for run in effects.runs] == ["chosen"] * 3 + ["random"] * 3
        assert np.abs(effects["after"][0] - effects["after"][1]).max() > 1e-6
        np.testing.assert_allclose(ablated(gpt2, max_tokens=1, **given)["after"], effects["after"], rtol=1e-9, atol=1e-15)


def test_a_text_is_never_resampled_from_itself():
    batch = sn.TokenBatch.from_rows([[5, 6] * 10, [7] * 20])
    layer = Layer(0, torch.zeros(40, 2), torch.zeros(40, 3), batch)
    text_of = np.array([text_digest([5, 6] * 10), text_digest([7] * 20), text_digest([9])])
    pool = np.array([[1.0], [2.0], [3.0]])
    drawn = Ablation({0: np.array([1])}, "resample", {0: pool}, text_of=text_of)(layer)[:, 1]
    assert set(drawn[:20].tolist()) == {2, 3}
    assert set(drawn[20:].tolist()) == {1, 3}
    with pytest.raises(InputError, match="hold no other text than this one"):
        Ablation({0: np.array([1])}, "resample", {0: pool[:1]}, text_of=text_of[:1])(layer)


def test_values_to_resample_are_activations_of_tokens_of_those_texts(gpt2):
    values = sn.analyses.ablation_values(gpt2, OTHERS, "resample", pool_tokens=5, seed=1)
    for layer in gpt2.layers(sn.TokenBatch.from_rows(OTHERS)):
        if layer.activation is None:
            continue
        distance = np.abs(values.values[layer.index][:, None] - layer.activation.numpy()[None]).max(2)  # [pool, token]
        assert (distance.min(1) < 1e-12).all()
        tokens = distance.argmin(1)
        assert len(set(tokens.tolist())) == 5
        owners = np.repeat([text_digest(row) for row in OTHERS], [3, 5, 1])
        assert values.text_of.tolist() == owners[tokens].tolist()


# Probes.


@pytest.fixture(scope="module")
def features(tiny_model, texts):
    model, tokenizer = sn.load_model(tiny_model), sn.load_tokenizer(tiny_model)
    return (
        model,
        tokenizer,
        sn.extract(model, tokenizer, texts, poolings=("mean",)).array(site="activation", layer=1, pooling="mean"),
    )


def test_a_probe_without_a_neuron_predicts_as_with_a_column_of_zeros(features, texts, labels):
    model, tokenizer, X = features
    probe = sn.LogisticProbe(C=10).fit(X, labels)
    without = X.copy()
    without[:, [4, 9]] = 0
    effects = sn.analyses.ablate_probe(
        model, tokenizer, texts, probe, labels, layer=1, neurons={1: [9, 4]}, n_draws=2, progress=False
    )
    np.testing.assert_allclose(effects["before"][0], probe.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(effects["after"][0], probe.predict_proba(without), atol=1e-6)
    assert effects["label_after"][0, :, 0].tolist() == probe.predict(without).tolist()
    assert effects.metadata["score_before"] == accuracy_score(labels, probe.predict(X))
    assert effects.measures["score"][0] == accuracy_score(labels, probe.predict(without))
    assert effects.measures["changed"][0] == np.mean(probe.predict(X) != probe.predict(without))


def test_the_values_of_a_linear_probe_are_scored_by_r2(features, texts):
    model, tokenizer, X = features
    lengths = [float(len(text)) for text in texts]
    probe = sn.LinearProbe(C=10).fit(X, lengths)
    effects = sn.analyses.ablate_probe(
        model, tokenizer, texts, probe, lengths, layer=1, neurons={0: [1]}, n_draws=1, progress=False
    )
    assert effects.measures["score"][0] == pytest.approx(r2_score(lengths, effects["after"][0, :, 0]), rel=1e-12)
    assert "changed" not in effects.measures
    assert np.abs(effects["after"][0] - effects["before"][0]).max() > 0  # layer 0 writes what layer 1 reads


def test_neurons_above_a_probe_change_nothing(features, texts, labels):
    model, tokenizer, X = features
    probe = sn.LogisticProbe().fit(X, labels)
    effects = sn.analyses.ablate_probe(model, tokenizer, texts[:9], probe, layer=1, neurons={2: [0, 1, 2]}, n_draws=2)
    assert np.array_equal(effects["after"], np.broadcast_to(effects["before"], effects.shape))


# Classifiers.


@pytest.fixture(scope="module")
def small(tiny_model, texts, labels):
    """A classifier that runs two of three layers and reads some neurons of both under two poolings."""
    settings = {**QUICK, "poolings": ("mean", "max"), "mixing": "together", "etas": (0.6,)}
    return sn.SpinClassifier(tiny_model, depth=2, **settings).fit(texts, labels)


@pytest.mark.parametrize("layers", [[0], [1], [0, 1]])
def test_a_classifier_answers_as_its_head_does_on_features_from_transformers_with_hooks(tiny_model, small, texts, layers):
    neurons = {
        layer: small.salient_neurons_[layer][:3].tolist() + [int(min(set(range(32)) - set(small.salient_neurons_[layer])))]
        for layer in layers
    }
    reference = transformers.AutoModel.from_pretrained(tiny_model).eval()
    tokenizer = sn.load_tokenizer(tiny_model)
    functions, kept = activation_functions(reference), {}
    for layer, chosen in neurons.items():
        functions[layer].register_forward_hook(replaced(dict.fromkeys(chosen, 0.0)))
    for layer, function in enumerate(functions):
        function.register_forward_hook(lambda _m, _i, out, layer=layer: kept.__setitem__(layer, out[0].numpy()))
    expected = []
    for text in texts[:12]:
        with torch.inference_mode():
            reference(torch.tensor([tokenizer.encode([text]).ids[0]]))
        pooled = {"mean": lambda x: x.mean(0), "max": lambda x: x.max(0)}
        row = [pooled[f.pooling](kept[f.layer])[chosen] for f, chosen in small.head_.neurons.items()]
        expected.append(small.head_.output(np.concatenate(row)[None].astype(np.float32))[0])
    effects = small.ablate(texts[:12], neurons=neurons, n_draws=1)
    np.testing.assert_allclose(effects["after"][0], expected, atol=2e-5)
    np.testing.assert_array_equal(effects["before"][0], small.predict_proba(texts[:12]))
    assert np.abs(effects["after"][0] - effects["before"][0]).max() > 1e-3


def test_a_saved_classifier_has_the_same_effects(small, texts, labels, tmp_path):
    small.save_pretrained(tmp_path)
    given = {"how": "resample", "values_from": texts[40:], "n_draws": 2, "seed": 3}
    loaded = sn.SpinClassifier.from_pretrained(tmp_path).ablate(texts[:20], labels[:20], **given)
    here = small.ablate(texts[:20], labels[:20], **given)
    for name, array in here.arrays.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_without_neurons_a_classifier_changes_those_that_it_reads(small, texts):
    own = small.ablate(texts[:9], n_draws=1)
    named = small.ablate(texts[:9], neurons=small.salient_neurons_, n_draws=1)
    np.testing.assert_array_equal(own["after"], named["after"])
    assert own.metadata["neurons"] == {str(layer): n.tolist() for layer, n in small.salient_neurons_.items()}


def test_a_number_means_the_neurons_with_the_largest_weights(small, texts):
    weights = {}
    for entry in small.neuron_weights():
        place = entry["layer"], entry["neuron"]
        weights[place] = max(weights.get(place, 0), *map(abs, entry["weights"]))
    best = sorted(weights, key=lambda place: -weights[place])[:5]
    effects = small.ablate(texts[:5], neurons=5, n_draws=1)
    assert {(layer, n) for layer, chosen in effects.runs[0].neurons.items() for n in chosen.tolist()} == set(best)
    unread = effects.runs[-1]
    assert unread.which == "least"
    assert all(not np.isin(n, small.salient_neurons_[layer]).any() for layer, n in unread.neurons.items())


def test_scores_are_those_of_scikit_learn_and_labels_the_answers(small, texts, labels):
    effects = small.ablate(texts, labels, how="noise", noise=3.0, n_draws=2)
    assert effects.metadata["score_before"] == accuracy_score(labels, small.predict(texts))
    assert effects["label_before"][0, :, 0].tolist() == small.predict(texts).tolist()
    for run in range(len(effects.runs)):
        after = effects["label_after"][run, :, 0]
        assert effects.measures["score"][run] == accuracy_score(labels, after)
        assert effects.measures["changed"][run] == np.mean(after != small.predict(texts))
        assert after.tolist() == small.classes_[effects["after"][run].argmax(1)].tolist()


def test_the_answer_is_that_of_the_last_depth_unless_an_exit_is_chosen(clf, texts):
    exiting = copy.copy(clf)
    exiting.exit_ = "fixed:1"
    deep = exiting.ablate(texts[:9], n_draws=1)
    np.testing.assert_array_equal(deep["before"][0], clf.predict_proba(texts[:9], exit="fixed:2"))
    early = clf.ablate(texts[:9], neurons={1: range(32)}, exit="fixed:1", n_draws=1)
    np.testing.assert_array_equal(early["before"][0], clf.predict_proba(texts[:9], exit="fixed:1"))
    np.testing.assert_array_equal(early["after"][0], early["before"][0])  # layer 1 is above that exit


def test_texts_that_exit_by_confidence_can_be_ablated(clf, texts):
    effects = clf.ablate(texts[:30], how="noise", noise=2.0, exit="confidence:0.8", n_draws=2)
    np.testing.assert_array_equal(effects["before"][0], clf.predict_proba(texts[:30], exit="confidence:0.8"))
    alone = [clf.ablate([text], how="noise", noise=2.0, exit="confidence:0.8", n_draws=2)["after"][0, 0] for text in texts[:5]]
    np.testing.assert_allclose(effects["after"][0, :5], alone, atol=1e-6)


def test_a_perceptron_is_ablated_by_its_contributions(tiny_model, texts, labels):
    clf = sn.SpinClassifier(tiny_model, head="weighted", depth=2, poolings=("mean",), etas=(0.5,), baseline=False)
    clf.fit(texts, labels)
    effects = clf.ablate(texts[:4], neurons=3, n_draws=1)
    total = {}
    for text in texts[:4]:
        for c in clf.explain(text, 10_000):
            total[c.layer, c.neuron] = total.get((c.layer, c.neuron), 0) + abs(c.contribution)
    best = sorted(total, key=lambda place: -total[place])[:3]
    assert {(layer, n) for layer, chosen in effects.runs[0].neurons.items() for n in chosen.tolist()} == set(best)


def test_a_regressor_is_scored_by_its_metric(tiny_model, texts):
    values = [float(len(text)) for text in texts]
    clf = sn.SpinRegressor(tiny_model, depth=1, **QUICK, metric="mse").fit(texts, values)
    effects = clf.ablate(texts, values, n_draws=2)
    assert effects.metadata["score"] == "mse"
    before, after = (((effects[name][0, :, 0] - values) ** 2).mean() for name in ("before", "after"))
    assert effects.measures["score_change"][0] == pytest.approx(after - before, rel=1e-6)
    assert after > before


@pytest.fixture(scope="module")
def planted(tiny_model, texts, labels, tmp_path_factory):
    """A classifier on a model whose neuron 3 of layer 0 is wired to the words of one label: no other neuron is read."""
    model = transformers.AutoModel.from_pretrained(tiny_model)
    with torch.no_grad():
        words = model.embeddings.word_embeddings.weight
        for word in (*GOOD, *BAD):
            words[VOCAB.index(word)] = words[VOCAB.index("the")]
            words[VOCAB.index(word), 0] = 12.0 if word in GOOD else -12.0
        model.encoder.layer[0].intermediate.dense.weight[3] = 0
        model.encoder.layer[0].intermediate.dense.weight[3, 0] = 5.0
        model.encoder.layer[0].intermediate.dense.bias[3] = -5.0
    folder = tmp_path_factory.mktemp("planted")
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    settings = {key: value for key, value in QUICK.items() if key != "etas"}
    return sn.SpinClassifier(folder, depth=1, top_k=(1,), **{**settings, "poolings": ("max",)}).fit(texts, labels)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_a_planted_neuron_is_missed_and_random_ones_are_not(planted, texts, labels, how):
    assert {layer: n.tolist() for layer, n in planted.salient_neurons_.items()} == {0: [3]}
    effects = planted.ablate(texts, labels, how=how, values_from=texts, n_draws=20)
    assert effects.metadata["score_before"] == 1
    assert effects.of("chosen")["score_change"].tolist() == [-0.5]  # one answer for all texts, of two labels
    others = [index for index, run in enumerate(effects.runs) if 3 not in run.neurons[0].tolist()]
    assert len(others) >= 18  # of 20 random draws out of 32 neurons, and one of the least important
    assert not effects.measures["changed"][others].any()
    assert effects.summary()["high"][effects.summary().axes["which"].tolist().index("least")].max() == 1


# Tables, and the command.


def test_a_table_holds_every_run_and_row_with_its_origin(small, texts, labels, tmp_path):
    effects = small.ablate(texts[:4], labels[:4], n_draws=2)
    table = effects.to_table()
    assert table.num_rows == len(effects.runs) * 4 * 2
    line = table.to_pylist()[-1]
    assert line["which"] == "least"
    assert (line["output"], line["row"]) == ("positive", 3)
    assert line["after"] == effects["after"][-1, 3, 1]
    assert line["label_before"] == small.predict(texts[3])
    metadata = json.loads(table.schema.metadata[b"spin_native"])
    assert metadata["model_fingerprint"] == small._deployed.checkpoint.fingerprint(small.depth_)
    assert (metadata["seed"], metadata["how"], metadata["torch"]) == (0, "zero", torch.__version__)
    effects.per_run().write(tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["which"] for row in rows] == ["chosen", "random", "random", "least"]
    np.testing.assert_array_equal([float(row["score"]) for row in rows], effects.measures["score"])


def test_the_command_prints_and_writes_what_the_method_gives(small, texts, labels, tmp_path, capsys):
    spin = Spin(capsys)
    small.save_pretrained(tmp_path / "classifier")
    data = write(tmp_path / "rows.csv", labelled(texts[:30], labels[:30]))
    others = write(tmp_path / "others.jsonl", labelled(texts[30:], labels[30:]))
    asked = ["ablate", tmp_path / "classifier", data, "--label", "label", "--neurons", "0:1,0:5,1:7", "--how", "mean"]
    asked += ["--values-from", others, "--draws", "3", "--seed", "2", "--out", tmp_path / "effects.csv"]
    expected = small.ablate(
        texts[:30], labels[:30], neurons={0: [1, 5], 1: [7]}, how="mean", values_from=texts[30:], n_draws=3, seed=2
    )
    code, out, _ = spin(*asked, "--json")
    assert code == 0
    assert json.loads(out)["effects"] == expected.summary().to_table().to_pylist()
    with (tmp_path / "effects.csv").open() as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_array_equal([float(row["score"]) for row in rows], expected.measures["score"])
    code, out, _ = spin(*asked, "--overwrite")
    assert code == 0
    assert out.startswith("3 neurons in 2 layers, changed by 'mean', on 30 texts\naccuracy before: ")
    assert re.search(r"least important +score change +1 ", out)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--neurons", "7:1"], "neurons: no layer 7; expected layers 0 to 1"),
        (["--how", "mean"], "how='mean' needs texts to take the neurons' values from"),
        (["--noise", "1"], "--noise has no effect on --how zero; leave it out, or ablate by noise"),
        (["--values-from", "x.csv"], "--values-from has no effect on --how zero; leave it out, or ablate by mean or resample"),
        (["--draws", "0"], "n_draws is 0; expected a whole number, 1 or more"),
    ],
)
def test_the_command_refuses_in_one_line(small, texts, labels, tmp_path, capsys, arguments, line):
    small.save_pretrained(tmp_path / "classifier")
    data = write(tmp_path / "rows.csv", labelled(texts[:5], labels[:5]))
    assert line in Spin(capsys).fails("ablate", tmp_path / "classifier", data, *arguments)


def test_neurons_that_cannot_be_read_are_a_usage_error(capsys, tmp_path):
    code, _, err = Spin(capsys)("ablate", "c", "d.csv", "--neurons", "3-4")
    assert code == 2
    assert "none of: salient, a number, or pairs such as 3:17" in err


# Bad input.


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"neurons": {3: [1]}}, "no layer 3; expected layers 0 to 2"),
        ({"neurons": {-1: [1]}}, "no layer -1"),
        ({"neurons": {1: [40]}}, "layer 1 has no neuron 40; expected 0 to 39"),
        ({"neurons": {1: [-1]}}, "layer 1 has no neuron -1"),
        ({"neurons": {1: [0.5]}}, "no neuron 0.5"),
        ({"neurons": {1: [2, 2]}}, "names a neuron twice"),
        ({"neurons": {1: "12"}}, "expected a list of indices"),
        ({"neurons": {}}, "none are chosen"),
        ({"neurons": {1: []}}, "none are chosen"),
        ({"neurons": [(1, 2)]}, "neurons is a list; expected a dict"),
        ({"how": "drop"}, "how is 'drop'; expected one of zero, mean, noise, resample"),
        ({"how": "mean"}, "how='mean' needs texts"),
        ({"how": "resample", "values_from": []}, "how='resample' needs texts"),
        ({"n_draws": 0}, "n_draws is 0; expected a whole number, 1 or more"),
        ({"n_draws": True}, "n_draws is True"),
        ({"seed": -1}, "seed is -1"),
        ({"how": "noise", "noise": -0.1}, "noise is -0.1"),
        ({"importance": {0: np.zeros(40)}}, "no numbers for layer 1"),
        ({"importance": np.zeros((3, 4))}, re.escape("layer 0 has [4] numbers; expected one for each of its 40 neurons")),
    ],
)
def test_bad_input_is_one_sentence(gpt2, given, message):
    with pytest.raises(InputError, match=message) as caught:
        ablated(gpt2, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"neurons": {2: [1]}}, "no layer 2; expected layers 0 to 1"),
        ({"neurons": {1: [32]}}, "no neuron 32; expected 0 to 31"),
        ({"neurons": 0}, "neurons is 0; expected 1 to"),
        ({"neurons": 10_000}, "neurons is 10000; expected 1 to"),
        ({"neurons": 2, "importance": {0: np.zeros(32)}}, "no numbers for layer 1"),
        ({"how": "resample"}, "how='resample' needs texts"),
        ({"labels": ["positive"]}, "1 label"),
        ({"texts": []}, "no texts"),
        ({"texts": ["a"], "values_from": [3], "how": "mean"}, "values_from: text 0 is int"),
        ({"texts": ["the film"], "values_from": ["the film"], "how": "resample"}, "no other text than this one"),
        ({"exit": "fixed:1"}, "depth"),
    ],
)
def test_bad_input_to_a_classifier_is_one_sentence(small, texts, given, message):
    with pytest.raises(InputError, match=message) as caught:
        small.ablate(**{"texts": texts[:3], **given})
    assert "\n" not in str(caught.value)


def test_a_classifier_that_reads_hidden_states_needs_neurons_by_name(tiny_model, texts, labels):
    clf = sn.SpinClassifier(tiny_model, depth=2, sites=("hidden",), **QUICK).fit(texts, labels)
    with pytest.raises(InputError, match="the head reads no FFN neurons"):
        clf.ablate(texts[:3])
    effects = clf.ablate(texts[:9], neurons={0: range(16)}, n_draws=1)
    assert np.abs(effects["after"][0] - effects["before"][0]).max() > 1e-6


def test_a_probe_of_another_feature_is_refused(features, texts, labels):
    model, tokenizer, X = features
    probe = sn.LogisticProbe().fit(X[:, :5], labels)
    with pytest.raises(InputError, match="the probe reads 5 features; expected a probe fitted on 32 features"):
        sn.analyses.ablate_probe(model, tokenizer, texts, probe, layer=1, neurons={0: [1]})
    for layer in (3, -1):
        with pytest.raises(InputError, match=f"no activation of layer {layer} in a model of depth 3"):
            sn.analyses.ablate_probe(model, tokenizer, texts, probe, layer=layer, neurons={0: [1]})
    with pytest.raises(InputError, match="got 2 labels for 3 texts"):
        sn.analyses.ablate_probe(
            model, tokenizer, texts[:3], sn.LogisticProbe().fit(X, labels), labels[:2], layer=1, neurons={0: [1]}
        )
