"""Every head, classification and regression; rankers and cuts; two-stage fits; rows that leave early, and what is promised."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, pearsonr, spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import f_classif
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, mean_squared_error, mutual_info_score
from spin_native.classifier.integration import Part, integrate, sparsify
from spin_native.classifier.perceptron import Perceptron

import spin_native as sn
from spin_native.classifier.deployed import Deployed
from spin_native.classifier.exits import THRESHOLDS, Exit, calibrate, harm_bound, replay
from spin_native.classifier.training import parted
from spin_native.errors import LeakWarning, NoNeuronWarning
from spin_native.features.store import Feature
from spin_native.models import attention
from spin_native.probes import probes, solver
from spin_native.probes.controls import bottom, control_task, random_neurons, stability
from spin_native.probes.importance import Cut, class_mean_difference, f_statistic, importance, mutual_information, predictivity

HEADS = ("refit", "frozen", "weighted")


@pytest.fixture(scope="module")
def values(reviews):
    """A number for each review that follows from its words."""
    texts, labels = reviews
    return [len(t.split()) / 10 + (y == "positive") for t, y in zip(texts, labels, strict=True)]


@pytest.fixture(scope="module")
def exiting(tiny_model, reviews):
    """A classifier with a head at every depth."""
    return sn.SpinClassifier(str(tiny_model), depth=3, exits="all", poolings=("mean",)).fit(*reviews)


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


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_head_classifies_is_saved_and_explains_itself(tiny_model, reviews, tmp_path, head, n_classes):
    texts, labels = reviews
    if n_classes == 3:
        labels = ["film" if "film" in text else label for text, label in zip(texts, labels, strict=True)]
    how = {"mixing": "best", "sites": ("activation", "hidden"), "poolings": ("mean",), "depth": 2, "etas": (0.8, 1.0)}
    clf = sn.SpinClassifier(str(tiny_model), head=head, **how).fit(texts, labels)
    assert clf.score(texts, labels) > 0.7
    assert clf.head_.kind == head
    clf.save_pretrained(tmp_path)
    again = sn.SpinClassifier.from_pretrained(tmp_path)
    assert np.array_equal(again.predict_proba(texts), clf.predict_proba(texts))
    assert again.explain(texts[0]) == clf.explain(texts[0])
    assert again.layer_curve_ == clf.layer_curve_


@pytest.mark.parametrize("head", HEADS)
def test_every_head_estimates_values_is_saved_and_scored(tiny_model, reviews, values, tmp_path, head):
    texts = reviews[0]
    reg = sn.SpinRegressor(str(tiny_model), head=head, seed=1).fit(texts, values)
    assert reg.score(texts, values) > 0.7
    reg.save_pretrained(tmp_path)
    again = sn.SpinRegressor.from_pretrained(tmp_path)
    assert np.array_equal(again.predict(texts), reg.predict(texts))
    assert again.predict(texts[0]) == pytest.approx(reg.predict(texts)[0], rel=1e-6)
    with pytest.raises(sn.InputError, match="its task is 'regression'; SpinClassifier does classification"):
        sn.SpinClassifier.from_pretrained(tmp_path)


def test_a_regression_is_scored_by_the_metric_that_was_chosen(tiny_model, reviews, values):
    texts = reviews[0]
    expected = {
        "pearson": lambda y, p: pearsonr(y, p)[0],
        "spearman": lambda y, p: spearmanr(y, p)[0],
        "mse": mean_squared_error,
        "mae": mean_absolute_error,
    }
    for metric, by_hand in expected.items():
        reg = sn.SpinRegressor(str(tiny_model), metric=metric, baseline=False).fit(texts, values)
        assert reg.score(texts, values) == pytest.approx(by_hand(np.array(values), reg.predict(texts)))
        scores = [row.validation for row in reg.depth_curve_]
        assert reg.depth_curve_[reg.depth_ - 1].validation == (min if metric in ("mse", "mae") else max)(scores)


def test_contributions_and_intercept_add_up_to_the_value(tiny_model, reviews, values):
    reg = sn.SpinRegressor(str(tiny_model)).fit(reviews[0], values)
    total = sum(c.contribution for c in reg.explain("good film", 10**6)) + reg.head_.model.intercept_[0]
    assert total == pytest.approx(reg.predict("good film"), rel=1e-5)


def test_a_frozen_head_reads_nothing_but_the_outputs_of_the_layers_probes(tiny_model, reviews):
    """Each layer's part of the head's weights is one multiple of that layer's own probe, pruned; a refit's is not."""
    texts, labels = reviews
    features = sn.extract(sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model)), texts, poolings=("mean",))
    part = Part(features, np.array([int(label == "positive") for label in labels]))
    is_multiple = {}
    for kind in ("frozen", "refit"):
        settings = sn.SpinClassifier(head=kind, poolings=("mean",), etas=(0.8,))._settings()
        layers = sparsify(part, part, 3, settings, False)
        head = integrate(layers, part, part, None, 3, settings, False)[0][3]
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
    monkeypatch.setattr("spin_native.classifier.integration.TOL", 1e-10)
    texts, n_train = reviews[0], 44
    parts = (texts[:n_train], values[:n_train]), (texts[n_train:], values[n_train:])
    reg = sn.SpinRegressor(str(tiny_model), poolings=("mean",), etas=(0.9,), final_rows=final_rows)
    reg.fit(*parts[0], validation=parts[1], test=parts[1])
    rows = slice(None) if final_rows == "all" else slice(n_train)
    features = sn.extract(
        sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model)), texts, sites=("activation", "hidden")
    )
    X = reg.head_.standardizer(reg.head_.read(Part(features, np.array(values))))
    expected = Ridge(1 / reg.head_.C).fit(X[rows].astype(np.float64), np.array(values)[rows])
    np.testing.assert_allclose(reg.head_.model.coef_[0], expected.coef_, atol=1e-4 * np.abs(expected.coef_).max())
    final = features.array(site="hidden", pooling="mean", layer=3).astype(np.float64)
    final = (final - final[:n_train].mean(0)) / final[:n_train].std(0)
    expected = Ridge(1 / reg.baseline_.C).fit(final[rows], np.array(values)[rows])
    assert reg.baseline_.test == pytest.approx(pearsonr(expected.predict(final[n_train:]), values[n_train:])[0], abs=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("sample", [None, 40])
def test_validation_rows_that_were_split_off_are_learnt_from_in_the_end(tiny_model, reviews, head, sample):
    """But not by a perceptron, whose training they stop, nor where rows are to be unseen."""

    def weights(**settings):
        settings |= {"poolings": ("mean",), "baseline": False, "etas": (0.9,), "depth": 2}
        model = sn.SpinClassifier(str(tiny_model), head=head, sample=sample, **settings).fit(*reviews).head_.model
        return model.weights[0] if head == "weighted" else model.coef_

    by_default, on_all, on_some = weights(), weights(final_rows="all"), weights(final_rows="training")
    assert np.array_equal(by_default, on_all)
    assert np.array_equal(on_all, on_some) == (head == "weighted")
    if head == "frozen" and sample is None:
        unseen = {"phase_two": "unseen"}
        assert np.array_equal(weights(**unseen), weights(final_rows="training", **unseen))


@pytest.mark.parametrize("n_rows", [3, 20, 79])
def test_a_sample_has_its_share_of_every_class(n_rows):
    labels = np.array([0] * 60 + [1] * 19 + [2])
    first, second = parted(labels, n_rows, sn.SpinClassifier(seed=1)._settings())
    assert np.array_equal(np.sort([*first, *second]), np.arange(80))
    counts = np.bincount(labels[first], minlength=3)
    assert counts.sum() == n_rows
    assert counts[2] == 1
    assert abs(counts[0] - n_rows * 60 / 80) <= 1.5


@pytest.mark.parametrize(("phase_two", "expected"), [("seen", (64, 64)), ("unseen", (32, 32)), ("both", (32, 64))])
def test_the_rows_of_phase_two(tiny_model, reviews, monkeypatch, phase_two, expected):
    """Of 64 training rows; what is unseen was not among the probes' rows."""
    rows = []
    for phase in (sparsify, integrate):
        index = 0 if phase is sparsify else 1  # where the training part stands among the arguments

        def recorded(*arguments, phase=phase, index=index):
            part = arguments[index]
            rows.append(range(64) if part.rows is None else part.rows.tolist())
            return phase(*arguments)

        monkeypatch.setattr(f"spin_native.classifier.training.{phase.__name__}", recorded)
    sn.SpinClassifier(str(tiny_model), head="frozen", phase_two=phase_two).fit(*reviews)
    assert tuple(map(len, rows)) == expected
    assert set(rows[0]).isdisjoint(rows[1]) == (phase_two == "unseen")


