"""Symmetric matrices kept as half: against NumPy's squares."""

import numpy as np
import pytest
import torch

from spin_native.probes.solver.symmetric import PANEL_COLUMNS, Symmetric

SIZES = (1, PANEL_COLUMNS, PANEL_COLUMNS + 1, 3 * PANEL_COLUMNS - 5)


def example(size):
    """X^T X, kept as half and as a square."""
    X = torch.from_numpy(np.random.default_rng(size).normal(size=(2 * size, size)))
    half = Symmetric.zeros(size, torch.float64)
    for rows in X.split(100):
        half.add_product(rows)
    return half, X.T @ X


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_square_it_stands_for(size):
    half, square = example(size)
    v = torch.linspace(-1, 2, size, dtype=torch.float64)
    torch.testing.assert_close(half.lower_square().tril(), square.tril())
    torch.testing.assert_close(half.diagonal(), square.diagonal())
    torch.testing.assert_close(half.times(v), square @ v)
    half.set_diagonal(v)
    torch.testing.assert_close(half.times(v), (square - square.diag().diag() + v.diag()) @ v)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("every", [1, 3, 400])
def test_rows_and_columns_taken_out_are_factored_and_solved(size, every):
    half, square = example(size)
    places = torch.arange(size)[::every]
    inner = square[places][:, places]
    part = half.submatrix(places)
    torch.testing.assert_close(part.lower_square().tril(), inner.tril())
    factor = part.cholesky_in_place()
    torch.testing.assert_close(factor.diagonal(), inner.diagonal())
    right = torch.linspace(-1, 2, len(places), dtype=torch.float64)
    torch.testing.assert_close(factor.solve(right), torch.linalg.solve(inner, right))
    torch.testing.assert_close(half.lower_square().tril(), square.tril())  # what it was taken from is as it was


@pytest.mark.parametrize("where", [0, PANEL_COLUMNS + 3])
def test_what_is_not_positive_has_no_factor(where):
    half, square = example(2 * PANEL_COLUMNS)
    diagonal = square.diagonal().clone()
    diagonal[where] = -1
    half.set_diagonal(diagonal)
    assert half.cholesky_in_place() is None


def test_it_takes_half_of_the_memory():
    half = Symmetric.zeros(20 * PANEL_COLUMNS, torch.float32)
    assert sum(panel.numel() for _, _, panel in half.parts) < 0.53 * (20 * PANEL_COLUMNS) ** 2
