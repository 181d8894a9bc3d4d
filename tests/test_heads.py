"""Every head, classification and regression; rankers and cuts; two-stage fits."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import f_classif
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, mean_squared_error, mutual_info_score

import spin_native as sn
from spin_native.classifier.heads.weighted import Perceptron
from spin_native.classifier.integrate import integrate
from spin_native.classifier.parts import ExtractedPart
from spin_native.classifier.settings import PUBLISHED
from spin_native.classifier.sparsify import sparsify
from spin_native.classifier.tasks import Classes
from spin_native.errors import LeakWarning, NoNeuronWarning
from spin_native.features.store import FeatureKey
from spin_native.probes import probes, solver
from spin_native.probes.controls import bottom, control_task, random_neurons, stability
from spin_native.probes.importance import Cut, class_mean_difference, f_statistic, importance, mutual_information, predictivity

SMALL = {"head": "refit", "poolings": ("mean",), "etas": (0.8,)}  # one head per depth: enough where the choice is no matter


@pytest.fixture(scope="module")
def values(reviews):
    """A number for each review that follows from its words."""
    texts, labels = reviews
    return [len(t.split()) / 10 + (y == "positive") for t, y in zip(texts, labels, strict=True)]


# Selection.


def labelled(n_classes, n_rows=400):
    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, n_rows)
    X = rng.normal(size=(n_rows, 6)).astype(np.float32)
    X[:, 2] += y * 2
    X[:, 4] += y == 1
    X[:, 5] = 3.0
    return X, y


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("ranker", [class_mean_difference, f_statistic, mutual_information, predictivity])
def test_every_ranker_finds_the_planted_neuron_and_gives_a_constant_one_nothing(ranker, n_classes):
    X, y = labelled(n_classes)
    found = ranker(X, y)
    assert found.argmax() == 2
    assert found[5] == pytest.approx(0, abs=1e-12)
    assert (found >= 0).all()


def test_rankers_equal_calculations_by_hand_and_scikit_learn():
    X, y = labelled(3)
    means = [X[y == label].astype(np.float64).mean(0) for label in range(3)]
    by_hand = sum(abs(means[i] - means[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    np.testing.assert_allclose(class_mean_difference(X, y), by_hand, rtol=1e-6)
    np.testing.assert_allclose(f_statistic(X, y)[:5], f_classif(X[:, :5].astype(np.float64), y)[0], rtol=1e-6)
    edges = np.quantile(X, np.linspace(0, 1, 11)[1:-1], axis=0)
    binned = (X[None] > edges[:, None]).sum(0)
    expected = [mutual_info_score(y, binned[:, j]) for j in range(6)]
    np.testing.assert_allclose(mutual_information(X, y), expected, atol=1e-9)
    above = X.mean(0) < X
    two = predictivity(X, (y == 1).astype(int))
    accuracy = (above == (y == 1)[:, None]).mean(0)
    np.testing.assert_allclose(two[:5], np.maximum(accuracy, 1 - accuracy)[:5] - 0.5)


def test_weightings_are_the_published_ones():
    weights = np.array([[3.0, -1.0], [4.0, 1.0]])
    assert importance(weights, "squared").tolist() == [25, 2]
    np.testing.assert_allclose(importance(weights, "l2"), [5, 2**0.5])
    assert importance(weights, "absolute").tolist() == [7, 2]


def test_cuts_controls_and_stability():
    found = np.array([0.0, 4.0, 1.0, 2.0])
    assert Cut("top_k", 2)(found).tolist() == [1, 3]
    assert Cut("top_share", 0.5)(found).tolist() == [1, 3]
    assert Cut("top_k", 4)(found).tolist() == [1, 2, 3]  # never one without importance
    assert bottom(found, 2).tolist() == [0, 2]
    assert len(set(random_neurons(50, 10, 0).tolist())) == 10
    assert np.array_equal(random_neurons(50, 10, 0), random_neurons(50, 10, 0))
    assert sorted(control_task(np.arange(9), 0).tolist()) == list(range(9))
    assert stability([np.array([1, 2, 3]), np.array([2, 3, 4])]) == 0.5
    assert stability([np.array([1]), np.array([1]), np.array([2])]) == pytest.approx(1 / 3)


# Heads.


@pytest.mark.parametrize("head", PUBLISHED)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_head_classifies_is_saved_and_explains_itself(tiny_model, reviews, tmp_path, head, n_classes):
    texts, labels = reviews
    if n_classes == 3:
        labels = ["film" if "film" in text else label for text, label in zip(texts, labels, strict=True)]
    how = {"sites": ("activation", "hidden"), "depth": 2, "baseline": False, **SMALL}
    clf = sn.SpinClassifier(str(tiny_model), **{**how, "head": head}).fit(texts, labels)
    assert clf.score(texts, labels) > 0.7
    assert clf.head_.kind == head
    clf.save_pretrained(tmp_path)
    again = sn.SpinClassifier.from_pretrained(tmp_path)
    assert np.array_equal(again.predict_proba(texts), clf.predict_proba(texts))
    assert again.explain(texts[0]) == clf.explain(texts[0])
    assert again.layer_curve_ == clf.layer_curve_


@pytest.mark.parametrize("head", PUBLISHED)
def test_every_head_estimates_values_is_saved_and_scored(tiny_model, reviews, values, tmp_path, head):
    texts = reviews[0]
    reg = sn.SpinRegressor(str(tiny_model), seed=1, **{**SMALL, "head": head}).fit(texts, values)
    assert reg.score(texts, values) > 0.7
    reg.save_pretrained(tmp_path)
    again = sn.SpinRegressor.from_pretrained(tmp_path)
    assert np.array_equal(again.predict(texts), reg.predict(texts))
    assert again.predict(texts[0]) == pytest.approx(reg.predict(texts)[0], rel=1e-6)
    with pytest.raises(sn.InputError, match="its task is 'regression'; SpinClassifier does classification"):
        sn.SpinClassifier.from_pretrained(tmp_path)


def test_a_regression_is_scored_by_the_metric_that_was_chosen(tiny_model, reviews, values, unchecked):
    texts = reviews[0]
    expected = {
        "pearson": lambda y, p: pearsonr(y, p)[0],
        "spearman": lambda y, p: spearmanr(y, p)[0],
        "mse": lambda y, p: -mean_squared_error(y, p),  # as scikit-learn's neg_mean_squared_error
        "mae": lambda y, p: -mean_absolute_error(y, p),
    }
    for metric, by_hand in expected.items():
        reg = sn.SpinRegressor(str(tiny_model), metric=metric, baseline=False, **SMALL).fit(texts, values)
        assert reg.score(texts, values) == pytest.approx(by_hand(np.array(values), reg.predict(texts)))
        scores = [row.validation for row in reg.depth_curve_]
        assert reg.depth_curve_[reg.depth_ - 1].validation == (min if metric in ("mse", "mae") else max)(scores)


def test_contributions_and_intercept_add_up_to_the_value(tiny_model, reviews, values):
    reg = sn.SpinRegressor(str(tiny_model), baseline=False, **SMALL).fit(reviews[0], values)
    total = sum(c.contribution for c in reg.explain("good film", 10**6)) + reg.head_.model.intercept_[0]
    assert total == pytest.approx(reg.predict("good film"), rel=1e-5)


def test_a_frozen_head_reads_nothing_but_the_outputs_of_the_layers_probes(tiny_model, reviews):
    """Each layer's part of the head's weights is one multiple of that layer's own probe, pruned; a refit's is not."""
    texts, labels = reviews
    features = sn.extract(sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model)), texts, poolings=("mean",))
    part = ExtractedPart(np.array([int(label == "positive") for label in labels]), features)
    is_multiple = {}
    for kind in ("frozen", "refit"):
        settings = sn.SpinClassifier(**{**SMALL, "head": kind})._settings(Classes(np.array(["negative", "positive"])))
        layers = sparsify(part, part, [FeatureKey("activation", "mean", layer) for layer in range(3)], settings, False)
        head = integrate(layers, part, part, None, 3, 3, settings, False)[3].head
        ends = np.cumsum([len(neurons) for neurons in head.neurons.values()])
        ratios = [
            weights / layers[feature].probe.coef_[0, neurons]
            for weights, (feature, neurons) in zip(np.split(head.model.coef_[0], ends[:-1]), head.neurons.items(), strict=True)
        ]
        assert max(map(len, ratios)) > 1
        is_multiple[kind] = all(np.allclose(ratio, ratio[0], rtol=1e-6) for ratio in ratios)
    assert is_multiple == {"frozen": True, "refit": False}


@pytest.mark.filterwarnings("ignore::spin_native.errors.LeakWarning")
@pytest.mark.parametrize("final_rows", ["all", "training", None])
def test_the_last_fit_is_on_validation_rows_as_well_or_not(tiny_model, reviews, values, monkeypatch, final_rows):
    """scikit-learn's ridge regression on the same neurons of the same rows, and on the final hidden state."""
    monkeypatch.setattr("spin_native.classifier.fitting.TOL", 1e-10)
    monkeypatch.setattr("spin_native.classifier.crossfit.TOL", 1e-10)
    texts, n_train = reviews[0], 44
    parts = (texts[:n_train], values[:n_train]), (texts[n_train:], values[n_train:])
    reg = sn.SpinRegressor(str(tiny_model), head="refit", poolings=("mean",), etas=(0.9,), final_rows=final_rows)
    reg.fit(*parts[0], validation=parts[1], test=parts[1])
    rows = slice(None) if final_rows == "all" else slice(n_train)
    features = sn.extract(
        sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model)), texts, sites=("activation", "hidden")
    )
    X = reg.head_.standardizer(reg.head_.read(ExtractedPart(np.array(values), features)))
    expected = Ridge(1 / reg.head_.C).fit(X[rows].astype(np.float64), np.array(values)[rows])
    np.testing.assert_allclose(reg.head_.model.coef_[0], expected.coef_, atol=1e-4 * np.abs(expected.coef_).max())
    final = features.array(site="hidden", pooling="mean", layer=3).astype(np.float64)
    final = (final - final[:n_train].mean(0)) / final[:n_train].std(0)
    expected = Ridge(final.shape[1] / reg.baseline_.C).fit(final[rows], np.array(values)[rows])
    assert reg.baseline_.test == pytest.approx(pearsonr(expected.predict(final[n_train:]), values[n_train:])[0], abs=1e-5)


