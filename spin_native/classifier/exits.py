"""When a row exits: at a fixed depth, at the first head that is confident enough, or after several heads agree."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import beta

from spin_native.errors import InputError
from spin_native.given import is_number, is_whole

Array = np.ndarray
ExitBy = Literal["fixed", "confidence", "patience"]

# Strictest first; a calibration stops at the first one that fails.
THRESHOLDS = np.round(1 - np.geomspace(1e-4, 0.5, 60), 6).tolist()


@dataclass(frozen=True)
class Exit:
    """When a row exits. At the deepest head every row exits.

    by: "fixed": at the depth `value` (None: the deepest head); "confidence": at the first head whose most probable class has a
    probability of at least `value` (CALM, DeeBERT); "patience": at the first head that gives the same label as the `value`
    heads before it (PABEE). Of several labels per row every one must be that certain, and the whole set must be the same.
    """

    by: ExitBy = "fixed"
    value: float | int | None = None

    def __post_init__(self) -> None:
        if self.by not in get_args(ExitBy):
            raise InputError(f"exit by {self.by!r}; expected one of {', '.join(get_args(ExitBy))}")
        if self.value is not None and (not isinstance(self.value, Real) or isinstance(self.value, bool)):
            raise InputError(f"the exit's value is {self.value!r}; expected a number or None")
        number = -1.0 if self.value is None else self.value
        is_depth = (is_whole(number) or float(number).is_integer()) and number >= 1
        if self.by == "fixed" and not (self.value is None or is_depth):
            raise InputError(f"the fixed exit is at {self.value}; expected one of the depths that have a head")
        if self.by == "confidence" and not 0 <= number <= 1:
            raise InputError(f"the confidence to exit is {self.value}; expected a probability, 0 to 1")
        if self.by == "patience" and not is_depth:
            raise InputError(f"the patience to exit is {self.value}; expected how many heads must agree: 1 or more")

    @classmethod
    def of(cls, given: "str | Exit") -> "Exit":
        """An exit as callers give it, such as "confidence:0.9"; InputError for anything else."""
        if isinstance(given, str):
            return cls.parse(given)
        if not isinstance(given, Exit):
            raise InputError(f"exit {given!r}; expected fixed, fixed:DEPTH, confidence:PROBABILITY, patience:HEADS or an Exit")
        return given

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


def checked_exit(exit_: Exit, depths: Sequence[int]) -> Exit:
    """The exit, with the depth of a fixed one filled in; InputError if heads at these depths cannot decide it."""
    if exit_.by == "fixed" and exit_.value is None:
        return Exit("fixed", max(depths))
    if exit_.by == "fixed" and exit_.value not in depths:
        raise InputError(f"no head at depth {exit_.value:g}; there are heads at {', '.join(map(str, depths))}")
    if exit_.by == "patience" and exit_.value >= len(depths):  # type: ignore[operator]
        raise InputError(f"patience {exit_.value:g} needs more than the {len(depths)} heads there are: fit with exits")
    return exit_


@runtime_checkable
class Reads(Protocol):
    """How outputs are read: a task is one of these."""

    def confidence(self, outputs: Float[Array, "row output"]) -> Float[Array, "row"]:
        """How certain each row's answer is."""

    def decide(self, outputs: Float[Array, "row output"]) -> Shaped[Array, "row *label"]:
        """Each row's answer."""


class MostProbable:
    """Outputs are the probabilities of classes, of which a row has one."""

    def confidence(self, outputs: Float[Array, "row class"]) -> Float[Array, "row"]:
        return outputs.max(1)

    def decide(self, outputs: Float[Array, "row class"]) -> Int[Array, "row"]:
        return outputs.argmax(1)


ONE_CLASS = MostProbable()


def are_equal(one: Shaped[Array, "row *label"], other: Shaped[Array, "row *label"]) -> Bool[Array, "row"]:
    """Which rows have the same answer, and the same whole set where an answer is several labels."""
    return (one == other).reshape(len(one), -1).all(1)


