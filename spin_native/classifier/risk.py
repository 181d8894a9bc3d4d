"""Answers with a bounded error: a threshold below which a classifier abstains, under one promise with early exit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from spin_native.classifier.exits import ONE_CLASS, Exit, Limited, Promise, Reads, are_equal, harm_bound, rows_needed
from spin_native.errors import InputError
from spin_native.given import is_number

Array = np.ndarray

# Strictest first: dense where confident heads are, then in steps of .01. At 0 every row is answered, at the first head.
THRESHOLDS = np.round([*(1 - np.geomspace(1e-6, 0.1, 40)), *np.arange(89, -1, -1) / 100], 7).tolist()
# The share of the texts whose outputs choose the threshold to start with, and that are not tested.
PILOT_SHARE = 0.2


@dataclass(frozen=True)
class ErrorPromise(Limited):
    """The result of a calibration: with `confidence`, at most `max_error` of the answered rows are wrong.

    exit: confidence:THRESHOLD. A row exits, answered, at the first head whose most probable class has this probability (of
    several labels: the least certain one); a row that no head is so sure of is not answered. n_rows: rows of the calibration.
    n_texts: different texts among them that the bound counts. n_answered, n_wrong: those of these texts that are answered, and
    answered wrongly. mean_depth: layers run per row. dtype: what the base model ran in; the promise says nothing about another
    one (None: not known).
    """

    promised: ClassVar[str] = "error"

    exit: Exit
    max_error: float
    confidence: float
    n_rows: int
    n_texts: int
    n_answered: int
    n_wrong: int
    mean_depth: float
    dtype: str | None = None

    def is_kept(self, deepest: int) -> bool:
        """Whether its counts support it."""
        if not self.n_wrong <= self.n_answered <= self.n_texts <= self.n_rows or self.mean_depth > deepest:
            return False
        return self.exit.by == "confidence" and harm_bound(self.n_wrong, self.n_answered, self.confidence) <= self.max_error


AnyPromise = Promise | ErrorPromise


def is_answered(outputs: Float[Array, "row class"], exit_: Exit, reads: Reads = ONE_CLASS) -> Bool[Array, "row"]:
    """Which rows are answered under a promise's exit. outputs: of the head where each row exited; reads: how they are read."""
    return reads.confidence(outputs) >= exit_.value


def answered_only(labels: Shaped[Array, "row"], answered: Bool[Array, "row"]) -> Shaped[Array, "row"]:
    """The labels as Python values, None where a row is not answered."""
    values = labels.astype(object)
    values[~answered] = None
    return values


def bounded_error(
    probabilities: Mapping[int, Float[Array, "row class"]],
    labels: Shaped[Array, "row *label"],
    max_error: float,
    confidence: float,
    text_of: Int[Array, "row"] | None = None,
    dtype: str | None = None,
    seed: int = 0,
    reads: Reads = ONE_CLASS,
) -> ErrorPromise:
    """The loosest threshold that keeps the promise, on rows that the heads were not fitted on.

    Why the promise holds, whatever the heads are. For one threshold that is fixed in advance, texts are answered or not by
    their outputs alone, so that given how many are answered, the number of wrong ones among them is binomial, with the error
    among answered texts as its parameter: Clopper and Pearson's bound from these two counts limits it. Because this holds for
    every number of answered texts, it does not matter that the number is random. Thresholds are tested from strict to loose,
    and testing stops at the first failure, so that many tests cost no confidence (fixed-sequence testing). The strictest
    thresholds answer too few texts to pass any test; skipping them by counts of the tested texts would be a choice by the same
    data. So the outputs of PILOT_SHARE of the texts, drawn at random, choose the threshold to start with, and the others are
    tested (split fixed-sequence testing; Angelopoulos et al. 2021, Learn then Test). Selective classification: Geifman and
    El-Yaniv 2017.

    probabilities: every head's, by depth. text_of: the number of each row's text (None: all texts differ); a text counts once,
    and is wrong if it is for one of its rows. dtype: what the base model ran in. seed: of the draw of the pilot texts. reads:
    how the outputs are read; a row with several labels is right if its whole set is.

    Raises InputError, with what was reached, if no threshold passes.
    """
    check_error_calibration(max_error, confidence)
    numbers = np.arange(len(labels)) if text_of is None else np.unique(text_of, return_inverse=True)[1]
    n_texts = int(numbers.max()) + 1
    n_pilot = round(PILOT_SHARE * n_texts)
    is_tested = np.ones(n_texts, dtype=bool)
    is_tested[np.random.default_rng(seed).permutation(n_texts)[:n_pilot]] = False
    depths = sorted(probabilities)
    certainty = np.stack([reads.confidence(probabilities[depth]) for depth in depths])
    is_right = np.stack([are_equal(reads.decide(probabilities[depth]), labels) for depth in depths])
    tests = _Counts(certainty, is_right, numbers)
    surest = np.sort(certainty.max(0)[np.unique(numbers, return_index=True)[1]][~is_tested])
    n_sure = n_pilot - np.searchsorted(surest, THRESHOLDS)
    start = _start(n_sure / max(1, n_pilot), n_texts - n_pilot, rows_needed(max_error, confidence))
    passed: tuple[float, int, int] | None = None
    for threshold in THRESHOLDS[start:]:
        n_answered, n_wrong = tests.counts(threshold, is_tested)
        if harm_bound(n_wrong, n_answered, confidence) > max_error:
            break
        passed = threshold, n_answered, n_wrong
    if passed is None:
        raise _unproven(threshold, n_texts - n_pilot, n_answered, n_wrong, max_error, confidence)
    threshold, n_answered, n_wrong = passed
    return ErrorPromise(
        exit=Exit("confidence", threshold),
        max_error=max_error,
        confidence=confidence,
        n_rows=len(labels),
        n_texts=int(is_tested.sum()),
        n_answered=n_answered,
        n_wrong=n_wrong,
        mean_depth=float(np.array(depths)[tests.exits(threshold)].mean()),
        dtype=dtype,
    )


