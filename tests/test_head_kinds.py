"""What makes each kind of head the published one: SIREN's layer weights, Liu's scaled outputs; and what its controls are."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import spin_native as sn
from spin_native.classifier.curves import controls
from spin_native.classifier.fitting import Rows, Standardizer
from spin_native.classifier.heads import RefitHead
from spin_native.classifier.heads.frozen import FrozenHead
from spin_native.classifier.heads.weighted import Perceptron, WeightedHead
from spin_native.classifier.parts import ExtractedPart
from spin_native.classifier.sparsify import ProbedLayer, Selection
from spin_native.classifier.tasks import Classes
from spin_native.features.store import FeatureKey, Features
from spin_native.probes.controls import random_neurons
from spin_native.probes.importance import Cut

FIRST, SECOND = FeatureKey("activation", "mean", 0), FeatureKey("activation", "mean", 1)
N_NEURONS = 30


def settings_of(**parameters):
    return sn.SpinClassifier(**{"head": "refit", "poolings": ("mean",), **parameters})._settings(
        Classes(np.array(["no", "yes"]))
    )


def rows_of(seed, n_rows=200):
    """Two layers of which neurons 3 and 7 know the label, the others nothing; side by side."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n_rows)
    arrays = {feature: rng.normal(size=(n_rows, N_NEURONS)).astype(np.float32) for feature in (FIRST, SECOND)}
    for array in arrays.values():
        array[:, [3, 7]] += 2 * labels[:, None]
    return arrays, labels


def probed(feature, score, factor=1.0):
    """A layer whose probe reads neurons 3 and 7."""
    coef = np.zeros((1, N_NEURONS))
    coef[0, [3, 7]] = (1.0 * factor, 0.5 * factor)
    ones = np.ones(N_NEURONS, np.float32)
    probe = sn.LogisticProbe.from_weights(coef, np.zeros(1))
    return ProbedLayer(feature, Standardizer(0 * ones, ones), probe, score, np.abs(coef[0]))


def selection_of(*layers):
    neurons = {layer.feature: np.array([3, 7]) for layer in layers}
    return Selection(Cut("top_k", 2), neurons, {layer.feature: layer for layer in layers})


def side_by_side(seed):
    arrays, labels = rows_of(seed)
    return Rows(np.concatenate([arrays[FIRST][:, [3, 7]], arrays[SECOND][:, [3, 7]]], axis=1), labels)


def test_a_weighted_head_learns_from_features_times_their_layers_share_of_the_scores(monkeypatch):
    """Scores .9 and .6: weights .9 / .75 and .6 / .75."""
    learnt_from = []
    true = Perceptron.fit.__func__

    def recorded(cls, features, *arguments):
        learnt_from.append(features)
        return true(cls, features, *arguments)

    monkeypatch.setattr(Perceptron, "fit", classmethod(recorded))
    train, validation = side_by_side(0), side_by_side(1)
    selection = selection_of(probed(FIRST, 0.9), probed(SECOND, 0.6))
    head, _ = WeightedHead.fit(selection, train, validation, settings_of(head="weighted"))
    by_hand = np.array([1.2, 1.2, 0.8, 0.8], np.float32)
    np.testing.assert_allclose(learnt_from[0], train.features * by_hand, rtol=1e-6)
    # What is kept is a function of the features themselves: the weights are in its first layer.
    monkeypatch.undo()
    perceptron, _ = Perceptron.fit(
        train.features * by_hand,
        train.labels,
        lambda model: float(((model.scores(validation.features * by_hand)[:, 0] > 0) == validation.labels).mean()),
        head.task,
        seed=0,
    )
    scores = head.scores(validation.features)
    np.testing.assert_allclose(scores, perceptron.scores(validation.features * by_hand), rtol=1e-4, atol=1e-5)


def test_a_frozen_head_scales_the_outputs_of_the_probes_to_the_same_spread():
    """A probe of thousandfold weights says the same: without the scaling, the dense layer's penalty would count it less."""
    train, validation, settings = side_by_side(0), side_by_side(1), settings_of(head="frozen", head_Cs=(0.01,))
    heads = [
        FrozenHead.fit(selection_of(probed(FIRST, 0.9, factor), probed(SECOND, 0.9)), train, validation, settings)[0]
        for factor in (1.0, 1000.0)
    ]
    np.testing.assert_allclose(heads[1].model.coef_, heads[0].model.coef_, rtol=1e-3)
    # scikit-learn's regression on the two outputs, each with variance 1.
    outputs = np.stack([train.features[:, :2] @ [1.0, 0.5], train.features[:, 2:] @ [1.0, 0.5]], 1)
    scaled = outputs / outputs.std(0)
    dense = LogisticRegression(C=0.01, tol=1e-10).fit(scaled, train.labels).coef_[0] / outputs.std(0)
    expected = np.concatenate([dense[0] * np.array([1.0, 0.5]), dense[1] * np.array([1.0, 0.5])])
    np.testing.assert_allclose(heads[0].model.coef_[0], expected, rtol=2e-3)


def test_controls_are_fits_on_other_neurons_of_the_same_layers():
    """The random and the least important neurons know nothing; scikit-learn's regression on the random ones scores the same."""
    parts = []
    for seed in (0, 1):
        arrays, labels = rows_of(seed)
        features = Features(dict.fromkeys(arrays, N_NEURONS))
        features.append(arrays)
        parts.append(ExtractedPart(labels, features))
    layers = {feature: probed(feature, 0.9) for feature in (FIRST, SECOND)}
    settings = replace(settings_of(), head_Cs=(1.0,))
    selection = selection_of(*layers.values())
    rows = [Rows(part.side_by_side(selection.neurons), part.labels) for part in parts]
    head, score = RefitHead.fit(selection, *rows, settings)
    found = controls(head, layers, *parts, settings)
    drawn = {feature: random_neurons(N_NEURONS, 2, settings.seed + feature.layer) for feature in layers}
    assert not {3, 7} & set(np.concatenate(list(drawn.values())).tolist())
    X, X_held_out = (part.side_by_side(drawn) for part in parts)
    by_hand = LogisticRegression(C=1.0).fit(X, parts[0].labels).score(X_held_out, parts[1].labels)
    assert found.random == pytest.approx(by_hand, abs=0.011)  # two rows of 200 on the boundary
    assert found.salient == score > 0.9
    assert max(found.random, found.bottom, found.shuffled) < 0.7
    assert found.selectivity == found.salient - found.shuffled
