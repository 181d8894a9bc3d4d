"""Several labels per text: the probe against scikit-learn, the task by hand, the estimator on planted labels."""

import json
import pickle
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from commands import Spin, read, write
from conftest import BAD, GOOD, VOCAB
from problems import data, objective, without_shape_checks
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.datasets import make_multilabel_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    label_ranking_average_precision_score,
    precision_recall_fscore_support,
)
from sklearn.neural_network import MLPClassifier
from sklearn.utils.estimator_checks import check_classifier_multioutput

import spin_native as sn
from spin_native import tables
from spin_native.classifier.exits import Exit, ExitDecision, calibrate, replay
from spin_native.classifier.heads.weighted import ALPHAS, HIDDEN, Perceptron
from spin_native.classifier.risk import bounded_error, is_answered
from spin_native.classifier.tasks import LabelSets, best_thresholds
from spin_native.classifier.tasks.iterative_split import iterative_split
from spin_native.probes.importance import RANKERS
from spin_native.probes.probes import MultilabelProbe
from spin_native.probes.solver import GramMatrix, Logistic, dual_fits

LABELS = ["film", "happy", "sad"]
QUICK = {"head": "refit", "poolings": ("mean",), "etas": (0.8,), "Cs": (1.0,), "head_Cs": (0.1,), "baseline": False}
PROBABILITIES = np.array([[0.9, 0.2, 0.6], [0.1, 0.3, 0.2], [0.4, 0.8, 0.7]])


@pytest.fixture(scope="module")
def problem():
    """Features [row, feature], and labels [row, 3] of which one is rare."""
    X, _ = data(n_rows=200, n_features=20)
    rng = np.random.default_rng(0)
    scores = X @ rng.normal(size=(20, 3)) / 2 + rng.logistic(size=(200, 3)) - [0, 1, 3]
    return X, (scores > 0).astype(int)


@pytest.fixture(scope="module")
def rows():
    """120 texts, and their labels, which follow from their words: none, one, two or all of them."""
    rng = np.random.default_rng(0)
    texts, labels = [], []
    while len(texts) < 120:
        words = rng.choice(VOCAB[5:-3], rng.integers(3, 8)).tolist()
        texts.append(" ".join(words))
        labels.append([name for name, of in zip(LABELS, (("film",), GOOD, BAD[:2]), strict=True) if set(of) & set(words)])
    return texts, labels


@pytest.fixture(scope="module")
def fitted(tiny_model, rows):
    return sn.SpinMultilabelClassifier(tiny_model, depth=3, exits="all", **QUICK).fit(*rows)


@pytest.fixture(scope="module")
def by_default(tiny_model, rows):
    """The default head, with everything it chooses."""
    test = (rows[0][90:], rows[1][90:])
    return sn.SpinMultilabelClassifier(tiny_model, exits="all").fit(rows[0][:90], rows[1][:90], test=test)


@pytest.fixture
def task():
    return LabelSets.learn([["sad", "film"], [], ("happy",), {"film"}], 4, "training rows")


def indicators(labels):
    return np.array([[name in row for name in LABELS] for row in labels])


# The probe.


@without_shape_checks
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("C", [0.03, 0.3])
def test_each_labels_weights_are_those_of_scikit_learns_own_regression(problem, l1_ratio, C):
    X, Y = problem
    probe = sn.LogisticProbe(C=C, l1_ratio=l1_ratio, tol=1e-10).fit(X, Y)
    assert probe.converged_
    for k, y in enumerate(Y.T):
        solver = {"solver": "saga", "max_iter": 20000} if l1_ratio else {"solver": "lbfgs", "max_iter": 2000}
        peer = LogisticRegression(C=C, l1_ratio=l1_ratio, tol=1e-9, random_state=0, **solver).fit(X, y)
        ours, theirs = (
            objective(X, y, w, b, C, l1_ratio)
            for w, b in ((probe.coef_[[k]], probe.intercept_[[k]]), (peer.coef_, peer.intercept_))
        )
        assert ours <= theirs * (1 + 1e-8)
        tolerance = 0.02 if l1_ratio else 1e-4  # saga's intercept is slow to converge
        np.testing.assert_allclose(probe.coef_[k], peer.coef_[0], atol=tolerance)
        np.testing.assert_allclose(probe.predict_proba(X)[:, k], peer.predict_proba(X)[:, 1], atol=tolerance)
        assert np.array_equal(probe.predict(X)[:, k], probe.predict_proba(X)[:, k] > 0.5)


@without_shape_checks
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_the_duality_gap_bounds_how_far_the_sum_of_the_labels_objectives_is_above_its_minimum(problem, l1_ratio):
    X, Y = problem

    def value(probe):
        of_label = zip(Y.T, probe.coef_, probe.intercept_, strict=True)
        return sum(objective(X, y, w[None], b[None], 0.3, l1_ratio) for y, w, b in of_label)

    lowest = value(sn.LogisticProbe(C=0.3, l1_ratio=l1_ratio, tol=1e-12).fit(X, Y))
    for tol in (1e-1, 1e-2, 1e-4):
        rough = sn.LogisticProbe(C=0.3, l1_ratio=l1_ratio, tol=tol).fit(X, Y)
        assert rough.dual_gap_ <= tol
        assert (value(rough) - lowest) / value(rough) <= rough.dual_gap_ + 1e-12


