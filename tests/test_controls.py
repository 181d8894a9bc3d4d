"""Control tasks by token type; the stability of selections; false discoveries against planted neurons."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import spin_native as sn
from spin_native.analyses import selection_stability, selector, token_selectivity
from spin_native.probes.controls import TokenTypeControl, kuncheva_stability, nogueira_stability
from spin_native.probes.importance import Cut, f_statistic

# Control tasks.


def test_tokens_of_one_type_have_one_label_in_every_split():
    control = TokenTypeControl.of(np.array(["noun", "verb", "noun", "other"]), seed=0)
    rng = np.random.default_rng(0)
    training, test = rng.integers(0, 40, 500), rng.integers(20, 60, 300)
    labels = {}
    for tokens in (training, test, test[::-1], np.array([7])):
        for token, label in zip(tokens.tolist(), control(tokens).tolist(), strict=True):
            assert labels.setdefault(token, label) == label
    assert set(labels.values()) == {"noun", "verb", "other"}


def test_types_get_labels_as_often_as_the_real_task_has_them():
    labels = np.repeat([0, 1, 2], [10, 30, 60])
    drawn = TokenTypeControl.of(labels, seed=1)(np.arange(20_000))
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0.1, 0.3, 0.6], atol=0.015)  # 4 standard errors


def test_seeds_draw_different_tasks_and_a_seed_always_the_same():
    tokens = np.array(["the", "film", "was", "good", "é", "🎬"] * 20) + np.char.mod("%d", np.arange(120)).astype(str)
    labels = np.arange(120) % 2
    first, again, other = (TokenTypeControl.of(labels, seed)(tokens) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert 0.3 < np.mean(first == other) < 0.7


def test_the_width_of_an_id_does_not_matter_and_numbers_with_fractions_are_no_ids():
    control = TokenTypeControl.of(np.array([0, 1]), seed=0)
    assert np.array_equal(control(np.arange(50, dtype=np.int32)), control(np.arange(50, dtype=np.int64)))
    with pytest.raises(sn.InputError, match="tokens are float64; expected ids"):
        control(np.array([0.5]))
    with pytest.raises(sn.InputError, match="1 class over 3 tokens; expected at least two classes"):
        TokenTypeControl.of(np.array([2, 2, 2]), seed=0)


def tokens_and_features(kind, seed, n=1500, n_types=30):
    """The label is independent of the type; the features show either the label or the type."""
    rng = np.random.default_rng(seed)
    tokens, labels = rng.integers(0, n_types, n), rng.integers(0, 2, n)
    features = np.eye(n_types)[tokens] if kind == "type" else np.eye(2)[labels]
    return tokens, (features + 0.02 * rng.normal(size=features.shape)).astype(np.float32), labels


def test_features_that_show_the_label_only_are_selective():
    result = token_selectivity(tokens_and_features("label", 0), tokens_and_features("label", 1))
    assert (result["accuracy"] == 1).all()
    np.testing.assert_allclose(result["control_accuracy"], result["control_majority"], atol=0.1)
    assert np.array_equal(result["selectivity"], result["accuracy"] - result["control_accuracy"])
    assert result["selectivity"].min() > 0.2


def test_features_that_show_the_type_only_are_memorised_and_not_selective():
    result = token_selectivity(tokens_and_features("type", 0), tokens_and_features("type", 1))
    assert (result["control_accuracy"] == 1).all()
    assert result["selectivity"].max() < -0.4


@pytest.mark.parametrize("probe", [KNeighborsClassifier(3), LogisticRegression()], ids=str)
def test_selectivity_is_the_probes_own_accuracies(probe):
    training, test = tokens_and_features("type", 0), tokens_and_features("type", 1)
    result = token_selectivity(training, test, probe=probe, seeds=(4,))
    control = TokenTypeControl.of(training[2], 4)
    expected = [
        probe.fit(training[1], fitted).score(test[1], truth)
        for fitted, truth in ((training[2], test[2]), (control(training[0]), control(test[0])))
    ]
    assert [result["accuracy"][0], result["control_accuracy"][0]] == expected


def test_the_share_of_test_tokens_of_unseen_types_is_recorded(tmp_path):
    training, (tokens, features, labels) = tokens_and_features("label", 0), tokens_and_features("label", 1)
    tokens[:300] = 1000
    result = token_selectivity(training, (tokens, features, labels), seeds=(0, 3), about={"model": "tiny"})
    result.write(tmp_path / "selectivity.parquet")
    table = pq.read_table(tmp_path / "selectivity.parquet")
    assert table["seed"].to_pylist() == [0, 3]
    metadata = json.loads(table.schema.metadata[b"spin_native"])
    assert (metadata["unseen_test_tokens"], metadata["seeds"], metadata["model"]) == (300 / 1500, [0, 3], "tiny")


def test_a_control_task_of_one_label_is_predicted_by_it():
    """Few types can all draw one label."""
    labels = np.arange(8) % 2
    one_type = np.zeros(8, int), np.eye(2)[labels].astype(np.float32), labels
    result = token_selectivity(one_type, one_type)
    assert (result["control_accuracy"] == 1).all()


def test_arrays_that_do_not_fit_together_are_refused():
    tokens, features, labels = tokens_and_features("label", 0)
    with pytest.raises(sn.InputError, match="test: 1500 tokens, 1499 rows of features, 1500 labels"):
        token_selectivity((tokens, features, labels), (tokens, features[1:], labels))
    with pytest.raises(sn.InputError, match="seeds are"):
        token_selectivity((tokens, features, labels), (tokens, features, labels), seeds=())


# Stability.


def random_sets(n_sets, n_neurons, size, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [size] * n_sets if isinstance(size, int) else rng.integers(*size, n_sets)
    return np.array([rng.permutation(n_neurons) < k for k in sizes])


def test_kuncheva_and_nogueira_by_hand():
    chosen = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]], bool)
    # k = 2 of 4: 1 by chance; the overlaps 1, 2, 1 give 0, 1, 0.
    assert kuncheva_stability(chosen) == pytest.approx(1 / 3)
    # p = 1, 2/3, 1/3, 0: variances 3/2 * (0, 2/9, 2/9, 0), their mean 1/6, over 1/2 * 1/2.
    assert nogueira_stability(chosen) == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_kunchevas_is_its_definition_and_nogueiras_equals_it_for_sets_of_one_size(seed):
    chosen = random_sets(7, 20, 6, seed)
    overlaps = [(np.sum(a & b) - 36 / 20) / (6 - 36 / 20) for a, b in itertools.combinations(chosen, 2)]
    assert kuncheva_stability(chosen) == pytest.approx(np.mean(overlaps))
    assert nogueira_stability(chosen) == pytest.approx(np.mean(overlaps))


def test_random_sets_have_stability_zero_and_equal_sets_one_also_of_different_sizes():
    for stability_of, size in ((nogueira_stability, (8, 13)), (kuncheva_stability, 9)):
        by_chance = [stability_of(random_sets(10, 50, size, seed)) for seed in range(200)]
        assert np.mean(by_chance) == pytest.approx(0, abs=0.01)
    equal = np.repeat(random_sets(1, 50, 9), 4, axis=0)
    assert (nogueira_stability(equal), kuncheva_stability(equal)) == (1, 1)


def test_stability_is_nan_where_it_is_not_defined():
    assert np.isnan(kuncheva_stability(np.array([[True, False], [True, True]])))
    for everything in (True, False):
        assert np.isnan(nogueira_stability(np.full((3, 4), everything)))
        assert np.isnan(kuncheva_stability(np.full((3, 4), everything)))
    with pytest.raises(sn.InputError, match="got 1, expected two or more"):
        nogueira_stability(np.ones((1, 4), bool))


# Selections over bootstraps.

N_PLANTED = 6
TOP_10 = Cut("top_k", 10)


def planted(seed, n_planted=N_PLANTED, n_neurons=60, n_rows=200, effect=0.8):
    """The first neurons depend on the label, with either sign; the others are noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_rows) % 2
    features = rng.normal(size=(n_rows, n_neurons))
    features[:, :n_planted] += effect * labels[:, None] * rng.choice([-1, 1], n_planted)
    return features.astype(np.float32), labels


