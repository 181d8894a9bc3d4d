"""From tokens to words: which tokens spell which word, and where each word stands in its text."""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

Array = np.ndarray
Span = tuple[int, int]

JOINS_LETTERS = "'\u2019-\u2010\u2011_"  # don't, well-made
JOINS_DIGITS = ".,:"  # 3.5, 1,000, 10:30
# Scripts that write no space between words (first and last character): there a word is what its tokens make of it.
UNSPACED = (
    ("\u0e00", "\u0eff"),  # Thai, Lao
    ("\u0f00", "\u0fff"),  # Tibetan
    ("\u1000", "\u109f"),  # Burmese
    ("\u1780", "\u17ff"),  # Khmer
    ("\u3040", "\u30ff"),  # Japanese syllables
    ("\u3400", "\u9fff"),  # Chinese characters
    ("\uf900", "\ufaff"),
    ("\U00020000", "\U0003ffff"),
)


class WordsOfTokens(NamedTuple):
    """spans: word -> text[start:end], ascending. word_of: token -> its word, -1 for a special token."""

    spans: list[Span]
    word_of: Int[Array, "token"]


def words_of_tokens(text: str, offsets: Sequence[Span | None]) -> WordsOfTokens:
    """The words that the tokens of a text spell.

    offsets: as of `Tokenizer.offsets`. A word is a run of letters and digits, with an apostrophe or a hyphen inside, or a run
    of punctuation; where one token spells several of them, they are one word. A token of spaces belongs to the word after it,
    at the end to the word before it. Of a text that was cut, only the words that were read are there.
    """
    run_of = _runs(text)
    spans = [None if span is None else _without_spaces(span, run_of) for span in offsets]
    # Run -> whether a token spells it together with the run before.
    is_joined = np.zeros(run_of.max(initial=-1) + 1, dtype=bool)
    for span in spans:
        if span is not None and span[0] < span[1]:
            is_joined[run_of[span[0]] + 1 : run_of[span[1] - 1] + 1] = True
    joined_of = np.cumsum(~is_joined)
    bounds: dict[int, Span] = {}  # in the order of the text
    keys: list[int | None] = []  # None: a special token, or one of spaces
    for span in spans:
        if span is None or span[0] == span[1]:
            keys.append(None)
            continue
        key = int(joined_of[run_of[span[0]]])
        start, end = bounds.get(key, span)
        bounds[key] = min(start, span[0]), max(end, span[1])
        keys.append(key)
    number = {key: index for index, key in enumerate(sorted(bounds))}
    word_of = [-1 if key is None else number[key] for key in keys]
    for at in (at for at, span in enumerate(offsets) if span is not None and word_of[at] < 0):
        after = (word for word in word_of[at + 1 :] if word >= 0)
        before = (word for word in word_of[at - 1 :: -1] if word >= 0) if at else iter(())
        word_of[at] = next(after, next(before, -1))
    return WordsOfTokens([bounds[key] for key in sorted(bounds)], np.array(word_of, dtype=np.int64))


def _without_spaces(span: Span, run_of: Int[Array, "character"]) -> Span:
    """The span without the spaces at its ends."""
    inside = np.flatnonzero(run_of[span[0] : span[1]] >= 0)
    return (span[0], span[0]) if not len(inside) else (span[0] + int(inside[0]), span[0] + int(inside[-1]) + 1)


def _runs(text: str) -> Int[Array, "character"]:
    """Character -> the number of its run (letters and digits, or punctuation); -1 for a space."""
    kinds = [_kind(letter) for letter in text]
    run_of, run, before = np.full(len(text), -1, dtype=np.int64), -1, "space"
    for at, (letter, kind) in enumerate(zip(text, kinds, strict=True)):
        if kind == "extends":  # an accent, or a character that has no width
            kind = before if before != "space" else "letter"
            is_new = before == "space"
        else:
            if kind == "mark" and 0 < at < len(text) - 1 and _joins(text, kinds, at, letter):
                kind = "letter"
            is_new = kind != before or kind == "alone"
        if kind != "space":
            run += is_new
            run_of[at] = run
        before = kind
    return run_of


def _joins(text: str, kinds: Sequence[str], at: int, letter: str) -> bool:
    """Whether a punctuation mark stands inside a word or a number."""
    if letter in JOINS_DIGITS:
        return text[at - 1].isdigit() and text[at + 1].isdigit()
    return letter in JOINS_LETTERS and kinds[at + 1] == "letter" and kinds[at - 1] in ("letter", "extends")


def _kind(letter: str) -> str:
    category = unicodedata.category(letter)
    if letter.isspace() or category[0] == "Z" or category == "Cc":
        return "space"
    if category[0] in "PS":
        return "mark"
    if category[0] == "M" or category == "Cf":
        return "extends"
    return "alone" if any(first <= letter <= last for first, last in UNSPACED) else "letter"
