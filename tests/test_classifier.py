"""SpinClassifier: what it chooses, what it runs, what it saves, and what it refuses."""

import json
import pickle
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import spin_native as sn
from spin_native.models import Transformer

# One head for every depth: enough where the choice among several is no matter.
SMALL = {
    "head": "refit",
    "poolings": ("mean",),
    "etas": (0.8,),
}

# The tiny reviews repeat themselves.
leaks = pytest.mark.filterwarnings("ignore::spin_native.errors.LeakWarning")


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def small(tiny_model, reviews):
    """A classifier of few choices."""
    return sn.SpinClassifier(str(tiny_model), baseline=False, **SMALL).fit(*reviews)


@pytest.mark.parametrize("kind", [np.array, pd.Series, tuple])
def test_texts_and_labels_may_be_lists_arrays_or_series(tiny_model, reviews, small, kind):
    clf = sn.SpinClassifier(str(tiny_model), baseline=False, **SMALL).fit(*map(kind, reviews))
    assert np.array_equal(clf.predict_proba(kind(reviews[0][:9])), small.predict_proba(reviews[0][:9]))
    assert clf.score(*map(kind, reviews)) == small.score(*reviews) >= 0.9


def test_integer_labels_and_three_classes(tiny_model, reviews):
    texts, labels = reviews
    three = [2 if "film" in text else int(label == "positive") for text, label in zip(texts, labels, strict=True)]
    clf = sn.SpinClassifier(str(tiny_model), depth=2, baseline=False, **SMALL).fit(texts, three)
    assert clf.classes_.tolist() == [0, 1, 2]
    np.testing.assert_allclose(clf.predict_proba(texts).sum(1), 1, rtol=1e-6)
    assert clf.score(texts, three) > 0.8
    assert clf.output_names() == ["0", "1", "2"]


def test_a_single_text_gives_a_single_result(fitted):
    assert fitted.predict("good film") == fitted.predict(["good film"])[0]
    assert fitted.predict_proba("good film").shape == (2,)
    assert fitted.predict_proba([]).shape == (0, 2)


def test_predictions_are_the_saved_numbers_applied_to_the_salient_neurons(tiny_model, fitted, saved, reviews):
    """By hand: features from `extract`, then standardise, weigh, sigmoid."""
    tensors = {name: tensor.numpy() for name, tensor in load_file(saved / "head.safetensors").items()}
    description = json.loads((saved / "spin_classifier.json").read_text())
    depth = description["base_model"]["depth"]
    reads = description["heads"][str(depth)]["reads"]
    tensors = {name.removeprefix(f"{depth}."): tensor for name, tensor in tensors.items()}
    model, tokenizer = sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model))
    features = sn.extract(model, tokenizer, reviews[0], poolings=("mean", "max"))
    assert max(read["layer"] for read in reads) < depth
    blocks = []
    for read in reads:
        site, pooling, layer = read["site"], read["pooling"], read["layer"]
        neurons = tensors[f"neurons.{site}.{pooling}.{layer}"]
        assert len(neurons) == read["salient_neurons"]
        blocks.append(features.array(site=site, pooling=pooling, layer=layer)[:, neurons])
    z = (np.concatenate(blocks, 1) - tensors["mean"]) / tensors["scale"]
    probability = 1 / (1 + np.exp(-(z @ tensors["coef"][0] + tensors["intercept"][0])))
    np.testing.assert_allclose(fitted.predict_proba(reviews[0])[:, 1], probability, rtol=1e-5)


def test_the_deployed_classifier_holds_and_runs_depth_layers_only(tiny_model, reviews, monkeypatch):
    clf = sn.SpinClassifier(str(tiny_model), depth=2, **SMALL).fit(*reviews)
    assert clf.depth_ == clf._deployed.extractor.model.depth == 2
    assert [row.depth for row in clf.depth_curve_] == [1, 2]
    assert clf.baseline_.depth == 3  # the final hidden state needs the whole model
    for layer, neurons in clf.salient_neurons_.items():
        assert layer < 2
        assert list(neurons) == sorted(set(neurons.tolist()))
        assert neurons[0] >= 0
        assert neurons[-1] < 32
    ran = []
    true = Transformer.layers
    monkeypatch.setattr(Transformer, "layers", lambda self, batch, **how: ran.append(self.depth) or true(self, batch, **how))
    clf.predict(reviews[0])
    assert set(ran) == {2}


def test_depth_none_is_all_layers_and_best_is_chosen_by_validation(tiny_model, reviews, unchecked):
    how = {"baseline": False, **SMALL}
    assert sn.SpinClassifier(str(tiny_model), depth=None, **how).fit(*reviews).depth_ == 3
    best = sn.SpinClassifier(str(tiny_model), **how).fit(*reviews)
    scores = [row.validation for row in best.depth_curve_]
    assert best.depth_ == 1 + scores.index(max(scores))
    assert sn.SpinClassifier(str(tiny_model), tolerance=1.0, **how).fit(*reviews).depth_ == 1