@pytest.mark.parametrize("head", PUBLISHED)
@pytest.mark.parametrize("sample", [None, 40])
def test_validation_rows_that_were_split_off_are_learnt_from_in_the_end(tiny_model, reviews, head, sample, unchecked):
    """But not by a perceptron, whose training they stop, nor where rows are to be unseen."""

    def weights(**settings):
        settings |= {"poolings": ("mean",), "baseline": False, "etas": (0.9,), "depth": 2}
        model = sn.SpinClassifier(str(tiny_model), head=head, sample=sample, **settings).fit(*reviews).head_.model
        return model.weights[0] if head == "weighted" else model.coef_

    by_default, on_some = weights(), weights(final_rows="training")
    if head == "weighted":
        assert np.array_equal(by_default, on_some)
    else:
        assert np.array_equal(by_default, weights(final_rows="all"))
        assert not np.array_equal(by_default, on_some)
    if head == "frozen" and sample is None:
        unseen = {"phase_two": "unseen"}
        assert np.array_equal(weights(**unseen), weights(final_rows="training", **unseen))


@pytest.mark.parametrize("n_rows", [3, 20, 79])
def test_a_sample_has_its_share_of_every_class(n_rows):
    labels = np.array([0] * 60 + [1] * 19 + [2])
    first, second = Classes(np.array(["a", "b", "c"])).sample(labels, n_rows, seed=1)
    assert np.array_equal(np.sort([*first, *second]), np.arange(80))
    counts = np.bincount(labels[first], minlength=3)
    assert counts.sum() == n_rows
    assert counts[2] == 1
    assert abs(counts[0] - n_rows * 60 / 80) <= 1.5


