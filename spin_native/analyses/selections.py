"""Whether a result about neurons can be believed: control tasks by token type, and the stability of a selection.

Both take arrays of features, so that they work for activations, gradients, or any other numbers per neuron.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.base import ClassifierMixin, clone
from tqdm.auto import tqdm

from spin_native.analyses.results import Result
from spin_native.errors import InputError
from spin_native.given import is_number, is_whole
from spin_native.probes import LogisticProbe
from spin_native.probes.controls import TokenTypeControl, kuncheva_stability, nogueira_stability, stability
from spin_native.probes.importance import RANKERS, WEIGHTINGS, Cut, importance
from spin_native.probes.scaling import mean_and_scale
from spin_native.version import __version__

Array = np.ndarray
Select = Callable[[Array, Array], Array]
Tokens = tuple[Array, Array, Array]


# Control tasks.


def token_selectivity(
    training: Tokens,
    test: Tokens,
    *,
    probe: ClassifierMixin | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    about: Mapping[str, Any] | None = None,
) -> Result:
    """A probe's accuracy on a task of tokens, on its control task by token type, and the difference, the selectivity.

    training, test: (tokens [n], features [n, neuron], labels [n]). Tokens are ids or strings; equal ones are of one type.
    probe: a classifier as scikit-learn has them, unfitted; each fit is of a fresh copy. None: LogisticProbe(C=1, l1_ratio=0)
        on standardised features (mean 0 and variance 1 over the training tokens).
    seeds: one control task each. about: for the metadata, where the features came from: `results.provenance(model, tokenizer)`.

    Axis: seed. Arrays: "accuracy" (the same for every seed), "control_accuracy", "selectivity" = accuracy - control_accuracy,
    and "control_majority", the accuracy on the control task of its most frequent training label. A type that the training
    tokens lack has a control label that no probe can know; the metadata says what share of the test tokens that is.
    Raises InputError for arrays that do not fit together, no seeds, or training labels of one class.
    Source: Hewitt & Liang 2019, "Designing and interpreting probes with control tasks".
    """
    for name, (tokens, features, labels) in (("training", training), ("test", test)):
        if not len(tokens) == len(features) == len(labels) or not len(tokens):
            raise InputError(
                f"{name}: {len(tokens)} tokens, {len(features)} rows of features, {len(labels)} labels; expected as many of "
                "each, at least one"
            )
    if not len(seeds) or not all(map(is_whole, seeds)):
        raise InputError(f"seeds are {list(seeds)}; expected one or more whole numbers")
    if probe is None:
        probe = LogisticProbe(C=1.0, l1_ratio=0.0)
        mean, scale = mean_and_scale(training[1])
        training, test = ((tokens, (X - mean) / scale, y) for tokens, X, y in (training, test))
    accuracy = _accuracy(probe, training[1:], test[1:])
    control_accuracy, control_majority = [], []
    for seed in seeds:
        control = TokenTypeControl.of(training[2], int(seed))
        fitted_to, truth = control(training[0]), control(test[0])
        control_accuracy.append(_accuracy(probe, (training[1], fitted_to), (test[1], truth)))
        labels, counts = np.unique(fitted_to, return_counts=True)
        control_majority.append(float(np.mean(truth == labels[counts.argmax()])))
    arrays = {
        "accuracy": np.full(len(seeds), accuracy),
        "control_accuracy": np.array(control_accuracy),
        "selectivity": accuracy - np.array(control_accuracy),
        "control_majority": np.array(control_majority),
    }
    unseen = float(np.mean(~np.isin(test[0], training[0])))
    settings = {"probe": str(probe), "n_training": len(training[0]), "n_test": len(test[0]), "unseen_test_tokens": unseen}
    return Result(
        {"seed": np.array(seeds)}, arrays, _metadata("token_selectivity", about, seeds=list(map(int, seeds)), **settings)
    )


def _accuracy(probe: ClassifierMixin, training: tuple[Array, Array], test: tuple[Array, Array]) -> float:
    """A fresh copy's accuracy. Where all tokens have one label, as a small control task may, that label is the prediction."""
    if (training[1] == training[1][0]).all():
        return float(np.mean(test[1] == training[1][0]))
    return float(np.mean(clone(probe).fit(*training).predict(test[0]) == test[1]))


