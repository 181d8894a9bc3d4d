"""Rows that exit early: where, with what answer, and what a calibration promises."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

import spin_native as sn
from spin_native.classifier.deployed import Deployed
from spin_native.classifier.exits import THRESHOLDS, Exit, calibrate, harm_bound, replay
from spin_native.models.fast import FusedAttention


@pytest.fixture(scope="module")
def exiting(tiny_model, reviews):
    """A classifier with a head at every depth."""
    return sn.SpinClassifier(str(tiny_model), depth=3, exits="all", baseline=False, head="refit", poolings=("mean",)).fit(
        *reviews
    )


@pytest.mark.parametrize("exit_", ["confidence:0.8", "confidence:0.95", "patience:1", "patience:2", "fixed:1", "fixed:2"])
def test_a_row_that_leaves_gets_to_the_bit_what_its_fixed_depth_gives(exiting, reviews, exit_):
    texts = reviews[0]
    blocks = list(exiting.output_blocks(texts, False, exit_))
    outputs, depths = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    for depth in (1, 2, 3):
        fixed = exiting.predict_proba(texts, exit=f"fixed:{depth}")
        assert np.array_equal(outputs[depths == depth], fixed[depths == depth])
    if exit_.startswith("confidence"):
        assert len(set(depths.tolist())) > 1


def test_rows_stay_to_the_deepest_head_even_if_it_reads_nothing_there(exiting, reviews):
    heads = exiting.heads_
    deployed = Deployed(exiting._deployed.checkpoint, {1: heads[1], 2: heads[2], 3: heads[1]}, torch.float32, "cpu")
    for some in (deployed, Deployed(deployed.checkpoint, {1: heads[1], 3: heads[1]}, torch.float32, "cpu")):
        every = some.all_outputs(reviews[0])
        for exit_ in (Exit("confidence", 1.0), Exit("confidence", 0.8)):
            ((outputs, depths),) = some.blocks(reviews[0], exit_, False)
            assert np.array_equal(depths, replay(exit_, every))
            for depth, expected in every.items():
                assert np.array_equal(outputs[depths == depth], expected[depths == depth])


def test_labels_depths_and_the_order_of_rows(exiting, reviews):
    texts = reviews[0]
    every = {depth: exiting.predict_proba(texts, exit=f"fixed:{depth}") for depth in (1, 2, 3)}
    labels, depths = exiting.predict(texts, exit="confidence:0.9", return_depth=True)
    assert np.array_equal(depths, replay(Exit("confidence", 0.9), every))
    expected = [exiting.classes_[every[d][row].argmax()] for row, d in enumerate(depths.tolist())]
    assert labels.tolist() == expected
    assert exiting.predict(texts[3], exit="confidence:0.9", return_depth=True) == (labels[3], depths[3])


def test_when_rows_leave_by_hand():
    first = np.array([[0.95, 0.05], [0.6, 0.4], [0.3, 0.7], [0.5, 0.5]])
    second = np.array([[0.1, 0.9], [0.7, 0.3], [0.6, 0.4], [0.05, 0.95]])
    third = np.array([[0.2, 0.8], [0.8, 0.2], [0.9, 0.1], [0.2, 0.8]])
    every = {2: first, 4: second, 5: third}
    assert replay(Exit("confidence", 0.9), every).tolist() == [2, 5, 5, 4]
    assert replay(Exit("patience", 1), every).tolist() == [5, 4, 5, 5]
    assert replay(Exit("patience", 2), every).tolist() == [5, 5, 5, 5]
    assert replay(Exit("fixed", 4), every).tolist() == [4, 4, 4, 4]


def test_rows_that_left_are_not_carried_on(exiting, reviews, monkeypatch):
    tokens = []
    true = FusedAttention.forward

    def counted(self, query, *arguments):
        tokens.append(len(query))
        return true(self, query, *arguments)

    monkeypatch.setattr(FusedAttention, "forward", counted)
    exiting.predict(reviews[0], exit="confidence:0.8")
    assert tokens[0] > tokens[1] > 0
    before = tokens[:]
    tokens.clear()
    exiting.predict(reviews[0], exit="fixed:1")
    assert tokens == before[:1]  # and where all have left, nothing runs


def test_the_bound_is_that_of_clopper_and_pearson():
    for harmed, rows in ((0, 300), (3, 872), (20, 500)):
        bound = harm_bound(harmed, rows, 0.95)
        assert binom.cdf(harmed, rows, bound) == pytest.approx(0.05, rel=1e-6)
    assert harm_bound(5, 5, 0.95) == 1.0


def test_a_promise_is_kept_at_its_confidence_on_rows_not_seen():
    """Heads that know what they know: over many calibrations the promise may fail for no more than its 10 %."""
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(60):
        labels = rng.integers(0, 2, 6000)
        every = {}
        for depth, signal in ((1, 0.8), (2, 1.5), (3, 2.5)):
            score = signal * (2 * labels - 1) + rng.normal(size=6000) * 1.3
            p = 1 / (1 + np.exp(-signal * score))
            every[depth] = np.stack([1 - p, p], 1)
        seen, unseen = slice(0, 1000), slice(1000, None)
        promise = calibrate({d: p[seen] for d, p in every.items()}, labels[seen], "confidence", 0.02, 0.9)
        left = replay(promise.exit, {d: p[unseen] for d, p in every.items()})
        rows = np.arange(5000)
        labels_left = np.stack([every[d][unseen].argmax(1) for d in (1, 2, 3)])[left - 1, rows]
        accuracy = [(found == labels[unseen]).mean() for found in (every[3][unseen].argmax(1), labels_left)]
        failed += accuracy[0] - accuracy[1] > 0.02
        assert promise.mean_depth <= 3
    assert failed <= 12


def test_a_promise_nobody_can_keep_lets_no_row_leave_early():
    labels = np.zeros(50, dtype=int)
    right, wrong = np.tile([0.9, 0.1], (50, 1)), np.tile([0.0, 1.0], (50, 1))
    promise = calibrate({1: wrong, 2: right}, labels, "confidence", 0.01, 0.95)
    assert promise.exit == Exit("fixed", 2)
    assert (promise.n_harmed, promise.mean_depth) == (0, 2.0)
    assert sorted(THRESHOLDS, reverse=True) == THRESHOLDS


def test_every_threshold_is_saved_as_it_was_tried():
    for threshold in (*THRESHOLDS, 0.1 + 0.2, 1.0):
        assert Exit.parse(str(Exit("confidence", threshold))) == Exit("confidence", threshold)


@pytest.mark.parametrize("given", ["confidence:inf", "fixed:inf", "patience:1e999", "confidence:nan"])
def test_exits_that_are_no_finite_number_are_refused(given):
    with pytest.raises(sn.InputError, match="expected"):
        Exit.parse(given)


def test_a_calibration_on_too_few_rows_says_how_many_it_takes(exiting, reviews):
    with pytest.warns(UserWarning, match="80 rows are too few to promise a drop of at most 0.01 .* calibrate on 299 rows"):
        exiting.calibrate(*reviews)
    assert exiting.exit_ == Exit("fixed", 3)
    assert harm_bound(0, 298, 0.95) > 0.01 >= harm_bound(0, 299, 0.95)


def test_a_calibration_is_saved_and_used(exiting, reviews, tmp_path):
    texts, labels = reviews
    clf = sn.SpinClassifier.from_pretrained(_saved(exiting, tmp_path / "before"))
    clf.calibrate(texts, labels, max_accuracy_drop=0.2, by="patience")
    assert clf.promise_.exit == clf.exit_
    clf.save_pretrained(tmp_path / "after")
    again = sn.SpinClassifier.from_pretrained(tmp_path / "after")
    assert (again.exit_, again.promise_) == (clf.exit_, clf.promise_)
    one, other = (c.predict(texts, return_depth=True) for c in (again, clf))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _saved(clf, folder):
    clf.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("exit_", "message"),
    [
        ("soon", "exit 'soon'; expected fixed, fixed:DEPTH, confidence:PROBABILITY or patience:HEADS"),
        ("confidence", "confidence to exit is None; expected a probability"),
        ("confidence:1.5", "confidence to exit is 1.5"),
        ("confidence:high", "expected fixed, fixed:DEPTH, confidence:PROBABILITY or patience:HEADS"),
        ("patience:0", "patience to exit is 0.0; expected how many heads"),
        ("patience:3", "patience 3 needs more than the 3 heads"),
        ("fixed:7", "no head at depth 7; there are heads at 1, 2, 3"),
    ],
)
def test_an_exit_nobody_can_take_is_refused(exiting, exit_, message):
    with pytest.raises(sn.InputError, match=message):
        exiting.predict(["good film"], exit=exit_)


def test_one_head_cannot_be_calibrated(fitted, reviews):
    with pytest.raises(sn.InputError, match="there is one head only; fit with exits='all'"):
        fitted.calibrate(*reviews)


def test_a_calibration_stops_at_the_first_exit_that_breaks_the_promise():
    """A looser exit that would keep it again must not be tried: many tries would cost confidence."""
    n_rows = 1000
    first, second, third = (np.tile([1 - p, p], (n_rows, 1)) for p in (0.7, 0.1, 0.99999))  # right at .7, wrong at .9, right
    labels = np.ones(n_rows, dtype=int)
    promise = calibrate({1: first, 2: second, 3: third}, labels, "confidence", 0.01, 0.95)
    loosest = min(threshold for threshold in THRESHOLDS if threshold > 0.9)
    assert promise.exit == Exit("confidence", loosest)
    assert (promise.n_harmed, promise.mean_depth) == (0, 3.0)
    assert replay(Exit("confidence", 0.65), {1: first, 2: second, 3: third}).tolist() == [1] * n_rows  # right again