def _unproven(
    threshold: float, n_tested: int, n_answered: int, n_wrong: int, max_error: float, confidence: float
) -> InputError:
    """The error of a calibration whose first threshold fails already."""
    needed = int(np.ceil(rows_needed(max_error, confidence) / (1 - PILOT_SHARE)))
    return InputError(
        f"rows to calibrate on: of {n_tested} different texts, {n_answered} have a confidence of at least {threshold:g}, and "
        f"{n_wrong} of their answers are wrong, which does not prove an error of at most {max_error:g} with confidence "
        f"{confidence:g}; calibrate on more rows (at the very least {needed} different texts), or promise a larger error"
    )


def check_error_calibration(max_error: float, confidence: float) -> None:
    """InputError for arguments that a calibration cannot use."""
    if not all(is_number(share) and 0 < share < 1 for share in (max_error, confidence)):
        raise InputError(f"max_error is {max_error!r}, confidence {confidence!r}; expected shares between 0 and 1")


@dataclass(frozen=True)
class _Counts:
    """What a threshold does to the rows of a calibration, head by head, shallowest first."""

    certainty: Float[Array, "head row"]
    is_right: Bool[Array, "head row"]
    text_of: Int[Array, "row"]

    def exits(self, threshold: float) -> Int[Array, "row"]:
        """At which head each row exits: the first that is sure enough, or the deepest."""
        is_sure = self.certainty >= threshold
        return np.where(is_sure.any(0), is_sure.argmax(0), len(is_sure) - 1)

    def counts(self, threshold: float, texts: Bool[Array, "text"]) -> tuple[int, int]:
        """How many of some texts are answered, and how many of them wrongly."""
        exits, rows = self.exits(threshold), np.arange(len(self.text_of))
        answered = self.certainty[exits, rows] >= threshold
        wrong = answered & ~self.is_right[exits, rows]
        n_answered, n_wrong = (len(np.unique(self.text_of[some & texts[self.text_of]])) for some in (answered, wrong))
        return n_answered, n_wrong


def _start(shares: Float[Array, "threshold"], n_tested: int, n_needed: int) -> int:
    """The threshold to test first: the strictest one that leaves room for a few wrong answers among the texts that it answers.

    It should answer twice `n_needed`, the number of texts that prove the promise if all are right; and at least 30 texts and a
    tenth of them, so that one wrong answer does not decide the first test; but of few texts no more than two thirds.
    shares: of the pilot texts that each threshold answers. n_tested: how many other texts there are.
    """
    enough = min(max(2 * n_needed, 30, n_tested / 10), max(n_needed, 2 * n_tested / 3)) / n_tested
    return int(np.argmax(shares >= enough)) if shares[-1] >= enough else len(shares) - 1