@leaks
def test_given_validation_rows_are_used_and_test_scores_stand_only_where_test_rows_are_given(tiny_model, reviews):
    texts, labels = reviews
    half, rest = (texts[:40], labels[:40]), (texts[40:], labels[40:])
    clf = sn.SpinClassifier(str(tiny_model), **SMALL).fit(*half, validation=rest)
    assert all(row.test is None for row in clf.depth_curve_)
    chosen = next(row for row in clf.depth_curve_ if row.depth == clf.depth_)
    assert clf.score(*rest) == chosen.validation
    scored = sn.SpinClassifier(str(tiny_model), **SMALL).fit(*half, validation=rest, test=rest)
    assert [row.test for row in scored.depth_curve_] == [row.validation for row in scored.depth_curve_]


@leaks
def test_the_baseline_is_what_scikit_learn_gets_from_the_final_hidden_state(tiny_model, reviews):
    texts, labels = reviews
    weights = {"positive": 1.0, "negative": 1.0}  # with these no score is shifted
    clf = sn.SpinClassifier(str(tiny_model), depth=1, class_weight=weights).fit(
        texts[:50], labels[:50], validation=(texts[50:], labels[50:])
    )
    features = sn.extract(sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model)), texts, sites=("hidden",))
    final = features.array(site="hidden", pooling=clf.baseline_.pooling, layer=3)
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=clf.baseline_.C / 16, max_iter=1000)).fit(
        final[:50], labels[:50]
    )
    assert clf.baseline_.validation == pytest.approx(expected.score(final[50:], labels[50:]))
    assert (clf.baseline_.n_neurons, clf.baseline_.site) == (16, "hidden")


def test_the_same_seed_gives_the_same_bytes(tiny_model, reviews, tmp_path, unchecked):
    for name in "ab":
        sn.SpinClassifier(str(tiny_model), seed=3, **SMALL).fit(*reviews).save_pretrained(tmp_path / name)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


@leaks
def test_settings_of_numpy_and_ranges_are_saved(tiny_model, reviews, tmp_path, unchecked):
    settings = {
        "head": "refit",
        "Cs": np.array([0.5, 1.0]),
        "top_k": np.array([2, 4]),
        "exits": np.arange(1, 3),
        "depth": 3,
        "seed": np.int64(1),
        "baseline": False,
    }
    clf = sn.SpinClassifier(str(tiny_model), **settings).fit(*reviews)
    clf.save_pretrained(tmp_path)
    again = sn.SpinClassifier.from_pretrained(tmp_path)
    assert again.get_params()["Cs"] == (0.5, 1.0)
    assert np.array_equal(again.predict_proba(reviews[0]), clf.predict_proba(reviews[0]))


def test_the_neurons_of_a_head_that_reads_hidden_states(tiny_model, reviews, unchecked):
    clf = sn.SpinClassifier(str(tiny_model), sites=("hidden",), depth=2, **SMALL).fit(*reviews)
    both = sn.SpinClassifier(str(tiny_model), sites=("activation", "hidden"), depth=2, **SMALL).fit(*reviews)
    both.heads_ = clf.heads_  # as if validation had chosen the hidden states
    assert both.salient_neurons_.keys() == clf.salient_neurons_.keys() != set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": None}, "seed is None; expected a whole number"),
        ({"head": "refit", "top_k": (33,)}, "top_k is 33, a layer has 32 neurons"),
        ({"head": "refit", "top_k": (float("inf"),)}, "top_k is inf; expected a whole number"),
    ],
)
def test_settings_are_refused_before_the_work(tiny_model, reviews, settings, message, unchecked, monkeypatch):
    monkeypatch.setattr("spin_native.classifier.training.Extraction.__call__", None)
    with pytest.raises(sn.InputError, match=message):
        sn.SpinClassifier(str(tiny_model), **settings).fit(*reviews)


FIT = """
import csv, sys, torch, spin_native as sn
threads, model, reviews, folder = sys.argv[1:]
torch.set_num_threads(int(threads))
rows = list(csv.DictReader(open(reviews, encoding="utf-8")))[:200]
texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
clf = sn.SpinClassifier(model, depth=2, exits="all", baseline=False, poolings=("mean",), head="refit", etas=(0.9,))
clf.fit(texts, labels).save_pretrained(folder)
"""