def test_a_perceptrons_slopes_are_finite_differences():
    rng = np.random.default_rng(0)
    weights = tuple(rng.normal(size=shape) for shape in ((5, 4), (4, 3), (3, 2)))
    model = Perceptron(weights, tuple(rng.normal(size=n) for n in (4, 3, 2)), 2)
    x = rng.normal(size=5)
    for output in (0, 1):
        slopes = model.slopes(x, output)
        for i in range(5):
            step = np.eye(5)[i] * 1e-6
            difference = (model.scores((x + step)[None]) - model.scores((x - step)[None]))[0, output] / 2e-6
            assert slopes[i] == pytest.approx(difference, abs=1e-6)


def test_heads_read_sites_and_poolings_apart_or_together(tiny_model, reviews):
    how = {"sites": ("activation", "hidden"), "poolings": ("mean", "first"), "depth": 2}
    together = sn.SpinClassifier(str(tiny_model), mixing="together", **how).fit(*reviews)
    assert len({feature[:2] for feature in together.head_.neurons}) > 1
    assert together.depth_curve_[-1].site == "activation+hidden"
    apart = sn.SpinClassifier(str(tiny_model), mixing="apart", **how).fit(*reviews)
    assert len({feature[:2] for feature in apart.head_.neurons}) == 1
    for clf in (together, apart):
        expected = clf.head_.neurons.get(Feature("activation", "mean", 0), np.empty(0, int))
        assert set(expected.tolist()) <= set(clf.salient_neurons_.get(0, np.empty(0, int)).tolist())


