"""Which rows to keep from the probes: a share of every class, and equal texts always on the same side.

Where all texts are different, the task itself draws the rows (scikit-learn's train_test_split by class). A text that occurs
several times (a retweet) would else be in both parts, and what is learnt by heart would look like what is understood.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped

from spin_native.classifier.tasks import Task
from spin_native.text.pairs import Text

Array = np.ndarray
Indices = Int[Array, "_"]


def numbered_texts(texts: Sequence[Text]) -> Int[Array, "row"]:
    """For each row the number of its text; equal texts have one number, counted in the order of their first rows."""
    numbers: dict[Text, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)


def split(
    task: Task, texts: Sequence[Text], labels: Shaped[Array, "row *label"], share: float, seed: int
) -> tuple[Indices, Indices, list[str]]:
    """Training rows, validation rows (`share` of them), and warnings of classes whose only text is in both.

    InputError where some class cannot be in both parts.
    """
    text_of = numbered_texts(texts)
    if text_of[-1] == len(texts) - 1:
        return *task.split(labels, share, seed), []
    task.check_split(labels, share)
    is_held_out, lone = _held_out(text_of, task.strata(labels), share, seed)
    train, validation = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    task.check_training(labels[train])
    task.check_validation(labels[validation])
    leaks = [
        f"{task.stratum_name(stratum)} one text only, which is among the training and the validation rows: validation scores "
        "are too good; add other texts, or give validation rows of your own"
        for stratum in lone
    ]
    return train, validation, leaks


def halves(task: Task, texts: Sequence[Text], labels: Shaped[Array, "row *label"], seed: int) -> tuple[Indices, Indices]:
    """Two halves of the rows; InputError if one of them lacks a class."""
    text_of = numbered_texts(texts)
    if text_of[-1] == len(texts) - 1:
        first, second = task.sample(labels, len(labels) // 2, seed)
    else:
        is_second, _ = _held_out(text_of, task.strata(labels), 0.5, seed)
        first, second = np.flatnonzero(~is_second), np.flatnonzero(is_second)
    for half in (first, second):
        task.check_part(labels[half], f"a part of the {len(labels)} training rows")
    return first, second


def _held_out(
    text_of: Int[Array, "row"], strata: Int[Array, "row"], share: float, seed: int
) -> tuple[Bool[Array, "row"], list[int]]:
    """Which rows to hold out, and the strata with one text only, whose rows are on both sides.

    Of every stratum, texts in random order are held out as long as each brings the number of held-out rows closer to the share;
    at least one text, and never all. A text that has several labels belongs to the rarest of them.
    """
    random = np.random.default_rng(seed)
    n_rows = np.bincount(text_of)
    stratum_of, present = _strata_of_texts(text_of, strata), np.unique(strata)
    is_held_out, lone = np.zeros(len(text_of), dtype=bool), []
    for stratum in present:
        texts = random.permutation(np.flatnonzero(stratum_of == stratum))
        if len(texts) == 1:
            rows = random.permutation(np.flatnonzero(text_of == texts[0]))
            if len(rows) > 1:
                is_held_out[rows[: max(1, round(share * len(rows)))]] = True
                lone.append(int(stratum))
            continue
        missing = share * n_rows[texts].sum()
        chosen: list[int] = []
        for text in texts:
            if n_rows[text] <= 2 * missing and len(chosen) < len(texts) - 1:
                chosen.append(text)
                missing -= n_rows[text]
        if not chosen and len(texts):
            chosen = [texts[np.argmin(n_rows[texts])]]
        is_held_out |= np.isin(text_of, chosen)
    return is_held_out, lone


def folds(task: Task, texts: Sequence[Text], labels: Shaped[Array, "row *label"], n_folds: int, seed: int) -> Int[Array, "row"]:
    """The fold that holds each row out, from 0; -1 for a row that no fold holds out.

    Every stratum is spread evenly over the folds, and equal texts are in one fold. The rows of a stratum with one text only are
    never held out: no other row could teach their class.
    """
    text_of = numbered_texts(texts)
    stratum_of = _strata_of_texts(text_of, task.strata(labels))
    random = np.random.default_rng(seed)
    fold_of = np.full(len(stratum_of), -1)
    n_dealt = 0
    for stratum in np.unique(stratum_of):
        members = random.permutation(np.flatnonzero(stratum_of == stratum))
        if len(members) > 1:
            fold_of[members] = (n_dealt + np.arange(len(members))) % n_folds
            n_dealt += len(members)
    return fold_of[text_of]


def _strata_of_texts(text_of: Int[Array, "row"], strata: Int[Array, "row"]) -> Int[Array, "text"]:
    """The stratum of each text; of a text with several labels the rarest."""
    stratum_of = np.empty(text_of.max() + 1, dtype=np.int64)
    present, counts = np.unique(strata, return_counts=True)
    for stratum in present[np.argsort(-counts, kind="stable")]:
        stratum_of[text_of[strata == stratum]] = stratum
    return stratum_of
