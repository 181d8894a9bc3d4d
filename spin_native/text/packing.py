"""Texts and rows into batches: windows of a stream, then rows of similar length under a token budget."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from spin_native.errors import InputError
from spin_native.given import is_whole, rows_of
from spin_native.text.pairs import GivenText

MAX_TOKENS = 1024  # default batch size in tokens, used where no model is known
WINDOW = 8192  # texts sorted by length together: enough for batches of near-equal rows, and cheap to hold


def windows(texts: Iterable[GivenText], size: int) -> Iterator[list[Any]]:
    """Consecutive lists of `size` texts (the last may be shorter), taken one list at a time."""
    if not is_whole(size) or size < 1:
        raise InputError(f"window is {size!r}; expected a whole number of texts, 1 or more")
    stream = iter(several(texts))
    while block := list(islice(stream, size)):
        yield block


def several(texts: Iterable[GivenText]) -> Iterable[Any]:
    """The texts themselves; InputError, naming what to pass, for one text and for what has no rows."""
    if isinstance(texts, (str, bytes)):
        raise InputError(f"texts is one {type(texts).__name__}; expected several texts, for example [text]")
    return rows_of(texts, "texts")


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row numbers, longest first, cut into batches of at most `max_tokens` tokens and at least one row."""
    if not is_whole(max_tokens) or max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens!r}; expected at least 1, a whole number")
    batches: list[list[int]] = []
    filled = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not batches or filled + lengths[row] > max_tokens:
            batches.append([])
            filled = 0
        batches[-1].append(row)
        filled += lengths[row]
    return batches