@pytest.mark.parametrize(
    "ranker", ["l2", "absolute", "class_mean_difference", "f_statistic", "mutual_information", "predictivity"]
)
def test_every_ranker_can_choose_the_neurons(tiny_model, reviews, ranker):
    clf = sn.SpinClassifier(str(tiny_model), ranker=ranker, top_k=(3,), depth=2, poolings=("mean",)).fit(*reviews)
    assert all(len(neurons) <= 3 for neurons in clf.salient_neurons_.values())
    assert clf.score(*reviews) > 0.6


def test_controls_do_worse_than_the_salient_neurons(tiny_model, reviews):
    clf = sn.SpinClassifier(str(tiny_model), top_k=(2,), poolings=("mean",)).fit(*reviews)
    assert clf.controls_.salient == clf.depth_curve_[clf.depth_ - 1].validation
    assert clf.controls_.salient > clf.controls_.shuffled
    assert clf.controls_.selectivity == clf.controls_.salient - clf.controls_.shuffled
    assert clf.controls_.bottom <= clf.controls_.salient


# Data that is large, leaky, or says nothing.


def test_a_sample_of_all_rows_is_the_same_as_no_sample(tiny_model, reviews):
    whole = sn.SpinClassifier(str(tiny_model)).fit(*reviews)
    sampled = sn.SpinClassifier(str(tiny_model), sample=1000).fit(*reviews)
    assert sampled.depth_curve_ == whole.depth_curve_
    assert sampled.layer_curve_ == whole.layer_curve_
    assert np.array_equal(sampled.predict_proba(reviews[0]), whole.predict_proba(reviews[0]))


def test_a_two_stage_fit_extracts_all_neurons_of_the_sample_only(tiny_model, reviews, tmp_path):
    clf = sn.SpinClassifier(str(tiny_model), sample=20, baseline=False).fit(*reviews, store=tmp_path)
    sampled, trained = (sn.ActivationStore(tmp_path / name) for name in ("training-sample", "training"))
    assert (sampled.n_rows, trained.n_rows) == (20, 64)
    assert all(width == 32 for width in sampled.widths.values())
    assert sum(trained.widths.values()) < sum(sampled.widths.values())
    assert clf.score(*reviews) > 0.7


