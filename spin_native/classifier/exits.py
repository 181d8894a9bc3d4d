"""When may a row stop? At a fixed depth, when the head there is sure enough, or when the last few heads agreed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import beta

from spin_native.errors import InputError

Array = np.ndarray
ExitBy = Literal["fixed", "confidence", "patience"]

# Tried from the strictest on; a test of the next one is made only where this one kept the promise.
THRESHOLDS = np.round(1 - np.geomspace(1e-4, 0.5, 60), 6).tolist()


@dataclass(frozen=True)
class Exit:
    """When a row leaves; at the deepest head every row does.

    by: "fixed": at the depth `value` (None: the deepest head); "confidence": at the first head whose most probable class has a
    probability of at least `value` (CALM, DeeBERT); "patience": at the first head that gives the same label as the `value`
    heads before it (PABEE).
    """

    by: ExitBy = "fixed"
    value: float | int | None = None

    def __post_init__(self) -> None:
        if self.by not in get_args(ExitBy):
            raise InputError(f"exit by {self.by!r}; expected one of {', '.join(get_args(ExitBy))}")
        number = -1.0 if self.value is None else self.value
        is_whole = bool(np.isfinite(number)) and number >= 1 and number == int(number)
        if self.by == "fixed" and not (self.value is None or is_whole):
            raise InputError(f"the fixed exit is at {self.value}; expected one of the depths that have a head")
        if self.by == "confidence" and not 0 <= number <= 1:
            raise InputError(f"the confidence to leave is {self.value}; expected a probability, 0 to 1")
        if self.by == "patience" and not is_whole:
            raise InputError(f"the patience to leave is {self.value}; expected how many heads must agree: 1 or more")

    @classmethod
    def parse(cls, given: str) -> "Exit":
        """`fixed`, `fixed:4`, `confidence:0.9`, `patience:2`."""
        by, _, value = given.partition(":")
        try:
            number = float(value) if value else None
        except ValueError:
            number = None
        if by not in get_args(ExitBy) or (value and number is None):
            raise InputError(f"exit {given!r}; expected fixed, fixed:DEPTH, confidence:PROBABILITY or patience:HEADS")
        return cls(by, number)  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.value is None:
            return self.by
        # To the last bit: what is saved is what was calibrated.
        return f"{self.by}:{int(self.value) if self.value == int(self.value) else repr(float(self.value))}"


class Leaving:
    """Some rows on their way through the heads, and who leaves where."""

    def __init__(self, exit_: Exit, n_rows: int) -> None:
        self._exit = exit_
        self._labels: Int[Array, "row"] = np.full(n_rows, -1)
        self._agreed: Int[Array, "row"] = np.zeros(n_rows, dtype=int)

    def __call__(self, probabilities: Float[Array, "row class"], depth: int) -> Bool[Array, "row"]:
        """Which of the rows that are still there leave at this head; the others come again at the next."""
        if self._exit.by == "fixed":
            return np.full(len(probabilities), depth == self._exit.value)
        if self._exit.by == "confidence":
            return probabilities.max(1) >= self._exit.value
        labels = probabilities.argmax(1)
        self._agreed = np.where(labels == self._labels, self._agreed + 1, 0)
        self._labels = labels
        leaves = self._agreed >= self._exit.value
        self._labels, self._agreed = self._labels[~leaves], self._agreed[~leaves]
        return leaves


def replay(exit_: Exit, probabilities: Mapping[int, Float[Array, "row class"]]) -> Int[Array, "row"]:
    """The depth each row would leave at, from every head's probabilities {depth: [row, class]}."""
    n_rows = len(next(iter(probabilities.values())))
    depths, there, leaving = np.full(n_rows, max(probabilities)), np.arange(n_rows), Leaving(exit_, n_rows)
    for depth in sorted(probabilities)[:-1]:
        leaves = leaving(probabilities[depth][there], depth)
        depths[there[leaves]] = depth
        there = there[~leaves]
    return depths


@dataclass(frozen=True)
class Promise:
    """What a calibration found: with `confidence`, rows like those it saw lose at most `max_accuracy_drop` by `exit`.

    n_rows: rows it saw. n_harmed: of these, right at the deepest head and wrong where they left. mean_depth: layers per row.
    """

    exit: Exit
    max_accuracy_drop: float
    confidence: float
    n_rows: int
    n_harmed: int
    mean_depth: float


def calibrate(
    probabilities: Mapping[int, Float[Array, "row class"]],
    labels: Int[Array, "row"],
    by: ExitBy,
    max_accuracy_drop: float,
    confidence: float,
) -> Promise:
    """The exit that leaves earliest and still keeps the promise, on rows that the heads were not fitted on.

    Accuracy cannot fall by more than the share of rows that were right at the deepest head and are wrong where they leave; the
    share among all rows is bounded from above by Clopper and Pearson's exact binomial bound. Exits are tested from the
    strictest to the loosest up to the first that fails, so that trying many costs no confidence (fixed-sequence testing;
    Angelopoulos et al. 2021, as in CALM).
    """
    if not 0 < max_accuracy_drop < 1 or not 0 < confidence < 1:
        raise InputError(f"max_accuracy_drop is {max_accuracy_drop}, confidence {confidence}; expected shares between 0 and 1")
    depths = sorted(probabilities)
    is_right = {depth: found.argmax(1) == labels for depth, found in probabilities.items()}
    kept = Promise(Exit("fixed", depths[-1]), max_accuracy_drop, confidence, len(labels), 0, float(depths[-1]))
    for exit_ in _candidates(by, len(depths)):
        left = replay(exit_, probabilities)
        right_where_left = np.select([left == depth for depth in depths], [is_right[depth] for depth in depths])
        n_harmed = int((is_right[depths[-1]] & ~right_where_left.astype(bool)).sum())
        if harm_bound(n_harmed, len(labels), confidence) > max_accuracy_drop:
            break
        kept = Promise(exit_, max_accuracy_drop, confidence, len(labels), n_harmed, float(left.mean()))
    return kept


def harm_bound(n_harmed: int, n_rows: int, confidence: float) -> float:
    """The share that `n_harmed` of `n_rows` show it to be below, with that confidence (Clopper & Pearson, one-sided)."""
    return 1.0 if n_harmed >= n_rows else float(beta.ppf(confidence, n_harmed + 1, n_rows - n_harmed))


def rows_needed(max_accuracy_drop: float, confidence: float) -> int:
    """With fewer rows even none harmed proves nothing."""
    return int(np.ceil(np.log1p(-confidence) / np.log1p(-max_accuracy_drop)))


def _candidates(by: ExitBy, n_heads: int) -> Sequence[Exit]:
    if by == "confidence":
        return [Exit("confidence", threshold) for threshold in THRESHOLDS]
    if by == "patience":
        return [Exit("patience", patience) for patience in range(n_heads - 1, 0, -1)]
    raise InputError(f"calibrate by {by!r}; expected confidence or patience")


def shallowest_within(scores: Mapping[int, float], tolerance: float) -> int:
    """The smallest depth whose validation score is at most `tolerance` below the best (0: the first of the best).

    scores: depth -> validation score. Raises InputError for a negative tolerance.
    """
    if not tolerance >= 0:
        raise InputError(f"tolerance is {tolerance}; expected 0 or more, in units of the score")
    # Scores are ratios of counts: a difference below this is rounding, not a row.
    enough = max(scores.values()) - tolerance - 1e-12
    return min(depth for depth, score in scores.items() if score >= enough)
