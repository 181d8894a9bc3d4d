"""How sure a difference between two scores on the same rows is, and how far a score would vary with other rows."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import binomtest

from spin_native.classifier.settings import Settings

Array = np.ndarray
N_RESAMPLES = 500
LEVEL = 0.95  # of the interval of a difference


class Comparison(NamedTuple):
    """A head against a baseline on the same rows.

    difference: of the scores, positive where the head is better. low, high: its 95 % interval, by a paired bootstrap over rows
    (percentiles). p_value: that of a difference this large where there is none: McNemar's exact test for accuracy, for other
    metrics the bootstrap's.
    """

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def is_clear(self) -> bool:
        """Whether the test rejects a tie at 5 %."""
        return self.p_value < 1 - LEVEL


def compare(
    settings: Settings,
    truth: Shaped[Array, "row *label"],
    ours: Shaped[Array, "row *label"],
    theirs: Shaped[Array, "row *label"],
) -> Comparison:
    """Two models' encoded predictions for the same rows."""

    def gain(rows: Array | slice) -> float:
        mine, other = (settings.worth(settings.score(truth[rows], predicted[rows])) for predicted in (ours, theirs))
        return mine - other

    gains = _resampled(gain, len(truth), settings.seed)
    low, high = np.quantile(gains, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if settings.metric == "accuracy":
        won, lost = int(((ours == truth) & (theirs != truth)).sum()), int(((ours != truth) & (theirs == truth)).sum())
        p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    else:
        p_value = min(1.0, 2 * (1 + int(min((gains <= 0).sum(), (gains >= 0).sum()))) / (1 + N_RESAMPLES))
    return Comparison(gain(slice(None)), float(low), float(high), p_value)


def standard_error(settings: Settings, truth: Shaped[Array, "row *label"], predicted: Shaped[Array, "row *label"]) -> float:
    """Of a score, by a bootstrap over rows."""
    scores = _resampled(lambda rows: settings.score(truth[rows], predicted[rows]), len(truth), settings.seed)
    return float(scores.std(ddof=1))


def _resampled(measure: Callable[[Array], float], n_rows: int, seed: int) -> Float[Array, "resample"]:
    random = np.random.default_rng(seed)
    return np.array([measure(random.integers(0, n_rows, n_rows)) for _ in range(N_RESAMPLES)])