@pytest.mark.parametrize(("phase_two", "expected"), [("seen", (64, 64)), ("unseen", (32, 32)), ("both", (32, 64))])
def test_the_rows_of_phase_two(tiny_model, reviews, monkeypatch, phase_two, expected, unchecked):
    """Of 64 training rows; the unseen ones were not among the probes' rows."""
    rows = []

    def probed(train, *arguments):
        rows.append(range(64) if train.rows is None else train.rows.tolist())
        return sparsify(train, *arguments)

    def gathered(part, neurons, true=ExtractedPart.gathered):
        rows.append(range(len(part.labels)) if part.rows is None else part.rows.tolist())
        return true(part, neurons)

    monkeypatch.setattr("spin_native.classifier.published.sparsify", probed)
    monkeypatch.setattr(ExtractedPart, "gathered", gathered)
    clf = sn.SpinClassifier(str(tiny_model), phase_two=phase_two, depth=2, baseline=False, **{**SMALL, "head": "frozen"})
    clf.fit(*reviews)
    of_probes, of_heads, _of_validation = rows
    assert (len(of_probes), len(of_heads)) == expected
    assert set(of_probes).isdisjoint(of_heads) == (phase_two == "unseen")


def test_a_perceptrons_slopes_are_finite_differences():
    rng = np.random.default_rng(0)
    weights = tuple(rng.normal(size=shape) for shape in ((5, 4), (4, 3), (3, 2)))
    model = Perceptron(weights, tuple(rng.normal(size=n) for n in (4, 3, 2)))
    x = rng.normal(size=5)
    for output in (0, 1):
        slopes = model.slopes(x, output)
        for i in range(5):
            step = np.eye(5)[i] * 1e-6
            difference = (model.scores((x + step)[None]) - model.scores((x - step)[None]))[0, output] / 2e-6
            assert slopes[i] == pytest.approx(difference, abs=1e-6)


