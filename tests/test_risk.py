"""A bounded error among the answered rows: how often the promise holds, what is refused, and what predict writes."""

import json

import numpy as np
import pytest
from commands import Spin, labelled, read, write
from scipy.stats import binom

import spin_native as sn
from spin_native.classifier import estimators
from spin_native.classifier.exits import Exit, harm_bound, replay
from spin_native.classifier.risk import THRESHOLDS, ErrorPromise, bounded_error
from spin_native.serving.predict import predict_files

WORDS = ("good", "nice", "fine", "lovely", "bad", "awful", "poor", "sad", "film", "food", "room", "was", "very", "the")


def heads(n_rows, rng, signals=(0.8, 1.5, 2.5), overconfidence=1.0):
    """Labels, and the probabilities of heads that know more the deeper they are, {depth: [row, class]}."""
    labels = rng.integers(0, 3, n_rows)
    shared = rng.normal(size=(n_rows, 3))
    outputs = {}
    for depth, signal in enumerate(signals, 1):
        scores = signal * np.eye(3)[labels] + 0.7 * shared + 0.7 * rng.normal(size=(n_rows, 3))
        exponentials = np.exp(overconfidence * signal * scores)
        outputs[depth] = exponentials / exponentials.sum(1, keepdims=True)
    return outputs, labels


def answered_and_wrong(outputs, labels, exit_):
    """How many rows are answered under an exit, and how many wrongly, by `replay`."""
    rows, at = np.arange(len(labels)), replay(exit_, outputs) - 1
    exited = np.stack([outputs[depth] for depth in sorted(outputs)])[at, rows]
    answered = exited.max(1) >= exit_.value
    return int(answered.sum()), int((answered & (exited.argmax(1) != labels)).sum())


@pytest.mark.parametrize(("signals", "overconfidence"), [((0.8, 1.5, 2.5), 1.0), ((0.8, 1.5, 2.5), 3.0), ((1.8,), 2.0)])
def test_the_promised_error_holds_in_at_least_the_promised_share_of_200_calibrations(signals, overconfidence):
    rng = np.random.default_rng(0)
    unseen, truth = heads(20_000, rng, signals, overconfidence)
    n_made = n_broken = 0
    for seed in range(200):
        seen, labels = heads(300, rng, signals, overconfidence)
        try:
            promise = bounded_error(seen, labels, 0.1, 0.9, seed=seed)
        except sn.InputError:
            continue  # nothing is promised
        n_answered, n_wrong = answered_and_wrong(unseen, truth, promise.exit)
        n_made += 1
        n_broken += n_wrong > 0.1 * n_answered
    assert n_made > 100
    assert n_broken <= binom.ppf(0.999, 200, 0.1)
    assert n_broken > 0  # and the bound is not so loose that it never fails


def test_the_counts_of_a_promise_are_those_of_the_tested_texts_and_its_bound_is_that_of_clopper_and_pearson():
    outputs, labels = heads(2000, np.random.default_rng(1))
    promise = bounded_error(outputs, labels, 0.1, 0.95, dtype="float32")
    tested = np.ones(2000, dtype=bool)
    tested[np.random.default_rng(0).permutation(2000)[:400]] = False
    counts = answered_and_wrong({d: p[tested] for d, p in outputs.items()}, labels[tested], promise.exit)
    assert (promise.n_answered, promise.n_wrong) == counts
    assert (promise.n_rows, promise.n_texts, promise.dtype) == (2000, 1600, "float32")
    bound = harm_bound(promise.n_wrong, promise.n_answered, 0.95)
    assert binom.cdf(promise.n_wrong, promise.n_answered, bound) == pytest.approx(0.05, rel=1e-6)
    assert bound <= 0.1
    assert promise.mean_depth == replay(promise.exit, outputs).mean()
    assert promise.mean_depth < 3


def test_testing_stops_at_the_first_threshold_that_fails():
    """At .7 every row is right again; it must not be tried after the failure at .9."""
    n_rows = 1000
    labels = np.zeros(n_rows, dtype=int)
    wrong = np.arange(n_rows) % 2 == 1
    deep = np.where(wrong[:, None], [0.1, 0.9], [0.95, 0.05])
    first = np.where(wrong[:, None], [0.7, 0.3], [0.5, 0.5])
    promise = bounded_error({1: first, 2: deep}, labels, 0.05, 0.95)
    assert promise.exit == Exit("confidence", min(threshold for threshold in THRESHOLDS if threshold > 0.9))
    assert (promise.n_wrong, promise.n_answered) == (0, promise.n_answered)
    assert answered_and_wrong({1: first, 2: deep}, labels, Exit("confidence", 0.65)) == (n_rows, 0)


