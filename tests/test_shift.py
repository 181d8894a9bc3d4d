"""The shift alarm: silent on rows of the source it was fitted on, raised on others, exact about what it counts, and saved."""

import warnings

import numpy as np
import pytest
from commands import Spin, read, write
from safetensors.numpy import load_file
from scipy.stats import betabinom
from test_forged_classifiers import forge

import spin_native as sn
from spin_native import tables
from spin_native.classifier import shift as shifts
from spin_native.classifier.shift import LEVELS, Reference, ShiftWatch, different, salient_columns
from spin_native.errors import ShiftWarning
from spin_native.features.spec import FeatureKey
from spin_native.serving.predict import predict_files

WORDS = ("good", "nice", "fine", "lovely", "bad", "awful", "poor", "sad", "film", "food", "room", "was", "very", "the")
OTHER_WORDS = (".", "not", "and", "a")


def sentences(n_rows, words, seed):
    """Different texts of 4 to 12 of these words."""
    rng, texts = np.random.default_rng(seed), {}
    while len(texts) < n_rows:
        texts[" ".join(words[index] for index in rng.integers(0, len(words), rng.integers(4, 13)))] = None
    return list(texts)


def watched(reference, *blocks):
    """A watch that has read blocks of features, finished; no warning is shown."""
    watch = ShiftWatch(reference, [(FeatureKey("activation", "mean", 1), column) for column in reference.columns.tolist()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShiftWarning)
        for block in blocks:
            watch.add(block)
            watch.end_block(len(block))
        watch.finish()
    return watch


def correlated(n_rows, rng, n_neurons=64):
    """Features that share a source; half are rounded (equal values), some are rectified (many zeros), one is constant."""
    features = rng.normal(size=(n_rows, n_neurons)) + 2 * rng.normal(size=(n_rows, 1))
    features[:, ::2] = np.round(features[:, ::2], 1)
    features[:, 1::4] = np.maximum(features[:, 1::4], 0)
    features[:, 3] = 0.25
    return features.astype(np.float32)


@pytest.mark.parametrize("n_rows", [100, 300, 2000])
@pytest.mark.parametrize("n_fitted", [40, 3000])
def test_rows_of_the_same_source_raise_at_most_one_alarm_in_a_hundred(n_rows, n_fitted):
    rng = np.random.default_rng(0)
    n_alarms = 0
    for _ in range(100):
        reference = Reference.of(correlated(n_fitted, rng), np.arange(64))
        n_alarms += bool(watched(reference, correlated(n_rows, rng)).shifts)
    assert n_alarms <= 4  # of 100 at 1 %, more have a probability of .003


def test_rows_of_another_source_raise_the_alarm_and_name_the_neuron():
    rng = np.random.default_rng(1)
    reference = Reference.of(correlated(2000, rng), np.arange(100, 164))
    features = correlated(300, rng)
    features[:, [5, 6, 7]] += 2
    features[:, 9] += 4
    (shift,) = watched(reference, features).shifts
    assert (shift.first_text, shift.n_texts, shift.n_different, shift.n_neurons, shift.worst) == (0, 300, 4, 64, 9)
    assert shift.share == pytest.approx((features[:, 9] <= np.float32(shift.quantile)).mean())


def test_a_few_neurons_that_differ_raise_no_alarm():
    rng = np.random.default_rng(1)
    reference, features = Reference.of(correlated(2000, rng), np.arange(64)), correlated(300, rng)
    features[:, [5, 6, 7]] += 5  # of 64 neurons 4.7 %
    assert not watched(reference, features).shifts


def test_quantiles_and_shares_are_those_of_numpy():
    features = np.random.default_rng(2).normal(size=(999, 3)).astype(np.float32)
    reference = Reference.of(features, np.arange(3))
    np.testing.assert_array_equal(reference.quantiles, np.quantile(features, LEVELS, axis=0, method="weibull").T.astype("f4"))
    np.testing.assert_allclose(reference.shares.sum(1), 1)
    np.testing.assert_allclose(np.cumsum(reference.shares, axis=1)[:, :-1], np.tile(np.array(reference.ranks) / 999, (3, 1)))


def test_the_limits_are_those_of_the_beta_binomial_distribution():
    """The number of new values up to the r-th smallest of n old ones, for all neurons and both sides together 1 %."""
    allowed = 0.01 / (2 * len(LEVELS) * 50)
    ranks = (1, 10, 50, 250, 500, 750, 950, 990, 999)
    fewest, most = shifts._limits(ranks, 999, 400, 50)
    for rank, low, high in zip(ranks, fewest.tolist(), most.tolist(), strict=True):
        counts = betabinom(400, rank, 1000 - rank)
        assert counts.cdf(low - 1) <= allowed < counts.cdf(low)
        assert counts.sf(high) <= allowed * (1 + 1e-6)
        assert high == 0 or counts.sf(high - 1) > allowed


def test_a_difference_that_is_certain_but_tiny_is_no_alarm():
    rng = np.random.default_rng(3)
    reference = Reference.of(rng.normal(size=(1_000_000, 1)).astype(np.float32), np.arange(1))
    moved = rng.normal(loc=0.08, size=(60_000, 1)).astype(np.float32)
    at_most = np.stack([(moved <= quantile).sum(0) for quantile in reference.quantiles.T], 1)
    fewest, most = shifts._limits(tuple(reference.ranks.tolist()), 1_000_000, 60_000, 1)
    assert ((at_most < fewest) | (at_most > most)).any()
    assert not different(reference, at_most, at_most, 60_000).any()


def test_texts_are_judged_in_blocks_and_the_last_ones_only_if_they_are_enough(monkeypatch):
    monkeypatch.setattr(shifts, "BLOCK_TEXTS", 1000)
    rng = np.random.default_rng(4)
    reference = Reference.of(correlated(2000, rng), np.arange(64))
    parts = [correlated(600, rng), correlated(600, rng), correlated(1000, rng) + 5, correlated(99, rng) + 5]
    watch = watched(reference, *parts)
    assert [(shift.first_text, shift.n_texts) for shift in watch.shifts] == [(1200, 1000)]
    assert (watch.n_texts, watch.n_shifted) == (2299, 1000)
    assert [shift.n_texts for shift in watched(reference, *parts, parts[3][:1]).shifts] == [1000, 100]


def test_the_salient_columns_have_the_largest_weights(clf):
    weights = np.abs(clf.head_.weights[0])
    columns = salient_columns(clf.head_, 5)
    assert columns.tolist() == sorted(columns.tolist())
    assert weights[columns].min() >= np.delete(weights, columns).max()
    assert salient_columns(clf.head_, 10**6).tolist() == list(range(clf.head_.n_neurons))


def test_the_salient_columns_of_a_perceptron_have_the_longest_weights_to_its_first_layer(tiny_model, reviews):
    clf = sn.SpinClassifier(str(tiny_model), depth=1, head="weighted", baseline=False, poolings=("mean",), etas=(0.8,))
    head = clf.fit(*reviews).head_
    lengths = np.sqrt((head.model.weights[0] ** 2).sum(1))
    assert set(salient_columns(head, 3).tolist()) == set(np.argsort(lengths)[-3:].tolist())


# The estimator.


@pytest.fixture(scope="module")
def watching(tiny_model):
    """A classifier with three heads, fitted on 300 texts."""
    texts = sentences(300, WORDS, seed=0)
    labels = ["yes" if "good" in text or "nice" in text else "no" for text in texts]
    return sn.SpinClassifier(str(tiny_model), depth=3, exits="all", baseline=False, head="refit", poolings=("mean",)).fit(
        texts, labels
    )


@pytest.mark.parametrize("exit_", [None, "confidence:0.6", "fixed:1"])
def test_predict_warns_of_other_texts_whatever_the_exit_and_is_silent_on_like_ones(watching, exit_):
    watching.predict(sentences(200, WORDS, seed=1), exit=exit_)  # a warning would be an error
    with pytest.warns(ShiftWarning, match=r"200 of 200 texts differ .* texts 0 to 199, \d+ of \d+ neurons have other values"):
        watching.predict(sentences(200, OTHER_WORDS, seed=1), exit=exit_)


def test_fewer_than_100_different_texts_raise_no_alarm(watching):
    texts = sentences(99, OTHER_WORDS, seed=2)
    watching.predict(texts)
    watching.predict(texts[:50] * 10)
    watching.predict([])


def test_the_neurons_that_are_watched_are_those_of_the_first_head_over_the_training_rows(watching):
    reference, head = watching.shift_reference_, watching.heads_[1]
    texts = sentences(150, WORDS, seed=3)
    watch = watching.shift_watch()
    for _ in watching.output_blocks(texts, False, "fixed:3", watch):
        pass
    features = np.concatenate([watching._deployed.salient_features(text, 1) for text in texts])[:, reference.columns]
    expected = [(features <= quantile).sum(0).tolist() for quantile in reference.quantiles.T]
    assert watch._at_most.T.tolist() == expected
    assert watch.places == [head.places[column] for column in reference.columns]
    assert reference.n_rows == 240  # validation took a fifth


def test_a_file_is_watched_as_one_stream_and_its_shifted_texts_are_counted(watching, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 60)
    source = write(tmp_path / "in.jsonl", [{"text": text} for text in sentences(240, OTHER_WORDS, seed=4)])
    with pytest.warns(ShiftWarning) as caught:
        written = predict_files(watching, source, tmp_path / "out.jsonl")
    assert len(caught) == 1
    assert (written.n_shifted, written.n_rows, len(read(written.out))) == (240, 240, 240)
    like = write(tmp_path / "like.jsonl", [{"text": text} for text in sentences(240, WORDS, seed=5)])
    assert predict_files(watching, like, tmp_path / "out.jsonl", overwrite=True).n_shifted == 0


@pytest.mark.filterwarnings("always::spin_native.errors.ShiftWarning")
def test_the_command_shows_the_alarm_on_stderr(watching, tmp_path, capsys):
    watching.save_pretrained(tmp_path / "clf")
    spin = Spin(capsys)
    source = write(tmp_path / "in.csv", [{"text": text} for text in sentences(150, OTHER_WORDS, seed=6)])
    code, _, err = spin("predict", tmp_path / "clf", "--in", source, "--out", tmp_path / "out.csv")
    assert code == 0
    assert err.count("warning: 150 of 150 texts differ from those that") == 1


def test_a_regressor_has_an_alarm_too(tiny_model):
    texts = sentences(200, WORDS, seed=7)
    settings = {"head": "refit", "baseline": False, "poolings": ("mean",), "etas": (0.8,), "head_Cs": (0.001,)}
    clf = sn.SpinRegressor(str(tiny_model), depth=1, **settings).fit(texts, [float(text.count("good")) for text in texts])
    clf.predict(sentences(150, WORDS, seed=8))
    with pytest.warns(ShiftWarning):
        clf.predict(sentences(150, OTHER_WORDS, seed=8))


def test_the_reference_is_saved_and_restored(watching, tmp_path):
    watching.save_pretrained(tmp_path)
    again = sn.SpinClassifier.from_pretrained(tmp_path)
    for name, value in vars(watching.shift_reference_).items():
        np.testing.assert_array_equal(getattr(again.shift_reference_, name), value)
    stored = load_file(tmp_path / "head.safetensors")
    assert stored["shift.quantiles"].shape == (len(watching.shift_reference_.columns), len(LEVELS))
    with pytest.warns(ShiftWarning):
        again.predict(sentences(150, OTHER_WORDS, seed=9))


def test_assigned_heads_have_no_alarm(watching, tmp_path):
    watching.save_pretrained(tmp_path)
    again = sn.SpinClassifier.from_pretrained(tmp_path)
    again.heads_ = {1: watching.heads_[1]}
    assert again.shift_watch() is None
    again.predict(sentences(150, OTHER_WORDS, seed=9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["shift.columns"].__setitem__(-1, 10**6), "shift.columns are not ascending numbers"),
        (lambda t: t.update({"shift.columns": t["shift.columns"][::-1].copy()}), "shift.columns are not ascending"),
        (lambda t: t.update({"shift.columns": t["shift.columns"].astype(np.float32)}), "shift.columns is float32"),
        (lambda t: t["shift.ranks"].__setitem__(0, 0), "shift.ranks are not ascending numbers from 1"),
        (lambda t: t["shift.ranks"].__setitem__(-1, 10**9), "shift.ranks are not ascending numbers from 1"),
        (lambda t: t["shift.rows"].__setitem__(0, 2), "shift.ranks are not ascending numbers from 1"),
        (lambda t: t["shift.quantiles"].__setitem__((0, 0), np.inf), "shift.quantiles are not"),
        (lambda t: t.update({"shift.quantiles": t["shift.quantiles"][1:]}), "shift.quantiles are not"),
        (lambda t: t["shift.shares"].__setitem__((0, 0), -0.5), "shift.shares are not"),
        (lambda t: t["shift.shares"].__setitem__((0, 0), 0.9), "shift.shares do not add up to 1"),
        (lambda t: t.pop("shift.ranks"), "'ranks'"),
        (lambda t: t.update({"shift.more": np.zeros(2)}), "no shift alarm reads its tensor shift.more"),
    ],
)
def test_a_forged_reference_is_refused(watching, tmp_path, change, message):
    watching.save_pretrained(tmp_path)
    forge(tmp_path, change)
    with pytest.raises(sn.InputError, match=rf"not a classifier that spin_native saved .*({message})"):
        sn.SpinClassifier.from_pretrained(tmp_path)
