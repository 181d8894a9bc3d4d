"""The solver on hard problems: separable rows, collinear features, outliers, rare classes, many classes."""

import numpy as np
import pytest
from problems import data, nightly, objective, without_shape_checks
from sklearn.datasets import make_classification

import spin_native as sn


@without_shape_checks
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("dtype", "offset"), [(np.float64, 0), (np.float32, 0), (np.float32, 100)])
def test_the_gap_bounds_how_far_the_objective_is_above_its_minimum(n_classes, l1_ratio, dtype, offset):
    """At loose tolerances float32 features are multiplied in float32, but the gap is computed in float64."""
    X, y = data(n_classes)
    exact = (X + offset).astype(dtype)
    X = exact.astype(np.float64)
    best = sn.LogisticProbe(C=1.0, l1_ratio=l1_ratio, tol=1e-9).fit(X, y)
    least = objective(X, y, best.coef_, best.intercept_, 1.0, l1_ratio)
    for tol in (1e-1, 1e-2, 1e-4, 1e-5):
        probe = sn.LogisticProbe(C=1.0, l1_ratio=l1_ratio, tol=tol).fit(exact, y)
        value = objective(X, y, probe.coef_, probe.intercept_, 1.0, l1_ratio)
        assert probe.converged_
        assert (value - least) / value <= probe.dual_gap_ + 1e-12
        assert probe.dual_gap_ <= tol


@without_shape_checks
def test_many_classes_reach_a_tight_gap_where_the_objective_no_longer_shows_progress():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 60))
    y = (X @ rng.normal(size=(60, 10)) + 2 * rng.gumbel(size=(400, 10))).argmax(1)
    for probe in sn.LogisticProbe(tol=1e-8, max_iter=30).fit_path(X, y, [0.1, 1.0, 10.0]):
        assert probe.converged_


