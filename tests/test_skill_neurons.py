"""Skill neurons without prompts: against hand calculations, scikit-learn, SciPy, a planted neuron and transformers."""

import json
import xml.etree.ElementTree as ET
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from commands import Spin, labelled, read, write
from sklearn.metrics import accuracy_score, balanced_accuracy_score

import spin_native as sn
from spin_native.analyses.ablation import Ablation
from spin_native.analyses.perturbation import final_hidden
from spin_native.analyses.skills import SkillNeurons
from spin_native.features.store import FeatureKey, Features
from spin_native.probes.importance import predictivity

LAYERS, WIDTH = 3, 32
PARTS = {"train": slice(0, 50), "dev": slice(50, None)}


def in_memory(arrays):
    """Features that hold {(pooling, layer): array}, appended in two blocks."""
    named = {FeatureKey("activation", *name): array.astype(np.float32) for name, array in arrays.items()}
    features = Features({name: array.shape[1] for name, array in named.items()})
    for rows in (slice(0, 7), slice(7, None)):
        features.append({name: array[rows] for name, array in named.items()})
    return features


def random_features(n_rows, seed, poolings=("mean",), width=WIDTH):
    rng = np.random.default_rng(seed)
    return in_memory({(pooling, layer): rng.normal(size=(n_rows, width)) for pooling in poolings for layer in range(LAYERS)})


def array_of(features, layer, pooling="mean"):
    return features.array(site="activation", pooling=pooling, layer=layer)


def by_hand(train, dev, labels, score):
    """max(score, 1 - score) of "above the training mean", one neuron at a time."""
    above = dev > train.mean(0, dtype=np.float64)
    scores = np.array([score(labels, column) for column in above.T])
    return np.maximum(scores, 1 - scores)


def extracted(model, tokenizer, texts, **options):
    return sn.extract(model, tokenizer, texts, progress=False, **options)


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return sn.load_model(str(tiny_model), dtype=torch.float64), sn.load_tokenizer(str(tiny_model))


def test_skill_neurons_of_features_in_memory_name_their_model(loaded, reviews):
    texts, labels = reviews
    train, dev = extracted(*loaded, texts[:50]), extracted(*loaded, texts[50:])
    skill = sn.analyses.skill_neurons(train, labels[:50], (dev, labels[50:]), progress=False)
    assert skill.metadata["model_fingerprint"] == loaded[0].source.fingerprint(LAYERS)
    assert skill.metadata["tokenizer_fingerprint"] == loaded[1].fingerprint


def test_predictivity_is_the_accuracy_of_above_the_training_mean_at_the_best_pooling(loaded, reviews, tmp_path):
    texts, labels = reviews
    train = extracted(*loaded, texts[:50], poolings=("mean", "max"), store=tmp_path / "train")
    dev = extracted(*loaded, texts[50:], poolings=("mean", "max"), store=tmp_path / "dev")
    skill = sn.analyses.skill_neurons(train, labels[:50], (dev, labels[50:]), progress=False)
    positive = [label == "positive" for label in labels[50:]]
    for layer in range(LAYERS):
        of_pooling = [
            by_hand(
                *(array_of(part, layer, pooling) for part in (train, dev)),
                positive,
                accuracy_score,
            )
            for pooling in ("mean", "max")
        ]
        np.testing.assert_allclose(skill["predictivity"][0, 0, layer], np.max(of_pooling, axis=0), atol=1e-12)
    mean = array_of(train, 1).mean(0, dtype=np.float64)
    np.testing.assert_allclose(skill["baseline"][0, 0, 1], mean, rtol=1e-12)
    assert skill.axes["subtask"].tolist() == ["positive"]
    assert skill.metadata["model_fingerprint"] == train.spec.model_fingerprint