def test_slope_and_curvature_of_several_independent_outputs_are_finite_differences():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    loss = Logistic((torch.rand(7, 3, generator=generator) > 0.5).double())
    for k in range(3):
        step = torch.zeros(7, 3, dtype=torch.float64)
        step[:, k] = 1e-5
        slope = (loss.value(z + step) - loss.value(z - step)) / 2e-5
        np.testing.assert_allclose(loss.slope(z)[:, k], slope, atol=1e-8)
        curvature = (loss.slope(z + step) - loss.slope(z - step)) / 2e-5
        np.testing.assert_allclose(curvature[:, k], loss.curvature(z)[:, k], atol=1e-8)
        assert not curvature[:, [other for other in range(3) if other != k]].any()


@without_shape_checks
@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_a_path_gives_the_same_probes_as_single_fits_also_of_one_label(problem, l1_ratio):
    X, Y = problem
    for columns in ([0, 1, 2], [1]):
        path = MultilabelProbe(l1_ratio=l1_ratio).fit_path(X, Y[:, columns], [1.0, 0.1])
        for probe, C in zip(path, (1.0, 0.1), strict=True):
            target = Y[:, columns] if len(columns) > 1 else Y[:, columns[0]]
            single = sn.LogisticProbe(C=C, l1_ratio=l1_ratio).fit(X, target)
            np.testing.assert_allclose(probe.coef_, single.coef_, atol=1e-3)
            assert probe.predict_proba(X).shape == probe.predict(X).shape == (200, len(columns))


def test_scikit_learns_check_of_multilabel_classifiers_passes(unchecked):
    check_classifier_multioutput("LogisticProbe", sn.LogisticProbe())


@without_shape_checks
def test_a_table_or_lists_of_0_and_1_are_read_as_labels(problem):
    X, Y = problem
    expected = sn.LogisticProbe().fit(X, Y).coef_
    for given in (Y.astype(bool), pd.DataFrame(Y), Y.tolist()):
        np.testing.assert_allclose(sn.LogisticProbe().fit(X, given).coef_, expected, atol=1e-3)


def test_targets_that_are_no_labels_are_refused(problem):
    X, Y = problem
    changed = Y.copy()
    changed[3, 1] = 2
    with pytest.raises(sn.InputError, match=r"y of row 3, label 1 is 2; expected 0 or 1"):
        sn.LogisticProbe().fit(X, changed)
    with pytest.raises(sn.InputError, match=r"label 2 of y is 0 in every row"):
        sn.LogisticProbe().fit(X, Y * [1, 1, 0])
    with pytest.raises(sn.InputError, match=r"y has shape \[200\]; expected \[row, label\]"):
        MultilabelProbe().fit(X, Y[:, 0])


# Labels.


def test_labels_are_sorted_and_rows_are_encoded_as_indicators(task):
    assert task.labels.tolist() == LABELS
    assert task.encode([["sad", "film"], [], {"happy"}], 3, "rows").tolist() == [
        [True, False, True],
        [False, False, False],
        [False, True, False],
    ]
    assert LabelSets.learn([[3, 1], [2], [1.0]], 3, "rows").labels.tolist() == [1, 2, 3]


def test_a_0_1_array_or_table_says_the_same_as_lists(task):
    lists = [["film", "sad"], [], ["happy"], ["sad"]]
    table = pd.DataFrame({"sad": [1, 0, 0, 1], "happy": [0, 0, 1, 0], "film": [True, False, False, False]})
    for given in (table, pa.Table.from_pandas(table)):
        learnt = LabelSets.learn(given, 4, "rows")
        assert learnt.labels.tolist() == LABELS
        assert np.array_equal(learnt.encode(given, 4, "rows"), task.encode(lists, 4, "rows"))
    numbered = LabelSets.learn(np.array([[1, 0], [0, 1], [0, 0]]), 3, "rows")
    assert numbered.labels.tolist() == [0, 1]
    assert np.array_equal(numbered.encode([[0], [1], []], 3, "rows"), [[1, 0], [0, 1], [0, 0]])
    assert np.array_equal(numbered.encode(torch.tensor([[1, 0]]), 1, "rows"), [[1, 0]])


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (["a", "b", "a|b"], "the labels of row 0 are one str, 'a'; expected a list of labels"),
        ([["a"], None, ["b"]], "the labels of row 1 is missing; expected a list"),
        ([["a"], ["b", 1], []], "labels are of two types, the first is 'a' and row 1 has 1"),
        ([["a"], [1.5], []], "row 1 has the label 1.5"),
        ([[0, 1, 1], [1, 0, 0], [0, 0, 1]], "row 0 has the label 1 twice; .*np.array"),
        ([[], [], []], "no row has any label"),
        ([["a"], ["a", "b"], ["a"]], "every row has the label 'a', so it cannot be learnt"),
        (np.array([[1, 0], [0, 0], [1, 0]]), "no row has the label 1, so it cannot be learnt"),
        (np.array([[1, 0], [0, 3], [1, 0]]), "row 1 has 3 in the column of label 1; expected 0 or 1"),
        (pd.DataFrame({"a": [1, 0, 1], "b": [None, 1, 0]}), "row 0 has nan in the column of label 'b'"),
        (np.array([["a", "b"], ["b", "c"], ["a", "c"]]), "row 0 has 'a' in the column of label 0"),
        ([["a"], ["b"]], "3 texts but 2 rows of labels"),
    ],
)
def test_unusable_labels_are_refused_and_the_row_is_named(labels, error):
    with pytest.raises(sn.InputError, match=error):
        LabelSets.learn(labels, 3, "training rows")


def test_a_label_that_training_does_not_know_is_refused(task):
    with pytest.raises(sn.InputError, match=r"test rows: row 1 has the label 'angry'; known are 'film', 'happy', 'sad'"):
        task.encode([["sad"], ["film", "angry"]], 2, "test rows")


