"""Probabilities: temperature, prior shift, log-loss and calibration error, against scikit-learn and by hand."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.neural_network import MLPClassifier

import spin_native as sn
from spin_native.classifier.heads import ConstantHead
from spin_native.classifier.heads.refit import RefitHead
from spin_native.classifier.heads.scaled import scaled
from spin_native.classifier.heads.weighted import WeightedHead
from spin_native.classifier.probabilities import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    ece,
    fit_prior_shift,
    fit_temperature,
    log_loss,
    reliability,
)
from spin_native.probes.probes import probabilities


def drawn(n_rows, n_scores, rng):
    """Scores, and labels drawn from the probabilities of these scores."""
    scores = 2 * rng.normal(size=(n_rows, n_scores))
    shares = probabilities(scores)
    return scores, (rng.random((n_rows, 1)) > np.cumsum(shares, axis=1)[:, :-1]).sum(1)


@pytest.mark.parametrize("n_scores", [1, 3])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_an_overconfident_model_is_recovered(n_scores, temperature):
    scores, labels = drawn(40_000, n_scores, np.random.default_rng(1))
    assert fit_temperature(scores * temperature, labels) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("n_scores", [1, 4])
def test_of_many_rows_the_temperature_has_the_smallest_log_loss_that_scikit_learn_measures(n_scores):
    scores, labels = drawn(5000, n_scores, np.random.default_rng(2))
    scores *= 2.5
    best = minimize_scalar(
        lambda inverse: sklearn_log_loss(labels, probabilities(scores * inverse)), bounds=(0.05, 5), method="bounded"
    )
    assert 1 / fit_temperature(scores, labels) == pytest.approx(best.x, rel=0.01)


def test_few_rows_that_are_all_right_keep_the_temperature_near_one():
    scores, labels = np.array([[3.0], [-2.0], [4.0], [-3.0]]), np.array([1, 0, 1, 0])
    assert 0.5 < fit_temperature(scores, labels) < 1
    assert fit_temperature(np.empty((0, 1)), np.empty(0, dtype=int)) == 1
    assert fit_temperature(np.zeros((5, 3)), np.array([0, 1, 2, 0, 1])) == 1  # scores that no temperature changes


def test_the_temperature_stays_in_its_range():
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=(5000, 1)), rng.integers(0, 2, 5000)
    assert fit_temperature(scores * 1000, labels) == MAX_TEMPERATURE
    assert fit_temperature(1e-4 * (2.0 * labels[:, None] - 1), labels) == MIN_TEMPERATURE
    wrong = -(2.0 * labels[:, None] - 1)
    assert fit_temperature(10 * wrong, labels) == MAX_TEMPERATURE


@pytest.mark.parametrize("n_scores", [1, 3])
def test_a_prior_that_changed_is_found_and_lowers_the_log_loss(n_scores):
    scores, labels = drawn(6000, n_scores, np.random.default_rng(4))
    change = np.array([1.5]) if n_scores == 1 else np.array([1.0, 0.0, -1.0])
    shift = fit_prior_shift(scores + change, labels)
    np.testing.assert_allclose(shift, -change, atol=0.15)
    half = fit_prior_shift(2 * (scores + change), labels, temperature=2.0)
    np.testing.assert_allclose(half, shift, atol=1e-4)


def test_the_prior_shift_of_two_classes_is_the_intercept_of_scikit_learns_offset_regression():
    scores, labels = drawn(20_000, 1, np.random.default_rng(5))
    model = LogisticRegression(C=np.inf, tol=1e-8).fit(scores + 1, labels)
    assert fit_prior_shift(scores + 1, labels)[0] == pytest.approx(model.intercept_[0], abs=0.02)


@pytest.mark.parametrize("n_rows", [0, 8, 60, 2000])
def test_a_prior_that_did_not_change_is_left_alone(n_rows):
    scores, labels = drawn(n_rows, 3, np.random.default_rng(6))
    assert fit_prior_shift(scores, labels).tolist() == [0, 0, 0]


def test_the_log_loss_is_that_of_scikit_learn_and_finite_at_a_probability_of_zero():
    shares = np.random.default_rng(7).dirichlet(np.ones(4), 50)
    labels = np.arange(50) % 4
    assert log_loss(shares, labels) == pytest.approx(sklearn_log_loss(labels, shares, labels=range(4)))
    assert log_loss(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(708.4, abs=0.1)


def test_the_calibration_error_by_hand():
    confidences = np.array([1.0, 0.95, 0.8, 0.7, 0.65, 0.6])
    shares, labels = np.stack([confidences, 1 - confidences], 1), np.array([0, 1, 0, 0, 1, 1])
    # Bins of width .2: (.8, 1] holds 1 and .95, of which one is right; (.6, .8] .8, .7 and .65, two right; (.4, .6] .6, wrong.
    rows = reliability(shares, labels, n_bins=5)
    expected = [(0.4, 0.6, 1, 0.6, 0.0), (0.6, 0.8, 3, 2.15 / 3, 2 / 3), (0.8, 1.0, 2, 0.975, 0.5)]
    np.testing.assert_allclose([tuple(row) for row in rows], expected)
    assert ece(shares, labels, n_bins=5) == pytest.approx((0.6 + 3 * (2.15 / 3 - 2 / 3) + 2 * 0.475) / 6)
    assert sum(row.n for row in reliability(shares, labels)) == 6


def test_a_temperature_lowers_the_calibration_error_of_an_overconfident_model():
    scores, labels = drawn(5000, 3, np.random.default_rng(8))
    before, after = (ece(softmax(4 * scores / by, axis=1), labels) for by in (1, fit_temperature(4 * scores, labels)))
    assert before > 0.1
    assert after < 0.03


def test_a_scaled_linear_head_gives_the_scores_over_the_temperature_plus_the_shift(clf, reviews):
    features = clf._deployed.salient_features(reviews[0][0], clf.depth_)
    head = clf.head_
    assert isinstance(head, RefitHead)
    score = head.scores(head.standardizer(features))[0, 0]
    again = scaled(head, 2.5, np.array([0.75]))
    assert again.output(features)[0, 1] == pytest.approx(expit(score / 2.5 + 0.75))
    assert again.C == head.C
    assert again.converged == head.converged
    assert head.scores(head.standardizer(features))[0, 0] == score  # the head itself is as before


def test_a_scaled_perceptron_gives_the_scores_over_the_temperature_plus_the_shift(tiny_model, reviews):
    clf = sn.SpinClassifier(str(tiny_model), depth=1, head="weighted", baseline=False, poolings=("mean",), etas=(0.8,))
    head = clf.fit(*reviews).head_
    assert isinstance(head, WeightedHead)
    features = clf._deployed.salient_features(reviews[0][0], 1)
    network = MLPClassifier(hidden_layer_sizes=[len(bias) for bias in head.model.biases[:-1]], max_iter=1)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        network.fit(np.random.default_rng(0).normal(size=(4, features.shape[1])), [0, 1, 0, 1])
    network.coefs_, network.intercepts_ = map(list, (head.model.weights, head.model.biases))
    probability = network.predict_proba(head.standardizer(features))[0, 1]
    score = np.log(probability / (1 - probability))
    assert scaled(head, 3.0).output(features)[0, 1] == pytest.approx(expit(score / 3), rel=1e-5)
    assert scaled(head, 3.0, np.array([-1.0])).output(features)[0, 1] == pytest.approx(expit(score / 3 - 1), rel=1e-5)


def test_a_scaled_constant_head_is_a_constant_head(tiny_model, clf):
    head = ConstantHead.of(np.array([0, 1, 1, 1]), sn.SpinClassifier(str(tiny_model), head="refit")._settings(clf.task_))
    again = scaled(head, 2.0)
    assert isinstance(again, ConstantHead)
    assert again.output(np.empty((1, 0), np.float32))[0, 1] == pytest.approx(expit(np.log(3) / 2))
