"""The solvers behind the probes: objectives against scikit-learn, duality gaps, blocks of features, weights, hard problems."""

import sys

import numpy as np
import pytest
import torch
from problems import data, objective, without_shape_checks
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge

import spin_native as sn
from spin_native.probes.solver import Design, Logistic, Softmax, Squared, joint_step, ridge
from spin_native.probes.solver.objective import Objective


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("C", [0.01, 0.3, 10.0])
def test_the_objective_is_that_of_saga_run_long(n_classes, l1_ratio, C):
    X, y = data(n_classes, n_rows=150, n_features=25)
    probe = sn.LogisticProbe(C=C, l1_ratio=l1_ratio).fit(X, y)
    saga = LogisticRegression(C=C, l1_ratio=l1_ratio, solver="saga", max_iter=30000, tol=1e-10, random_state=0).fit(X, y)
    ours, theirs = (objective(X, y, p.coef_, p.intercept_, C, l1_ratio) for p in (probe, saga))
    assert ours <= theirs * (1 + 1e-8)


@pytest.mark.parametrize("l1_ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_targets", [1, 3])
def test_linear_probes_are_ridge_lasso_and_elastic_net(l1_ratio, n_targets):
    X, y = make_regression(120, 30, n_informative=8, n_targets=n_targets, noise=5, random_state=0)
    C = 0.05
    probe = sn.LinearProbe(C=C, l1_ratio=l1_ratio, tol=1e-12).fit(X, y)
    for k, target in enumerate(y.reshape(120, -1).T):
        # ElasticNet divides the loss by the number of rows.
        peer = ElasticNet(alpha=1 / (C * 120), l1_ratio=l1_ratio, tol=1e-12, max_iter=100000) if l1_ratio else Ridge(1 / C)
        peer.fit(X, target)
        np.testing.assert_allclose(probe.coef_[k], peer.coef_, atol=1e-5 * np.abs(peer.coef_).max())
        assert probe.intercept_[k] == pytest.approx(peer.intercept_, rel=1e-6)
    assert probe.predict(X).shape == y.shape


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_parameters_may_be_numpy_numbers(l1_ratio):
    X, y = data(3, n_rows=60, n_features=12)
    ours = sn.LogisticProbe(C=np.float64(0.3), l1_ratio=np.float64(l1_ratio)).fit(X, y)
    assert np.array_equal(ours.coef_, sn.LogisticProbe(C=0.3, l1_ratio=l1_ratio).fit(X, y).coef_)


def test_a_constant_target_beside_another_converges():
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(80, 30)) + 3000).astype(np.float32)
    probe = sn.LinearProbe(C=10.0, max_iter=40).fit(X, np.column_stack([rng.normal(size=80), np.ones(80)]))
    assert probe.converged_
    assert not probe.coef_[1].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("change", [None, lambda block: block * 2])
def test_rows_of_weight_0_are_not_in_the_gram_matrix(dtype, change):
    rng = np.random.default_rng(0)
    X, weights, columns = rng.normal(size=(200, 9)).astype(dtype), rng.uniform(size=200), torch.tensor([0, 3, 8])
    weights[rng.permutation(200)[:150]] = 0
    result = Design([X[:70], X[70:]], change).gram(columns, torch.from_numpy(weights)[:, None]).lower_square().numpy()
    rows = np.column_stack([(X if change is None else change(X))[:, columns], np.ones(200)])
    np.testing.assert_allclose(
        np.tril(result), np.tril(rows.T @ (weights[:, None] * rows)), rtol=1e-4 if dtype == np.float32 else 1e-12
    )


