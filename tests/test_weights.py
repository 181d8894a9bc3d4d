"""Rows and classes that count more than once: fits equal scikit-learn's with the same weights; unusable weights are refused."""

import json

import numpy as np
import pandas as pd
import pytest
from commands import Spin
from problems import without_shape_checks
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from tiny import QUICK

import spin_native as sn
from spin_native.classifier.fitting import PROBE_C_TIMES, Rows, best_probe, smallest_useful_C
from spin_native.classifier.heads import ConstantHead
from spin_native.classifier.parts import ExtractedPart
from spin_native.classifier.tasks import Classes, Values
from spin_native.classifier.tasks.classes import balanced_weights

# The validation rows of these fits choose nothing: some of the training rows will do.
pytestmark = [pytest.mark.filterwarnings("ignore::spin_native.errors.LeakWarning"), without_shape_checks]
FIXED = {**QUICK, "final_rows": "training", "head_Cs": (0.5,)}


@pytest.fixture
def exact(monkeypatch):
    """Fits of the pipeline to ten digits."""
    monkeypatch.setattr("spin_native.classifier.fitting.TOL", 1e-10)


@pytest.fixture(scope="module")
def rows(texts, labels):
    """Texts, labels of which one is rare, and a weight for each."""
    is_kept = [row for row, label in enumerate(labels) if label == "positive" or row % 6 == 1]
    weights = np.random.default_rng(0).uniform(0.2, 3, len(is_kept))
    return [texts[row] for row in is_kept], [labels[row] for row in is_kept], weights


def features_and_labels(clf, model, texts, labels):
    """What the head reads of the texts, standardised, and their encoded labels."""
    features = sn.extract(sn.load_model(str(model)), sn.load_tokenizer(str(model)), texts)
    encoded = clf.task_.encode(labels, len(texts), "rows")
    return clf.head_.standardizer(clf.head_.read(ExtractedPart(encoded, features))).astype(np.float64), encoded


def settings_of(**parameters):
    return sn.SpinClassifier(**parameters)._settings(Classes(np.array(["a", "b", "c"])))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_path_with_weights_has_scikit_learns_coefficients(n_classes):
    rng = np.random.default_rng(0)
    X, y, weights = rng.normal(size=(120, 8)), rng.integers(n_classes, size=120), rng.uniform(0.1, 4, 120)
    for probe in sn.LogisticProbe(l1_ratio=0.0, tol=1e-12).fit_path(X, y, [0.1, 1.0], weights):
        peer = LogisticRegression(C=probe.C, tol=1e-12, max_iter=10_000).fit(X, y, weights)
        np.testing.assert_allclose(probe.coef_, peer.coef_, atol=1e-5)


def test_a_path_refuses_weights_of_another_number_of_rows():
    with pytest.raises(sn.InputError, match="sample_weight"):
        sn.LogisticProbe().fit_path(np.eye(4), np.array([0, 1, 0, 1]), [1.0], np.ones(3))


def test_balanced_weights_are_scikit_learns():
    labels = np.array([0, 1, 1, 2, 2, 2, 1, 1])
    np.testing.assert_allclose(balanced_weights(labels), compute_class_weight("balanced", classes=np.arange(3), y=labels))


@pytest.mark.parametrize("class_weight", [None, "balanced", {"a": 0.5, "c": 4}])
@pytest.mark.parametrize("has_own", [False, True])
def test_a_probe_of_the_pipeline_counts_rows_as_scikit_learn_does(class_weight, has_own, exact):
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(90, 6)).astype(np.float32), rng.choice(3, size=90, p=[0.7, 0.2, 0.1])
    own = rng.uniform(0.5, 2, 90) if has_own else None
    train = Rows(X, y, own)
    probe, _ = best_probe(train, train, [0.3], 0.0, settings_of(class_weight=class_weight))
    by_place = class_weight
    if isinstance(class_weight, dict):
        by_place = {place: class_weight.get(name, 1) for place, name in enumerate("abc")}
    weights = compute_sample_weight(by_place, y) * (1 if own is None else own)
    peer = LogisticRegression(C=0.3, tol=1e-12, max_iter=10_000).fit(X.astype(float), y, weights)
    np.testing.assert_allclose(probe.coef_, peer.coef_, atol=1e-5)


