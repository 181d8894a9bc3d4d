"""Intersection over union, average precision and the Gaussian ranker, against hand calculation and scikit-learn."""

import numpy as np
import pytest
from commands import Spin
from scipy.stats import entropy
from sklearn.metrics import average_precision_score, jaccard_score
from sklearn.naive_bayes import GaussianNB

import spin_native as sn
from spin_native.probes.importance import RANKERS, average_precision, gaussian, intersection_over_union

NEW = {name: RANKERS[name] for name in ("intersection_over_union", "average_precision", "gaussian")}


def planted(n_classes, n_rows=300, seed=0):
    """Neuron 1 rises with the class, neuron 3 falls with it, neuron 5 is constant, the others are noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n_rows)
    features = rng.normal(size=(n_rows, 7)).astype(np.float32)
    features[:, 1] += 2 * labels
    features[:, 3] -= 1.5 * labels
    features[:, 5] = 0.25
    return features, labels


def test_intersection_over_union_by_hand():
    features = np.array([[3.0, 1.0], [1.0, 2.0], [-4.0, 3.0], [-4.0, -6.0]], np.float32)  # means: -1 and 0
    labels = np.array([0, 0, 1, 1])
    # Neuron 0 is on in rows 0 and 1, which are class 0: 2 / 2. Neuron 1 is on in rows 0, 1, 2: of class 0, 2 / 3.
    np.testing.assert_allclose(intersection_over_union(features, labels), [1, 2 / 3])


@pytest.mark.parametrize("n_classes", [2, 4])
def test_intersection_over_union_is_the_largest_jaccard_score(n_classes):
    features, labels = planted(n_classes)
    means = features.astype(np.float64).mean(0)
    expected = [
        max(jaccard_score(labels == k, side) for k in range(n_classes) for side in (column > mean, column < mean))
        for column, mean in zip(features.T, means, strict=True)
    ]
    expected[5] = 0
    np.testing.assert_allclose(intersection_over_union(features, labels), expected)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_average_precision_is_scikit_learns_also_for_equal_activations(n_classes):
    features, labels = planted(n_classes)
    features[:, 2] = np.round(features[:, 2])
    features[:, 4] = features[:, 4] > 0
    expected = [
        max(average_precision_score(labels == k, sign * column) for k in range(n_classes) for sign in (1, -1))
        for column in features.T
    ]
    expected[5] = 0
    np.testing.assert_allclose(average_precision(features, labels), expected)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_gaussian_ranker_is_the_information_of_naive_bayes_on_one_neuron(n_classes):
    features, labels = planted(n_classes)
    label_entropy = entropy(np.bincount(labels))
    expected = []
    for column in features.astype(np.float64).T:
        if np.ptp(column) == 0:
            expected.append(0.0)
            continue
        log_proba = GaussianNB().fit(column[:, None], labels).predict_log_proba(column[:, None])
        expected.append(max(0.0, label_entropy + log_proba[np.arange(len(labels)), labels].mean()))
    np.testing.assert_allclose(gaussian(features, labels), expected, rtol=1e-6, atol=1e-9)


def test_the_gaussian_ranker_sees_a_class_that_differs_in_its_variance_only():
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    features = (rng.normal(size=(4000, 2)) * np.where(labels, 5, 1)[:, None] ** [1, 0]).astype(np.float32)
    information = gaussian(features, labels)
    assert information[0] > 0.2 > 0.01 > information[1]


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("ranker", NEW.values(), ids=NEW)
def test_planted_neurons_of_either_sign_come_first_and_a_constant_one_gets_nothing(ranker, n_classes):
    features, labels = planted(n_classes)
    importance = ranker(features, labels)
    assert np.argsort(-importance)[:2].tolist() == [1, 3]
    assert importance[5] == 0
    assert ((importance >= 0) & np.isfinite(importance)).all()


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("ranker", NEW.values(), ids=NEW)
def test_the_sign_and_the_scale_of_a_neuron_change_nothing(ranker, n_classes):
    features, labels = planted(n_classes)
    for changed in (-features, features * np.float32(0.5), features * np.float32(64)):
        np.testing.assert_allclose(ranker(changed, labels), ranker(features, labels), rtol=1e-9)
    np.testing.assert_allclose(ranker(features + np.float32(3), labels), ranker(features, labels), atol=1e-3)


def test_average_precision_is_the_same_for_every_rising_function_of_the_activation():
    features, labels = planted(3)
    np.testing.assert_array_equal(average_precision(np.arctan(features), labels), average_precision(features, labels))


@pytest.mark.parametrize("ranker", NEW.values(), ids=NEW)
def test_the_names_of_the_classes_and_the_order_of_the_rows_change_nothing(ranker):
    features, labels = planted(3)
    order = np.random.default_rng(1).permutation(len(labels))
    named = np.array(["z", "a", "m"])[labels]
    np.testing.assert_allclose(ranker(features[order], named[order]), ranker(features, labels), rtol=1e-9)


@pytest.mark.parametrize("ranker", NEW.values(), ids=NEW)
def test_labels_of_one_class_are_refused(ranker):
    with pytest.raises(sn.InputError, match="every row has the label 1; expected at least two classes"):
        ranker(np.ones((4, 2), np.float32), np.array([1, 1, 1, 1]))


@pytest.mark.parametrize("name", NEW)
def test_blocks_of_columns_give_what_one_block_gives(name, monkeypatch):
    features, labels = planted(3)
    whole = RANKERS[name](features, labels)
    monkeypatch.setattr("spin_native.probes.importance.BLOCK_SIZE", 2 * len(labels))
    np.testing.assert_allclose(RANKERS[name](features, labels), whole, rtol=1e-9)


@pytest.mark.parametrize("name", NEW)
def test_a_classifier_chooses_its_neurons_by_each_ranker(name, tiny_model, reviews, unchecked):
    how = {"head": "refit", "top_k": (3,), "depth": 2, "poolings": ("mean",), "baseline": False}
    clf = sn.SpinClassifier(str(tiny_model), ranker=name, **how).fit(*reviews)
    assert all(len(neurons) <= 3 for neurons in clf.salient_neurons_.values())
    assert clf.score(*reviews) > 0.6


@pytest.mark.parametrize("name", NEW)
def test_a_regressor_refuses_rankers_that_need_classes(name, tiny_model, reviews):
    with pytest.raises(sn.InputError, match=f"ranker '{name}' needs classes"):
        sn.SpinRegressor(str(tiny_model), head="refit", ranker=name).fit(reviews[0], [float(len(text)) for text in reviews[0]])


def test_the_command_line_names_the_rankers(capsys):
    code, _, error = Spin(capsys)("fit", "rows.csv", "folder", "--ranker", "guess")
    assert code == 2
    assert all(name in "".join(error.split()) for name in NEW)