def test_rows_in_both_training_and_test_are_warned_of(tiny_model, reviews):
    texts, labels = reviews
    with pytest.warns(
        LeakWarning, match="1 of 2 test rows stand among the training or validation rows, too .the first is row 1"
    ):
        sn.SpinClassifier(str(tiny_model), depth=1, baseline=False).fit(
            texts, labels, test=(["a text of its own", texts[5]], labels[4:6])
        )


@pytest.mark.parametrize("C", [1e-9, 0.05])
def test_layers_without_a_weight_have_a_score_too(tiny_model, reviews, C):
    """On the curve of single layers: that of the most frequent class."""
    texts, labels = reviews
    for sample in (None, 40):
        clf = sn.SpinClassifier(str(tiny_model), Cs=(C,), sample=sample, baseline=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clf.fit(texts[:60], labels[:60], validation=(texts[60:70], labels[60:70]), test=(texts[60:], labels[60:]))
        assert len(clf.layer_curve_) == 3
        for row in clf.layer_curve_:
            assert row.test == 0.5 if row.n_neurons == 0 else row.test >= 0.5


def test_a_split_that_loses_a_rare_class_is_refused(tiny_model, reviews):
    texts = [f"{text} {i}" for i in range(2) for text in reviews[0]][:100]
    labels = ["aaa"] * 2 + ["b", "c"] * 49
    with pytest.raises(sn.InputError, match=r"of 20 rows none is of class number 0 .*rare; take more rows"):
        sn.SpinClassifier(str(tiny_model), validation_share=0.8).fit(texts, labels)
    labels = ["aaa"] * 5 + ["b", "c"] * 47 + ["b"]
    with pytest.raises(sn.InputError, match="of 2 rows none is of class number"):
        sn.SpinClassifier(str(tiny_model), sample=2).fit(texts, labels)


@pytest.mark.parametrize("settings", [{}, {"sample": 20, "baseline": False}])
def test_where_no_neuron_is_salient_everybody_gets_the_most_frequent_class(tiny_model, reviews, tmp_path, settings):
    texts, labels = reviews
    with pytest.warns(NoNeuronWarning, match="every text gets the same answer; give larger Cs"):
        clf = sn.SpinClassifier(str(tiny_model), Cs=(1e-9,), **settings).fit(texts[:79], labels[:79], store=tmp_path / "store")
    assert set(clf.predict(texts)) == {max(set(labels[:79]), key=labels[:79].count)}
    assert clf.salient_neurons_ == {}
    clf.save_pretrained(tmp_path)
    assert np.array_equal(sn.SpinClassifier.from_pretrained(tmp_path).predict_proba(texts), clf.predict_proba(texts))


def test_probes_that_did_not_converge_are_warned_of_and_recorded(tiny_model, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr("spin_native.classifier.integration.TOL", 1e-300)
    monkeypatch.setattr(probes, "ridge_path", lambda *a, **k: [replace(s, gap=1.0) for s in solver.ridge_path(*a, **k)])
    with pytest.warns(
        ConvergenceWarning, match="linear models did not converge: baseline, probe on activation mean of layer 0"
    ):
        clf = sn.SpinClassifier(str(tiny_model), poolings=("mean",), Cs=(100.0,)).fit(*reviews)
    clf.save_pretrained(tmp_path)
    recorded = json.loads((tmp_path / "spin_classifier.json").read_text())["scores"]["unconverged"]
    assert recorded == clf.unconverged_
    assert "probe on activation mean of layer 0" in recorded
    assert {"baseline", "head at depth 1"} <= set(recorded)


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
        sn.SpinRegressor(str(tiny_model), ranker="predictivity").fit(reviews[0], values)
    reg = sn.SpinRegressor(str(tiny_model), baseline=False).fit(reviews[0], values)
    with pytest.raises(sn.InputError, match=r"exit 'confidence:0\.9' needs classes"):
        reg.predict(reviews[0], exit="confidence:0.9")


# Exits.


@pytest.mark.parametrize("exit_", ["confidence:0.8", "confidence:0.95", "patience:1", "patience:2", "fixed:1", "fixed:2"])
def test_a_row_that_leaves_gets_to_the_bit_what_its_fixed_depth_gives(exiting, reviews, exit_):
    texts = reviews[0]
    blocks = list(exiting.output_blocks(texts, False, exit_))
    outputs, depths = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    for depth in (1, 2, 3):
        fixed = exiting.predict_proba(texts, exit=f"fixed:{depth}")
        assert np.array_equal(outputs[depths == depth], fixed[depths == depth])
    if exit_.startswith("confidence"):
        assert len(set(depths.tolist())) > 1


def test_rows_stay_to_the_deepest_head_even_if_it_reads_nothing_there(exiting, reviews):
    heads = exiting.heads_
    deployed = Deployed(exiting._deployed.checkpoint, {1: heads[1], 2: heads[2], 3: heads[1]}, torch.float32, "cpu")
    for some in (deployed, Deployed(deployed.checkpoint, {1: heads[1], 3: heads[1]}, torch.float32, "cpu")):
        every = some.all_outputs(reviews[0])
        for exit_ in (Exit("confidence", 1.0), Exit("confidence", 0.8)):
            ((outputs, depths),) = some.blocks(reviews[0], exit_, False)
            assert np.array_equal(depths, replay(exit_, every))
            for depth, expected in every.items():
                assert np.array_equal(outputs[depths == depth], expected[depths == depth])


def test_a_row_alone_has_the_bits_of_a_row_among_others(exiting, reviews):
    features = np.random.default_rng(0).normal(size=(300, exiting.head_.n_neurons)).astype(np.float32)
    among = exiting.head_.output(features[:, ::1])
    for row in range(300):
        assert np.array_equal(exiting.head_.output(np.asfortranarray(features)[row : row + 1])[0], among[row])


def test_labels_depths_and_the_order_of_rows(exiting, reviews):
    texts = reviews[0]
    every = {depth: exiting.predict_proba(texts, exit=f"fixed:{depth}") for depth in (1, 2, 3)}
    labels, depths = exiting.predict(texts, exit="confidence:0.9", return_depth=True)
    assert np.array_equal(depths, replay(Exit("confidence", 0.9), every))
    expected = [exiting.classes_[every[d][row].argmax()] for row, d in enumerate(depths.tolist())]
    assert labels.tolist() == expected
    assert exiting.predict(texts[3], exit="confidence:0.9", return_depth=True) == (labels[3], depths[3])


def test_when_rows_leave_by_hand():
    first = np.array([[0.95, 0.05], [0.6, 0.4], [0.3, 0.7], [0.5, 0.5]])
    second = np.array([[0.1, 0.9], [0.7, 0.3], [0.6, 0.4], [0.05, 0.95]])
    third = np.array([[0.2, 0.8], [0.8, 0.2], [0.9, 0.1], [0.2, 0.8]])
    every = {2: first, 4: second, 5: third}
    assert replay(Exit("confidence", 0.9), every).tolist() == [2, 5, 5, 4]
    assert replay(Exit("patience", 1), every).tolist() == [5, 4, 5, 5]
    assert replay(Exit("patience", 2), every).tolist() == [5, 5, 5, 5]
    assert replay(Exit("fixed", 4), every).tolist() == [4, 4, 4, 4]


def test_rows_that_left_are_not_carried_on(exiting, reviews, monkeypatch):
    tokens = []
    true = attention.attend

    def counted(query, *arguments, **how):
        tokens.append(len(query))
        return true(query, *arguments, **how)

    monkeypatch.setattr("spin_native.models.layers.attend", counted)
    exiting.predict(reviews[0], exit="confidence:0.8")
    assert tokens[0] > tokens[1] > 0
    before = tokens[:]
    tokens.clear()
    exiting.predict(reviews[0], exit="fixed:1")
    assert tokens == before[:1]  # and where all have left, nothing runs


def test_the_bound_is_that_of_clopper_and_pearson():
    for harmed, rows in ((0, 300), (3, 872), (20, 500)):
        bound = harm_bound(harmed, rows, 0.95)
        assert binom.cdf(harmed, rows, bound) == pytest.approx(0.05, rel=1e-6)
    assert harm_bound(5, 5, 0.95) == 1.0


def test_a_promise_is_kept_at_its_confidence_on_rows_not_seen():
    """Heads that know what they know: over many calibrations the promise may fail for no more than its 10 %."""
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(60):
        labels = rng.integers(0, 2, 6000)
        every = {}
        for depth, signal in ((1, 0.8), (2, 1.5), (3, 2.5)):
            score = signal * (2 * labels - 1) + rng.normal(size=6000) * 1.3
            p = 1 / (1 + np.exp(-signal * score))
            every[depth] = np.stack([1 - p, p], 1)
        seen, unseen = slice(0, 1000), slice(1000, None)
        promise = calibrate({d: p[seen] for d, p in every.items()}, labels[seen], "confidence", 0.02, 0.9)
        left = replay(promise.exit, {d: p[unseen] for d, p in every.items()})
        rows = np.arange(5000)
        labels_left = np.stack([every[d][unseen].argmax(1) for d in (1, 2, 3)])[left - 1, rows]
        accuracy = [(found == labels[unseen]).mean() for found in (every[3][unseen].argmax(1), labels_left)]
        failed += accuracy[0] - accuracy[1] > 0.02
        assert promise.mean_depth <= 3
    assert failed <= 12


def test_a_promise_nobody_can_keep_lets_no_row_leave_early():
    labels = np.zeros(50, dtype=int)
    right, wrong = np.tile([0.9, 0.1], (50, 1)), np.tile([0.0, 1.0], (50, 1))
    promise = calibrate({1: wrong, 2: right}, labels, "confidence", 0.01, 0.95)
    assert promise.exit == Exit("fixed", 2)
    assert (promise.n_harmed, promise.mean_depth) == (0, 2.0)
    assert sorted(THRESHOLDS, reverse=True) == THRESHOLDS


def test_every_threshold_is_saved_as_it_was_tried():
    for threshold in (*THRESHOLDS, 0.1 + 0.2, 1.0):
        assert Exit.parse(str(Exit("confidence", threshold))) == Exit("confidence", threshold)


@pytest.mark.parametrize("given", ["confidence:inf", "fixed:inf", "patience:1e999", "confidence:nan"])
def test_exits_that_are_no_finite_number_are_refused(given):
    with pytest.raises(sn.InputError, match="expected"):
        Exit.parse(given)


def test_a_calibration_on_too_few_rows_says_how_many_it_takes(exiting, reviews):
    with pytest.warns(UserWarning, match="80 rows are too few to promise a fall of at most 0.01 .* calibrate on 299 rows"):
        exiting.calibrate(*reviews)
    assert exiting.exit_ == Exit("fixed", 3)
    assert harm_bound(0, 298, 0.95) > 0.01 >= harm_bound(0, 299, 0.95)


def test_a_calibration_is_saved_and_used(exiting, reviews, tmp_path):
    texts, labels = reviews
    clf = sn.SpinClassifier.from_pretrained(_saved(exiting, tmp_path / "before"))
    clf.calibrate(texts, labels, max_accuracy_drop=0.2, by="patience")
    assert clf.promise_.exit == clf.exit_
    clf.save_pretrained(tmp_path / "after")
    again = sn.SpinClassifier.from_pretrained(tmp_path / "after")
    assert (again.exit_, again.promise_) == (clf.exit_, clf.promise_)
    one, other = (c.predict(texts, return_depth=True) for c in (again, clf))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _saved(clf, folder):
    clf.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("exit_", "message"),
    [
        ("soon", "exit 'soon'; expected fixed, fixed:DEPTH, confidence:PROBABILITY or patience:HEADS"),
        ("confidence", "confidence to leave is None; expected a probability"),
        ("confidence:1.5", "confidence to leave is 1.5"),
        ("confidence:high", "expected fixed, fixed:DEPTH, confidence:PROBABILITY or patience:HEADS"),
        ("patience:0", "patience to leave is 0.0; expected how many heads"),
        ("patience:3", "patience 3 needs more than the 3 heads"),
        ("fixed:7", "no head at depth 7; there are heads at 1, 2, 3"),
    ],
)
def test_an_exit_nobody_can_take_is_refused(exiting, exit_, message):
    with pytest.raises(sn.InputError, match=message):
        exiting.predict(["good film"], exit=exit_)


def test_one_head_cannot_be_calibrated(fitted, reviews):
    with pytest.raises(sn.InputError, match="there is one head only; fit with exits='all'"):
        fitted.calibrate(*reviews)