def test_what_is_answered_shown_and_added_to_a_table(task):
    assert task.answers(PROBABILITIES).tolist() == [("film", "sad"), (), ("happy", "sad")]
    assert task.written(PROBABILITIES).tolist() == ["film|sad", "", "happy|sad"]
    columns = task.columns(PROBABILITIES, ";")
    assert columns["predicted_label"].tolist() == ["film;sad", "", "happy;sad"]
    assert columns["probability_happy"].tolist() == [0.2, 0.3, 0.8]
    assert [task.shown(row) for row in PROBABILITIES[:2]] == ["film|sad\t0.9000|0.6000", "\t0.3000"]
    assert task.described(PROBABILITIES[0]) == {
        "labels": ["film", "sad"],
        "probabilities": {"film": 0.9, "happy": 0.2, "sad": 0.6},
    }
    assert [task.explained(row) for row in PROBABILITIES] == [(0, 1), (1, -1), (1, 1)]
    with pytest.raises(sn.InputError, match=r"label 'a\|b' holds the separator '\|'"):
        LabelSets.learn([["a|b"], []], 2, "rows").columns(PROBABILITIES[:, :1])


def test_the_label_that_is_explained_is_one_that_the_text_is_given(task):
    strict_on_film = task.with_thresholds([0.95, 0.1, 0.5])
    assert strict_on_film.answers(PROBABILITIES[:1]).tolist() == [("happy", "sad")]
    assert strict_on_film.explained(PROBABILITIES[0]) == (2, 1)  # film has .9, and is not given; sad has .6


def test_an_evaluation_agrees_with_scikit_learn(task):
    truth = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]])
    predicted = PROBABILITIES > 0.5
    result = task.evaluate(PROBABILITIES, [["film"], ["happy"], ["sad", "happy"]], "data")
    assert result["micro_f1"] == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert result["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert result["subset_accuracy"] == pytest.approx(accuracy_score(truth, predicted)) == pytest.approx(1 / 3)
    assert result["label_ranking"] == pytest.approx(label_ranking_average_precision_score(truth, PROBABILITIES))
    scores = np.array(precision_recall_fscore_support(truth, predicted))
    of_labels = [[of[name] for of in result["per_label"]] for name in ("precision", "recall", "f1", "rows")]
    np.testing.assert_allclose(of_labels, scores)
    assert result["rows"] == 3


def test_a_label_that_nobody_has_or_gets_has_an_f1_of_0(task):
    nothing = np.zeros((2, 3), dtype=bool)
    assert task.score("micro_f1", nothing, nothing) == task.score("macro_f1", nothing, nothing) == 0
    assert task.score("subset_accuracy", nothing, nothing) == 1


# Thresholds.


def test_thresholds_decide_and_are_saved_with_the_labels(task):
    changed = task.with_thresholds([0.95, 0.1, 0.65])
    assert changed.answers(PROBABILITIES).tolist() == [("happy",), ("happy",), ("happy", "sad")]
    assert task.thresholds.tolist() == [0.5, 0.5, 0.5]
    again = LabelSets.from_json(changed.to_json())
    assert (again.labels.tolist(), again.thresholds.tolist()) == (LABELS, [0.95, 0.1, 0.65])
    for unusable in ([0.5], [0.1, 0.2, 1.5], [0.1, 0.2, float("nan")]):
        with pytest.raises(sn.InputError, match="expected 3 numbers from 0 to 1"):
            task.with_thresholds(unusable)


def test_the_best_threshold_has_the_highest_f1_of_all_where_the_prior_counts_nothing():
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(100, 3)) < [0.5, 0.2, 0.06]
    probabilities = expit(2 * truth - 3 + rng.normal(size=truth.shape))
    for label, threshold in enumerate(best_thresholds(truth, probabilities, prior_rows=0.0)):
        p, y = probabilities[:, label], truth[:, label]
        cuts = [(one + other) / 2 for one, other in pairwise(np.sort(p))]
        assert f1_score(y, p > threshold) == pytest.approx(max(f1_score(y, p > cut) for cut in cuts))


def test_a_rare_labels_threshold_is_drawn_towards_one_half():
    probabilities = np.repeat([[0.3], [0.1]], [5, 95], axis=0)
    truth = probabilities > 0.2
    assert best_thresholds(truth, probabilities, prior_rows=0.0) == pytest.approx([0.2])
    drawn = best_thresholds(truth, probabilities, prior_rows=5.0)
    assert drawn == pytest.approx([expit(logit(0.2) / 2)])  # 5 rows with the label, 5 of the prior: F1 is 0 there, as at 1/2
    assert best_thresholds(np.zeros((100, 1)), probabilities).tolist() == [0.5]


def test_a_threshold_with_a_lower_f1_than_one_half_is_not_taken():
    # Of the two labels above .9, which cut is best; the way to 1/2 leads over a region that is worse than both.
    probabilities = np.array([0.01] * 3 + [0.02] * 1 + [0.2] * 40 + [0.6] * 2)[:, None]
    truth = np.array([1] * 3 + [1] + [0] * 40 + [1] * 2)[:, None]
    (threshold,) = best_thresholds(truth, probabilities, prior_rows=2.0)
    assert f1_score(truth[:, 0], probabilities[:, 0] > threshold) >= f1_score(truth[:, 0], probabilities[:, 0] > 0.5)


# Rows.


