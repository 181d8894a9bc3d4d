"""L2 models solved on a Gram matrix against scikit-learn's models of the same objective on the features."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from spin_native.probes.solver import GramFactors, GramMatrix, GramSum, dual_fits
from spin_native.probes.solver.losses import Logistic, Softmax, Squared

SHAPES = [(60, 200), (200, 12)]  # more features than rows, and the reverse
TOL = 1e-10


def features_of(n_rows, n_features, seed=0):
    return np.random.default_rng(seed).normal(size=(n_rows, n_features)).astype(np.float32)


def labels_of(X, n_classes, seed=1):
    """Labels that follow from the features, with noise."""
    random = np.random.default_rng(seed)
    scores = X @ random.normal(size=(X.shape[1], n_classes)) / X.shape[1] ** 0.5 + random.normal(size=(len(X), n_classes))
    return scores.argmax(1)


def matrix_of(X):
    one = GramSum(len(X))
    one.add(torch.from_numpy(X))
    return GramMatrix.combined([one], [1.0])


def factors_of(X):
    return GramFactors([torch.from_numpy(X)], [1.0])


def loss_of(y, n_classes):
    targets = torch.from_numpy(np.asarray(y, dtype=np.float64))
    if n_classes == 2:
        return Logistic(targets[:, None])
    return Softmax(torch.nn.functional.one_hot(targets.long(), n_classes).double())


def solved(X, loss, weights, kind=matrix_of):
    """Weights [problem, output, feature], intercepts [problem, output] and the fits, for row weights [row, problem]."""
    fits = dual_fits(kind(X), loss, torch.from_numpy(np.asarray(weights, dtype=np.float64)), TOL)
    assert fits.converged.all()
    return np.einsum("rpo,rf->pof", fits.a.numpy(), X), fits.intercepts.numpy(), fits


def logistic(X, y, C, weights=None):
    model = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(X.astype(np.float64), y, weights)
    return model.coef_, model.intercept_


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())


def without_common_shift(intercepts):
    """Softmax is the same where all intercepts are shifted together."""
    return intercepts - intercepts.mean()


@pytest.mark.parametrize("kind", [matrix_of, factors_of])
@pytest.mark.parametrize("shape", SHAPES)
def test_two_classes_have_scikit_learns_weights_at_every_C(shape, kind):
    X = features_of(*shape)
    y, Cs = labels_of(X, 2), (0.003, 0.1, 3.0)
    w, b, fits = solved(X, loss_of(y, 2), np.outer(np.ones(len(X)), Cs), kind)
    for problem, C in enumerate(Cs):
        coef, intercept = logistic(X, y, C)
        assert_same(w[problem], coef)
        assert_same(X @ w[problem].T + b[problem], X @ coef.T + intercept)
        assert_same(fits.scores[:, problem].numpy(), X @ coef.T + intercept)


@pytest.mark.parametrize("kind", [matrix_of, factors_of])
@pytest.mark.parametrize("shape", SHAPES)
def test_several_classes_have_scikit_learns_weights_at_every_C(shape, kind):
    X = features_of(*shape)
    y, Cs = labels_of(X, 4), (0.01, 1.0)
    w, b, fits = solved(X, loss_of(y, 4), np.outer(np.ones(len(X)), Cs), kind)
    for problem, C in enumerate(Cs):
        coef, intercept = logistic(X, y, C)
        assert_same(w[problem], coef)
        assert_same(without_common_shift(b[problem]), without_common_shift(intercept))
        expected = X @ coef.T + intercept
        scores = fits.scores[:, problem].numpy()
        assert_same(scores - scores.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True))


@pytest.mark.parametrize("kind", [matrix_of, factors_of])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_have_the_weights_of_a_ridge_regression(shape, kind):
    X = features_of(*shape)
    y = X[:, :5].sum(1) + np.random.default_rng(2).normal(size=len(X)) + 7
    Cs = (0.001, 0.1, 10.0)
    w, b, _ = solved(X, Squared(torch.from_numpy(y[:, None].astype(np.float64))), np.outer(np.ones(len(X)), Cs), kind)
    for problem, C in enumerate(Cs):
        expected = Ridge(1 / C).fit(X.astype(np.float64), y)
        assert_same(w[problem, 0], expected.coef_)
        assert b[problem, 0] == pytest.approx(expected.intercept_, rel=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_row_of_weight_zero_is_not_learnt_from_and_is_scored(shape, n_classes):
    """Three folds at once, each against scikit-learn on the other rows alone."""
    X = features_of(*shape)
    y, fold = labels_of(X, n_classes), np.arange(len(X)) % 3
    _, _, fits = solved(X, loss_of(y, n_classes), 0.2 * (fold[:, None] != np.arange(3)))
    for held_out in range(3):
        learns = fold != held_out
        coef, intercept = logistic(X[learns], y[learns], 0.2)
        expected, scores = X @ coef.T + intercept, fits.scores[:, held_out].numpy()
        if n_classes > 2:
            expected, scores = (these - these.mean(1, keepdims=True) for these in (expected, scores))
        assert_same(scores, expected)
        a = fits.a[:, held_out].abs().numpy()
        assert a[~learns].max() < 1e-5 * a.max()  # no part of w


def test_row_weights_are_scikit_learns_sample_weights():
    X = features_of(80, 30)
    y, weights = labels_of(X, 3), np.random.default_rng(3).uniform(0.1, 4, 80)
    w, b, _ = solved(X, loss_of(y, 3), 0.5 * weights[:, None])
    coef, intercept = logistic(X, y, 0.5, weights)
    assert_same(w[0], coef)
    assert_same(without_common_shift(b[0]), without_common_shift(intercept))


def test_a_weight_of_two_is_a_row_given_twice():
    X = features_of(50, 20)
    y = labels_of(X, 2)
    weighted, _, _ = solved(X, loss_of(y, 2), np.where(np.arange(50) < 10, 2.0, 1.0)[:, None])
    repeated, _, _ = solved(np.concatenate([X, X[:10]]), loss_of([*y, *y[:10]], 2), np.ones((60, 1)))
    np.testing.assert_allclose(weighted, repeated, atol=1e-4 * np.abs(repeated).max())


@pytest.mark.parametrize("kind", [matrix_of, factors_of])
def test_rows_and_columns_that_repeat_and_constant_columns_are_no_trouble(kind):
    """48 rows that are 6 different ones, columns twice, a column of ones and one of zeros: K has rank 6."""
    X = np.tile(features_of(6, 20), (8, 1))
    X = np.concatenate([X, X, np.ones((48, 1)), np.zeros((48, 1))], axis=1).astype(np.float32)
    y = np.random.default_rng(4).permutation(np.arange(48) % 2)
    w, b, _ = solved(X, loss_of(y, 2), np.full((48, 1), 0.5), kind)
    coef, intercept = logistic(X, y, 0.5)
    assert_same(w[0], coef)
    assert_same(b[0], intercept)
    assert w[0, 0, -1] == 0


def test_features_that_say_nothing_leave_the_shares_of_the_classes():
    X, y = np.zeros((40, 7), np.float32), np.array([0] * 10 + [1] * 30)
    w, b, _ = solved(X, loss_of(y, 2), np.ones((40, 1)))
    assert not w.any()
    assert b[0, 0] == pytest.approx(np.log(3), rel=1e-4)


def test_separable_rows_are_solved_at_a_large_C():
    X = features_of(40, 300)
    y = (X[:, 0] > 0).astype(int)
    w, _, _ = solved(X, loss_of(y, 2), np.full((40, 1), 100.0))
    coef, _ = logistic(X, y, 100.0)
    assert_same(w[0], coef)


def test_a_class_that_a_fold_does_not_learn_still_has_a_finite_fit():
    """The only two rows of class 2 are held out by the first fold."""
    X = features_of(30, 10)
    y = np.array([0, 1] * 14 + [2, 2])
    weights = np.stack([np.arange(30) < 28, np.ones(30)], axis=1)
    fits = dual_fits(matrix_of(X), loss_of(y, 3), torch.from_numpy(weights.astype(np.float64)))
    assert np.isfinite(fits.scores.numpy()).all()
    probabilities = fits.scores[:, 0].double().softmax(1)
    assert probabilities[:, 2].max() < 0.02


# Gram matrices.


@pytest.mark.parametrize("n_rows", [30, 1500])  # one block of rows, and two
def test_a_matrix_and_factors_multiply_as_numpy_does(n_rows):
    first, second, u = features_of(n_rows, 9), features_of(n_rows, 14, 1), features_of(n_rows, 3, 2)
    expected = 0.5 * first @ first.T + 2 * second @ second.T
    sums = []
    for X in (first, second):
        sums.append(GramSum(n_rows))
        sums[-1].add(torch.from_numpy(X))
    matrix = GramMatrix.combined(sums, [0.5, 2.0])
    factors = GramFactors([torch.from_numpy(first), torch.from_numpy(second)], [0.5, 2.0])
    expected = expected.astype(np.float64) @ u
    for gram in (matrix, factors):
        np.testing.assert_allclose(gram.times(torch.from_numpy(u)).numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_a_sum_grows_by_weighted_features():
    first, second = features_of(20, 6), features_of(20, 8, 1)
    both = GramSum(20)
    both.add(torch.from_numpy(first), 0.25)
    both.add(torch.from_numpy(second), 3.0)
    u = torch.eye(20)
    expected = 0.25 * first @ first.T + 3 * second @ second.T
    np.testing.assert_allclose(GramMatrix.combined([both], [1.0]).times(u).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("kind", [matrix_of, factors_of])
def test_leading_directions_are_the_leading_eigenvectors(kind):
    X = features_of(50, 12) * np.geomspace(10, 1, 12, dtype=np.float32)
    directions = kind(X).directions
    values, vectors = np.linalg.eigh(X.astype(np.float64).T @ X)
    np.testing.assert_allclose(np.sort(directions.values.numpy()), values, rtol=1e-3)
    ours = X.T @ directions.q.numpy()
    np.testing.assert_allclose(np.abs(np.sum(ours[:, np.argsort(directions.values.numpy())] * vectors, axis=0)), 1, atol=1e-3)
    np.testing.assert_allclose(directions.kq.numpy(), X @ ours, atol=1e-3 * np.abs(X @ ours).max())


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kind", [matrix_of, factors_of])
def test_without_onednn_the_solution_is_the_same(monkeypatch, kind, n_classes):
    X = features_of(70, 40)
    y = labels_of(X, n_classes)
    monkeypatch.setattr("spin_native.probes.solver.gram.has_onednn", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        w, _, _ = solved(X, loss_of(y, n_classes), np.full((70, 1), 0.3), kind)
    assert_same(w[0], logistic(X, y, 0.3)[0])
