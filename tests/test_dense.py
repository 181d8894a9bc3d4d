"""The dense head, its cross-validation, baselines and choice of depth, against scikit-learn on what `extract` gives."""

import re

import numpy as np
import pytest
from conftest import BAD, FILLERS, GOOD
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score, log_loss

import spin_native as sn
from spin_native.classifier.comparisons import compare, standard_error
from spin_native.classifier.splits import folds
from spin_native.classifier.tasks import Classes, Values
from spin_native.errors import InputError
from spin_native.probes.scaling import mean_and_scale

HIDDEN, MEAN, MAX = ("hidden", "mean"), ("activation", "mean"), ("activation", "max")
SOURCES = (HIDDEN, MEAN, MAX)
N_LAYERS = 3
PLAIN = {"class_weight": {"positive": 1.0}}  # with class weights no temperature is fitted: weights are those of the regression


@pytest.fixture(scope="module")
def noisy():
    """120 different texts of good and bad words, whose label follows from most of them."""
    random = np.random.default_rng(0)
    texts, labels = [], []
    for row in range(120):
        words = [*random.choice(GOOD, 2), *random.choice(BAD, 2), *random.choice(FILLERS, 4)]
        tone = int(random.integers(2))
        words[0] = str(random.choice(GOOD if tone else BAD))
        random.shuffle(words)
        texts.append(" ".join(map(str, words)) + f" {', ' * (row % 5)} {'not ' * (row % 3)}")
        labels.append("positive" if tone else "negative")
    assert len(set(texts)) == len(texts)
    return texts, labels


@pytest.fixture(scope="module")
def extracted(tiny_model, noisy):
    """(site, pooling, layer) -> what `extract` gives of the noisy texts."""
    features = sn.extract(
        sn.load_model(str(tiny_model)),
        sn.load_tokenizer(str(tiny_model)),
        noisy[0],
        sites=("hidden", "activation"),
        poolings=("mean", "max"),
    )

    def array(site, pooling, layer):
        return features.array(site=site, pooling=pooling, layer=layer).astype(np.float64)

    return array


def keys_of(source, depth):
    """The layers of a source that lie below a depth; the final hidden state at the depth of the whole model."""
    return range(depth + (source[0] == "hidden" and depth == N_LAYERS))


def design(extracted, depth, sources=SOURCES, train=slice(None)):
    """Standardised features, each divided by the root of how many sources, layers and columns there are."""
    columns = []
    for source in sources:
        layers = keys_of(source, depth)
        for layer in layers:
            raw = extracted(*source, layer)
            scale = raw[train].std(0)
            columns.append((raw - raw[train].mean(0)) / scale / np.sqrt(len(sources) * len(layers) * raw.shape[1]))
    return np.concatenate(columns, axis=1)


def logistic(X, y, C):
    return LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(X, y)


def encoded(labels):
    return (np.array(labels) == "positive").astype(np.int64)


def folds_of(texts, labels, seed=0):
    return folds(Classes(np.array(["negative", "positive"])), texts, encoded(labels), 5, seed)


def out_of_fold(X, y, fold_of, C):
    """The decision values of each row by scikit-learn's model on the rows of the other folds."""
    scores = np.empty(len(y))
    for fold in range(fold_of.max() + 1):
        held_out = fold_of == fold
        scores[held_out] = logistic(X[~held_out], y[~held_out], C).decision_function(X[held_out])
    return scores


@pytest.fixture
def enough_rows(monkeypatch):
    """As if these were enough rows for a choice by cross-validation; and solutions as precise as scikit-learn's."""
    monkeypatch.setattr("spin_native.classifier.dense.FEW_ROWS", 1)
    monkeypatch.setattr("spin_native.classifier.crossfit.TOL", 1e-10)


@pytest.fixture
def precise(monkeypatch):
    monkeypatch.setattr("spin_native.classifier.crossfit.TOL", 1e-10)


def assert_same(ours, theirs, tol=2e-3):
    np.testing.assert_allclose(ours, theirs, atol=tol * np.abs(theirs).max())


