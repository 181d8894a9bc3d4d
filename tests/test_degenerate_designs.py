"""Features that repeat, are constant, or differ in scale by many powers of ten: the solvers reach scikit-learn's objective."""

import warnings

import numpy as np
import pytest
import torch
from problems import objective, without_shape_checks
from sklearn.linear_model import LogisticRegression

import spin_native as sn
from spin_native.probes.solver.eigen import eigenbasis, pseudo_inverse

KINDS = {
    "repeated columns": lambda rng, n: np.repeat(rng.normal(size=(n, 5)), 8, axis=1),
    "columns of opposite signs": lambda rng, n: np.tile(rng.normal(size=(n, 4)), 6) * np.repeat([1, -1], 12),
    "constant": lambda rng, n: np.full((n, 12), rng.normal()),
    "one column, the others constant": lambda rng, n: np.column_stack([rng.normal(size=n), np.ones((n, 10))]),
    "rank 1": lambda rng, n: rng.normal(size=(n, 1)) @ rng.normal(size=(1, 30)),
    "nearly rank 2": lambda rng, n: rng.normal(size=(n, 2)) @ rng.normal(size=(2, 30)) + 1e-6 * rng.normal(size=(n, 30)),
    "repeated rows": lambda rng, n: np.tile(rng.normal(size=(4, 30)), (n // 4, 1)),
    "signs": lambda rng, n: np.sign(rng.normal(size=(n, 30))),
    "a single row differs from 0": lambda rng, n: np.eye(n)[:, [3] * 20],
    "mostly 0": lambda rng, n: rng.normal(size=(n, 30)) * (rng.uniform(size=(n, 30)) < 0.05),
    "scales from 1e-20 to 1": lambda rng, n: np.tile(rng.normal(size=(n, 5)), 6) * 10.0 ** rng.integers(-20, 1, 30),
}


def best_of_scikit_learn(X, y, C, l1_ratio):
    """The objective that scikit-learn reaches, where it converges or not."""
    solver = "saga" if l1_ratio else "lbfgs"
    peer = LogisticRegression(C=C, l1_ratio=l1_ratio, solver=solver, max_iter=3000, tol=1e-9, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.fit(X.astype(np.float64), y)
    return objective(X, y, peer.coef_, peer.intercept_, C, l1_ratio)


@without_shape_checks
@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_degenerate_design_is_solved_to_scikit_learns_objective(kind, l1_ratio):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X, y = KINDS[kind](rng, 48).astype(np.float32), np.arange(48) % (2 + seed % 2)
        for probe in sn.LogisticProbe(l1_ratio=l1_ratio, tol=1e-6).fit_path(X, y, [0.01, 1.0]):
            assert probe.converged_
            ours = objective(X, y, probe.coef_, probe.intercept_, probe.C, l1_ratio)
            assert ours <= best_of_scikit_learn(X, y, probe.C, l1_ratio) * (1 + 1e-6)


@without_shape_checks
@pytest.mark.parametrize("factor", [1e-18, 1e-9, 1e3])
@pytest.mark.parametrize("kind", ["repeated columns", "repeated rows", "rank 1"])
def test_an_l2_path_is_solved_at_small_and_large_scales(kind, factor):
    rng = np.random.default_rng(0)
    X, y = (factor * KINDS[kind](rng, 48)).astype(np.float32), np.arange(48) % 3
    for probe in sn.LogisticProbe(l1_ratio=0.0, tol=1e-4).fit_path(X, y, [1e-3, 1.0]):
        assert probe.converged_
        ours = objective(X, y, probe.coef_, probe.intercept_, probe.C, 0.0)
        assert ours <= best_of_scikit_learn(X, y, probe.C, 0.0) * (1 + 1e-4)


@without_shape_checks
@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_design_of_huge_scale_is_solved_or_called_unconverged(kind, l1_ratio):
    rng = np.random.default_rng(0)
    X, y = (1e10 * KINDS[kind](rng, 48)).astype(np.float32), np.arange(48) % 2
    (probe,) = sn.LogisticProbe(l1_ratio=l1_ratio, tol=1e-4, max_iter=20).fit_path(X, y, [1.0])
    assert np.isfinite(probe.coef_).all()
    if probe.converged_:
        ours = objective(X, y, probe.coef_, probe.intercept_, 1.0, l1_ratio)
        assert ours <= best_of_scikit_learn(X, y, 1.0, l1_ratio) * (1 + 1e-4)


def test_eigenvectors_are_right_where_repeated_columns_give_denormal_numbers():
    """Among such float32 matrices LAPACK's divide and conquer fails on about one in twenty."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        columns = np.repeat(rng.normal(size=(48, 6)), 18, axis=1) * 10.0 ** rng.integers(-20, 10, size=108)
        columns = torch.from_numpy(columns.astype(np.float32))
        matrix = columns.T @ columns / 48
        eigenvalues, basis = eigenbasis(matrix.tril())
        largest = float(matrix.abs().max())
        np.testing.assert_allclose(basis @ torch.diag(eigenvalues) @ basis.T, matrix, atol=1e-5 * largest)
        np.testing.assert_allclose(basis.T @ basis, np.eye(108), atol=1e-5)
        assert (eigenvalues.diff() >= 0).all()


@pytest.fixture
def lapack_that_fails(monkeypatch):
    """torch.linalg.eigh, and pinv with it, as they are where the iteration does not settle."""

    def fails(*_args, **_options):
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    monkeypatch.setattr(torch.linalg, "pinv", fails)


@pytest.mark.usefixtures("lapack_that_fails")
@pytest.mark.parametrize("n_classes", [2, 3])
def test_an_l2_path_needs_no_eigenvectors_to_reach_its_minimum(n_classes):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 20)).astype(np.float32), np.arange(60) % n_classes
    (probe,) = sn.LogisticProbe(l1_ratio=0.0, tol=1e-6).fit_path(X, y, [1.0])
    assert probe.converged_
    ours = objective(X, y, probe.coef_, probe.intercept_, 1.0, 0.0)
    assert ours <= best_of_scikit_learn(X, y, 1.0, 0.0) * (1 + 1e-6)


def test_eigenvectors_are_computed_in_float64_where_float32_fails(monkeypatch):
    true = torch.linalg.eigh

    def fails_in_float32(matrix):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")
        return true(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fails_in_float32)
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    matrix = torch.from_numpy(rows.T @ rows)
    eigenvalues, basis = eigenbasis(matrix)
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(matrix.numpy().astype(float)), rtol=1e-5)
    assert basis.dtype == torch.float32


def test_a_pseudo_inverse_is_numpys_where_torchs_fails(monkeypatch):
    def fails(*_args, **_options):
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    p = np.array([0.5, 0.3, 0.2])
    matrix = np.diag(p) - np.outer(p, p)  # singular, as softmax's
    monkeypatch.setattr(torch.linalg, "pinv", fails)
    ours = pseudo_inverse(torch.from_numpy(matrix), rtol=1e-12).numpy()
    np.testing.assert_allclose(ours, np.linalg.pinv(matrix), atol=1e-12)
