"""Symmetric matrices stored as a lower triangle, compared with ordinary square matrices."""

import numpy as np
import pytest
import torch

from spin_native.probes.solver.symmetric import PANEL_COLUMNS, Symmetric

SIZES = (1, PANEL_COLUMNS, PANEL_COLUMNS + 1, 3 * PANEL_COLUMNS - 5)


def example(size):
    """X^T X as a Symmetric and as an ordinary square matrix."""
    X = torch.from_numpy(np.random.default_rng(size).normal(size=(2 * size, size)))
    half = Symmetric.zeros(size, torch.float64)
    for rows in X.split(100):
        half.add_product(rows)
    return half, X.T @ X


@pytest.mark.parametrize("size", SIZES)
def test_products_and_diagonals_are_those_of_the_square_matrix(size):
    half, square = example(size)
    v = torch.linspace(-1, 2, size, dtype=torch.float64)
    torch.testing.assert_close(half.lower_square().tril(), square.tril())
    torch.testing.assert_close(half.diagonal(), square.diagonal())
    torch.testing.assert_close(half.times(v), square @ v)
    half.set_diagonal(v)
    torch.testing.assert_close(half.times(v), (square - square.diag().diag() + v.diag()) @ v)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("every", [1, 3, 400])
def test_a_submatrix_is_factored_and_solved(size, every):
    half, square = example(size)
    places = torch.arange(size)[::every]
    inner = square[places][:, places]
    part = half.submatrix(places)
    torch.testing.assert_close(part.lower_square().tril(), inner.tril())
    factor = part.cholesky_in_place()
    torch.testing.assert_close(factor.diagonal(), inner.diagonal())
    right = torch.linspace(-1, 2, len(places), dtype=torch.float64)
    torch.testing.assert_close(factor.solve(right), torch.linalg.solve(inner, right))
    torch.testing.assert_close(half.lower_square().tril(), square.tril())  # the full matrix is unchanged


@pytest.mark.parametrize("where", [0, PANEL_COLUMNS + 3])
def test_a_matrix_that_is_not_positive_definite_has_no_factor(where):
    half, square = example(2 * PANEL_COLUMNS)
    diagonal = square.diagonal().clone()
    diagonal[where] = -1
    half.set_diagonal(diagonal)
    assert half.cholesky_in_place() is None


def test_a_symmetric_matrix_takes_half_the_memory_of_a_square():
    half = Symmetric.zeros(20 * PANEL_COLUMNS, torch.float32)
    assert sum(panel.numel() for _, _, panel in half.parts) < 0.53 * (20 * PANEL_COLUMNS) ** 2
