"""Experiments with skill probes: how few rows and neurons they need, and whether other prompts or other neurons serve as well.

Four properties of skill neurons (Zhao et al. 2025): efficiency (`few_shot_curve`, `efficiency_curve`), robustness
(`transfer_matrix`), flexibility (`flexibility_curve`) and interdependency (`interdependency_curve`). Every function fits fresh
copies of the probe it is given, and returns accuracies on the test rows. Scores are [row, label, neuron] (ActivationProbe:
[row, neuron]), truth is [row]. All raise InputError as `SkillProbe.fit` does.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int, Shaped
from sklearn.base import clone

from spin_native.analyses.gradient_probes import SkillProbe
from spin_native.analyses.results import Result
from spin_native.errors import InputError

Array = np.ndarray
Scores = Shaped[Array, "row *axes neuron"]
Truth = Int[Array, "row"]


def few_shot_curve(
    probe: SkillProbe,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    shots: Sequence[int] = (4, 8, 16, 32, 64, 128),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> Result:
    """Accuracy after a fit on few rows: array "accuracy", axes shots, seed.

    train, test: (scores, truth). shots: how many rows, drawn by each seed with every class as often as possible.
    InputError for more shots than training rows.
    """
    scores, truth = train
    if max(shots) > len(truth):
        raise InputError(f"shots go up to {max(shots)}, but there are {len(truth)} training rows; choose fewer")
    drawn = [[balanced(truth, n, seed) for seed in seeds] for n in shots]
    accuracy = [[clone(probe).fit(scores[rows], truth[rows]).score(*test) for rows in of_seeds] for of_seeds in drawn]
    axes = {"shots": np.array(shots), "seed": np.array(seeds)}
    return Result(axes, {"accuracy": np.array(accuracy)}, _settings(probe, "few_shot_curve"))


def efficiency_curve(
    probe: SkillProbe,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    n_neurons: Sequence[int] = (1, 4, 16, 64, 256, 1024),
) -> Result:
    """Accuracy of probes that read fewer or more neurons: array "accuracy", axis n_neurons."""
    accuracy = [clone(probe).set_params(n_neurons=n).fit(*train).score(*test) for n in n_neurons]
    return Result({"n_neurons": np.array(n_neurons)}, {"accuracy": np.array(accuracy)}, _settings(probe, "efficiency_curve"))


def transfer_matrix(
    probe: SkillProbe, train: Mapping[str, tuple[Array, Array]], test: Mapping[str, tuple[Array, Array]]
) -> Result:
    """Fit on one prompt, score on another: array "accuracy", axes fitted_on, scored_on.

    train, test: name of a prompt (or task) -> (scores, truth), with the same neurons and number of labels.
    """
    fitted = {name: clone(probe).fit(*rows) for name, rows in train.items()}
    accuracy = [[one.score(*rows) for rows in test.values()] for one in fitted.values()]
    axes = {"fitted_on": np.array(list(train)), "scored_on": np.array(list(test))}
    return Result(axes, {"accuracy": np.array(accuracy)}, _settings(probe, "transfer_matrix"))


def flexibility_curve(probe: SkillProbe, train: tuple[Array, Array], test: tuple[Array, Array], *, n_groups: int = 8) -> Result:
    """Accuracy of groups of neurons that share no neuron: array "accuracy", axis group.

    Group 0 is the probe's own neurons; every later group is fitted after all earlier groups' neurons were removed. A skill
    that many sets of neurons express falls slowly. InputError if there are not enough neurons.
    """
    n_neurons = train[0].shape[-1]
    if n_groups < 1 or n_groups * probe.n_neurons > n_neurons:
        raise InputError(
            f"{n_groups} groups of {probe.n_neurons} neurons: expected at least one, and at most {n_neurons} neurons in all"
        )
    remaining, accuracy = np.arange(n_neurons), []
    for _ in range(n_groups):
        fitted = clone(probe).fit(train[0][..., remaining], train[1])
        accuracy.append(fitted.score(test[0][..., remaining], test[1]))
        remaining = np.delete(remaining, fitted.neurons_)
    return Result({"group": np.arange(n_groups)}, {"accuracy": np.array(accuracy)}, _settings(probe, "flexibility_curve"))


def interdependency_curve(
    probe: SkillProbe,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    n_neurons: Sequence[int] = (2, 8, 32),
) -> Result:
    """The top neurons together against each of them alone, axis n_neurons: arrays "together", "mean_alone", "best_alone".

    Where "together" is above "best_alone", the neurons need each other: none of them holds the skill.
    """
    ranking = clone(probe).fit(*train).ranking_[: max(n_neurons)]
    alone = [
        clone(probe).set_params(n_neurons=1).fit(train[0][..., [neuron]], train[1]).score(test[0][..., [neuron]], test[1])
        for neuron in ranking
    ]
    arrays = {
        "together": [clone(probe).set_params(n_neurons=n).fit(*train).score(*test) for n in n_neurons],
        "mean_alone": [np.mean(alone[:n]) for n in n_neurons],
        "best_alone": [np.max(alone[:n]) for n in n_neurons],
    }
    axes = {"n_neurons": np.array(n_neurons)}
    return Result(axes, {name: np.array(values) for name, values in arrays.items()}, _settings(probe, "interdependency_curve"))


def balanced(truth: Int[Array, "row"], n: int, seed: int) -> Int[Array, "chosen"]:
    """`n` rows drawn by `seed`, with every class as often as its rows allow, ascending."""
    shuffled = np.random.default_rng(seed).permutation(len(truth))
    turn = np.empty(len(truth), int)  # how many rows of the same class come before
    for label in np.unique(truth):
        of_label = shuffled[truth[shuffled] == label]
        turn[of_label] = np.arange(len(of_label))
    return np.sort(shuffled[np.argsort(turn[shuffled], kind="stable")][:n])


def _settings(probe: SkillProbe, analysis: str) -> dict[str, object]:
    return {"analysis": analysis, "probe": type(probe).__name__, **probe.get_params()}