# Stability.


def selector(ranker: str, cut: Cut, *, C: float | None = None) -> Select:
    """A way to select neurons for `selection_stability`: rank them, and cut.

    ranker: a name of `probes.importance.RANKERS` ("f_statistic", "gaussian", ...), or of WEIGHTINGS ("squared", as SPIN,
        "l2", "absolute"), which ranks by the weights of an L1 LogisticProbe with this `C` on standardised features.
    cut: Cut("top_k", 10), Cut("top_share", .01), Cut("eta", .8).
    Raises InputError for an unknown ranker, and for a weighting without C.
    """
    if ranker in RANKERS:
        return lambda features, labels: cut(RANKERS[ranker](features, labels))
    if ranker not in WEIGHTINGS:
        raise InputError(f"ranker is {ranker!r}; expected one of {', '.join((*WEIGHTINGS, *RANKERS))}")
    if not is_number(C) or C <= 0:  # type: ignore[operator]
        raise InputError(f"ranker {ranker!r} fits a probe; expected its C, a number above 0, got {C!r}")

    def by_probe(features: Array, labels: Array) -> Array:
        mean, scale = mean_and_scale(features)
        return cut(importance(LogisticProbe(C=C).fit((features - mean) / scale, labels).coef_, ranker))  # type: ignore[arg-type]

    return by_probe