def test_a_gram_matrix_of_several_terms_and_entry_factors_is_their_sum():
    rng = np.random.default_rng(0)
    X, columns = rng.normal(size=(200, 9)) + 3, torch.tensor([0, 3, 8])
    weights, entries = rng.uniform(size=(200, 2)), rng.normal(size=(2, 200, 4))
    weights[50:, 1], entries[1, 50:] = 1e-30, 1e15  # a negligible weight counts as 0, however large the entries
    design = Design([X[:70], X[70:]]).centred(torch.ones(200).double())
    gram = design.gram(columns, torch.from_numpy(weights), lambda k, rows: torch.from_numpy(entries[k])[rows])
    parts = [np.column_stack([(X - X.mean(0))[:, columns], np.ones(200)]) * entries[k] for k in range(2)]
    weights[50:, 1] = 0
    expected = sum(part.T @ (weights[:, k, None] * part) for k, part in enumerate(parts))
    np.testing.assert_allclose(np.tril(gram.lower_square().numpy()), np.tril(expected), rtol=1e-12)


def test_the_coarse_correction_is_the_exact_inverse_on_steps_that_classes_share(monkeypatch):
    """E (E^T H E)^-1 E^T with H built by hand; a column of E moves one feature's free weights of all classes by one number."""
    monkeypatch.setattr(joint_step, "LIGHT_CURVATURE_SHARE_COARSE", 0.0)
    monkeypatch.setattr(joint_step, "LEAST_DAMPING", 0.0)
    rng = np.random.default_rng(0)
    X, y, row_weights = rng.normal(size=(200, 6)) + 3, torch.from_numpy(rng.integers(4, size=200)), rng.uniform(size=200)
    loss = Softmax(torch.nn.functional.one_hot(y, 4).double())
    state = Objective(Design([X]).centred(torch.ones(200).double()), loss, torch.from_numpy(row_weights), 1.0, 0.25, 1e-9)
    state.z = torch.from_numpy(rng.normal(size=(200, 4)))
    is_free = rng.uniform(size=(7, 4)) < 0.6
    is_free[-1] = [False, True, True, True]  # one intercept is fixed
    assert {0, 2, 3, 4} <= set(is_free.sum(1))
    p = state.z.softmax(1).numpy()
    rows = np.column_stack([X - X.mean(0), np.ones(200)])
    hessian = np.einsum("i,ikl,ij,im->jkml", row_weights, p[:, :, None] * np.eye(4) - p[:, :, None] * p[:, None], rows, rows)
    hessian = hessian.reshape(28, 28) + 0.25 * np.diag(np.repeat(np.arange(7) < 6, 4))
    shared = np.stack([(is_free & (np.arange(7) == j)[:, None]).ravel() for j in range(7) if is_free[j].sum() > 1], 1)
    v = rng.normal(size=(7, 4)) * is_free
    expected = shared @ np.linalg.solve(shared.T @ hessian @ shared, shared.T @ v.ravel())
    result = joint_step.CoarseCorrection(state, torch.from_numpy(is_free).double())(torch.from_numpy(v)).numpy()
    np.testing.assert_allclose(result.ravel(), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", [Logistic, Softmax])
def test_certain_rows_leave_no_denormal_numbers_in_products(kind):
    """Products of denormal numbers take ten times as long."""
    z = torch.tensor([[0.0], [95.0]] if kind is Logistic else [[0.0, 1.0, 2.0], [0.0, 1.0, 95.0]], dtype=torch.float64)
    curve = kind(torch.zeros_like(z)).curvature_product(z, torch.full((2,), 1e3, dtype=torch.float64), torch.float32)
    products = curve(torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), slice(None))
    assert products[0].abs().min() > 1e-3
    assert not products[1].any()


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_a_path_gives_the_objectives_of_single_fits_in_the_order_of_cs(l1_ratio):
    X, y = data(3, n_rows=150, n_features=25)
    Cs = [1.0, 0.01, 0.1]
    path = sn.LogisticProbe(l1_ratio=l1_ratio).fit_path(X, y, Cs)
    for C, probe in zip(Cs, path, strict=True):
        alone = sn.LogisticProbe(C=C, l1_ratio=l1_ratio).fit(X, y)
        assert C == probe.C
        values = [objective(X, y, p.coef_, p.intercept_, C, l1_ratio) for p in (probe, alone)]
        assert values[0] == pytest.approx(values[1], rel=2e-8)


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_features_in_several_mapped_arrays_give_the_same_probe_as_one_array(l1_ratio, tmp_path):
    X, y = data(dtype=np.float32)
    parts = []
    for index, part in enumerate(np.split(X * 3 + 1, [50, 51, 180])):
        np.save(tmp_path / f"{index}.npy", part)
        parts.append(np.load(tmp_path / f"{index}.npy", mmap_mode="r"))
    design = Design(parts, lambda block: (block - 1) / 3)
    (result,) = sn.LogisticProbe(l1_ratio=l1_ratio).fit_path(design, y, [0.1])
    (expected,) = sn.LogisticProbe(l1_ratio=l1_ratio).fit_path(X, y, [0.1])
    np.testing.assert_allclose(result.coef_, expected.coef_, atol=1e-4)
    assert np.array_equal(result.coef_ == 0, expected.coef_ == 0)