def stable(features, labels, cut=TOP_10, ranker="f_statistic", seed=0, **settings):
    settings = {"n_bootstraps": 20, "n_permutations": 5, **settings}
    return selection_stability(features, labels, select=selector(ranker, cut), seed=seed, progress=False, **settings)


@pytest.mark.parametrize(
    ("ranker", "cut"), [("f_statistic", TOP_10), ("gaussian", Cut("top_k", 15)), ("f_statistic", Cut("eta", 0.8))]
)
def test_the_estimated_false_discoveries_bound_the_true_ones_and_planted_neurons_are_kept(ranker, cut, unchecked):
    """Over 12 seeds; the true share is known because the neurons are planted."""
    true_share, kept = {0.1: [], 0.2: [], 0.5: []}, []
    for seed in range(12):
        estimate = stable(*planted(seed), cut, ranker, seed=seed)["false_discovery"]
        for bound, shares in true_share.items():
            chosen = estimate <= bound
            shares.append(chosen[N_PLANTED:].sum() / max(1, chosen.sum()))
        kept.append((estimate[:N_PLANTED] <= 0.2).mean())
    assert all(np.mean(shares) <= bound for bound, shares in true_share.items())
    assert np.mean(kept) > 0.9  # a bound that kept nothing would hold, too


def test_the_estimate_at_a_frequency_lies_above_the_true_share_and_comes_near_it(unchecked):
    estimates, truths = [], []
    for seed in range(12):
        result = stable(*planted(seed), seed=seed)
        chosen = result["frequency"] >= 0.7
        estimates.append(result["expected_false"][chosen].max() / chosen.sum())
        truths.append(chosen[N_PLANTED:].sum() / chosen.sum())
    assert np.mean(truths) <= np.mean(estimates) <= np.mean(truths) + 0.15