def test_heads_read_sites_and_poolings_apart_or_together(tiny_model, reviews, unchecked):
    how = {
        "head": "refit",
        "sites": ("activation", "hidden"),
        "poolings": ("mean", "first"),
        "depth": 2,
        "etas": (0.8,),
        "baseline": False,
    }
    together = sn.SpinClassifier(str(tiny_model), mixing="together", **how).fit(*reviews)
    assert len({feature[:2] for feature in together.head_.neurons}) > 1
    assert together.depth_curve_[-1].site == "activation+hidden"
    apart = sn.SpinClassifier(str(tiny_model), mixing="apart", **how).fit(*reviews)
    assert len({feature[:2] for feature in apart.head_.neurons}) == 1
    for clf in (together, apart):
        expected = clf.head_.neurons.get(FeatureKey("activation", "mean", 0), np.empty(0, int))
        assert set(expected.tolist()) <= set(clf.salient_neurons_.get(0, np.empty(0, int)).tolist())


@pytest.mark.parametrize(
    "ranker", ["l2", "absolute", "class_mean_difference", "f_statistic", "mutual_information", "predictivity"]
)
def test_every_ranker_can_choose_the_neurons(tiny_model, reviews, ranker, unchecked):
    how = {"head": "refit", "top_k": (3,), "depth": 2, "poolings": ("mean",), "baseline": False}
    clf = sn.SpinClassifier(str(tiny_model), ranker=ranker, **how).fit(*reviews)
    assert all(len(neurons) <= 3 for neurons in clf.salient_neurons_.values())
    assert clf.score(*reviews) > 0.6


def test_controls_do_worse_than_the_salient_neurons(tiny_model, reviews):
    clf = sn.SpinClassifier(str(tiny_model), head="refit", top_k=(2,), poolings=("mean",), baseline=False).fit(*reviews)
    assert clf.controls_.salient == clf.depth_curve_[clf.depth_ - 1].validation
    assert clf.controls_.salient > clf.controls_.shuffled
    assert clf.controls_.selectivity == clf.controls_.salient - clf.controls_.shuffled
    assert clf.controls_.bottom <= clf.controls_.salient


# Data that is large, leaky, or says nothing.


def test_a_sample_of_all_rows_is_the_same_as_no_sample(tiny_model, reviews, unchecked):
    whole = sn.SpinClassifier(str(tiny_model), **SMALL).fit(*reviews)
    sampled = sn.SpinClassifier(str(tiny_model), sample=1000, **SMALL).fit(*reviews)
    assert sampled.depth_curve_ == whole.depth_curve_
    assert sampled.layer_curve_ == whole.layer_curve_
    assert np.array_equal(sampled.predict_proba(reviews[0]), whole.predict_proba(reviews[0]))


def test_a_two_stage_fit_extracts_all_neurons_of_the_sample_only(tiny_model, reviews, tmp_path):
    clf = sn.SpinClassifier(str(tiny_model), sample=20, baseline=False, **SMALL).fit(*reviews, store=tmp_path)
    sampled, trained = (sn.ActivationStore(tmp_path / name) for name in ("training-sample", "training"))
    assert (sampled.n_rows, trained.n_rows) == (20, 64)
    assert all(width == 32 for width in sampled.widths.values())
    assert sum(trained.widths.values()) < sum(sampled.widths.values())
    assert clf.score(*reviews) > 0.7


def test_rows_in_both_training_and_test_are_warned_of(tiny_model, reviews):
    texts, labels = reviews
    with pytest.warns(LeakWarning, match="1 of 2 test rows are among the training or validation rows, too .the first is row 1"):
        sn.SpinClassifier(str(tiny_model), depth=1, baseline=False, **SMALL).fit(
            texts, labels, test=(["a text of its own", texts[5]], labels[4:6])
        )