def test_float32_features_give_an_objective_as_low_as_float64_ones():
    X, y = data(n_rows=600, n_features=80, dtype=np.float32)
    for C in (0.1, 100.0):
        single = sn.LogisticProbe(C=C, tol=1e-7).fit(X, y)
        double = sn.LogisticProbe(C=C, tol=1e-10).fit(X.astype(np.float64), y)
        assert single.coef_.dtype == np.float64
        values = [objective(X, y, p.coef_, p.intercept_, C, 1.0) for p in (single, double)]
        assert values[0] == pytest.approx(values[1], rel=2e-7)


@pytest.mark.parametrize("kind", [Logistic, Softmax])
def test_a_loss_keeps_full_precision_for_rows_classified_with_certainty(kind):
    """The wrong classes together have the probability e^-d or 2 e^-d, which is nearly the loss as well."""
    for d in (20.0, 35.0, 60.0):
        if kind is Logistic:
            loss, z, n_others = Logistic(torch.tensor([[1.0]]).double()), torch.tensor([[d]]).double(), 1
        else:
            loss, n_others = Softmax(torch.tensor([[0.0, 1.0, 0.0]]).double()), 2
            z = torch.tensor([[1.0, 1.0 + d, 1.0]]).double()
        wrong = n_others * np.exp(-d)
        assert float(loss.value(z)) == pytest.approx(wrong, rel=1e-8)
        assert float(loss.slope(z).min()) == pytest.approx(-wrong, rel=1e-8)
        assert float(loss.dual(z, 1.0)) == pytest.approx(wrong * (d + 1), rel=1e-8)  # -q log q, and -(1 - q) log(1 - q) = q


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_a_row_of_weight_0_does_not_matter_even_if_its_features_are_huge(l1_ratio):
    X, y = data(dtype=np.float32)
    probe = sn.LogisticProbe(l1_ratio=l1_ratio, tol=1e-8)
    without = clone(probe).fit(X[1:], y[1:])
    X[0] = 1e12
    probe.fit(X, y, np.arange(len(y)) > 0)
    assert probe.converged_
    np.testing.assert_allclose(probe.coef_, without.coef_, atol=1e-5)
    np.testing.assert_allclose(probe.intercept_, without.intercept_, atol=1e-5)


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_a_fit_that_max_iter_stops_warns(l1_ratio):
    X, y = data()
    with pytest.warns(ConvergenceWarning, match=r"not converged after 1 iterations: the duality gap is .* of the objective"):
        probe = sn.LogisticProbe(C=10.0, l1_ratio=l1_ratio, max_iter=1).fit(X, y)
    assert not probe.converged_
    assert probe.dual_gap_ > 1e-3