def test_a_classifier_that_is_always_right_answers_everything_at_its_first_head():
    outputs = np.tile([0.8, 0.2], (100, 1))
    promise = bounded_error({2: outputs, 5: outputs}, np.zeros(100, dtype=int), 0.05, 0.95)
    assert (promise.n_answered, promise.n_wrong, promise.mean_depth) == (80, 0, 2.0)


def test_a_text_that_occurs_several_times_counts_once_and_is_wrong_if_one_of_its_rows_is():
    outputs, labels = heads(900, np.random.default_rng(2))
    once = bounded_error(outputs, labels, 0.2, 0.9)
    thrice = {depth: np.repeat(values, 3, axis=0) for depth, values in outputs.items()}
    repeated = bounded_error(thrice, np.repeat(labels, 3), 0.2, 0.9, np.repeat(np.arange(900), 3))
    assert (repeated.exit, repeated.n_texts, repeated.n_wrong) == (once.exit, once.n_texts, once.n_wrong)
    assert repeated.n_rows == 2700
    sure = np.tile([1.0, 0.0], (1000, 1))
    labels = (np.arange(1000) < 10).astype(int)  # of 1000 rows 1 % are wrong; of 100 texts 10 %
    assert bounded_error({1: sure}, labels, 0.05, 0.9).n_answered == 800
    with pytest.raises(sn.InputError, match=r"does not prove an error of at most 0\.05"):
        bounded_error({1: sure}, labels, 0.05, 0.9, np.arange(1000) % 100)


def test_too_few_rows_promise_nothing_and_the_error_says_how_many_it_takes():
    """59 right answers are the fewest that prove .05 with confidence .95, and a fifth of the texts is not tested."""
    sure = np.tile([1.0, 0.0], (200, 1))
    with pytest.raises(sn.InputError, match=r"at the very least 74 different texts"):
        bounded_error({1: sure[:73]}, np.zeros(73, dtype=int), 0.05, 0.95)
    assert bounded_error({1: sure[:74]}, np.zeros(74, dtype=int), 0.05, 0.95).n_answered == 59
    with pytest.raises(sn.InputError, match=r"160 have a confidence of at least 0.9+, and 160 of their answers are wrong"):
        bounded_error({1: sure}, np.ones(200, dtype=int), 0.05, 0.95)


# The estimator.