def test_fresh_processes_give_the_same_bytes_and_other_numbers_of_threads_nearly_so(minilm, tmp_path):
    """MKL splits its sums by threads: they differ by rounding, nothing that is chosen does."""
    table = files("spin_native.cli") / "reviews.csv"
    for name, threads in (("a", 2), ("b", 2), ("c", 1)):
        subprocess.run([sys.executable, "-c", FIT, str(threads), minilm, table, tmp_path / name], check=True)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    two, one = (load_file(tmp_path / name / "head.safetensors") for name in "ac")
    assert two.keys() == one.keys()
    for name, tensor in two.items():
        np.testing.assert_allclose(one[name], tensor, rtol=0, atol=1e-6 * max(1.0, float(tensor.abs().max())), err_msg=name)


def test_contributions_and_intercept_add_up_to_the_logit(fitted):
    for text in ("good film", "awful room"):
        total = sum(c.contribution for c in fitted.explain(text, 10**6))
        winner = fitted.predict_proba(text).argmax()
        logit = np.log(fitted.predict_proba(text)[winner] / fitted.predict_proba(text)[1 - winner])
        assert total + fitted.head_.model.intercept_[0] * (1 if winner else -1) == pytest.approx(logit, rel=1e-4)


def test_neuron_weights_name_every_salient_neuron(fitted):
    listed = {(entry["layer"], entry["neuron"]) for entry in fitted.neuron_weights()}
    assert listed == {(layer, int(n)) for layer, neurons in fitted.salient_neurons_.items() for n in neurons}


def test_a_fit_with_a_store_resumes_without_running_the_model_again(tiny_model, reviews, small, tmp_path, monkeypatch):
    sn.SpinClassifier(str(tiny_model), **SMALL).fit(*reviews, store=tmp_path / "store")

    def must_not_run(*_given):
        raise AssertionError("ran the model")

    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "layers", must_not_run)
        again = sn.SpinClassifier(str(tiny_model), **SMALL).fit(*reviews, store=tmp_path / "store")
    assert np.array_equal(again.predict_proba(reviews[0]), small.predict_proba(reviews[0]))


def test_an_unfitted_classifier_says_so(tiny_model, tmp_path):
    clf = sn.SpinClassifier(str(tiny_model))
    for call in (lambda: clf.predict(["a"]), lambda: clf.save_pretrained(tmp_path), lambda: clf.salient_neurons_):
        with pytest.raises(NotFittedError):
            call()


GOOD_TEXTS = ["good film", "bad film"] * 10
GOOD_LABELS = ["p", "n"] * 10


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (GOOD_TEXTS, ["p", None, *GOOD_LABELS[2:]], "training rows: the label of row 1 is missing .got None"),
        (GOOD_TEXTS, ["p", float("nan"), *GOOD_LABELS[2:]], "training rows: the label of row 1 is missing .got nan"),
        (GOOD_TEXTS, [0.5, 1.5] * 10, "the label of row 0 is 0.5 .float.; expected text or a whole number"),
        (GOOD_TEXTS, [1, "n"] * 10, "labels are of two types, row 0 has 1 and row 1 has 'n'"),
        (GOOD_TEXTS, ["p"] * 20, "every row has the label 'p'; expected at least two classes"),
        (GOOD_TEXTS, [*GOOD_LABELS[:-1], "x"], "class 'x' has a single row"),
        (GOOD_TEXTS, GOOD_LABELS[:-1], "20 texts but 19 labels"),
        ([*GOOD_TEXTS[:3], b"bytes", *GOOD_TEXTS[4:]], GOOD_LABELS, "text 3 is bytes; expected str"),
        ([*GOOD_TEXTS[:3], 7, *GOOD_TEXTS[4:]], GOOD_LABELS, "text 3 is int .7.; expected str"),
        ([*GOOD_TEXTS[:3], None, *GOOD_TEXTS[4:]], GOOD_LABELS, "text 3 is missing"),
        ([*GOOD_TEXTS[:3], float("nan"), *GOOD_TEXTS[4:]], GOOD_LABELS, "text 3 is missing"),
        ([*GOOD_TEXTS[:3], "a\ud800", *GOOD_TEXTS[4:]], GOOD_LABELS, "holds half a character"),
        ([], [], "training rows: no texts"),
        ("good film", "p", "got one str; expected several texts"),
    ],
)
def test_unusable_rows_are_refused_by_name(tiny_model, texts, labels, message, unchecked):
    with pytest.raises(sn.InputError, match=message):
        sn.SpinClassifier(str(tiny_model)).fit(texts, labels)