@pytest.mark.parametrize("C", [1e-9, 0.05])
def test_layers_without_a_weight_have_a_score_too(tiny_model, reviews, C, unchecked):
    """On the curve of single layers: that of the most frequent class."""
    texts, labels = reviews
    for sample in (None, 40):
        clf = sn.SpinClassifier(str(tiny_model), head="refit", Cs=(C,), sample=sample, baseline=False, etas=(0.8,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clf.fit(texts[:60], labels[:60], validation=(texts[60:70], labels[60:70]), test=(texts[60:], labels[60:]))
        assert len(clf.layer_curve_) == 3
        for row in clf.layer_curve_:
            assert row.test == 0.5 if row.n_neurons == 0 else row.test >= 0.5


def test_a_split_that_loses_a_rare_class_is_refused(tiny_model, reviews):
    texts = [f"{text} {i}" for i, text in enumerate([*reviews[0], *reviews[0]][:100])]
    labels = ["aaa"] * 2 + ["b", "c"] * 49
    with pytest.raises(sn.InputError, match=r"after the split: of 20 rows none is of class 'aaa', which is rare; take"):
        sn.SpinClassifier(str(tiny_model), head="refit", validation_share=0.8).fit(texts, labels)
    labels = ["aaa"] * 5 + ["b", "c"] * 47 + ["b"]
    with pytest.raises(sn.InputError, match=r"a part of the 80 training rows: of 2 rows none is of class '.*', which is rare"):
        sn.SpinClassifier(str(tiny_model), head="refit", sample=2).fit(texts, labels)


@pytest.mark.parametrize("settings", [{}, {"sample": 20, "baseline": False}])
def test_where_no_neuron_is_salient_everybody_gets_the_most_frequent_class(tiny_model, reviews, tmp_path, settings):
    texts, labels = reviews
    with pytest.warns(NoNeuronWarning, match="every text gets the same answer; give larger Cs"):
        clf = sn.SpinClassifier(str(tiny_model), head="refit", Cs=(1e-9,), **settings).fit(
            texts[:79], labels[:79], store=tmp_path / "store"
        )
    assert set(clf.predict(texts)) == {max(set(labels[:79]), key=labels[:79].count)}
    assert clf.salient_neurons_ == {}
    clf.save_pretrained(tmp_path)
    assert np.array_equal(sn.SpinClassifier.from_pretrained(tmp_path).predict_proba(texts), clf.predict_proba(texts))


def test_probes_that_did_not_converge_are_warned_of_and_recorded(tiny_model, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr("spin_native.classifier.fitting.TOL", 1e-300)
    monkeypatch.setattr("spin_native.classifier.crossfit.TOL", 1e-300)
    monkeypatch.setattr(probes, "ridge_path", lambda *a, **k: [replace(s, gap=1.0) for s in solver.ridge_path(*a, **k)])
    with pytest.warns(ConvergenceWarning, match="linear models did not converge: probe on activation mean of layer 0"):
        clf = sn.SpinClassifier(str(tiny_model), head="refit", poolings=("mean",), Cs=(100.0,)).fit(*reviews)
    clf.save_pretrained(tmp_path)
    recorded = json.loads((tmp_path / "spin_classifier.json").read_text())["scores"]["unconverged"]
    assert recorded == clf.unconverged_
    assert "probe on activation mean of layer 0" in recorded
    assert {"baseline on hidden state 3", "baseline on hidden mean below depth 1", "head at depth 1"} <= set(recorded)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, float("nan"), 1, 2], "the value of row 1 is nan; expected a finite number"),
        ([0.5, "high", 1, 2], "the value of row 1 is 'high'"),
        ([1.0, 1.0, 1.0, 1.0], "expected 4 or more rows whose values differ"),
        ([1.0, 2.0], "4 texts but 2 values"),
    ],
)
def test_values_that_are_no_numbers_are_refused(tiny_model, labels, message):
    with pytest.raises(sn.InputError, match=message):
        sn.SpinRegressor(str(tiny_model)).fit(["a film", "good", "bad", "the room"], labels)


def test_a_regression_refuses_what_needs_classes(tiny_model, reviews, values):
    with pytest.raises(sn.InputError, match="ranker 'predictivity' needs classes"):
        sn.SpinRegressor(str(tiny_model), head="refit", ranker="predictivity").fit(reviews[0], values)
    reg = sn.SpinRegressor(str(tiny_model), depth=1, baseline=False, **SMALL).fit(reviews[0], values)
    with pytest.raises(sn.InputError, match=r"exit 'confidence:0\.9' needs classes"):
        reg.predict(reviews[0], exit="confidence:0.9")
