"""Selection by hand, probes against scikit-learn, the choice of a depth."""

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
from spin_native.probes.importance import importance, salient


def test_importance_is_the_squared_norm_of_outgoing_weights():
    assert importance(np.array([[1.0, -2.0, 0.0]])).tolist() == [1, 4, 0]
    assert importance(np.array([[1.0, -2.0, 0.0], [3.0, 0.0, 0.0]])).tolist() == [10, 4, 0]


@pytest.mark.parametrize(
    ("eta", "expected"), [(0.3, [2]), (0.5, [2]), (0.51, [0, 2]), (0.8, [0, 2]), (0.9, [0, 2, 3]), (1.0, [0, 2, 3])]
)
def test_the_fewest_neurons_that_hold_eta_of_the_importance(eta, expected):
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


def objective(X, y, probe, C, l1_ratio):
    """C * sum log-loss + penalty, for two classes, by hand."""
    margin = (X @ probe.coef_[0] + probe.intercept_[0]) * np.where(y == probe.classes_[1], 1, -1)
    penalty = l1_ratio * np.abs(probe.coef_).sum() + (1 - l1_ratio) / 2 * np.square(probe.coef_).sum()
    return C * np.logaddexp(0, -margin).sum() + penalty


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("C", [0.01, 0.1, 1.0])
def test_the_objective_is_as_low_as_saga_run_long(l1_ratio, C):
    X, y = make_classification(300, 40, n_informative=10, random_state=0)
    X = (X - X.mean(0)) / X.std(0)
    probe = sn.LogisticProbe(C=C, l1_ratio=l1_ratio).fit(X, y)
    best = LogisticRegression(C=C, l1_ratio=l1_ratio, solver="saga", max_iter=20000, tol=1e-9, random_state=0).fit(X, y)
    # At l1_ratio=1 liblinear penalises the intercept, a little.
    assert objective(X, y, probe, C, l1_ratio) <= objective(X, y, best, C, l1_ratio) * (1 + 1e-3)


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


@parametrize_with_checks(
    [
        kind(l1_ratio=r, tol=tol)
        for kind in (sn.LogisticProbe, sn.LinearProbe)
        for r, tol in ((0.0, 1e-13), (0.5, 1e-14), (1.0, 1e-11))  # two fits of the same rows are to agree within 1e-7
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


def test_the_shallowest_depth_within_the_tolerance():
    scores = {1: 0.70, 2: 0.80, 3: 0.805, 4: 0.81}
    assert shallowest_within(scores, 0.0) == 4
    assert shallowest_within(scores, 0.005) == 3
    assert shallowest_within(scores, 0.01) == 2
    assert shallowest_within({1: 0.5, 2: 0.5}, 0.0) == 1
    for wrong in (-0.1, float("nan")):
        with pytest.raises(sn.InputError, match="tolerance"):
            shallowest_within(scores, wrong)