def test_labels_that_training_does_not_have_are_refused(tiny_model, fitted):
    with pytest.raises(sn.InputError, match=r"rows to score: row 1 has the label 'x'; known are 'negative', 'positive'"):
        fitted.score(["good", "bad"], ["positive", "x"])
    with pytest.raises(sn.InputError, match="validation rows: row 0 has the label 'x'"):
        sn.SpinClassifier(str(tiny_model)).fit(GOOD_TEXTS, GOOD_LABELS, validation=(["good"], ["x"]))
    with pytest.raises(sn.InputError, match="test rows: row 0 has the label 'x'"):
        sn.SpinClassifier(str(tiny_model)).fit(GOOD_TEXTS, GOOD_LABELS, test=(["good"], ["x"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final_rows": "test"}, "final_rows is 'test'; expected one of all, training, None"),
        ({"metric": "auc"}, "metric is 'auc'; expected one of accuracy, macro_f1"),
        ({"scaling": "minmax"}, "scaling is 'minmax'; expected one of standard, none"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"sites": ("attention",)}, "expected a sequence of one or more of activation, hidden"),
        ({"poolings": ("median",)}, "expected a sequence of one or more of mean, max, first, last"),
        ({"poolings": "mean"}, "expected a sequence"),
        ({"head": "refit", "etas": (0.5, 0.0)}, "eta is 0.0; expected a share above 0 and up to 1"),
        ({"head": "refit", "etas": (1.5,)}, "eta is 1.5; expected a share above 0 and up to 1"),
        ({"head": "refit", "Cs": (-1.0,)}, "expected positive numbers"),
        ({"head_Cs": ()}, "expected positive numbers"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"head": "refit", "validation_share": 1.0}, "validation_share is 1.0"),
        ({"depth": 0}, "depth is 0; expected 1 to 3"),
        ({"depth": 4}, "depth is 4; expected 1 to 3"),
        ({"depth": "deep"}, "depth is 'deep'; expected 1 to 3"),
        ({"head": "refit", "top_k": (40,)}, "top_k is 40, a layer has 32 neurons"),
        ({"head": "refit", "top_k": (0,)}, "top_k is 0; expected a whole number"),
        ({"head": "refit", "top_k": (2,), "top_share": (0.1,)}, "expected one of them"),
        ({"head": "deep"}, "head is 'deep'; expected one of best, dense, refit, frozen, weighted"),
        ({"mixing": "some"}, "mixing is 'some'; expected one of apart, together, best"),
        ({"ranker": "guess"}, "ranker is 'guess'; expected one of squared, l2, absolute"),
        ({"head": "refit", "phase_two": "unseen"}, "phase_two='unseen' is for head='frozen'; head='refit' does not use it"),
        (
            {"head": "weighted", "head_Cs": (1.0,)},
            r"head_Cs=\(1.0,\) is for head='best', 'dense', 'refit', 'frozen'; head='weighted' does not",
        ),
        (
            {"head": "weighted", "final_rows": "all"},
            "final_rows='all' is for head='best', 'dense', 'refit', 'frozen'; head='weighted' does not",
        ),
        ({"head": "frozen", "phase_two": "both", "sample": 9}, "phase_two='both' and sample=9 exclude each other"),
        ({"head": "refit", "etas": (0.5,), "top_k": (2,)}, "etas, top_k and top_share: expected one of them"),
        ({"depth": 2, "tolerance": 0.1}, "tolerance=0.1 is for depth='best'"),
        (
            {"depth": 2, "exits": (1, 2)},
            r"exits is \(1, 2\), but the depth is 2, where every row exits; expected depths below it",
        ),
        ({"metric": "pearson"}, "metric is 'pearson'; expected one of accuracy, macro_f1"),
        ({"sample": 1}, "sample is 1; expected a number of rows"),
        ({"exits": (0,)}, "exits is \\(0,\\); expected depths of 1 or more"),
    ],
)
def test_unusable_settings_are_refused_by_name(tiny_model, settings, message, unchecked):
    with pytest.raises(sn.InputError, match=message):
        sn.SpinClassifier(str(tiny_model), **settings).fit(GOOD_TEXTS, GOOD_LABELS)


def test_reading_hidden_states_and_other_dtypes(tiny_model, reviews):
    settings = {"sites": ("hidden",), "poolings": ("first", "last"), "head": "refit", "etas": (0.8,)}
    hidden = sn.SpinClassifier(str(tiny_model), dtype="bfloat16", **settings)
    hidden.fit(*reviews)
    assert max(n[-1] for n in hidden.salient_neurons_.values()) < 16
    assert hidden._deployed.extractor.model.dtype == torch.bfloat16
    assert hidden.score(*reviews) > 0.7


def test_an_unfitted_classifier_is_cloned_and_pickled(tiny_model):
    clf = sn.SpinClassifier(str(tiny_model), top_k=[2, 4], head="frozen")
    for copy in (clone(clf), pickle.loads(pickle.dumps(clf))):
        assert copy.get_params() == clf.get_params()
        assert not hasattr(copy, "classes_")