def test_texts_streamed_through_the_model_give_what_their_features_give(loaded, reviews):
    texts, labels = reviews
    features = [extracted(*loaded, part, poolings=("mean", "max")) for part in (texts[:50], texts[50:])]
    kept = sn.analyses.skill_neurons(features[0], labels[:50], (features[1], labels[50:]), progress=False)
    parts = (texts[:50], labels[:50]), (texts[50:], labels[50:])
    streamed = sn.analyses.text_skill_neurons(*loaded, *parts, poolings=("mean", "max"), progress=False)
    for name in ("predictivity", "sign", "token", "baseline"):
        np.testing.assert_array_equal(streamed[name], kept[name])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_several_classes_and_unequal_ones_are_measured_by_balanced_accuracy(n_classes):
    rng = np.random.default_rng(0)
    labels, dev_labels = (rng.choice(n_classes, n, p=[0.8, 0.2] if n_classes == 2 else [0.6, 0.3, 0.1]) for n in (90, 60))
    train, dev = random_features(90, 1), random_features(60, 2)
    skill = sn.analyses.skill_neurons(train, labels, (dev, dev_labels), balanced=True, progress=False)
    arrays = [array_of(part, 2) for part in (train, dev)]
    for place, label in enumerate(skill.axes["subtask"].tolist()):
        expected = by_hand(*arrays, dev_labels == label, balanced_accuracy_score)
        np.testing.assert_allclose(skill["predictivity"][0, place, 2], expected, atol=1e-12)
    assert skill.axes["subtask"].tolist() == ([1] if n_classes == 2 else [0, 1, 2])


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_ranker_of_a_classifier_and_skill_neurons_share_one_definition(n_classes):
    features, labels = random_features(50, 3), np.random.default_rng(4).integers(n_classes, size=50)
    skill = sn.analyses.skill_neurons(features, labels, (features, labels), progress=False)
    for layer in range(LAYERS):
        ranked = predictivity(array_of(features, layer), labels)
        np.testing.assert_allclose(skill["predictivity"][0, :, layer].max(0), 0.5 + ranked, atol=1e-12)


def test_a_neuron_that_answers_the_same_for_all_rows_is_at_chance():
    train, dev = np.zeros((20, 2)), np.ones((20, 2))
    labels = [0] * 5 + [1] * 15
    skill = sn.analyses.skill_neurons(
        in_memory({("mean", 0): train}), labels, (in_memory({("mean", 0): dev}), labels), progress=False
    )
    assert skill["predictivity"].ravel().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_planted_neuron_is_first_in_its_layer_with_its_sign(layer, sign):
    labels = np.random.default_rng(5).permutation(np.repeat(["no", "yes"], 100))
    parts = []
    for seed in (6, 7):
        features = random_features(200, seed)
        array_of(features, layer)[:, 11] = sign * (labels == "yes")
        parts.append(features)
    skill = sn.analyses.skill_neurons(parts[0], labels, (parts[1], labels), progress=False)
    assert skill["predictivity"][0, 0, layer, 11] == 1
    assert skill["sign"][0, 0, layer, 11] == sign
    assert skill.salient(1 / WIDTH)[layer].tolist() == [11]
    assert all(skill["predictivity"][0, 0, other].max() < 0.7 for other in range(LAYERS) if other != layer)


def test_the_table_has_a_row_per_neuron_with_its_predictivity(tmp_path):
    features, labels = random_features(40, 8), [0, 1] * 20
    skill = sn.analyses.skill_neurons(features, labels, (features, labels), layers=[2, 0], progress=False)
    skill.write(tmp_path / "neurons.parquet")
    import pandas as pd

    table = pd.read_parquet(tmp_path / "neurons.parquet").set_index(["layer", "neuron"])
    assert len(table) == 2 * WIDTH
    assert table.predictivity[2, 5] == skill["predictivity"][0, 0, 0, 5]
    assert set(table.token) == {"mean"}


def planted_skill(predictivity):
    """Skill neurons with one subtask from [layer, neuron]."""
    accuracy = np.asarray(predictivity)[None, None, None]
    n_layers, n_neurons = accuracy.shape[-2:]
    baseline = np.arange(n_layers * n_neurons, dtype=float).reshape(1, n_layers, n_neurons)
    return SkillNeurons.of(accuracy, baseline, subtasks=["x"], layers=range(n_layers), tokens=["mean"], metadata={})