def test_a_split_keeps_each_labels_share_and_each_label_in_both_parts():
    _, Y = make_multilabel_classification(500, n_classes=6, n_labels=2, random_state=0)
    Y[:, 5] = 0
    Y[[3, 77], 5] = 1  # a label of two rows
    task = LabelSets.learn(Y, 500, "rows")
    for seed in range(5):
        train, validation = task.split(Y.astype(bool), 0.2, seed)
        assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(500))
        assert len(validation) == pytest.approx(100, abs=6)
        np.testing.assert_allclose(Y[validation, :5].sum(0), 0.2 * Y[:, :5].sum(0), atol=4)
        assert Y[train, 5].sum() == Y[validation, 5].sum() == 1
    assert not np.array_equal(task.split(Y.astype(bool), 0.2, 0)[1], task.split(Y.astype(bool), 0.2, 1)[1])


def test_iterative_stratification_is_closer_to_the_shares_than_a_random_split():
    _, Y = make_multilabel_classification(400, n_classes=8, n_labels=1, random_state=1)
    rng = np.random.default_rng(0)
    by_label = [np.abs(Y[iterative_split(Y, 0.2, rng)].sum(0) - 0.2 * Y.sum(0)).mean() for _ in range(10)]
    at_random = [np.abs(Y[rng.permutation(400)[:80]].sum(0) - 0.2 * Y.sum(0)).mean() for _ in range(10)]
    assert np.mean(by_label) < 0.5 * np.mean(at_random)


def test_labels_that_cannot_be_in_both_parts_are_refused():
    once = LabelSets.learn([["a"], ["a", "b"], [], ["a"], []], 5, "rows")
    with pytest.raises(sn.InputError, match=r"1 of the rows has the label 'b'; expected two or more"):
        once.split(once.encode([["a"], ["a", "b"], [], ["a"], []], 5, "rows"), 0.4, 0)
    most = LabelSets.learn([["a"], ["a"], [], ["a"]], 4, "rows")
    with pytest.raises(sn.InputError, match=r"1 of the rows lacks the label 'a'; expected two or more"):
        most.split(most.encode([["a"], ["a"], [], ["a"]], 4, "rows"), 0.4, 0)


def test_a_sample_holds_one_row_of_each_label():
    rng = np.random.default_rng(0)
    Y = rng.uniform(size=(300, 5)) < [0.5, 0.3, 0.1, 0.02, 0.01]
    Y[0] = True
    task = LabelSets.learn(Y, 300, "rows")
    for seed in range(5):
        chosen, rest = task.sample(Y, 20, seed)
        assert Y[chosen].any(0).all()
        assert np.array_equal(np.sort(np.concatenate([chosen, rest])), np.arange(300))
    with pytest.raises(sn.InputError, match=r"a part: of 3 rows none has the label"):
        task.check_part(Y[Y.sum(1) == 0][:3], "a part")


def test_a_row_belongs_to_the_stratum_of_its_rarest_label(task):
    Y = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]], dtype=bool)
    assert task.strata(Y).tolist() == [1, 0, 3, 2, 1]
    assert [task.stratum_name(stratum) for stratum in (2, 3)] == ["label 'sad' has", "rows without labels have"]


@pytest.mark.parametrize("ranker", RANKERS)
def test_a_ranker_of_classes_ranks_by_its_mean_over_the_labels(problem, ranker):
    X, Y = problem
    task = LabelSets.learn(Y, len(Y), "rows")
    expected = np.mean([RANKERS[ranker](X.astype(np.float32), y) for y in Y.T], axis=0)
    np.testing.assert_allclose(task.ranked(RANKERS[ranker], X.astype(np.float32), Y.astype(bool)), expected)


def test_the_best_constant_answer_is_the_share_of_every_label(task):
    probe = task.constant(np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=bool))
    np.testing.assert_allclose(task.outputs(probe.intercept_[None]), [[0.75, 0.25, 0.25]])


# Exits.

SHALLOW = np.array([[0.97, 0.02], [0.97, 0.4], [0.3, 0.3]])
DEEP = np.array([[0.97, 0.02], [0.97, 0.6], [0.2, 0.1]])


def test_a_row_exits_by_confidence_when_all_its_labels_are_decided():
    two = LabelSets.learn([["a"], ["b"]], 2, "rows")
    assert ExitDecision(Exit("confidence", 0.95), 3, two)(SHALLOW, 1).tolist() == [True, False, False]
    assert replay(Exit("confidence", 0.7), {1: SHALLOW, 2: DEEP}, two).tolist() == [1, 2, 1]


def test_a_row_exits_by_patience_when_its_whole_set_stays_the_same():
    two = LabelSets.learn([["a"], ["b"]], 2, "rows")
    decision = ExitDecision(Exit("patience", 1), 3, two)
    assert not decision(SHALLOW, 1).any()
    assert decision(DEEP, 2).tolist() == [True, False, True]
    lower = two.with_thresholds([0.5, 0.35])  # 0.4 and 0.6 are both above it
    assert replay(Exit("patience", 1), {1: SHALLOW, 2: DEEP, 3: DEEP}, lower).tolist() == [2, 2, 2]


def test_a_calibration_counts_rows_whose_whole_set_was_right_and_is_wrong_now():
    two, n = LabelSets.learn([["a"], ["b"]], 2, "rows"), 400
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(n, 2)) < 0.5
    deep = np.where(truth, 0.9, 0.1)
    shallow = deep.copy()
    wrong = rng.permutation(n)[:40]
    shallow[wrong, 1] = np.where(truth[wrong, 1], 0.4, 0.6)  # the second label is wrong, and uncertain
    promise = calibrate({1: shallow, 2: deep}, truth, "confidence", 0.01, 0.95, reads=two)
    assert promise.exit.by == "confidence"
    assert (promise.n_harmed, promise.mean_depth) == (0, pytest.approx(1 + 40 / n))
    by_patience = calibrate({1: shallow, 2: shallow, 3: deep}, truth, "patience", 0.01, 0.95, reads=two)
    # The first two heads agree on a wrong set in a tenth of the rows, so both must agree with the third one.
    assert by_patience.exit == Exit("patience", 2)


