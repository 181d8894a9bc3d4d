"""Importance, cuts and controls by hand calculation; probes against scikit-learn; the choice of a depth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

import spin_native as sn
from spin_native.classifier.exits import shallowest_within
from spin_native.classifier.fitting import Standardizer, smallest_useful_C
from spin_native.classifier.tasks import Classes
from spin_native.probes.controls import bottom, control_task, random_neurons, stability
from spin_native.probes.importance import Cut, class_mean_difference, importance, mutual_information, predictivity, salient


def test_importance_is_the_squared_norm_of_outgoing_weights():
    assert importance(np.array([[1.0, -2.0, 0.0]])).tolist() == [1, 4, 0]
    assert importance(np.array([[1.0, -2.0, 0.0], [3.0, 0.0, 0.0]])).tolist() == [10, 4, 0]


@pytest.mark.parametrize(
    ("eta", "expected"), [(0.3, [2]), (0.5, [2]), (0.51, [0, 2]), (0.8, [0, 2]), (0.9, [0, 2, 3]), (1.0, [0, 2, 3])]
)
def test_the_salient_neurons_are_the_fewest_that_hold_eta_of_the_importance(eta, expected):
    assert salient(np.array([3.0, 0.0, 5.0, 2.0]), eta).tolist() == expected


def test_equal_importances_are_taken_by_index_and_none_of_importance_zero():
    assert salient(np.array([1.0, 1.0, 1.0, 1.0]), 0.5).tolist() == [0, 1]
    assert salient(np.zeros(4), 1.0).tolist() == []
    assert salient(np.array([1e-30, 1.0]), 1.0).tolist() == [0, 1]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_eta_keeps_all_that_a_smaller_one_keeps(importances, one, other):
    low, high = sorted((one, other))
    small, large = (set(salient(np.array(importances), eta).tolist()) for eta in (low, high))
    assert small <= large
    total = sum(importances)
    assert sum(importances[i] for i in small) >= low * total * (1 - 1e-9)


@pytest.mark.parametrize("eta", [0.0, -0.1, 1.0001, float("nan")])
def test_an_eta_that_is_no_share_is_refused(eta):
    with pytest.raises(sn.InputError, match="expected a share above 0 and up to 1"):
        salient(np.ones(3), eta)


def test_random_neurons_meet_the_salient_ones_only_by_chance():
    """A control that equals the salient neurons, or always takes the same ones, would compare them with themselves."""
    chosen = salient(np.where(np.arange(40) % 4 == 1, 1.0, 0.0), 1.0)  # 10 of 40
    draws = [random_neurons(40, 10, seed) for seed in range(200)]
    assert all(len(np.unique(draw)) == 10 and draw.min() >= 0 and draw.max() < 40 for draw in draws)
    assert len({tuple(draw) for draw in draws}) == 200
    overlap = np.mean([len(np.intersect1d(draw, chosen)) for draw in draws])
    assert overlap == pytest.approx(10 * 10 / 40, abs=0.5)  # hypergeometric: 2.5 +- 0.09 over 200 draws
    counts = np.bincount(np.concatenate(draws), minlength=40)
    assert counts.min() > 25  # each neuron is drawn 50 times +- 6
    assert counts.max() < 75


def test_a_control_task_keeps_the_label_counts_and_nothing_else():
    labels = np.repeat(["a", "b"], 500)
    shuffled = [control_task(labels, seed) for seed in range(20)]
    assert all(sorted(task) == sorted(labels) for task in shuffled)
    agreement = [float((task == labels).mean()) for task in shuffled]
    assert max(abs(share - 0.5) for share in agreement) < 0.1  # half of the rows agree by chance, +- 0.016
    assert not np.array_equal(shuffled[0], shuffled[1])
    assert np.array_equal(shuffled[0], control_task(labels, 0))


def test_the_bottom_neurons_are_the_least_important_and_ties_go_to_the_lower_index():
    assert bottom(np.array([3.0, 1.0, 1.0, 0.0, 1.0]), 2).tolist() == [1, 3]
    assert bottom(np.array([3.0, 1.0, 1.0, 0.0, 1.0]), 3).tolist() == [1, 2, 3]


def test_stability_of_equal_and_of_disjoint_sets():
    assert stability([np.array([1, 2])] * 3) == 1.0
    assert stability([np.array([1, 2]), np.array([3])]) == 0.0
    with pytest.raises(sn.InputError, match="got 1, expected two or more"):
        stability([np.array([1, 2])])


def test_a_top_share_is_rounded_up_and_not_by_rounding_errors():
    assert len(Cut("top_share", 0.07)(np.arange(1.0, 101.0))) == 7  # 0.07 * 100 is 7.000000000000001
    assert len(Cut("top_share", 0.071)(np.arange(1.0, 101.0))) == 8


def test_the_class_mean_difference_is_a_distance_whichever_class_is_higher():
    features = np.array([[0, 3], [0, 3], [2, 1], [5, 1]], np.float32)
    np.testing.assert_allclose(class_mean_difference(features, np.array([0, 0, 1, 1])), [3.5, 2.0])
    np.testing.assert_allclose(class_mean_difference(features, np.array([0, 0, 1, 2])), [2 + 5 + 3, 2 + 2 + 0])


def test_mutual_information_of_a_neuron_that_is_the_label_is_the_labels_entropy():
    labels = np.repeat([0, 1], [50, 50])
    features = np.column_stack([labels, 1 - labels, np.ones(100)]).astype(np.float32)
    np.testing.assert_allclose(mutual_information(features, labels), [np.log(2), np.log(2), 0.0], atol=1e-12)


def test_predictivity_of_several_classes_is_that_of_the_best_separated_one():
    labels = np.repeat([0, 1, 2], 20)
    features = np.column_stack([labels == 2, labels != 2, np.tile([0, 1], 30)]).astype(np.float32)
    np.testing.assert_allclose(predictivity(features, labels), [0.5, 0.5, 0.0], atol=1e-12)


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_probabilities_and_labels_follow_from_the_weights_and_l1_makes_them_sparse(l1_ratio, n_classes):
    X, y = make_classification(400, 30, n_informative=8, n_classes=n_classes, class_sep=2, random_state=1)
    names = np.array(["d", "a", "c", "b"])[y]
    probe = sn.LogisticProbe(C=0.05, l1_ratio=l1_ratio, tol=1e-14 if l1_ratio == 0 else 1e-9).fit(X, names)
    assert probe.classes_.tolist() == sorted(set(names))
    assert probe.coef_.shape == (1 if n_classes == 2 else n_classes, 30)
    probabilities = probe.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (probe.classes_[probabilities.argmax(1)] == probe.predict(X)).all()
    assert probe.score(X, names) > 0.6
    assert (probe.coef_ == 0).any() == (l1_ratio == 1)
    if l1_ratio == 0:
        reference = LogisticRegression(C=0.05, solver="newton-cholesky", tol=1e-12).fit(X, names)
        np.testing.assert_allclose(probabilities, reference.predict_proba(X), rtol=1e-6)


@pytest.mark.parametrize("kind", [sn.LogisticProbe, sn.LinearProbe])
def test_a_probe_reduced_to_its_nonzero_columns_or_moved_to_lower_features_returns_the_same(kind):
    X, y = make_classification(100, 12, random_state=3)
    probe = kind(C=0.05).fit(X, y if kind is sn.LogisticProbe else y + 0.5 * X[:, 11])
    used = np.flatnonzero(probe.coef_.any(0))
    assert not np.array_equal(used, np.arange(len(used)))  # taking the first columns would be wrong
    scores = [p._scores(x) for p, x in ((probe, X), (probe.only(used), X[:, used]))]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-12)
    lower, below = np.random.default_rng(0).normal(size=(7, 4)), np.random.default_rng(1).normal(size=(12, 4))
    np.testing.assert_allclose(probe.through(below)._scores(lower), probe._scores(lower @ below.T), rtol=1e-12)
    again = kind.from_weights(probe.coef_, probe.intercept_, C=0.05)
    np.testing.assert_array_equal(again.predict(X), probe.predict(X))


@parametrize_with_checks(
    [
        kind(l1_ratio=r, tol=tol)
        for kind in (sn.LogisticProbe, sn.LinearProbe)
        for r, tol in (
            (0.0, 1e-13),
            (0.5, 1e-14),
            (1.0, 1e-11),
        )  # two fits must agree within 1e-7
    ]
)
def test_the_probe_is_a_scikit_learn_estimator(estimator, check, unchecked):
    check(estimator)


def test_no_weight_below_the_smallest_useful_c_and_some_above():
    X, y = make_classification(200, 20, random_state=2)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    smallest = smallest_useful_C(X, Classes(np.array([0, 1])).one_against_rest(y))
    assert not sn.LogisticProbe(C=smallest * 0.95).fit(X, y).coef_.any()
    assert sn.LogisticProbe(C=smallest * 1.5).fit(X, y).coef_.any()


def test_the_standardizer_gives_mean_0_and_variance_1_and_only_shifts_a_constant():
    X = np.random.default_rng(0).normal(3, 5, (500, 4)).astype(np.float32)
    X[:, 2] = 7.1
    scaled = Standardizer.of(X, "standard")(X)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(0), [1, 1, 0, 1], atol=1e-5)
    assert np.array_equal(Standardizer.of(X, "none")(X), X)


def test_the_chosen_depth_is_the_shallowest_within_the_tolerance():
    scores = {1: 0.70, 2: 0.80, 3: 0.805, 4: 0.81}
    assert shallowest_within(scores, 0.0) == 4
    assert shallowest_within(scores, 0.005) == 3
    assert shallowest_within(scores, 0.01) == 2
    assert shallowest_within({1: 0.5, 2: 0.5}, 0.0) == 1
    for wrong in (-0.1, float("nan")):
        with pytest.raises(sn.InputError, match="tolerance"):
            shallowest_within(scores, wrong)