def test_the_gap_of_a_stopped_fit_is_that_of_the_model_it_returns():
    X, y = data()
    with pytest.warns(ConvergenceWarning, match="after 3 iterations"):
        probe = sn.LogisticProbe(C=10.0, tol=1e-8, max_iter=3).fit(X, y)
    value = objective(X, y, probe.coef_, probe.intercept_, 10.0, 1.0)
    slopes = 10.0 * (1 / (1 + np.exp(-probe.decision_function(X))) - y)
    slopes *= min(1.0, 1.0 / np.abs(slopes @ X).max())  # a dual point: within the L1 norm's dual ball; its sum is 0 already
    assert slopes.sum() == pytest.approx(0.0, abs=1e-9)
    share = np.abs(slopes) / 10.0
    dual = -10.0 * (share * np.log(share) + (1 - share) * np.log1p(-share)).sum()
    assert probe.dual_gap_ == pytest.approx((value - dual) / value, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"C": 0.0}, "C is .*; expected positive"),
        ({"C": -1.0}, "expected positive"),
        ({"C": float("nan")}, "expected positive"),
        ({"l1_ratio": 1.5}, "l1_ratio is 1.5; expected from 0"),
        ({"tol": 0.0}, "tol is 0.0; expected positive"),
        ({"max_iter": 0}, "max_iter is 0; expected 1 or more"),
    ],
)
def test_unusable_settings_are_refused_by_name(settings, message):
    X, y = data()
    for kind in (sn.LogisticProbe, sn.LinearProbe):
        with pytest.raises(sn.InputError, match=f"{kind.__name__}: .*{message}"):
            kind(**settings).fit(X, y)


def test_features_that_are_not_finite_and_one_class_are_refused():
    X, y = data()
    with pytest.raises(ValueError, match="one class"):
        sn.LogisticProbe().fit(X, np.ones(len(y)))
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        sn.LogisticProbe().fit(X, y)


@pytest.mark.parametrize("kind", [Squared, Logistic, Softmax])
def test_slopes_curvatures_and_conjugates_are_those_of_the_loss(kind):
    """Against automatic differentiation, and Fenchel-Young: value + conjugate = slope * margin."""
    generator = torch.Generator().manual_seed(0)
    n_outputs = 1 if kind is Logistic else 4
    z = torch.randn(7, n_outputs, generator=generator, dtype=torch.float64, requires_grad=True)
    if kind is Squared:
        targets = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    elif kind is Logistic:
        targets = torch.tensor([0.0, 1, 1, 0, 1, 0, 0], dtype=torch.float64)[:, None]
    else:
        targets = torch.eye(4, dtype=torch.float64)[[0, 3, 1, 2, 2, 0, 1]]
    loss = kind(targets)
    (slope,) = torch.autograd.grad(loss.value(z).sum(), z)
    torch.testing.assert_close(loss.slope(z), slope)
    of_row = torch.autograd.functional.hessian
    rows = [of_row(lambda row, i=i: kind(targets[i : i + 1]).value(row[None])[0], z[i]) for i in range(7)]
    hessian = torch.stack(rows)
    torch.testing.assert_close(loss.curvature(z), hessian.diagonal(dim1=1, dim2=2))
    u = torch.randn(7, n_outputs, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        loss.curvature_product(z, torch.ones(len(z), dtype=torch.float64), torch.float64)(u, slice(None)),
        torch.einsum("rij,rj->ri", hessian, u),
    )
    torch.testing.assert_close(loss.value(z) - loss.dual(z, 1.0), (slope * z).sum(1))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_stores_shards_are_probed_without_being_joined(dtype, tiny_model, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["spin_native.features.extract"], "BLOCK_BYTES", 0)  # shards of 64 rows
    model, tokenizer = sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model))
    store = sn.extract(model, tokenizer, reviews[0], store=tmp_path / "store", dtype=dtype)
    where = {"site": "activation", "pooling": "mean", "layer": 1}
    shards = store.blocks(**where)
    assert [len(shard) for shard in shards] == [64, 16]
    (mapped,) = sn.LogisticProbe(tol=1e-7).fit_path(Design(shards), np.array(reviews[1]), [3.0])
    whole = sn.LogisticProbe(C=3.0, tol=1e-7).fit(store.array(**where), reviews[1])
    assert mapped.classes_.tolist() == whole.classes_.tolist()
    np.testing.assert_allclose(mapped.coef_, whole.coef_, atol=1e-3)