# The head.


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_heads_logits_are_scikit_learns_on_the_weighted_features(tiny_model, noisy, extracted, depth, precise, unchecked):
    texts, labels = noisy
    clf = sn.SpinClassifier(str(tiny_model), head="dense", depth=depth, head_Cs=(3.0,), baseline=False, **PLAIN)
    clf.fit(texts, labels)
    X = design(extracted, depth)
    expected = logistic(X, encoded(labels), 3.0)
    p = clf.predict_proba(texts)
    assert_same(np.log(p[:, 1] / p[:, 0]), expected.decision_function(X))
    assert clf.head_.n_neurons == X.shape[1]
    by_column = {
        (*source, layer): np.sqrt(len(SOURCES) * len(keys_of(source, depth)) * extracted(*source, layer).shape[1])
        for source in SOURCES
        for layer in keys_of(source, depth)
    }
    ends = np.cumsum([len(columns) for columns in clf.head_.neurons.values()])[:-1]
    ours = dict(zip(map(tuple, clf.head_.neurons), np.split(clf.head_.model.coef_[0], ends), strict=True))
    ends = np.cumsum([extracted(*key).shape[1] for key in by_column])[:-1]
    theirs = dict(zip(by_column, np.split(expected.coef_[0], ends), strict=True))
    assert ours.keys() == theirs.keys()
    for key, coef in theirs.items():
        np.testing.assert_allclose(ours[key] * by_column[key], coef, atol=2e-3 * np.abs(expected.coef_).max())


def test_a_regressions_values_are_those_of_ridge_on_the_weighted_features(tiny_model, noisy, extracted, precise, unchecked):
    texts = noisy[0]
    values = [text.count("good") + 2.0 * text.count("bad") + len(text) / 40 for text in texts]
    reg = sn.SpinRegressor(str(tiny_model), head="dense", depth=2, head_Cs=(3.0,), baseline=False).fit(texts, values)
    X = design(extracted, 2)
    spread = 1 / reg.head_.C  # the loss of values is not divided by their variance
    expected = Ridge(spread).fit(X, values).predict(X)
    assert_same(reg.predict(texts), expected, 5e-3)


def test_the_sites_and_poolings_are_those_asked_for(tiny_model, noisy, extracted, precise, unchecked):
    texts, labels = noisy
    options = {"sites": ("activation",), "poolings": ("mean",), "head_Cs": (1.0,)}
    clf = sn.SpinClassifier(str(tiny_model), head="dense", depth=2, baseline=False, **options, **PLAIN).fit(texts, labels)
    X = design(extracted, 2, (MEAN,))
    p = clf.predict_proba(texts)
    assert_same(np.log(p[:, 1] / p[:, 0]), logistic(X, encoded(labels), 1.0).decision_function(X))


def test_the_loss_of_held_out_rows_chooses_C(tiny_model, noisy, extracted, enough_rows, unchecked):
    texts, labels = noisy
    Cs = (0.01, 0.3, 10.0, 1000.0)
    clf = sn.SpinClassifier(str(tiny_model), head="dense", depth=2, head_Cs=Cs, baseline=False, **PLAIN).fit(texts, labels)
    X, y, fold_of = design(extracted, 2), encoded(labels), folds_of(texts, labels)
    losses = [log_loss(y, 1 / (1 + np.exp(-out_of_fold(X, y, fold_of, C)))) for C in Cs]
    (chosen,) = [C for C, loss in zip(Cs, losses, strict=True) if loss == min(losses)]
    best_C = clf.head_.C
    assert best_C == chosen


@pytest.mark.parametrize(("metric", "by_hand"), [("accuracy", accuracy_score), (None, accuracy_score)])
def test_the_scores_of_the_depth_curve_are_those_of_the_same_folds(
    tiny_model, noisy, extracted, enough_rows, unchecked, metric, by_hand
):
    texts, labels = noisy
    clf = sn.SpinClassifier(str(tiny_model), head="dense", metric=metric, head_Cs=(3.0,), baseline=False, **PLAIN)
    clf.fit(texts, labels)
    y, fold_of = encoded(labels), folds_of(texts, labels)
    assert sorted(np.bincount(fold_of).tolist()) == [24] * 5
    assert [row.depth for row in clf.depth_curve_] == [1, 2, 3]
    for row in clf.depth_curve_:
        scores = out_of_fold(design(extracted, row.depth), y, fold_of, 3.0)
        assert row.validation == pytest.approx(by_hand(y, scores > 0), abs=1e-12)