def test_each_perturbation_changes_the_neurons_it_names():
    """The score of an edit is the edit itself, so that the test sees which neurons were changed, and how."""
    skill = planted_skill(0.5 + np.arange(40).reshape(2, 20) / 100)
    edits = []

    def score(*, edit):
        edits.append(edit)
        return 1.0

    curve = sn.analyses.perturbation_curve(
        score, skill, hows=("mean",), shares=(0.1,), ranges=(None, [1]), seeds=(0, 1), progress=False
    )
    assert edits[0] is None
    most, least, random, other_random = edits[1:5]
    assert [most.neurons[layer].tolist() for layer in (0, 1)] == [[18, 19]] * 2
    assert [least.neurons[layer].tolist() for layer in (0, 1)] == [[0, 1]] * 2
    assert {len(chosen) for edit in (random, other_random) for chosen in edit.neurons.values()} == {2}
    assert random.neurons[0].tolist() != other_random.neurons[0].tolist()
    assert most.values[1].tolist() == [38, 39]
    assert [list(edit.neurons) for edit in edits[5:]] == [[1]] * 4
    assert curve.axes["layers"].tolist() == ["0-1", "1"]
    assert curve.shape == (1, 2, 1, 3, 2)


def test_intervals_are_students_over_the_seeds():
    scores = iter([0.9, *[0.5, 0.6, 0.7], *[0.9, 0.8, 0.9], *[0.7, 0.9, 0.8]])
    curve = sn.analyses.perturbation_curve(
        lambda *, edit: next(scores), planted_skill(np.full((1, 10), 0.5)), shares=(0.1,), seeds=range(3), progress=False
    )
    intervals = curve.intervals(0.9)
    assert curve.clean == 0.9
    for which, values in enumerate(([0.5, 0.6, 0.7], [0.9, 0.8, 0.9], [0.7, 0.9, 0.8])):
        low, high = scipy.stats.t.interval(0.9, 2, np.mean(values), scipy.stats.sem(values))
        np.testing.assert_allclose(intervals["score_low"][0, 0, 0, which], low)
        np.testing.assert_allclose(intervals["score_high"][0, 0, 0, which], high)
    paired = np.array([0.7, 0.9, 0.8]) - [0.5, 0.6, 0.7]
    low, _ = scipy.stats.t.interval(0.9, 2, paired.mean(), scipy.stats.sem(paired))
    np.testing.assert_allclose([intervals["worse"][0, 0, 0, 0], intervals["worse_low"][0, 0, 0, 0]], [paired.mean(), low])


def test_a_final_state_under_an_edit_equals_transformers_with_a_hook(tiny_model, loaded, reviews):
    model, tokenizer = loaded
    reference = transformers.BertModel.from_pretrained(tiny_model).double().eval()

    def without(_module, _inputs, output):
        return output.index_fill(-1, torch.tensor([3, 8]), 0.0)

    hook = reference.encoder.layer[1].intermediate.register_forward_hook(without)
    texts = reviews[0][:9]
    with torch.inference_mode():
        theirs = [reference(torch.tensor([row])).last_hidden_state[0].mean(0).numpy() for row in tokenizer.encode(texts).ids]
    hook.remove()
    ours = final_hidden(model, tokenizer, texts, "mean", Ablation({1: np.array([3, 8])}))
    np.testing.assert_allclose(ours, np.array(theirs), atol=1e-12)


def test_a_probe_on_the_final_state_loses_its_answer_with_all_neurons_in_noise(loaded, reviews):
    texts, labels = reviews
    probe = sn.analyses.FinalProbe.fit(*loaded, (texts[:40], labels[:40]), (texts[40:60], labels[40:60]))
    score = partial(probe.score, texts[60:], labels[60:])
    drowned = Ablation({layer: np.arange(WIDTH) for layer in range(LAYERS)}, "noise", noise=1000.0)
    assert score(edit=None) == np.mean(probe.predict(texts[60:]) == np.array(labels[60:]))
    assert score(edit=None) >= 0.8 > 0.7 >= score(edit=drowned)


def test_transferability_is_spearmans_correlation_over_all_neurons():
    rng = np.random.default_rng(9)
    tasks = {name: planted_skill(rng.uniform(0.5, 1, (2, 50)).round(2)) for name in "abc"}
    result = sn.analyses.transferability(tasks)
    flat = [skill["predictivity"].ravel() for skill in tasks.values()]
    expected = [[scipy.stats.spearmanr(one, other).statistic for other in flat] for one in flat]
    np.testing.assert_allclose(result["spearman"], expected, atol=1e-12)