# The estimator.


@pytest.mark.parametrize("head", ["refit", "frozen", "weighted"])
def test_every_kind_of_head_is_fitted_to_several_labels(tiny_model, rows, head):
    settings = {name: value for name, value in QUICK.items() if name != "head_Cs" or head != "weighted"}
    given = pd.DataFrame(indicators(rows[1]), columns=LABELS) if head == "frozen" else rows[1]
    clf = sn.SpinMultilabelClassifier(tiny_model, depth=1, **{**settings, "head": head}).fit(rows[0], given)
    assert clf.classes_.tolist() == LABELS
    truth = indicators(rows[1])
    predicted = clf.predict_proba(rows[0]) > 0.5
    assert clf.score(rows[0], given) == pytest.approx(f1_score(truth, predicted, average="micro"))
    if head != "weighted":  # its network learns little from 120 rows
        assert clf.score(rows[0], given) > 0.8
    assert [set(labels) for labels in clf.predict(rows[0])] == [
        {name for name, has in zip(LABELS, row, strict=True) if has} for row in predicted
    ]


@without_shape_checks
@pytest.mark.parametrize("n_labels", [1, 3])
def test_the_network_of_a_weighted_head_is_scikit_learns(problem, n_labels):
    X, Y = problem[0], problem[1][:, :n_labels]
    worths = iter([1.0, 2.0, 3.0] + [0.0] * 100)  # the third epoch is the best one
    task = LabelSets.learn(Y, len(Y), "rows")
    network, _ = Perceptron.fit(X, Y.astype(bool), lambda _: next(worths), task, 0)
    peer = MLPClassifier(HIDDEN, alpha=ALPHAS[0], batch_size=128, random_state=np.random.RandomState(0))
    for _ in range(3):
        peer.partial_fit(X, Y if n_labels > 1 else Y[:, 0], classes=np.arange(max(2, n_labels)))
    expected = peer.predict_proba(X) if n_labels > 1 else peer.predict_proba(X)[:, 1:]
    np.testing.assert_allclose(task.outputs(network.scores(X)), expected, rtol=1e-9)


def test_a_head_is_one_logistic_regression_per_label_on_the_salient_neurons(tiny_model, rows):
    clf = sn.SpinMultilabelClassifier(tiny_model, depth=1, final_rows="training", **QUICK)
    held_out = (rows[0][:40], rows[1][:40])
    clf.fit(rows[0][40:], rows[1][40:], validation=held_out)
    ((feature, neurons),) = clf.head_.neurons.items()
    model, tokenizer = sn.load_model(tiny_model), sn.load_tokenizer(tiny_model)
    features = sn.extract(model, tokenizer, rows[0], poolings=("mean",)).array(**feature._asdict())[:, neurons]
    mean, scale = features[40:].mean(0), features[40:].std(0)
    standardised = (features - mean) / scale
    for k, y in enumerate(indicators(rows[1]).T):
        peer = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(standardised[40:], y[40:])
        np.testing.assert_allclose(clf.predict_proba(rows[0])[:, k], peer.predict_proba(standardised)[:, 1], atol=0.01)


def test_one_text_gives_one_tuple_and_no_texts_give_no_rows(fitted, rows):
    assert fitted.predict(rows[0][0]) == fitted.predict(rows[0])[0]
    assert fitted.predict_proba(rows[0][0]).shape == (3,)
    assert fitted.predict([]).shape == (0,)


def test_a_saved_or_pickled_classifier_answers_and_decides_alike(fitted, rows, tmp_path):
    changed = pickle.loads(pickle.dumps(fitted)).set_thresholds([0.3, 0.6, 0.5])
    changed.save_pretrained(tmp_path / "clf")
    assert json.loads((tmp_path / "clf" / "spin_classifier.json").read_text())["labels"] == [
        ["film", 0.3],
        ["happy", 0.6],
        ["sad", 0.5],
    ]
    for copy in (sn.SpinMultilabelClassifier.from_pretrained(tmp_path / "clf"), pickle.loads(pickle.dumps(changed))):
        assert copy.thresholds_.tolist() == [0.3, 0.6, 0.5]
        assert copy.predict(rows[0]).tolist() == changed.predict(rows[0]).tolist()
    expected = fitted.predict_proba(rows[0]) > [0.3, 0.6, 0.5]
    assert np.array_equal(indicators(changed.predict(rows[0])), expected)
    with pytest.raises(sn.InputError, match="its task is 'multilabel'; SpinClassifier does classification"):
        sn.SpinClassifier.from_pretrained(tmp_path / "clf")


@pytest.mark.parametrize(
    "labels", [["film", "sad"], [["film", 0.5], ["film", 0.4]], [["film", 1.5], ["sad", 0.5]], [["film", 0.5], [1, 0.5]], []]
)
def test_saved_labels_that_were_edited_are_refused(fitted, tmp_path, labels):
    fitted.save_pretrained(tmp_path / "clf")
    path = tmp_path / "clf" / "spin_classifier.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": labels}))
    with pytest.raises(sn.InputError, match="not a classifier that spin_native saved"):
        sn.SpinMultilabelClassifier.from_pretrained(tmp_path / "clf")