class ExitDecision:
    """Decides, head by head, which of the rows that still run exit. reads: how outputs are read."""

    def __init__(self, exit_: Exit, n_rows: int, reads: Reads = ONE_CLASS) -> None:
        self._exit, self._reads = exit_, reads
        self._labels: Array | None = None  # of the head before
        self._n_agreed: Int[Array, "row"] = np.zeros(n_rows, dtype=int)

    def __call__(self, probabilities: Float[Array, "row class"], depth: int) -> Bool[Array, "row"]:
        """Which of the rows exit at this head. The next call is about the other rows, at the next head."""
        if self._exit.by == "fixed":
            return np.full(len(probabilities), depth == self._exit.value)
        if self._exit.by == "confidence":
            return self._reads.confidence(probabilities) >= self._exit.value
        labels = self._reads.decide(probabilities)
        n_agreed = self._n_agreed if self._labels is None else np.where(are_equal(labels, self._labels), self._n_agreed + 1, 0)
        exits = n_agreed >= self._exit.value
        self._labels, self._n_agreed = labels[~exits], n_agreed[~exits]
        return exits


def replay(exit_: Exit, probabilities: Mapping[int, Float[Array, "row class"]], reads: Reads = ONE_CLASS) -> Int[Array, "row"]:
    """The depth at which each row would exit, from every head's probabilities {depth: [row, class]}."""
    n_rows = len(next(iter(probabilities.values())))
    depths, running, decision = np.full(n_rows, max(probabilities)), np.arange(n_rows), ExitDecision(exit_, n_rows, reads)
    for depth in sorted(probabilities)[:-1]:
        exits = decision(probabilities[depth][running], depth)
        depths[running[exits]] = depth
        running = running[~exits]
    return depths


AnyLimited = TypeVar("AnyLimited", bound="Limited")


class Limited:
    """A promise that holds for a base model in one dtype. promised: what it limits."""

    promised: ClassVar[str]
    exit: Exit
    dtype: str | None

    def in_dtype(self: AnyLimited, dtype: str) -> AnyLimited | None:
        """The promise for a base model that runs in a dtype: itself; or None, with a warning, if it was made in another one."""
        if self.dtype in (None, dtype):
            return self
        warnings.warn(
            f"the {self.promised} was promised for {self.dtype}, and the base model runs in {dtype}: promise_ is None, rows "
            f"still exit by {self.exit}; calibrate again",
            stacklevel=4,
        )
        return None


@dataclass(frozen=True)
class Promise(Limited):
    """The result of a calibration: with `confidence`, accuracy drops by at most `max_accuracy_drop` when rows exit by `exit`.

    n_rows: rows of the calibration. n_texts: different texts among them, which the bound counts (None: as many as rows).
    n_harmed: those of these texts that are right at the deepest head and wrong where they exited. mean_depth: layers run per
    row. dtype: what the base model ran in; the promise says nothing about another one (None: not known).
    """

    promised: ClassVar[str] = "accuracy"

    exit: Exit
    max_accuracy_drop: float
    confidence: float
    n_rows: int
    n_harmed: int
    mean_depth: float
    n_texts: int | None = None
    dtype: str | None = None

    def is_kept(self, deepest: int) -> bool:
        """Whether its counts support it. An exit at the deepest head, where every row ends anyway, needs no support."""
        n_texts = self.n_rows if self.n_texts is None else self.n_texts
        if not self.n_harmed <= n_texts <= self.n_rows or self.mean_depth > deepest:
            return False
        is_deepest = self.exit == Exit("fixed", deepest)
        return is_deepest or harm_bound(self.n_harmed, n_texts, self.confidence) <= self.max_accuracy_drop