@pytest.fixture(scope="module")
def rows():
    """320 different texts; a fifth of the labels do not follow from the words."""
    rng = np.random.default_rng(5)
    texts, labels = [], []
    for row in range(320):
        words = [WORDS[index] for index in rng.integers(0, len(WORDS), 3 + row % 5)]
        tone = sum((word in WORDS[:4]) - (word in WORDS[4:8]) for word in words)
        texts.append(" ".join([*words, *["not"] * (row % 3), "," * (row // 80 + 1)]))
        labels.append("positive" if (tone if row % 5 else rng.integers(-1, 2)) > 0 else "negative")
    return texts, labels


@pytest.fixture(scope="module")
def exiting(tiny_model, rows):
    """A classifier with a head at every depth, fitted on half of the rows."""
    texts, labels = rows
    clf = sn.SpinClassifier(str(tiny_model), head="refit", depth=3, exits="all", baseline=False, poolings=("mean",))
    return clf.fit(texts[::2], labels[::2])


@pytest.fixture(scope="module")
def abstaining(exiting, rows):
    """One that promises an error of at most .35."""
    return calibrated(exiting, rows, max_error=0.35)


def calibrated(clf, rows, **how):
    again = sn.SpinClassifier(**clf.get_params())
    again.__dict__.update(clf.__dict__)
    return again.calibrate(rows[0][1::2], rows[1][1::2], **how)


def test_a_row_is_answered_where_it_exits_with_enough_confidence(abstaining, rows):
    texts = rows[0]
    promise = abstaining.promise_
    assert isinstance(promise, ErrorPromise)
    assert abstaining.exit_ == promise.exit
    every = {depth: abstaining.predict_proba(texts, exit=f"fixed:{depth}") for depth in (1, 2, 3)}
    found, depths = abstaining.predict(texts, abstain=True, return_depth=True)
    assert np.array_equal(depths, replay(promise.exit, every))
    exited = [every[depth][row] for row, depth in enumerate(depths.tolist())]
    expected = [abstaining.classes_[p.argmax()] if p.max() >= promise.exit.value else None for p in exited]
    assert found.tolist() == expected
    assert 0 < expected.count(None) < len(texts)
    unanswered = expected.index(None)
    assert abstaining.predict(texts[unanswered], abstain=True) is None
    assert abstaining.predict(texts[0], abstain=True) == expected[0]
    assert None not in abstaining.predict(texts).tolist()  # nobody asked to abstain
    assert abstaining.predict(texts, abstain=0.35).tolist() == expected


def test_one_head_is_enough_to_promise_an_error(tiny_model, rows):
    texts, labels = rows
    clf = sn.SpinClassifier(str(tiny_model), head="refit", depth=2, baseline=False, poolings=("mean",)).fit(
        texts[::2], labels[::2]
    )
    clf.calibrate(texts[1::2], labels[1::2], max_error=0.35)
    assert clf.promise_.mean_depth == 2
    certain = clf.predict_proba(texts).max(1) >= clf.promise_.exit.value
    assert [label is not None for label in clf.predict(texts, abstain=True)] == certain.tolist()


def test_a_promised_error_is_saved_and_restored(abstaining, rows, tmp_path):
    abstaining.save_pretrained(tmp_path)
    description = json.loads((tmp_path / "spin_classifier.json").read_text())
    assert description["promise"] is None
    assert description["error_promise"]["max_error"] == 0.35
    again = sn.SpinClassifier.from_pretrained(tmp_path)
    assert (again.exit_, again.promise_) == (abstaining.exit_, abstaining.promise_)
    assert again.predict(rows[0], abstain=True).tolist() == abstaining.predict(rows[0], abstain=True).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_wrong": 60}, r"60 wrong of \d+ answered of 128 texts are too many to promise an error of at most 0.35"),
        ({"max_error": 0.01}, "too many to promise an error of at most 0.01"),
        ({"n_answered": 500}, "500 answered of 128 texts are too many"),
        ({"n_texts": 10**6}, "too many to promise"),  # more texts than rows
        ({"mean_depth": 9.0}, "too many to promise"),
        ({"exit": "fixed:3"}, "under exit fixed:3"),
        ({"exit": "confidence:2"}, "confidence to exit is 2"),
        ({"n_wrong": -1}, r"at `\$\.error_promise\.n_wrong`"),
        ({"confidence": 1.0}, r"at `\$\.error_promise\.confidence`"),
    ],
)
def test_a_forged_promise_is_refused(abstaining, tmp_path, changes, message):
    abstaining.save_pretrained(tmp_path)
    path = tmp_path / "spin_classifier.json"
    description = json.loads(path.read_text())
    description["error_promise"].update(changes)
    path.write_text(json.dumps(description))
    with pytest.raises(sn.InputError, match=rf"not a classifier that spin_native saved .*({message})"):
        sn.SpinClassifier.from_pretrained(tmp_path)


def test_a_classifier_with_both_promises_is_refused(exiting, rows, abstaining, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    abstaining.save_pretrained(one)
    calibrated(exiting, rows, max_accuracy_drop=0.3).save_pretrained(other)
    description = json.loads((one / "spin_classifier.json").read_text())
    description["promise"] = json.loads((other / "spin_classifier.json").read_text())["promise"]
    (one / "spin_classifier.json").write_text(json.dumps(description))
    with pytest.raises(sn.InputError, match="a promise and an error_promise; expected one of them"):
        sn.SpinClassifier.from_pretrained(one)


def test_a_promise_in_another_dtype_allows_no_abstention(abstaining, tmp_path):
    abstaining.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="the error was promised for float32, and the base model runs in bfloat16"):
        clf = sn.SpinClassifier.from_pretrained(tmp_path, dtype="bfloat16")
    with pytest.raises(sn.InputError, match="abstain: no error is promised; calibrate with max_error first"):
        clf.predict(["good film"], abstain=True)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"max_error": 0.35, "max_accuracy_drop": 0.01}, "max_error=0.35 beside max_accuracy_drop=0.01"),
        ({"max_error": 0.35, "by": "patience"}, "max_error=0.35 beside by='patience'"),
        ({"max_error": 0.0}, r"max_error is 0\.0, confidence 0\.95; expected shares"),
        ({"max_error": 0.35, "confidence": 1.0}, r"confidence 1\.0; expected shares"),
        ({"max_error": 0.01}, "does not prove an error of at most 0.01"),
    ],
)
def test_calibrations_that_cannot_be_made_are_refused_and_change_nothing(exiting, rows, how, message):
    before = exiting.exit_, exiting.promise_
    with pytest.raises(sn.InputError, match=message):
        exiting.calibrate(rows[0][1::2], rows[1][1::2], **how)
    assert (exiting.exit_, exiting.promise_) == before