@without_shape_checks
@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_preconditioners_block_size_does_not_change_the_solution(n_classes, monkeypatch):
    X, y = data(n_classes)
    solutions = []
    for n_columns in (3072, 16, 1):
        monkeypatch.setattr("spin_native.probes.solver.ridge.MAX_BLOCK_COLUMNS", n_columns)
        probes = sn.LogisticProbe(l1_ratio=0.0, tol=1e-12).fit_path(X, y, [0.01, 1.0, 100.0])
        solutions.append(np.stack([np.hstack([probe.coef_, probe.intercept_[:, None]]) for probe in probes]))
    np.testing.assert_allclose(solutions[1], solutions[0], atol=1e-6)
    np.testing.assert_allclose(solutions[2], solutions[0], atol=1e-6)


def test_one_block_is_the_exact_inverse_of_the_ridge_hessian(monkeypatch):
    """A single product with the Hessian is enough for any C, any row weights and any shift of the features."""
    X, y = data()
    products = []
    solve = ridge.conjugate_gradients

    def counted(product, *arguments):
        return solve(lambda v: (products.append(None), product(v))[1], *arguments)

    monkeypatch.setattr(ridge, "conjugate_gradients", counted)
    probes = sn.LinearProbe(l1_ratio=0.0, tol=1e-10).fit_path(X + 5, y.astype(float), [0.01, 1.0, 100.0])
    assert all(probe.converged_ for probe in probes)
    assert len(products) == 1
    weights = np.random.default_rng(0).exponential(size=len(y))
    assert sn.LinearProbe(l1_ratio=0.0, tol=1e-10).fit(X + 0.5, y.astype(float), weights).converged_
    assert len(products) == 2


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_feature_that_is_not_finite_or_overflows_is_named(l1_ratio, n_classes):
    X, y = data(n_classes, dtype=np.float32)
    for bad, message in ((np.nan, "7 is NaN or infinite"), (np.inf, "7 is NaN or infinite"), (1e25, "feature 7: its weighted")):
        broken = X.copy()
        broken[3, 7] = bad
        with pytest.raises(sn.InputError, match=message):
            sn.LogisticProbe(l1_ratio=l1_ratio).fit_path(broken, y, [1.0])


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_a_c_that_overflows_is_reported_instead_of_looping_forever(l1_ratio):
    X, _ = data(dtype=np.float32)
    report = pytest.raises(sn.InputError, match="lower C") if l1_ratio else pytest.warns(ConvergenceWarning, match="lower C")
    with report:
        sn.LinearProbe(C=1e38, l1_ratio=l1_ratio).fit(X, np.arange(250.0))


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_an_offset_of_the_targets_or_reversed_features_change_no_weight(l1_ratio):
    X, _ = data()
    y = X @ np.linspace(-1, 1, 40) + np.random.default_rng(0).normal(size=250)
    probe = sn.LinearProbe(C=0.1, l1_ratio=l1_ratio)
    near, far, back = (probe.fit(a, b).coef_ for a, b in ((X, y), (X, y + 1e8), (X[::-1, ::-1], y[::-1])))
    np.testing.assert_allclose(far, near, atol=1e-5)
    np.testing.assert_allclose(back[:, ::-1], near, atol=1e-5)
    flat = probe.fit(X, np.full(250, 0.1))
    assert flat.converged_
    np.testing.assert_allclose(flat.predict(X), 0.1, rtol=1e-12)