def calibrate(
    probabilities: Mapping[int, Float[Array, "row class"]],
    labels: Shaped[Array, "row *label"],
    by: ExitBy,
    max_accuracy_drop: float,
    confidence: float,
    text_of: Int[Array, "row"] | None = None,
    dtype: str | None = None,
    reads: Reads = ONE_CLASS,
) -> Promise:
    """The earliest exit that keeps the promise, on rows that the heads were not fitted on.

    Accuracy cannot drop by more than the share of rows that are right at the deepest head and wrong where they exited; Clopper
    and Pearson's exact binomial bound limits that share among all rows. Strictest exit first; testing stops at the first
    failure, so that many tests cost no confidence (fixed-sequence testing; Angelopoulos et al. 2021, as in CALM).

    text_of: the number of each row's text (None: all texts differ). Rows of one text are no independent draws: a text counts
    once, and is harmed if one of its rows is. dtype: what the base model ran in. reads: how the outputs are read; a row with
    several labels is right if its whole set is.
    """
    check_calibration(by, max_accuracy_drop, confidence)
    text_of = np.arange(len(labels)) if text_of is None else text_of
    n_texts = len(np.unique(text_of))
    depths = sorted(probabilities)
    is_right = {depth: are_equal(reads.decide(outputs), labels) for depth, outputs in probabilities.items()}
    made: dict[str, Any] = {"max_accuracy_drop": max_accuracy_drop, "confidence": confidence, "n_rows": len(labels)}
    made |= {"n_texts": n_texts, "dtype": dtype}
    promise = Promise(Exit("fixed", depths[-1]), n_harmed=0, mean_depth=float(depths[-1]), **made)
    for exit_ in _candidates(by, len(depths)):
        exited_at = replay(exit_, probabilities, reads)
        right_at_exit = np.select([exited_at == depth for depth in depths], [is_right[depth] for depth in depths])
        n_harmed = len(np.unique(text_of[is_right[depths[-1]] & ~right_at_exit.astype(bool)]))
        if harm_bound(n_harmed, n_texts, confidence) > max_accuracy_drop:
            break
        promise = Promise(exit_, n_harmed=n_harmed, mean_depth=float(exited_at.mean()), **made)
    return promise


def check_calibration(by: ExitBy, max_accuracy_drop: float, confidence: float) -> None:
    """InputError for arguments that a calibration cannot use."""
    if not all(is_number(share) and 0 < share < 1 for share in (max_accuracy_drop, confidence)):
        raise InputError(
            f"max_accuracy_drop is {max_accuracy_drop!r}, confidence {confidence!r}; expected shares between 0 and 1"
        )
    if by not in ("confidence", "patience"):
        raise InputError(f"calibrate by {by!r}; expected confidence or patience")


def harm_bound(n_harmed: int, n_rows: int, confidence: float) -> float:
    """An upper bound, with that confidence, of the share of which `n_harmed` of `n_rows` is a sample (Clopper & Pearson)."""
    return 1.0 if n_harmed >= n_rows else float(beta.ppf(confidence, n_harmed + 1, n_rows - n_harmed))


def rows_needed(max_accuracy_drop: float, confidence: float) -> int:
    """How many rows a calibration needs: with fewer, even no harmed row proves nothing."""
    return int(np.ceil(np.log1p(-confidence) / np.log1p(-max_accuracy_drop)))


def _candidates(by: ExitBy, n_heads: int) -> Sequence[Exit]:
    """The exits to test, strictest first."""
    if by == "confidence":
        return [Exit("confidence", threshold) for threshold in THRESHOLDS]
    return [Exit("patience", patience) for patience in range(n_heads - 1, 0, -1)]


def shallowest_within(scores: Mapping[int, float], tolerance: float) -> int:
    """The smallest depth whose validation score is at most `tolerance` below the best (0: the first of the best).

    scores: depth -> validation score. Raises InputError for a negative tolerance.
    """
    if not is_number(tolerance) or tolerance < 0:
        raise InputError(f"tolerance is {tolerance!r}; expected 0 or more, in units of the score, or 'one-se'")
    # Scores are ratios of counts: a difference below this is rounding, not a row.
    enough = max(scores.values()) - tolerance - 1e-12
    return min(depth for depth, score in scores.items() if score >= enough)