def test_an_abstention_that_was_not_promised_is_refused(exiting, abstaining, rows):
    with pytest.raises(sn.InputError, match="no error is promised"):
        exiting.predict(["good"], abstain=True)
    with pytest.raises(sn.InputError, match="no error is promised"):
        calibrated(exiting, rows, max_accuracy_drop=0.3).predict(["good"], abstain=True)
    with pytest.raises(sn.InputError, match=r"abstain is 0\.2, and the promised error is 0\.35; calibrate with max_error=0\.2"):
        abstaining.predict(["good"], abstain=0.2)
    with pytest.raises(sn.InputError, match=r"abstain is 7\.0; expected True, or the largest error to accept"):
        abstaining.predict(["good"], abstain=7.0)
    with pytest.raises(sn.InputError, match="exit fixed:1 beside abstain"):
        abstaining.predict(["good"], abstain=True, exit="fixed:1")
    assert abstaining.predict(["good"], abstain=False).tolist() == abstaining.predict(["good"]).tolist()


# Files and commands.


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_file_has_no_label_but_all_probabilities_where_a_row_is_not_answered(abstaining, rows, tmp_path, ending):
    source, out = write(tmp_path / f"in{ending}", labelled(*rows)), tmp_path / f"out{ending}"
    written = predict_files(abstaining, source, out, abstain=True)
    expected = abstaining.predict(rows[0], abstain=True).tolist()
    assert written.n_unanswered == expected.count(None)
    found = read(out)
    assert [row["predicted_label"] or None for row in found] == expected
    assert [str(row["answered"]).lower() for row in found] == [str(label is not None).lower() for label in expected]
    probabilities = [[float(row[f"probability_{label}"]) for label in abstaining.classes_] for row in found]
    np.testing.assert_allclose(probabilities, abstaining.predict_proba(rows[0]), rtol=1e-5)
    assert "answered" not in read(predict_files(abstaining, source, tmp_path / f"plain{ending}").out)[0]


def test_a_regressor_does_not_abstain(tiny_model, reviews, tmp_path):
    values = [float(label == "positive") for label in reviews[1]]
    settings = {"head": "refit", "baseline": False, "poolings": ("mean",), "etas": (0.8,), "head_Cs": (0.001,)}
    clf = sn.SpinRegressor(str(tiny_model), depth=1, **settings).fit(reviews[0], values)
    source = write(tmp_path / "in.jsonl", labelled(*reviews))
    with pytest.raises(sn.InputError, match="abstain: a regressor gives a value for every text"):
        predict_files(clf, source, tmp_path / "out.jsonl", abstain=True)


def test_the_commands_calibrate_and_abstain(exiting, rows, tmp_path, capsys, monkeypatch):
    spin = Spin(capsys)
    exiting.save_pretrained(tmp_path / "clf")
    data = write(tmp_path / "data.jsonl", labelled(rows[0][1::2], rows[1][1::2]))
    code, out, _ = spin("calibrate", tmp_path / "clf", data, "--max-error", 0.35)
    clf = estimators.load_pretrained(tmp_path / "clf")
    promise = clf.promise_
    assert code == 0
    assert f"{promise.n_answered} are answered, {promise.n_wrong} of them wrongly; with confidence 0.95, at most 0.35" in out
    shown = json.loads(spin("calibrate", tmp_path / "clf", data, "--max-error", 0.35, "--json")[1])
    assert (shown["n_wrong"], shown["exit"]) == (promise.n_wrong, str(promise.exit))
    texts = rows[0][:60]
    expected = clf.predict(texts, abstain=True).tolist()
    code, out, err = spin("predict", tmp_path / "clf", *texts, "--abstain")
    assert [line.split("\t")[0] for line in out.splitlines()] == [label or "-" for label in expected]
    assert f"{expected.count(None)} of 60 texts were not answered" in err
    lines = [json.loads(line) for line in spin("predict", tmp_path / "clf", *texts, "--abstain", "--json")[1].splitlines()]
    assert [line["label"] for line in lines] == expected
    assert [line["answered"] for line in lines] == [label is not None for label in expected]
    files = ("--in", data, "--out", tmp_path / "out.csv", "--abstain")
    code, _, err = spin("predict", tmp_path / "clf", *files)
    unanswered = clf.predict(rows[0][1::2], abstain=True).tolist().count(None)
    assert f"{unanswered} of 160 texts were not answered" in err
    assert code == 0
    error = spin.fails("calibrate", tmp_path / "clf", data, "--max-error", 0.2, "--max-accuracy-drop", 0.1)
    assert "max_error=0.2 beside max_accuracy_drop=0.1" in error


def test_the_loosest_threshold_is_0_and_written_so():
    assert f"{THRESHOLDS[-1]:g}" == "0"
    assert sorted(THRESHOLDS, reverse=True) == THRESHOLDS