def test_the_smallest_useful_C_follows_the_weights(exact):
    """Just below it an L1 probe with these weights has no weight, just above it one."""
    rng = np.random.default_rng(2)
    X, y, weights = rng.normal(size=(80, 6)).astype(np.float32), rng.integers(2, size=80), rng.uniform(0.1, 5, 80)
    smallest = smallest_useful_C(X, [y == 1], weights)
    below, above = sn.LogisticProbe(tol=1e-10).fit_path(X, y, [0.999 * smallest, 1.01 * smallest], weights)
    assert not below.coef_.any()
    assert above.coef_.any()
    assert min(PROBE_C_TIMES) > 1


@pytest.mark.parametrize("options", [{"class_weight": "balanced"}, {"class_weight": {"negative": 5.0}}, {}])
def test_a_refit_head_is_scikit_learns_regression_with_the_same_weights(tiny_model, rows, options, exact):
    texts, labels, own = rows
    clf = sn.SpinClassifier(str(tiny_model), **FIXED, **options)
    clf.fit(texts, labels, None if options else own, validation=(texts[:9], labels[:9]))
    X, y = features_and_labels(clf, tiny_model, texts, labels)
    peer = LogisticRegression(C=0.5, tol=1e-12, max_iter=10_000)
    if options:
        weight = options["class_weight"]
        peer.set_params(class_weight=weight if weight == "balanced" else {0: 5.0, 1: 1.0}).fit(X, y)
    else:
        peer.fit(X, y, own)
    np.testing.assert_allclose(clf.head_.model.coef_, peer.coef_, atol=1e-4 * np.abs(peer.coef_).max())


def test_a_row_of_weight_2_counts_as_two_rows(tiny_model, rows, exact):
    texts, labels, _ = rows
    held_out = texts[:9], labels[:9]
    settings = {**FIXED, "scaling": "none", "Cs": (0.5,)}  # standardising counts every row once
    twice = sn.SpinClassifier(str(tiny_model), **settings).fit(texts * 2, labels * 2, validation=held_out)
    weighted = sn.SpinClassifier(str(tiny_model), **settings).fit(texts, labels, [2] * len(texts), validation=held_out)
    np.testing.assert_allclose(weighted.predict_proba(texts), twice.predict_proba(texts), atol=1e-5)


def test_weights_go_with_the_rows_that_are_split_off_and_come_back_for_the_last_fit(tiny_model, rows, exact):
    texts, labels, own = rows
    clf = sn.SpinClassifier(str(tiny_model), **{**FIXED, "final_rows": "all"}).fit(texts, labels, own)
    X, y = features_and_labels(clf, tiny_model, texts, labels)
    peer = LogisticRegression(C=0.5, tol=1e-12, max_iter=10_000).fit(X, y, own)
    np.testing.assert_allclose(clf.head_.model.coef_, peer.coef_, atol=1e-4 * np.abs(peer.coef_).max())


@pytest.mark.parametrize("options", [{"sample": 30}, {"phase_two": "unseen", "head": "frozen", "head_Cs": None}])
def test_two_stage_fits_take_weights(tiny_model, rows, options):
    texts, labels, own = rows
    fits = [sn.SpinClassifier(str(tiny_model), **{**FIXED, **options}).fit(texts, labels, weight) for weight in (None, own)]
    assert not np.array_equal(fits[0].head_.model.coef_, fits[1].head_.model.coef_)


@pytest.mark.filterwarnings("ignore::spin_native.errors.HiddenClassWarning")  # true of the fit without weights
@pytest.mark.parametrize("head", ["frozen", "weighted"])
def test_every_head_answers_a_rare_class_more_often_when_its_rows_count_more(tiny_model, texts, head):
    """Labels that the texts do not tell: how often a class is answered follows its weight."""
    labels = ["rare" if row % 5 == 0 else "frequent" for row in np.random.default_rng(0).permutation(len(texts))]
    options = {**QUICK, "head": head, "Cs": (0.01,)}
    shares = []
    for class_weight in (None, {"rare": 40}):
        clf = sn.SpinClassifier(str(tiny_model), **options, class_weight=class_weight, ranker="f_statistic")
        shares.append(clf.fit(texts, labels, validation=(texts, labels)).predict_proba(texts)[:, 1].mean())
    assert shares[1] > shares[0]


def test_a_weighted_regression_is_scikit_learns_ridge(tiny_model, texts, exact):
    values, own = [len(text) / 10 for text in texts], np.random.default_rng(0).uniform(0.2, 3, len(texts))
    reg = sn.SpinRegressor(str(tiny_model), **FIXED).fit(texts, values, own, validation=(texts[:9], values[:9]))
    X, y = features_and_labels(reg, tiny_model, texts, values)
    peer = Ridge(1 / 0.5).fit(X, y, own)
    np.testing.assert_allclose(reg.head_.model.coef_[0], peer.coef_, atol=1e-4 * np.abs(peer.coef_).max())