def test_best_prefers_hidden_states_alone_where_their_held_out_loss_is_smaller(
    tiny_model, noisy, extracted, enough_rows, unchecked
):
    texts, labels = noisy
    y, fold_of = encoded(labels), folds_of(texts, labels)
    for depth in (1, 2, 3):
        clf = sn.SpinClassifier(str(tiny_model), depth=depth, head_Cs=(3.0,), baseline=False, **PLAIN).fit(texts, labels)
        losses = []
        for sources in ((HIDDEN,), SOURCES):
            scores = out_of_fold(design(extracted, depth, sources), y, fold_of, 3.0)
            losses.append(log_loss(y, 1 / (1 + np.exp(-scores))))
        expected = (HIDDEN,) if losses[0] <= losses[1] else SOURCES
        assert {feature[:2] for feature in clf.head_.neurons} == set(expected)


# Folds and validation rows.


def test_equal_texts_lie_in_one_fold_and_every_class_is_spread_over_all():
    texts = [f"text {row // 3}" for row in range(90)]
    labels = [("negative", "positive")[row // 3 % 2] for row in range(90)]
    fold_of = folds_of(texts, labels)
    for text in set(texts):
        assert len({fold_of[row] for row in range(90) if texts[row] == text}) == 1
    for label in ("negative", "positive"):
        counts = np.bincount([fold_of[row] for row in range(90) if labels[row] == label], minlength=5)
        assert (counts == 9).all()


def test_the_only_text_of_a_class_is_never_held_out():
    fold_of = folds(Classes(np.array(["a", "b", "c"])), [*map(str, range(20)), "x", "x"], np.array([0, 1] * 10 + [2, 2]), 5, 0)
    assert fold_of[-2:].tolist() == [-1, -1]
    assert set(fold_of[:-2].tolist()) == set(range(5))


@pytest.mark.parametrize("final_rows", ["training", "all", None])
def test_given_validation_rows_are_held_out_and_learnt_from_at_last_or_not(
    tiny_model, noisy, extracted, enough_rows, unchecked, final_rows
):
    texts, labels = noisy
    n = 80
    clf = sn.SpinClassifier(
        str(tiny_model), head="dense", depth=2, head_Cs=(3.0,), final_rows=final_rows, baseline=False, **PLAIN
    ).fit(texts[:n], labels[:n], validation=(texts[n:], labels[n:]))
    X, y = design(extracted, 2, train=slice(n)), encoded(labels)
    held_out = logistic(X[:n], y[:n], 3.0)
    assert clf.depth_curve_[-1].validation == pytest.approx(held_out.score(X[n:], y[n:]), abs=1e-12)
    rows = slice(None) if final_rows == "all" else slice(n)
    p = clf.predict_proba(texts)
    assert_same(np.log(p[:, 1] / p[:, 0]), logistic(X[rows], y[rows], 3.0).decision_function(X))
    assert clf.suspicious_rows_ is None


def test_the_depth_is_the_shallowest_within_one_standard_error(tiny_model, noisy, extracted, enough_rows, unchecked):
    """The standard error of an accuracy is the square root of p (1 - p) / n. The labels follow from a deep neuron."""
    texts, neuron = noisy[0], extracted("activation", "max", 2)[:, 14]
    labels = np.where(neuron > np.median(neuron), "positive", "negative").tolist()
    clf = sn.SpinClassifier(str(tiny_model), baseline=False).fit(texts, labels)
    scores = {row.depth: row.validation for row in clf.depth_curve_}
    best = max(scores.values())
    error = np.sqrt(best * (1 - best) / len(texts))
    assert min(abs(best - score - error) for score in scores.values()) > 0.15 * error  # more than the bootstrap may err
    assert clf.depth_ == min(depth for depth, score in scores.items() if score >= best - error)
    exact = sn.SpinClassifier(str(tiny_model), baseline=False, tolerance=0).fit(texts, labels)
    assert exact.depth_ == min(depth for depth, score in scores.items() if score == best)
    assert 1 < clf.depth_ < exact.depth_


def test_the_bootstrapped_standard_error_is_that_of_a_share(tiny_model):
    settings = sn.SpinClassifier(str(tiny_model))._settings(Classes(np.array(["negative", "positive"])))
    truth, predicted = np.zeros(400, int), (np.arange(400) < 60).astype(int)
    assert standard_error(settings, truth, predicted) == pytest.approx(np.sqrt(0.15 * 0.85 / 400), rel=0.12)


def test_few_rows_choose_nothing_and_read_the_upper_half_of_the_hidden_states(tiny_model, noisy, unchecked):
    clf = sn.SpinClassifier(str(tiny_model), baseline=False).fit(*noisy)
    assert clf.depth_ == N_LAYERS
    assert clf.head_.C == 3
    assert [tuple(feature) for feature in clf.head_.neurons] == [(*HIDDEN, 2), (*HIDDEN, 3)]  # the upper half


def test_a_sample_of_few_rows_chooses_for_all_of_them(tiny_model, noisy, unchecked):
    """It reads the upper hidden states only, and nothing else is extracted of all rows."""
    texts, labels = noisy
    clf = sn.SpinClassifier(str(tiny_model), baseline=False, sample=len(texts) // 2).fit(texts, labels)
    whole = sn.SpinClassifier(str(tiny_model), baseline=False).fit(texts, labels)
    assert clf.head_.neurons.keys() == whole.head_.neurons.keys()
    assert len(clf.predict(texts)) == len(texts)


def test_few_rows_choose_a_depth_where_a_tolerance_is_given(tiny_model, noisy, unchecked):
    clf = sn.SpinClassifier(str(tiny_model), baseline=False, tolerance=1.0).fit(*noisy)
    assert clf.depth_ == 1


# Exits, samples, files.


def test_an_exit_is_the_dense_head_of_its_depth(tiny_model, noisy, precise, unchecked):
    options = {"head": "dense", "head_Cs": (3.0,), "baseline": False, **PLAIN}
    exiting = sn.SpinClassifier(str(tiny_model), depth=3, exits=(1, 2), **options).fit(*noisy)
    for depth in (1, 2):
        alone = sn.SpinClassifier(str(tiny_model), depth=depth, **options).fit(*noisy)
        np.testing.assert_allclose(
            exiting.predict_proba(noisy[0], exit=f"fixed:{depth}"), alone.predict_proba(noisy[0]), atol=1e-4
        )


def test_a_sample_chooses_and_all_rows_are_learnt_from(tiny_model, noisy, extracted, precise, unchecked):
    texts, labels = noisy
    clf = sn.SpinClassifier(str(tiny_model), head="dense", depth=2, head_Cs=(3.0,), sample=60, baseline=False, **PLAIN)
    clf.fit(texts, labels)
    X = design(extracted, 2)
    p = clf.predict_proba(texts)
    assert_same(np.log(p[:, 1] / p[:, 0]), logistic(X, encoded(labels), 3.0).decision_function(X))


def test_a_saved_classifier_answers_and_is_scored_as_before(tiny_model, noisy, tmp_path, unchecked):
    texts, labels = noisy
    clf = sn.SpinClassifier(str(tiny_model), exits="all").fit(texts[:90], labels[:90], test=(texts[90:], labels[90:]))
    clf.save_pretrained(tmp_path / "clf")
    again = sn.SpinClassifier.from_pretrained(tmp_path / "clf")
    assert np.array_equal(again.predict_proba(texts), clf.predict_proba(texts))
    assert again.depth_curve_ == clf.depth_curve_
    assert again.baselines_ == clf.baselines_
    assert again.baseline_ == clf.baseline_ == clf.baselines_["final_hidden"].row


def test_the_same_seed_gives_the_same_bytes(tiny_model, noisy, tmp_path, unchecked):
    for name in ("one", "two"):
        sn.SpinClassifier(str(tiny_model), seed=5).fit(*noisy).save_pretrained(tmp_path / name)
    one, two = ({p.name: p.read_bytes() for p in sorted((tmp_path / name).iterdir())} for name in ("one", "two"))
    assert one.keys() == two.keys()
    for files in (one, two):
        files["spin_classifier.json"] = re.sub(rb'"seconds": \{[^}]*\}', b"", files["spin_classifier.json"])
    assert one == two


# Baselines and comparisons.


def test_the_baselines_are_scikit_learns_on_the_same_folds(tiny_model, noisy, extracted, enough_rows, unchecked):
    texts, labels = noisy
    y, fold_of = encoded(labels), folds_of(texts, labels)
    clf = sn.SpinClassifier(str(tiny_model), head="dense", depth=2, head_Cs=(3.0,), **PLAIN).fit(texts, labels)
    alone = {}
    for layer in range(N_LAYERS + 1):
        raw = extracted("hidden", "mean", layer)
        alone[layer] = out_of_fold((raw - raw.mean(0)) / raw.std(0) / np.sqrt(raw.shape[1]), y, fold_of, 3.0)
    losses = {layer: log_loss(y, 1 / (1 + np.exp(-scores))) for layer, scores in alone.items()}
    expected = {
        "final_hidden": alone[N_LAYERS],
        "best_hidden": alone[min(losses, key=losses.get)],
        "all_hidden": out_of_fold(design(extracted, 2, (HIDDEN,)), y, fold_of, 3.0),
        "all_activations": out_of_fold(design(extracted, 2, (MEAN,)), y, fold_of, 3.0),
    }
    got = {name: baseline.row.validation for name, baseline in clf.baselines_.items()}
    by_hand = {name: accuracy_score(y, scores > 0) for name, scores in expected.items()}
    assert got == pytest.approx({**by_hand, "majority": np.bincount(y).max() / len(y)}, abs=1e-12)
    ours = out_of_fold(design(extracted, 2), y, fold_of, 3.0) > 0
    for name, scores in expected.items():
        compared = clf.baselines_[name].held_out
        assert compared.difference == pytest.approx(accuracy_score(y, ours) - by_hand[name], abs=1e-12)
        assert compared.p_value == pytest.approx(mcnemar(ours == y, (scores > 0) == y), abs=1e-12)
        assert clf.baselines_[name].test is None


def mcnemar(ours_right, theirs_right):
    """The exact two-sided test: among the rows where one of them only is right, each is right as often as the other."""
    won, lost = int((ours_right & ~theirs_right).sum()), int((~ours_right & theirs_right).sum())
    if won + lost == 0:
        return 1.0
    return min(1.0, 2 * float(binom.cdf(min(won, lost), won + lost, 0.5)))


@pytest.mark.parametrize(("won", "lost"), [(12, 3), (3, 12), (5, 5), (1, 0), (0, 0), (30, 14)])
def test_accuracies_are_compared_by_mcnemars_exact_test(tiny_model, won, lost):
    settings = sn.SpinClassifier(str(tiny_model))._settings(Classes(np.array(["negative", "positive"])))
    truth, ours, theirs = (np.zeros(100, int) for _ in range(3))
    theirs[:won], ours[won : won + lost] = 1, 1
    compared = compare(settings, truth, ours, theirs)
    assert compared.p_value == pytest.approx(mcnemar(ours == truth, theirs == truth), rel=1e-9)
    assert compared.difference == pytest.approx((won - lost) / 100)
    spread = np.sqrt(((won + lost) / 100 - ((won - lost) / 100) ** 2) / 100)
    assert compared.low == pytest.approx((won - lost) / 100 - 1.96 * spread, abs=0.015)
    assert compared.high == pytest.approx((won - lost) / 100 + 1.96 * spread, abs=0.015)


def test_errors_are_compared_so_that_positive_is_better(tiny_model):
    settings = sn.SpinRegressor(str(tiny_model), metric="mse")._settings(Values())
    truth = np.arange(50.0)
    compared = compare(settings, truth, truth + 1, truth + 2)
    assert compared.difference == pytest.approx(3)
    assert compared.p_value == pytest.approx(2 / 501)  # the smallest that 500 resamples can show


@pytest.mark.parametrize(
    ("metric", "by_hand"), [("accuracy", accuracy_score), ("macro_f1", lambda y, p: f1_score(y, p, average="macro"))]
)
def test_the_test_score_is_scikit_learns_of_the_predictions(tiny_model, noisy, unchecked, metric, by_hand):
    texts, labels = noisy
    clf = sn.SpinClassifier(str(tiny_model), metric=metric, depth=2)
    clf.fit(texts[:90], labels[:90], test=(texts[90:], labels[90:]))
    predicted = clf.predict(texts[90:])
    assert clf.depth_curve_[-1].test == pytest.approx(by_hand(labels[90:], predicted), abs=1e-12)
    assert clf.score(texts[90:], labels[90:]) == pytest.approx(by_hand(labels[90:], predicted), abs=1e-12)


# Label errors.


def test_planted_label_flips_are_the_most_suspicious_rows(tiny_model, unchecked):
    """Texts of six fillers and three words of one tone, of which six have the other class's label."""
    random, flipped = np.random.default_rng(1), {7, 22, 41, 58, 90, 111}
    texts, labels = [], []
    for row in range(120):
        words = [*random.choice(FILLERS, 6), *random.choice((BAD, GOOD)[row % 2], 3)]
        texts.append(" ".join(map(str, random.permutation(words))))
        labels.append(("negative", "positive")[row % 2 != (row in flipped)])
    clf = sn.SpinClassifier(str(tiny_model), head="dense", baseline=False).fit(texts, labels)
    assert set(clf.suspicious_rows_[: len(flipped)].tolist()) == flipped


def test_suspicious_rows_are_contradicted_at_every_depth_the_least_plausible_first(
    tiny_model, noisy, extracted, enough_rows, unchecked
):
    texts, labels = noisy
    clf = sn.SpinClassifier(str(tiny_model), head="dense", head_Cs=(3.0,), baseline=False, **PLAIN).fit(texts, labels)
    y, fold_of = encoded(labels), folds_of(texts, labels)
    scores = np.array([out_of_fold(design(extracted, depth), y, fold_of, 3.0) for depth in (1, 2, 3)])
    wrong = ((scores > 0) != y).all(0)
    plausibility = (1 / (1 + np.exp(-np.where(y == 1, scores, -scores)))).mean(0)
    assert clf.suspicious_rows_.tolist() == [row for row in np.argsort(plausibility).tolist() if wrong[row]]


def test_a_selection_without_a_head_is_that_of_spin(tiny_model, reviews):
    asked = {"depth": 1, "baseline": False, "poolings": ("mean",)}
    for option in ({"etas": (0.8,)}, {"top_k": (2,)}, {"Cs": (1.0,)}, {"validation_share": 0.3}, {"ranker": "absolute"}):
        assert sn.SpinClassifier(str(tiny_model), **asked, **option).fit(*reviews).head_.kind == "refit"
    assert sn.SpinClassifier(str(tiny_model), **asked).fit(*reviews).head_.kind == "dense"
    with pytest.raises(InputError, match=r"etas=.* is for head='refit', 'frozen', 'weighted'; head='best' does"):
        sn.SpinClassifier(str(tiny_model), head="best", etas=(0.8,)).fit(*reviews)


def test_a_nearly_constant_feature_is_not_blown_up():
    features = np.array([[0.0, 5.0, 1.0], [2.0, 5.0, 1.0], [4.0, 5.0, 1.0 + 6e-4], [6.0, 5.0, 1.0]])
    mean, scale = mean_and_scale(features)
    np.testing.assert_allclose(mean, [3, 5, 1 + 1.5e-4])
    # Spreads by hand: sqrt(5), constant, and sqrt(3) * 1.5e-4; the median of the two that vary is about half of sqrt(5).
    own = np.sqrt(3) * 1.5e-4
    np.testing.assert_allclose(scale, [np.sqrt(5), 1, 0.01 * (np.sqrt(5) + own) / 2])
    np.testing.assert_allclose(mean_and_scale(features, least=0.0)[1], [np.sqrt(5), 1, own])