@without_shape_checks
@pytest.mark.parametrize(("n_features", "n_classes", "l1_ratio"), [(12, 3, 1.0), (30, 6, 0.99), (30, 6, 0.5), (12, 4, 1.0)])
def test_a_shift_of_all_classes_that_leaves_the_loss_unchanged_does_not_slow_softmax_down(n_features, n_classes, l1_ratio):
    """Adding one number to a feature's weights of all classes changes only the penalty, which must be least there."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, n_features))
    y = (X @ rng.normal(size=(n_features, n_classes)) + rng.gumbel(size=(1000, n_classes))).argmax(1)
    probe = sn.LogisticProbe(C=5.0, l1_ratio=l1_ratio, tol=1e-8, max_iter=20).fit(X, y)
    assert probe.converged_
    value = objective(X, y, probe.coef_, probe.intercept_, 5.0, l1_ratio)
    for shift in (-1e-3, 1e-3):
        for feature in range(n_features):
            moved = probe.coef_.copy()
            moved[:, feature] += shift
            assert value < objective(X, y, moved, probe.intercept_, 5.0, l1_ratio) + 1e-7 * value


@without_shape_checks
def test_a_feature_that_is_nonzero_in_one_row_of_light_curvature_is_fitted():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 13))
    X[:, -1] = np.arange(3000) == 0
    X[:2000, :6] *= 30  # rows classified with certainty: the other rows hold most of the curvature
    y = (X[:, :12] @ rng.normal(size=(12, 3)) + rng.gumbel(size=(3000, 3))).argmax(1)
    y[0] = (y[0] + 1) % 3
    for probe in sn.LogisticProbe(tol=1e-7, max_iter=30).fit_path(X, y, [5.0, 50.0]):
        assert probe.converged_
        assert probe.coef_[:, -1].any()


@without_shape_checks
def test_rare_indicators_and_a_large_c_converge_although_the_objective_hardly_falls():
    rng = np.random.default_rng(4)
    X = (rng.uniform(size=(120, 20)) < 0.05).astype(float)
    y = (X @ rng.normal(size=(20, 5)) + rng.gumbel(size=(120, 5))).argmax(1)
    probe = sn.LogisticProbe(C=1e4, tol=1e-6, max_iter=80).fit(((X - X.mean(0)) / X.std(0)).astype(np.float32), y)
    assert probe.converged_


@without_shape_checks
@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_features_with_an_outlier_far_from_all_other_rows_converge(n_classes, l1_ratio):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 10))
    y = (X @ rng.normal(size=(10, n_classes)) + rng.gumbel(size=(200, n_classes))).argmax(1)
    X[0, :5] = 1e6
    assert sn.LogisticProbe(l1_ratio=l1_ratio, tol=1e-6, max_iter=30).fit(X, y).converged_


@without_shape_checks
@pytest.mark.parametrize(("n_classes", "shape"), [(8, (600, 120)), pytest.param(12, (1000, 60), marks=nightly)])
def test_many_classes_and_features_that_are_sums_of_others_converge(n_classes, shape):
    """Some directions change no margin, and steps that move all classes together hardly change the loss."""
    informative = {"n_informative": 20, "n_redundant": 2, "n_classes": n_classes}
    X, y = make_classification(*shape, **informative, random_state=0)
    probe = sn.LogisticProbe(C=10.0, tol=1e-6, max_iter=30).fit((X - X.mean(0)) / X.std(0), y)
    assert probe.converged_


@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=nightly) for seed in range(10, 120))])
@without_shape_checks
def test_a_random_problem_is_solved_to_the_gap_it_reports(seed):
    rng = np.random.default_rng(seed)
    n_rows, n_features, n_classes = rng.integers(40, 160), rng.integers(3, 60), rng.integers(2, 6)
    X = rng.normal(size=(n_rows, n_features)) * rng.choice([0.3, 1.0, 3.0], n_features)
    noise = rng.choice([0.0, 1.0]) * rng.gumbel(size=(n_rows, n_classes))  # without noise, classes can be separable
    y = np.unique((X @ rng.normal(size=(n_features, n_classes)) + noise).argmax(1), return_inverse=True)[1]
    X[:, -1] = X[:, 0] + X[:, 1]
    X = (X + rng.choice([0, 20])).astype(rng.choice([np.float32, np.float64]))
    C, l1_ratio = 10.0 ** rng.integers(-2, 3), rng.choice([0.0, 0.5, 1.0])
    loose, tight = (sn.LogisticProbe(C=C, l1_ratio=l1_ratio, tol=tol, max_iter=60).fit(X, y) for tol in (1e-4, 1e-8))
    values = [objective(X, y, p.coef_, p.intercept_, C, l1_ratio) for p in (loose, tight)]
    assert (values[0] - values[1]) / values[0] <= loose.dual_gap_ + 1e-12
    assert tight.dual_gap_ <= 1e-8


@without_shape_checks
@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_separable_rows_and_more_features_than_rows_still_converge(l1_ratio, n_classes):
    X, y = data(n_classes, n_rows=60, n_features=200)
    assert sn.LogisticProbe(C=100.0, l1_ratio=l1_ratio, tol=1e-6).fit(X, y).converged_


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_separable_rows_and_a_large_c_reach_a_tight_gap(n_classes, dtype, request):
    """The loss is tiny for every row: its last digits decide."""
    if n_classes == 5:
        request.getfixturevalue("unchecked")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 10))
    y = (X @ rng.normal(size=(10, n_classes))).argmax(1)
    for probe in sn.LogisticProbe(tol=1e-8, max_iter=30).fit_path(X.astype(dtype), y, [1e2, 1e4]):
        assert probe.converged_


@without_shape_checks
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_features_far_from_0_that_are_sums_of_others_take_no_longer(n_classes, l1_ratio, dtype):
    rng = np.random.default_rng(1)
    X = np.round(64 * rng.normal(size=(120, 20))) / 64  # exact in float32, also after adding 100
    X[:, 15:] = X[:, :5] + X[:, 5:10]
    y = (X @ rng.normal(size=(20, n_classes)) + rng.gumbel(size=(120, n_classes))).argmax(1)
    near, far = (
        sn.LogisticProbe(C=1e4, l1_ratio=l1_ratio, max_iter=40, tol=1e-6).fit((X + shift).astype(dtype), y)
        for shift in (0, 100)
    )
    assert near.converged_
    assert far.converged_
    assert far.n_iter_ <= near.n_iter_ + 5
    np.testing.assert_allclose(far.predict_proba(X + 100), near.predict_proba(X), atol=0.01)


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_copies_of_a_feature_a_constant_one_and_wild_scales_still_converge(l1_ratio):
    X, y = data()
    X = np.concatenate([X, X[:, :5], np.ones((len(X), 1)), X[:, 5:8] * 1e3, X[:, 8:10] * 1e-3], axis=1)
    assert sn.LogisticProbe(C=1.0, l1_ratio=l1_ratio, tol=1e-6).fit(X, y).converged_