def test_rows_exit_where_each_heads_own_outputs_say_so(fitted, rows):
    outputs = {depth: fitted.predict_proba(rows[0], exit=f"fixed:{depth}") for depth in (1, 2, 3)}
    for exit_ in ("confidence:0.8", "patience:1"):
        _, depths = fitted.predict(rows[0], exit=exit_, return_depth=True)
        assert depths.tolist() == replay(Exit.parse(exit_), outputs, fitted.task_).tolist()
        assert len(set(depths.tolist())) > 1


def test_a_calibration_promises_whole_sets(fitted, rows, tmp_path):
    fitted.save_pretrained(tmp_path / "clf")
    clf = sn.SpinMultilabelClassifier.from_pretrained(tmp_path / "clf").calibrate(*rows, max_accuracy_drop=0.3)
    truth = indicators(rows[1])
    at_exit, deepest = (
        (indicators(clf.predict(rows[0], exit=exit_)) == truth).all(1) for exit_ in (clf.exit_, Exit("fixed", 3))
    )
    assert clf.promise_.n_harmed == (deepest & ~at_exit).sum()
    assert clf.promise_.mean_depth < 3


def test_the_explained_neurons_add_up_to_the_logit_of_the_most_probable_label(fitted, rows):
    text = rows[0][0]
    explained = fitted.explain(text, n_neurons=10**6)
    most_probable = int(fitted.predict_proba(text).argmax())
    score = logit(fitted.predict_proba(text)[most_probable])
    sign = 1 if score > 0 else -1
    assert explained.logit == pytest.approx(sign * score, abs=1e-4)
    added = sum(one.contribution for one in explained)
    assert added == pytest.approx(sign * (score - fitted.head_.model.intercept_[most_probable]), abs=1e-4)
    words = sum(word.contribution for word in explained.words)
    assert explained.bias + explained.special + words == pytest.approx(explained.logit, abs=1e-6)
    assert explained.answer == fitted.predict(text)
    assert fitted.output_names() == LABELS
    assert len(fitted.neuron_weights()[0]["weights"]) == 3


def test_a_repeated_text_stays_on_one_side_of_the_split(tiny_model, rows):
    texts, labels = [*rows[0], *rows[0][:40]], [*rows[1], *rows[1][:40]]
    clf = sn.SpinMultilabelClassifier(tiny_model, depth=1, **QUICK).fit(texts, labels)
    assert clf.score(*rows) > 0.7


@pytest.mark.parametrize("settings", [{"sample": 60}, {"phase_two": "both", "head": "frozen"}, {"ranker": "predictivity"}])
def test_samples_halves_and_rankers_work_with_several_labels(tiny_model, rows, settings):
    clf = sn.SpinMultilabelClassifier(tiny_model, **{**QUICK, "depth": 1, **settings}).fit(*rows)
    assert clf.score(*rows) > 0.7


def test_ablation_compares_whole_sets(fitted, rows):
    effects = fitted.ablate(rows[0][:20], n_draws=1, labels=rows[1][:20])
    assert effects.metadata["score"] == "micro_f1"
    before = effects.arrays["label_before"].ravel().tolist()
    assert before == ["|".join(labels) for labels in fitted.predict(rows[0][:20], exit="fixed:3")]


def test_scikit_learn_knows_that_there_are_several_labels(fitted):
    tags = fitted.__sklearn_tags__()
    assert tags.classifier_tags.multi_label
    assert tags.estimator_type == "classifier"
    assert clone(fitted).get_params() == fitted.get_params()


# The default head.


def test_the_default_head_learns_all_labels_at_once(by_default, rows):
    assert by_default.head_.kind == "dense"
    assert by_default.head_.weights.shape[0] == 3
    assert by_default.score(rows[0][90:], rows[1][90:]) > 0.7
    assert by_default.baselines_["majority"].row.validation < by_default.depth_curve_[-1].validation


def test_a_dense_head_is_one_l2_regression_per_label_with_one_c(problem):
    X, Y = problem
    gram = GramMatrix(torch.from_numpy((X @ X.T).astype(np.float32)))
    loss, _ = LabelSets.learn(Y, len(Y), "rows").loss(Y.astype(bool))
    weights = torch.from_numpy(np.stack([np.full(200, 0.3), np.arange(200) % 3 / 10], 1))
    fits = dual_fits(gram, loss, weights, 1e-7)
    for k, y in enumerate(Y.T):
        for p, row_weights in enumerate(weights.numpy().T):
            peer = LogisticRegression(C=1.0, tol=1e-9, max_iter=2000).fit(X, y, row_weights)
            np.testing.assert_allclose(fits.scores[:, p, k], peer.decision_function(X), atol=5e-3)


def test_the_thresholds_of_the_default_head_are_the_best_ones_for_its_held_out_probabilities():
    task = LabelSets.learn([["a"], ["b"]], 2, "rows")
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(2000, 2)) < [0.3, 0.1]
    outputs = expit(1.5 * truth - [2.0, 3.0] + rng.normal(size=truth.shape))
    tuned = task.tuned("micro_f1", outputs, truth)
    assert tuned.thresholds.tolist() == best_thresholds(truth, outputs).tolist()
    assert f1_score(truth, tuned.decide(outputs), average="micro") > f1_score(truth, outputs > 0.5, average="micro")
    # Whole sets are most often right at 1/2, and the metric is theirs.
    assert task.tuned("subset_accuracy", outputs, truth) is task