def test_a_task_on_other_rows_is_nearest_to_itself():
    rng = np.random.default_rng(10)
    true = {name: rng.uniform(0.5, 1, (2, 50)) for name in "abc"}
    measured = [{name: planted_skill(true[name] + rng.normal(0, 0.02, (2, 50))) for name in "abc"} for _ in range(2)]
    result = sn.analyses.transferability(*measured)
    assert result.is_itself_first.all()
    assert (result["spearman"].diagonal() < 1).all()
    swapped = {"a": measured[1]["b"], "b": measured[1]["a"], "c": measured[1]["c"]}
    assert sn.analyses.transferability(measured[0], swapped).is_itself_first.tolist() == [False, False, True]


def test_the_picture_is_an_svg_that_holds_every_name_and_number(tmp_path):
    rng = np.random.default_rng(11)
    result = sn.analyses.transferability({name: planted_skill(rng.uniform(0.5, 1, (1, 30))) for name in ("<a>", "b & c")})
    result.picture(tmp_path / "matrix.svg")
    shown = [element.text for element in ET.parse(tmp_path / "matrix.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert [shown.count("<a>"), shown.count("b & c"), shown.count("1.00")] == [2, 2, 2]
    assert shown.count(f"{result['spearman'][0, 1]:.2f}") == 2
    with pytest.raises(sn.InputError, match="already exists"):
        result.picture(tmp_path / "matrix.svg")
    with pytest.raises(sn.InputError, match="a name that ends in"):
        result.picture(tmp_path / "matrix.png")


ROWS = random_features(20, 12)
LABELS = [0, 1] * 10
FLAT = planted_skill(np.full((2, 20), 0.5))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: sn.analyses.skill_neurons(ROWS, [1] * 20, (ROWS, LABELS)),
            "all have the label 1; expected two",
        ),
        (lambda: sn.analyses.skill_neurons(ROWS, LABELS), "dev rows: got none; expected a pair"),
        (lambda: sn.analyses.skill_neurons(ROWS, LABELS, (ROWS, [0] * 20)), "dev rows: none has the label 1"),
        (lambda: sn.analyses.skill_neurons(ROWS, LABELS, (ROWS, [*LABELS[1:], 2])), "dev rows: row 19 has the label 2"),
        (lambda: sn.analyses.skill_neurons(ROWS, LABELS[1:], (ROWS, LABELS)), "training rows: 20 rows but 19 labels"),
        (lambda: sn.analyses.skill_neurons(ROWS, [*LABELS[1:], None], (ROWS, LABELS)), "row 19 is missing"),
        (lambda: sn.analyses.skill_neurons(np.zeros((20, 3)), LABELS, (ROWS, LABELS)), "features: got a ndarray"),
        (lambda: sn.analyses.skill_neurons(ROWS, LABELS, (ROWS, LABELS), layers=[7]), "layer=7; there are .*layers 0, 1, 2"),
        (lambda: sn.analyses.skill_neurons(ROWS, LABELS, (ROWS, LABELS), poolings=["max"]), "there are .*poolings mean"),
        (
            lambda: sn.analyses.skill_neurons(ROWS, LABELS, (random_features(20, 0, width=9), LABELS)),
            "9 neurons of layer 0, pooling 'mean'; the training features have 32",
        ),
        (lambda: sn.analyses.perturbation_curve(lambda *, edit: 1.0, FLAT, ranges=([0, 4],)), "no predictivity of layer 4"),
        (lambda: sn.analyses.perturbation_curve(lambda *, edit: 1.0, FLAT, shares=(0.1, 2)), "top_share is 2"),
        (
            lambda: sn.analyses.perturbation_curve(lambda *, edit: 1.0, FLAT, hows=("gauss",)),
            "one or more of zero, mean",
        ),
        (lambda: sn.analyses.transferability({"a": FLAT}), "got 1, expected two or more"),
        (lambda: sn.analyses.transferability({"a": FLAT, "b": FLAT}), "the same predictivity for 'a'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_in_one_sentence(run, message):
    with pytest.raises(sn.InputError, match=message):
        run()


def test_an_edit_of_a_layer_that_the_model_lacks_is_refused(loaded):
    with pytest.raises(sn.InputError, match="no layer 5; the model has layers 0 to 2"):
        final_hidden(*loaded, ["the film"], "mean", Ablation({5: np.array([0])}))


@pytest.fixture
def spin(capsys):
    return Spin(capsys)


def test_the_command_writes_every_neuron_and_prints_the_top_share_of_each_layer(spin, tiny_model, reviews, tmp_path):
    texts, labels = reviews
    data, dev = (write(tmp_path / f"{name}.csv", labelled(texts[part], labels[part])) for name, part in PARTS.items())
    code, out, err = spin("skill-neurons", tiny_model, data, "--dev", dev, "--out", tmp_path / "neurons.csv", "--top", 0.1)
    assert code == 0, err
    rows = read(tmp_path / "neurons.csv")
    assert len(rows) == LAYERS * WIDTH
    model, tokenizer = sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model))
    train, held_out = (extracted(model, tokenizer, texts[part], poolings=("mean",)) for part in PARTS.values())
    positive = [label == "positive" for label in labels[PARTS["dev"]]]
    expected = [by_hand(array_of(train, layer), array_of(held_out, layer), positive, accuracy_score) for layer in range(LAYERS)]
    np.testing.assert_allclose([float(row["predictivity"]) for row in rows], np.ravel(expected), atol=1e-12)
    assert {row["subtask"] for row in rows} == {"positive"}
    lines = [line.split() for line in out.splitlines()[1:]]
    assert [line[:2] for line in lines] == [[str(layer), "4"] for layer in range(LAYERS)]
    tops = [np.sort(values)[-4:].mean() for values in expected]
    np.testing.assert_allclose([float(line[2]) for line in lines], tops, atol=1e-4)


