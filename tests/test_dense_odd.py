"""Dense heads where rows are few, weights are large, or a sample chooses."""

import numpy as np
import pytest
import torch
from conftest import BAD, FILLERS, GOOD
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import spin_native as sn
from spin_native.classifier.dense import row_weights
from spin_native.classifier.parts import ExtractedPart
from spin_native.classifier.tasks import Classes
from spin_native.probes.solver import GramMatrix, GramSum, Logistic, Squared, dual_fits


@pytest.fixture(scope="module")
def rows():
    """200 texts of good and bad words, with labels that follow from most of them."""
    random = np.random.default_rng(3)
    texts, labels = [], []
    for row in range(200):
        words = [
            *random.choice(GOOD, 2),
            *random.choice(BAD, 2),
            *random.choice(FILLERS, 5),
            random.choice((GOOD, BAD)[row % 2]),
        ]
        texts.append(" ".join(map(str, random.permutation(words))))
        labels.append(row % 2)
    return texts, labels


def gram_of(X):
    total = GramSum(len(X))
    total.add(torch.from_numpy(X.astype(np.float32)))
    return GramMatrix.combined([total], [1.0])


# The solver.


@pytest.mark.parametrize("C", [10.0, 1e3, 1e5, 1e6, 1e8])
def test_a_fit_is_near_scikit_learns_minimum_or_called_unconverged(C):
    """With a tiny penalty, float32 rounds the step that is left to nothing."""
    random = np.random.default_rng(0)
    X = random.normal(size=(400, 16)) * np.arange(1, 17) ** -0.7
    X /= np.sqrt((X**2).sum(1).mean())
    signal = X @ random.normal(size=16)
    y = (signal / signal.std() + random.normal(size=400) > 0).astype(int)
    fit = dual_fits(gram_of(X), Logistic(torch.from_numpy(y)[:, None].double()), torch.full((400, 1), C))
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=20_000).fit(X, y).decision_function(X)
    ours = fit.scores[:, 0, 0].double().numpy()
    excess = losses(ours, y).sum() / losses(theirs, y).sum() - 1
    assert excess < 1e-3 or not fit.converged[0]
    assert fit.converged[0] or C > 1e3


def losses(scores, y):
    return np.logaddexp(0, np.where(y == 1, -scores, scores))


def test_a_fit_of_targets_that_are_all_equal_is_solved():
    """The smallest loss is 0 then, of which no share can be left."""
    X = np.random.default_rng(0).normal(size=(30, 5))
    targets = torch.full((30, 1), -0.025, dtype=torch.float64)
    fit = dual_fits(gram_of(X), Squared(targets), torch.ones(30, 1))
    assert fit.converged[0]
    np.testing.assert_allclose(fit.scores[:, 0], targets, atol=1e-4)


# Samples.


@pytest.mark.parametrize("sample", [40, 180])
def test_a_sample_of_few_rows_chooses_for_all_exits(tiny_model, rows, unchecked, sample):
    clf = sn.SpinClassifier(str(tiny_model), sample=sample, exits="all").fit(*rows)
    assert sorted(clf.heads_) == [1, 2, 3]
    assert clf.score(*rows) > 0.6


@pytest.mark.parametrize("head", ["best", "dense"])
def test_a_sample_and_all_rows_have_a_store_each_and_a_fit_resumes(tiny_model, rows, tmp_path, unchecked, head):
    def proba(store):
        return sn.SpinClassifier(str(tiny_model), head=head, sample=60).fit(*rows, store=store).predict_proba(rows[0])

    expected = proba(None)
    for _ in range(2):
        assert np.array_equal(proba(tmp_path / "store"), expected)


def test_so_many_rows_choose_that_their_matrix_fits(tiny_model, rows, monkeypatch, unchecked):
    monkeypatch.setattr("spin_native.classifier.dense_training.MAX_MATRIX_ROWS", 100)
    monkeypatch.setattr("spin_native.classifier.dense_training.CHOICE_ROWS", 60)
    sizes = []
    monkeypatch.setattr(
        "spin_native.classifier.dense_training.DensePath.run", noting_rows(sn.classifier.dense.DensePath.run, sizes)
    )
    texts, labels = rows
    sn.SpinClassifier(str(tiny_model), depth=2).fit(texts[:100], labels[:100], validation=(texts[100:], labels[100:]))
    assert sizes == [100, 100]  # 60 training and 40 validation rows choose; then all 100 training rows are learnt from


def noting_rows(run, sizes):
    def noted(path, *given, **named):
        sizes.append(len(path.rows.labels))
        return run(path, *given, **named)

    return noted


# Options and weights.


def test_a_tolerance_that_is_a_number_chooses_a_depth_of_few_rows_too(tiny_model, rows, unchecked):
    clf = sn.SpinClassifier(str(tiny_model), tolerance=0.9).fit(rows[0][:60], rows[1][:60])
    assert clf.depth_ == 1


def test_balanced_weights_count_only_the_rows_that_are_learnt_from(tiny_model, unchecked):
    settings = sn.SpinClassifier(str(tiny_model), class_weight="balanced")._settings(Classes(np.array([0, 1])))
    training, validation = np.array([0, 0, 0, 1]), np.array([1, 1, 1, 1])
    parts = [ExtractedPart(labels, features=None) for labels in (training, validation)]
    labels = np.concatenate([training, validation])
    of_training = row_weights(settings, labels, *parts, learns_all=False)
    assert of_training.tolist() == pytest.approx([4 / 6] * 3 + [2.0] * 5)
    of_all = row_weights(settings, labels, *parts)
    assert of_all.tolist() == pytest.approx([8 / 6] * 3 + [8 / 10] * 5)


def test_a_weight_that_float32_cannot_sum_is_refused(tiny_model, rows):
    with pytest.raises(sn.InputError, match="the weight of row 1 is 1e\\+300; expected a positive number, at most 1e\\+12"):
        sn.SpinClassifier(str(tiny_model)).fit(*rows, sample_weight=[1, 1e300, *[1] * 198])


@pytest.mark.filterwarnings("ignore::spin_native.errors.HiddenClassWarning")
def test_unconverged_models_are_named_for_what_they_read(tiny_model, rows, unchecked):
    with pytest.warns(ConvergenceWarning):
        clf = sn.SpinClassifier(str(tiny_model), head_Cs=(1e8,), depth=1).fit(*rows)
    assert "head on the upper half of hidden mean below depth 1" in clf.unconverged_
    assert "baseline on activation mean below depth 1" in clf.unconverged_