def test_a_constant_answer_is_the_weighted_share():
    labels, nothing = np.array([0, 0, 1, 2]), np.empty((1, 0), np.float32)
    weighted = ConstantHead.of(labels, settings_of(), np.array([1.0, 1.0, 2.0, 4.0]))
    np.testing.assert_allclose(weighted.output(nothing), [[0.25, 0.25, 0.5]])
    balanced = ConstantHead.of(labels, settings_of(class_weight="balanced"))
    np.testing.assert_allclose(balanced.output(nothing), [[1 / 3] * 3])
    assert Values().constant(np.array([1.0, 4.0]), np.array([2.0, 1.0])).intercept_ == pytest.approx([2.0])


# Parameters, saved classifiers, the command.


@pytest.mark.parametrize("class_weight", ["balanced", {"negative": 2, "positive": 0.5}])
def test_weights_of_classes_are_saved_with_the_settings(tiny_model, rows, class_weight, tmp_path):
    texts, labels, _ = rows
    clf = sn.SpinClassifier(str(tiny_model), **QUICK, class_weight=class_weight).fit(texts, labels)
    clf.save_pretrained(tmp_path)
    again = sn.SpinClassifier.from_pretrained(tmp_path)
    assert again.class_weight == class_weight
    assert np.array_equal(again.predict_proba(texts), clf.predict_proba(texts))
    assert clone(again).get_params()["class_weight"] == class_weight


def test_labels_that_are_numbers_have_weights_too(tiny_model, rows, tmp_path):
    texts, labels, _ = rows
    numbers = [int(label == "positive") for label in labels]
    clf = sn.SpinClassifier(str(tiny_model), **QUICK, class_weight={np.int64(0): 3.0}).fit(texts, numbers)
    clf.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "spin_classifier.json").read_text())["settings"]["class_weight"] == [3.0, 1.0]
    assert sn.SpinClassifier.from_pretrained(tmp_path).class_weight == {0: 3.0, 1: 1.0}


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ("even", "class_weight is 'even'; expected None, 'balanced'"),
        ({}, "expected None, 'balanced', or a weight for each label"),
        ({"negative": 0}, "the weight of class 'negative' is 0; expected a positive number"),
        ({"negative": float("nan")}, "the weight of class 'negative' is nan"),
        ({"neutral": 2}, "no training row has the label 'neutral'; known are 'negative', 'positive'"),
    ],
)
def test_unusable_weights_of_classes_are_refused_by_name(tiny_model, rows, class_weight, message):
    with pytest.raises(sn.InputError, match=message):
        sn.SpinClassifier(str(tiny_model), **QUICK, class_weight=class_weight).fit(*rows[:2])


def test_a_regression_has_no_weights_of_classes(tiny_model, texts):
    with pytest.raises(sn.InputError, match="class_weight='balanced' is for classes; a regression has none"):
        sn.SpinRegressor(str(tiny_model), **QUICK, class_weight="balanced").fit(texts, range(len(texts)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "texts but 1 weights; expected one weight per text"),
        (1.0, "sample_weight: got 1.0"),
        ("zero", "the weight of row 3 is 0.0; expected a positive number"),
        ("nan", "the weight of row 3 is nan; expected a positive number"),
    ],
)
def test_unusable_weights_of_rows_are_refused_by_name(tiny_model, rows, weights, message):
    if isinstance(weights, str):
        bad, weights = {"zero": 0.0, "nan": float("nan")}[weights], rows[2].copy()
        weights[3] = bad
    with pytest.raises(sn.InputError, match=message):
        sn.SpinClassifier(str(tiny_model), **QUICK).fit(*rows[:2], weights)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_cross_validation_splits_the_weights_with_the_rows(tiny_model, rows):
    texts, labels, own = rows
    clf = sn.SpinClassifier(str(tiny_model), **QUICK)
    scores = cross_val_score(clf, texts, labels, cv=2, params={"sample_weight": own}, error_score="raise")
    assert len(scores) == 2


def test_the_command_fits_with_balanced_classes(tiny_model, rows, tmp_path, capsys):
    texts, labels, _ = rows
    pd.DataFrame({"text": texts, "label": labels}).to_csv(tmp_path / "train.csv", index=False)
    out = tmp_path / "out"
    given = "--model", tiny_model, "--depth", 1, "--class-weight", "balanced"
    assert Spin(capsys)("fit", tmp_path / "train.csv", *given, "--out", out)[0] == 0
    assert sn.SpinClassifier.from_pretrained(out).class_weight == "balanced"