def test_the_command_takes_a_fifth_of_each_label_as_dev_rows(spin, tiny_model, reviews, tmp_path):
    data = write(tmp_path / "reviews.csv", labelled(*reviews))
    code, _, err = spin("skill-neurons", tiny_model, data, "--out", tmp_path / "neurons.parquet")
    assert (code, "64 training and 16 dev rows" in err) == (0, True)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["a"] * 4, (), "all have the label 'a'; expected two classes"),
        (["a", "a", "a", "b"], (), "one row only has the label 'b'"),
        (["a", "b"] * 2, ("--top", 2), "top_share is 2.0; expected a share"),
        (["a", "b"] * 2, ("--depth", 9), "depth is 9; expected 1 to 3"),
    ],
)
def test_the_command_refuses_in_one_line(spin, tiny_model, tmp_path, labels, options, message):
    data = write(tmp_path / "few.csv", labelled(["the film", "the food", "the room", "a film"], labels))
    assert message in spin.fails("skill-neurons", tiny_model, data, "--out", tmp_path / "neurons.csv", *options)
    assert not (tmp_path / "neurons.csv").exists()


def test_the_command_records_what_split_its_rows(spin, tiny_model, reviews, tmp_path):
    data, out = write(tmp_path / "train.csv", labelled(*reviews)), tmp_path / "neurons.csv"
    for options, expected in ((["--seed", 5], {"seed": 5}), (["--dev", data], {"dev": str(data)})):
        assert spin("skill-neurons", tiny_model, data, "--out", out, "--overwrite", *options)[0] == 0
        known = json.loads((tmp_path / "neurons.csv.metadata.json").read_text())
        assert {name: known[name] for name in ("seed", "dev") if name in known} == expected
        assert (known["analysis"], known["data"]) == ("skill_neurons", str(data))


def test_poolings_and_layers_that_skill_neurons_cannot_read_are_refused(tiny_model, unchecked):
    parts, rows = (sn.load_model(tiny_model), sn.load_tokenizer(tiny_model)), (["a good film", "a bad film"], [1, 0])
    with pytest.raises(sn.InputError, match=r"poolings is .*; expected a sequence of one or more of mean, max, first, last"):
        sn.analyses.text_skill_neurons(*parts, rows, rows, poolings=("tokens",))
    with pytest.raises(sn.InputError, match=r"model is a NoneType; expected what sn\.load_model returns"):
        sn.analyses.text_skill_neurons(None, parts[1], rows, rows)
    features = random_features(2, seed=0)
    with pytest.raises(sn.InputError, match="layers is 3; expected a list of them, or None for all"):
        sn.analyses.skill_neurons(features, [1, 0], (features, [1, 0]), layers=3)
