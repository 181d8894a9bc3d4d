"""Texts that occur several times: on one side of a split, and once in a promise."""

import copy
import json
import pickle

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.model_selection import train_test_split
from tiny import QUICK

import spin_native as sn
from spin_native.classifier.exits import Exit, calibrate, harm_bound
from spin_native.classifier.splits import halves, split
from spin_native.classifier.tasks import Classes, Values
from spin_native.errors import LeakWarning

# Texts that occur several times.


@pytest.mark.parametrize("seed", range(5))
def test_a_split_keeps_equal_texts_together_and_every_class_in_both_parts(seed):
    random = np.random.default_rng(seed)
    places = random.integers(0, 3, 40)  # of 40 texts
    row_of = np.concatenate([np.arange(40), random.integers(0, 40, 160)])
    rows, labels = [f"text {place}" for place in row_of], places[row_of]
    task = Classes(np.array(["a", "b", "c"]))
    for parts in (split(task, rows, labels, 0.25, seed)[:2], halves(task, rows, labels, seed)):
        first, second = (set(row_of[part].tolist()) for part in parts)
        assert not first & second
        assert sorted([*parts[0], *parts[1]]) == list(range(200))
        assert set(labels[parts[0]]) == set(labels[parts[1]]) == set(places)
    held_out = split(task, rows, labels, 0.25, seed)[1]
    largest = np.bincount(row_of).max()
    for label in range(3):
        assert abs((labels[held_out] == label).sum() - 0.25 * (labels == label).sum()) <= largest / 2
    values = split(Values(), rows, labels + 0.5, 0.25, seed)
    assert not set(row_of[values[0]].tolist()) & set(row_of[values[1]].tolist())


def test_different_texts_are_split_as_scikit_learn_splits_them():
    labels = np.array([0, 1, 1] * 30)
    rows = [str(row) for row in range(90)]
    expected = train_test_split(np.arange(90), test_size=0.2, stratify=labels, random_state=4)
    train, validation, leaks = split(Classes(np.array(["a", "b"])), rows, labels, 0.2, 4)
    assert np.array_equal(train, expected[0])
    assert np.array_equal(validation, expected[1])
    assert leaks == []


def test_a_class_with_one_text_only_is_warned_of(tiny_model, texts, labels):
    rows = ["good film" if label == "positive" else text for text, label in zip(texts, labels, strict=True)]
    with pytest.warns(LeakWarning, match="class 'positive' has one text only, which is among the training and the validation"):
        sn.SpinClassifier(str(tiny_model), **QUICK).fit(rows, labels)


def test_probes_and_a_frozen_head_that_learns_from_unseen_rows_share_no_text(tiny_model, texts, labels, monkeypatch):
    rows = [text for text in texts[:40] for _ in range(2)]
    twice = [label for label in labels[:40] for _ in range(2)]
    parts = []
    true = sn.classifier.published.halves
    monkeypatch.setattr(
        "spin_native.classifier.published.halves", lambda *given: parts.append((given, true(*given))) or parts[-1][1]
    )
    sn.SpinClassifier(str(tiny_model), **{**QUICK, "head": "frozen"}, phase_two="unseen").fit(rows, twice)
    ((_, given, *_), (first, second)) = parts[0]
    assert not {given[row] for row in first} & {given[row] for row in second}
    assert len(first) + len(second) == len(given)


# Promises.


def test_a_calibration_counts_a_text_once():
    """By hand: 400 texts five times; two of them are harmed, in one or five of their rows."""
    text_of = np.arange(2000) % 400
    labels = np.zeros(2000, dtype=int)
    right, wrong = np.array([0.9999999, 1e-7]), np.array([1e-7, 0.9999999])
    shallow = np.tile(right, (2000, 1))
    shallow[text_of == 7] = wrong
    shallow[8] = wrong
    heads = {1: shallow, 2: np.tile(right, (2000, 1))}
    promise = calibrate(heads, labels, "confidence", 0.02, 0.95, text_of, "float32")
    assert (promise.n_rows, promise.n_texts, promise.n_harmed, promise.dtype) == (2000, 400, 2, "float32")
    assert promise.exit.by == "confidence"
    assert binom.cdf(2, 400, harm_bound(2, 400, 0.95)) == pytest.approx(0.05)
    tight = (harm_bound(2, 400, 0.95) + harm_bound(6, 2000, 0.95)) / 2  # enough if rows were counted
    assert calibrate(heads, labels, "confidence", tight, 0.95).exit.by == "confidence"
    assert calibrate(heads, labels, "confidence", tight, 0.95, text_of).exit == Exit("fixed", 2)


def test_too_few_different_texts_make_no_promise(clf, texts, labels):
    some = copy.copy(clf)
    with pytest.warns(
        UserWarning, match=r"480 rows are too few .* \(8 different texts\): every row runs to depth 2; .* 59 rows"
    ):
        some.calibrate(texts[:8] * 60, labels[:8] * 60, max_accuracy_drop=0.05)
    assert some.exit_ == Exit("fixed", 2)


def test_a_calibration_on_rows_that_fit_saw_is_warned_of(clf, texts, labels):
    some = pickle.loads(pickle.dumps(clf))
    with pytest.warns(LeakWarning, match=r"80 of 81 rows to calibrate on are among the rows that fit saw .*the first is row 1"):
        some.calibrate(["a new film", *texts], ["positive", *labels], max_accuracy_drop=0.3)
    some.calibrate([f"{text} and" for text in texts], labels, max_accuracy_drop=0.3)
    assert (some.promise_.n_texts, some.promise_.dtype) == (80, "float32")


def test_a_promise_is_dropped_in_another_dtype(clf, texts, labels, tmp_path):
    some = copy.copy(clf)
    some.calibrate([f"{text} and" for text in texts], labels, max_accuracy_drop=0.3)
    some.save_pretrained(tmp_path / "a")
    assert sn.SpinClassifier.from_pretrained(tmp_path / "a").promise_ == some.promise_
    with pytest.warns(UserWarning, match="promised for float32, and the base model runs in bfloat16: promise_ is None"):
        other = sn.SpinClassifier.from_pretrained(tmp_path / "a", dtype="bfloat16")
    assert (other.promise_, other.exit_) == (None, some.exit_)
    other.save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "spin_classifier.json").read_text())["promise"] is None
    old = json.loads((tmp_path / "a" / "spin_classifier.json").read_text())
    del old["promise"]["dtype"], old["promise"]["n_texts"]  # as an earlier version wrote it
    (tmp_path / "a" / "spin_classifier.json").write_text(json.dumps(old))
    assert sn.SpinClassifier.from_pretrained(tmp_path / "a").promise_.dtype == "float32"
    with pytest.warns(UserWarning, match="promise_ is None"):
        sn.SpinClassifier.from_pretrained(tmp_path / "a", dtype="float64")