def selection_stability(
    features: Float[Array, "row neuron"],
    labels: Shaped[Array, "row"],
    *,
    select: Select,
    n_bootstraps: int = 50,
    n_permutations: int = 10,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Result:
    """How often each neuron is selected over bootstraps of the rows, and how many such neurons would be selected by chance.

    select: (features, labels) -> the indices of the selected neurons; `selector` makes one.
    n_bootstraps: samples of as many rows with replacement; of classes, as many rows of each class as there are.
    n_permutations: the whole is repeated with the labels in a random order, where no neuron has to do with them.
    about: for the metadata, where the features came from: `results.provenance(model, tokenizer)`.
    It costs n_bootstraps * (1 + n_permutations) selections.

    Axis: neuron. Arrays, the last two for the neurons that are selected at least as often as this one:
    - "frequency": the share of the bootstraps that select the neuron.
    - "expected_false": how many of them there are with permuted labels, on average over the permutations.
    - "false_discovery": the estimated share of them that the label does not explain: (expected_false + 1 / n_permutations)
      over their number, at most 1; and of all lower frequencies the smallest such estimate (a q-value, Storey 2003). Neurons
      with false_discovery <= .1 are a selection of which about a tenth is by chance. A neuron that no bootstrap selects has 1.
    The metadata has the stability of the sets: "jaccard" (mean over pairs), "kuncheva" (None unless the sets have one size) and
    "nogueira"; see `probes.controls`.

    A false discovery is a neuron without any relation to the label; one that only correlates with a related neuron is none. The
    estimate tends to be too high: in a selection of a fixed size, related neurons leave fewer places to the others than there
    are with permuted labels. False discoveries counted on permuted labels: Tusher et al. 2001 (SAM); thresholds on frequencies:
    Meinshausen & Buehlmann 2010, "Stability selection".

    Raises InputError for features and labels that do not fit together, numbers too small, and indices that are no neurons.
    """
    _check_stability(features, labels, n_bootstraps, n_permutations, seed)
    true_seed, *null_seeds = np.random.SeedSequence(seed).spawn(1 + n_permutations)
    total = n_bootstraps * (1 + n_permutations)
    with tqdm(total=total, unit=" selections", disable=None if progress is None else not progress) as bar:
        chosen = _bootstrapped(features, labels, select, n_bootstraps, np.random.default_rng(true_seed), bar)
        null_frequencies = []
        for null_seed in null_seeds:
            rng = np.random.default_rng(null_seed)
            shuffled = rng.permutation(labels)
            null_frequencies.append(_bootstrapped(features, shuffled, select, n_bootstraps, rng, bar).mean(0))
    frequency = chosen.mean(0)
    expected_false, false_discovery = _false_discovery(frequency, np.array(null_frequencies))
    sets = [np.flatnonzero(one) for one in chosen]
    kuncheva, nogueira = kuncheva_stability(chosen), nogueira_stability(chosen)
    metadata = _metadata(
        "selection_stability",
        about,
        seed=int(seed),
        n_bootstraps=int(n_bootstraps),
        n_permutations=int(n_permutations),
        n_rows=len(labels),
        mean_size=float(chosen.sum(1).mean()),
        jaccard=stability(sets),
        kuncheva=None if np.isnan(kuncheva) else kuncheva,
        nogueira=None if np.isnan(nogueira) else nogueira,
    )
    arrays = {"frequency": frequency, "expected_false": expected_false, "false_discovery": false_discovery}
    return Result({"neuron": np.arange(features.shape[1])}, arrays, metadata)


def _check_stability(features: Array, labels: Array, n_bootstraps: int, n_permutations: int, seed: int) -> None:
    if len(features) != len(labels) or len(labels) < 2:
        raise InputError(f"{len(features)} rows of features and {len(labels)} labels; expected as many of each, two or more")
    for name, value, least in (("n_bootstraps", n_bootstraps, 2), ("n_permutations", n_permutations, 1), ("seed", seed, 0)):
        if not is_whole(value) or value < least:
            raise InputError(f"{name} is {value!r}; expected a whole number of at least {least}")


def _bootstrapped(
    features: Array, labels: Array, select: Select, n_bootstraps: int, rng: np.random.Generator, bar: tqdm
) -> Bool[Array, "sample neuron"]:
    """Which neurons each bootstrap sample selects."""
    chosen = np.zeros((n_bootstraps, features.shape[1]), dtype=bool)
    for row in chosen:
        drawn = _drawn_rows(labels, rng)
        indices = np.asarray(select(features[drawn], labels[drawn]), dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < features.shape[1]):
            raise InputError(
                f"select returned neurons {indices.min()} to {indices.max()}; expected 0 to {features.shape[1] - 1}"
            )
        row[indices] = True
        bar.update()
    return chosen


def _drawn_rows(labels: Shaped[Array, "row"], rng: np.random.Generator) -> Int[Array, "row"]:
    """As many rows as there are, with replacement; classes keep their numbers of rows."""
    if labels.dtype.kind == "f":
        return rng.integers(0, len(labels), len(labels))
    of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([rng.choice(rows, len(rows)) for rows in of_class])


def _false_discovery(
    frequency: Float[Array, "neuron"], null: Float[Array, "permutation neuron"]
) -> tuple[Float[Array, "neuron"], Float[Array, "neuron"]]:
    """For each neuron's frequency as the least one: the expected number of false discoveries, and their share."""
    n_as_frequent = _n_at_least(frequency, frequency)
    expected = _n_at_least(null.ravel(), frequency) / len(null)
    share = np.minimum((expected + 1 / len(null)) / n_as_frequent, 1.0)
    ascending = np.argsort(frequency, kind="stable")
    smallest = np.minimum.accumulate(share[ascending])  # over all lower frequencies: a looser selection with fewer false ones
    q_value = np.empty_like(share)
    q_value[ascending] = smallest
    return expected, np.where(frequency > 0, q_value, 1.0)


def _n_at_least(values: Float[Array, "value"], bounds: Float[Array, "bound"]) -> Int[Array, "bound"]:
    """How many of the values are at least each bound."""
    return len(values) - np.searchsorted(np.sort(values), bounds, side="left")


def _metadata(analysis: str, about: Mapping[str, Any] | None, **settings: Any) -> dict[str, Any]:
    return {"spin_native": __version__, "numpy": np.__version__, **(about or {}), "analysis": analysis, **settings}