def test_noise_alone_gives_hardly_any_discovery_although_top_k_always_selects(unchecked):
    """All discoveries are false here: a seed with any at .2 should be one of five, at most."""
    results = [stable(*planted(seed, n_planted=0), seed=seed) for seed in range(12)]
    assert all(result["frequency"].sum() == pytest.approx(10) for result in results)
    assert np.mean([(result["false_discovery"] <= 0.2).any() for result in results]) <= 0.25
    assert np.mean([result["false_discovery"].min() for result in results]) > 0.4


def test_the_frequency_is_that_of_selections_on_samples_of_the_rows():
    features, labels = planted(0)
    calls = []

    def select(X, y):
        calls.append((X, y))
        return np.argsort(-f_statistic(X, y), kind="stable")[:5]

    result = selection_stability(features, labels, select=select, n_bootstraps=4, n_permutations=2, progress=False)
    assert len(calls) == 4 * (1 + 2)
    rows = {row.tobytes(): label for row, label in zip(features, labels, strict=True)}
    for index, (X, y) in enumerate(calls):
        assert np.bincount(y).tolist() == [100, 100]
        assert len(np.unique(X, axis=0)) < len(X)  # with replacement
        agrees = np.mean([rows[row.tobytes()] == label for row, label in zip(X, y, strict=True)])
        assert agrees == 1 if index < 4 else agrees < 0.7  # true labels first, then permuted ones
    chosen = np.array([np.isin(np.arange(60), np.argsort(-f_statistic(X, y), kind="stable")[:5]) for X, y in calls[:4]])
    np.testing.assert_array_equal(result["frequency"], chosen.mean(0))
    assert result.metadata["nogueira"] == pytest.approx(nogueira_stability(chosen))
    assert result.metadata["kuncheva"] == pytest.approx(kuncheva_stability(chosen))