def test_every_head_of_a_fit_has_the_thresholds_that_were_chosen_at_its_depth(by_default, tiny_model, rows):
    assert all(head.task.thresholds.tolist() == by_default.thresholds_.tolist() for head in by_default.heads_.values())
    # A label that is rare and hard: a random tenth of the rows.
    rng = np.random.default_rng(1)
    labels = [["odd"] * bool(rng.uniform() < 0.2) + row for row in rows[1]]
    clf = sn.SpinMultilabelClassifier(tiny_model, metric="macro_f1", depth=1, baseline=False).fit(rows[0], labels)
    assert clf.thresholds_[clf.classes_.tolist().index("odd")] < 0.5
    predicted = clf.predict_proba(rows[0]) > clf.thresholds_
    assert [tuple(clf.classes_[row].tolist()) for row in predicted] == clf.predict(rows[0]).tolist()


def test_rows_count_as_often_as_their_weight_says_and_weights_of_classes_are_refused(tiny_model, rows):
    validation = (rows[0][:40], rows[1][:40])
    texts, labels = rows[0][40:], rows[1][40:]
    settings = {"depth": 1, "baseline": False, "scaling": "none"}
    clf = sn.SpinMultilabelClassifier(tiny_model, **settings)
    weighted = clf.fit(texts, labels, [2.0] * 20 + [1.0] * 60, validation=validation).predict_proba(texts)
    clf = sn.SpinMultilabelClassifier(tiny_model, **settings)
    repeated = clf.fit(texts[:20] + texts, labels[:20] + labels, validation=validation).predict_proba(texts)
    np.testing.assert_allclose(weighted, repeated, atol=5e-3)
    with pytest.raises(sn.InputError, match="class_weight='balanced' is for classes; a multilabel has none"):
        sn.SpinMultilabelClassifier(tiny_model, class_weight="balanced").fit(*rows)


def test_a_planted_wrong_set_is_suspicious(tiny_model, rows):
    labels = [list(row) for row in rows[1]]
    wrong = [7, 33, 58, 90]
    for row in wrong:
        labels[row] = [name for name in LABELS if name not in labels[row]]
    clf = sn.SpinMultilabelClassifier(tiny_model, baseline=False).fit(rows[0], labels)
    assert set(wrong) <= set(clf.suspicious_rows_[:8].tolist())


def test_how_well_a_row_fits_is_the_mean_probability_of_what_was_given(task):
    truth = np.array([[1, 0, 1], [0, 0, 1], [0, 1, 1]], dtype=bool)
    np.testing.assert_allclose(task.fit_of(PROBABILITIES, truth), [(0.9 + 0.8 + 0.6) / 3, (0.9 + 0.7 + 0.2) / 3, 2.1 / 3])
    assert task.contradicts(PROBABILITIES, truth).tolist() == [False, True, False]


def test_a_bounded_error_counts_whole_sets():
    two, n = LabelSets.learn([["a"], ["b"]], 2, "rows"), 1000
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(n, 2)) < 0.5
    outputs = np.where(truth, 0.95, 0.05)
    wrong = rng.permutation(n)[:300]
    outputs[wrong, 1] = np.where(truth[wrong, 1], 0.4, 0.6)  # one label of the two is wrong, and uncertain
    promise = bounded_error({1: outputs}, truth, 0.05, 0.95, reads=two)
    assert 0.6 < promise.exit.value <= 0.95
    answered = is_answered(outputs, promise.exit, two)
    assert sorted(np.flatnonzero(~answered)) == sorted(wrong)
    assert promise.n_wrong == 0


# Files and commands.


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_labels_of_one_column_are_read_from_every_kind_of_file(tmp_path, ending):
    cells = ["b | a", "", "a"] if ending == ".csv" else [["b", "a"], [], ["a"]]
    path = write(tmp_path / f"rows{ending}", [{"text": f"t{i}", "label": cell} for i, cell in enumerate(cells)])
    assert tables.read_label_sets(path, "text", ["label"]) == (["t0", "t1", "t2"], [["b", "a"], [], ["a"]])


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_labels_of_several_0_1_columns_are_read_from_every_kind_of_file(tmp_path, ending):
    rows = [{"text": "t0", "joy": 1, "anger": 0}, {"text": "t1", "joy": 0, "anger": 0}, {"text": "t2", "joy": 1, "anger": 1}]
    path = write(tmp_path / f"rows{ending}", rows)
    assert tables.read_label_sets(path, "text", ["joy", "anger"])[1] == [["joy"], [], ["joy", "anger"]]


def test_labels_in_text_are_whole_numbers_where_all_of_them_are(tmp_path):
    path = write(tmp_path / "rows.csv", [{"text": "a", "label": "10;2"}, {"text": "b", "label": ""}])
    assert tables.read_label_sets(path, "text", ["label"], separator=";")[1] == [[10, 2], []]
    assert tables.read_label_sets(path, "text", ["label"], separator=";", labels_as=str)[1] == [["10", "2"], []]
    listed = write(tmp_path / "rows.jsonl", [{"text": "a", "label": ["10", 2]}])
    assert tables.read_label_sets(listed, "text", ["label"], labels_as=int)[1] == [[10, 2]]


@pytest.mark.parametrize(
    ("cells", "columns", "error"),
    [
        ({"label": None}, ["label"], r"row 1 .* has no value in column 'label'; expected a list of labels"),
        ({"label": 3}, ["label"], r"row 1 .* has 3 \(int\) in column 'label'"),
        ({"label": "a||b"}, ["label"], r"row 1 .* has 'a\|\|b' in column 'label', with an empty label"),
        ({"label": ["a"], "joy": 2}, ["label", "joy"], r"row 0 .* has \['a'\] in column 'label'; expected 0 or 1"),
        ({"joy": 2}, ["joy", "joy"], r"row 1 .* has 2 in column 'joy'; expected 0 or 1"),
    ],
)
def test_a_cell_that_is_no_set_of_labels_is_refused(tmp_path, cells, columns, error):
    first = {"text": "a", "label": ["a"], "joy": 1}
    path = write(tmp_path / "rows.jsonl", [first, {**first, **cells}])
    with pytest.raises(sn.InputError, match=error):
        tables.read_label_sets(path, "text", columns)


@pytest.fixture(scope="module")
def folder(tiny_model, rows, tmp_path_factory):
    """A classifier that `fit` made of 0/1 columns, and the two forms of its file."""
    folder = tmp_path_factory.mktemp("multilabel")
    of_text = zip(rows[0], indicators(rows[1]).astype(int).tolist(), strict=True)
    write(folder / "wide.csv", [{"text": text, **dict(zip(LABELS, row, strict=True))} for text, row in of_text])
    joined = [{"text": text, "label": ";".join(labels)} for text, labels in zip(*rows, strict=True)]
    write(folder / "long.csv", joined)
    return folder


def test_the_commands_fit_evaluate_calibrate_and_predict_several_labels(folder, tiny_model, rows, capsys):
    spin = Spin(capsys)
    options = ("--head", "refit", "--poolings", "mean", "--eta", "0.8", "--Cs", "1", "--head-Cs", "0.1", "--exits", "all")
    command = ("fit", folder / "wide.csv", "--task", "multilabel", "--label", "film,happy,sad", "--model", tiny_model)
    code, out, _ = spin(*command, "--depth", 2, "--no-baseline", *options, "--out", folder / "clf")
    assert code == 0
    assert "micro_f1" in out
    clf = sn.SpinMultilabelClassifier.from_pretrained(folder / "clf")
    assert clf.classes_.tolist() == LABELS

    code, out, _ = spin("evaluate", folder / "clf", folder / "long.csv", "--separator", ";", "--json")
    assert json.loads(out)["micro_f1"] == pytest.approx(clf.score(*rows))
    code, out, _ = spin("evaluate", folder / "clf", folder / "wide.csv", "--label", "film,happy,sad")
    assert f"micro-F1 {clf.score(*rows):.4f}" in out
    assert "label" in out.splitlines()[2]

    code, out, _ = spin("calibrate", folder / "clf", folder / "long.csv", "--separator", ";", "--max-accuracy-drop", 0.3)
    assert code == 0
    assert out.startswith("exit confidence")

    fixed = ("--exit", "fixed:2")
    code, _, _ = spin("predict", folder / "clf", "--in", folder / "long.csv", "--out", folder / "p.csv", *fixed)
    written = read(folder / "p.csv")
    assert [row["predicted_label"] for row in written] == ["|".join(labels) for labels in clf.predict(rows[0])]
    expected = clf.predict_proba(rows[0])
    np.testing.assert_allclose([float(row["probability_sad"]) for row in written], expected[:, 2], rtol=1e-6)
    code, out, _ = spin("predict", folder / "clf", rows[0][0], "--json", *fixed)
    assert json.loads(out)["labels"] == list(clf.predict(rows[0][0]))


def test_the_commands_work_with_the_default_head(folder, tiny_model, rows, capsys):
    spin = Spin(capsys)
    command = ("fit", folder / "long.csv", "--task", "multilabel", "--separator", ";", "--model", tiny_model)
    code, _, err = spin(*command, "--exits", "all", "--out", folder / "default")
    assert code == 0, err
    clf = sn.SpinMultilabelClassifier.from_pretrained(folder / "default")
    assert clf.head_.kind == "dense"
    long = (folder / "default", folder / "long.csv", "--separator", ";")

    _, out, _ = spin("evaluate", *long, "--json")
    assert json.loads(out)["micro_f1"] == pytest.approx(clf.score(*rows))

    _, out, _ = spin("explain", folder / "default", rows[0][0], "--json")
    explained = json.loads(out)
    assert explained["logit"] == pytest.approx(clf.explain(rows[0][0]).logit)

    code, out, err = spin("calibrate", *long, "--max-error", 0.5)
    assert code == 0, err
    assert "are answered" in out
    spin("predict", "--abstain", folder / "default", "--in", folder / "long.csv", "--out", folder / "a.csv")
    expected = sn.SpinMultilabelClassifier.from_pretrained(folder / "default").predict(rows[0], abstain=True)
    written = [row["predicted_label"] if row["answered"].lower() == "true" else None for row in read(folder / "a.csv")]
    assert written == [None if answer is None else "|".join(answer) for answer in expected]
    _, out, _ = spin("predict", "--abstain", "--json", folder / "default", rows[0][0])
    assert json.loads(out)["labels"] == (None if expected[0] is None else list(expected[0]))


def test_several_label_columns_and_a_separator_are_for_multilabel_tasks_only(folder, tiny_model, rows, tmp_path, capsys):
    spin = Spin(capsys)
    clf = sn.SpinClassifier(tiny_model, depth=1, baseline=False).fit(rows[0], ["film" in row for row in rows[1]])
    clf.save_pretrained(saved := tmp_path / "one-label")
    fit = ("fit", folder / "wide.csv", "--model", "some/model", "--out", tmp_path / "clf")
    assert "--label names several columns, which is for a multilabel task" in spin.fails(*fit, "--label", "film,sad")
    assert "--separator is for a multilabel task" in spin.fails(*fit, "--label", "film", "--separator", ";")
    command = ("predict", saved, "--in", folder / "wide.csv", "--out", tmp_path / "p.csv", "--separator", ";")
    assert "separator ';' is for several labels per text" in spin.fails(*command)
    assert "no column 'joy'" in spin.fails(*fit, "--task", "multilabel", "--label", "joy,sad")