def test_false_discoveries_by_hand():
    """Two bootstraps of the true labels select neuron 0, one also neuron 1; those of one permutation select 1, and 2."""
    answers = iter([[0], [0, 1], [1], [2]])
    result = selection_stability(
        np.zeros((4, 4), np.float32),
        np.array([0, 1, 0, 1]),
        select=lambda X, y: np.array(next(answers)),
        n_bootstraps=2,
        n_permutations=1,
        progress=False,
    )
    assert result["frequency"].tolist() == [1, 0.5, 0, 0]
    assert result["expected_false"].tolist() == [0, 2, 4, 4]
    assert result["false_discovery"].tolist() == [1, 1, 1, 1]  # (0 + 1) / 1, (2 + 1) / 2 at most 1, never selected
    assert (result.metadata["jaccard"], result.metadata["mean_size"], result.metadata["kuncheva"]) == (0.5, 1.5, None)


def test_a_seed_gives_the_same_result_and_another_seed_another():
    first, again, other = (stable(*planted(0), seed=seed) for seed in (0, 0, 1))
    for name, array in first.arrays.items():
        assert np.array_equal(array, again[name])
    assert not np.array_equal(first["frequency"], other["frequency"])


def test_values_in_place_of_classes_can_be_selected_for():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(150, 30)).astype(np.float32)
    values = features[:, 3] + 0.3 * rng.normal(size=150)
    result = stable(features, values, Cut("top_k", 2))
    assert result["frequency"][3] == 1
    assert result["false_discovery"].argmin() == 3


def test_a_probes_weights_can_select(unchecked):
    features, labels = planted(0, effect=1.5)
    select = selector("squared", Cut("top_k", 6), C=0.05)
    result = selection_stability(features, labels, select=select, n_bootstraps=5, n_permutations=2, progress=False)
    assert np.flatnonzero(result["frequency"] >= 0.8).tolist() == list(range(N_PLANTED))


def test_the_table_has_a_row_per_neuron_and_says_the_seed(tmp_path):
    result = stable(*planted(0), seed=5, about={"model_fingerprint": "abc"})
    result.write(tmp_path / "stability.parquet")
    table = pq.read_table(tmp_path / "stability.parquet")
    assert table.column_names == ["neuron", "frequency", "expected_false", "false_discovery"]
    assert table["neuron"].to_pylist() == list(range(60))
    metadata = json.loads(table.schema.metadata[b"spin_native"])
    expected = {"seed": 5, "n_bootstraps": 20, "n_permutations": 5, "n_rows": 200, "mean_size": 10, "model_fingerprint": "abc"}
    assert {name: metadata[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_bootstraps": 1}, "n_bootstraps is 1; expected a whole number of at least 2"),
        ({"n_permutations": 0}, "n_permutations is 0; expected a whole number of at least 1"),
        ({"seed": -1}, "seed is -1; expected a whole number of at least 0"),
    ],
)
def test_numbers_that_are_too_small_are_refused(settings, message):
    with pytest.raises(sn.InputError, match=message):
        stable(*planted(0), **settings)


def test_wrong_rows_neurons_and_rankers_are_refused(unchecked):
    features, labels = planted(0)
    with pytest.raises(sn.InputError, match="199 rows of features and 200 labels"):
        stable(features[1:], labels)
    with pytest.raises(sn.InputError, match="select returned neurons 60 to 60; expected 0 to 59"):
        selection_stability(features, labels, select=lambda X, y: np.array([60]), progress=False)
    with pytest.raises(sn.InputError, match="ranker is 'guess'; expected one of squared"):
        selector("guess", Cut("top_k", 2))
    with pytest.raises(sn.InputError, match="ranker 'squared' fits a probe; expected its C"):
        selector("squared", Cut("top_k", 2))
