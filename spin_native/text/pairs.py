"""A row of texts: one text, or a pair of them, such as a premise and a hypothesis, or a question and a passage."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from spin_native.errors import InputError, TextError
from spin_native.given import check_text, is_unicode, rows_of

Pair = tuple[str, str]
Text = str | Pair
GivenText = str | Pair | Sequence[str]  # a pair may come as a list of two

PAIR_FOLLOWS = (2**64 - 1).to_bytes(8, "little")  # in a digest of texts: a length that no text has
HALF_CHARACTER = "holds half a character (a lone surrogate): read the file as UTF-8"


class OneKind:
    """Checks the rows of one call or one stream: all are texts, or all are pairs.

    is_pair: which of the two; None: the first row decides. others: in errors, the rows that have this kind.
    """

    def __init__(self, is_pair: bool | None = None, others: str = "") -> None:
        self.is_pair = is_pair
        self._others = "the rows before it" if is_pair is None else others

    def checked(self, texts: Iterable[object], first_row: int = 0) -> list[Text]:
        """The next rows, each pair as a tuple. first_row: the number of the first one in errors.

        Raises TextError for a row that is neither a str nor two, and for a row of the other kind.
        """
        return [self._checked(text, row) for row, text in enumerate(texts, first_row)]

    def _checked(self, text: object, row: int) -> Text:
        if isinstance(text, str):
            if self.is_pair:
                raise TextError(row, f"is a single text, {self._others} are pairs: give each row as (text, second text)")
            self.is_pair = False
            return text
        if not isinstance(text, (tuple, list)):
            check_text(text, row)
            raise AssertionError("check_text refuses what is no str")
        kind = type(text).__name__
        if len(text) != 2:
            raise TextError(row, f"is {kind} of {len(text)}; expected one text (str), or a pair of two texts")
        if self.is_pair is False:
            raise TextError(row, f"is {kind}, a pair of texts, {self._others} are single texts: give each row as one str")
        self.is_pair = True
        return _pair(text, row)


def _pair(given: Sequence[object], row: int) -> Pair:
    """The two texts of a row; TextError for what is no text."""
    for which, text in zip(("first", "second"), given, strict=True):
        try:
            check_text(text, row)
        except TextError as error:
            raise TextError(row, f"is a pair whose {which} text {error.problem}") from None
    first, second = given
    return first, second  # type: ignore[return-value]  # both were checked


def checked_rows(texts: Iterable[object], what: str, kind: OneKind | None = None) -> list[Text]:
    """The rows as a list; InputError, naming the row, unless all are texts or all pairs, in Unicode, and there is at least one.

    what: their name in errors. kind: what they must be, with rows that were checked before (None: their first one decides).
    """
    listed = list(rows_of(texts, what))
    if not listed:
        raise InputError(f"{what}: no texts; expected at least one")
    try:
        rows = (kind or OneKind()).checked(listed)
    except TextError as error:
        raise error.of(what, error.row) from None
    for row, text in enumerate(rows):
        if not all(map(is_unicode, parts(text))):
            raise TextError(row, HALF_CHARACTER).of(what, row)
    return rows


def only_single(texts: Iterable[GivenText], what: str) -> list[str]:
    """The texts themselves; TextError, naming the row, for a pair. what: what has to be single, for the error."""
    return [text for text in OneKind(False, what).checked(texts) if isinstance(text, str)]


def parts(text: GivenText) -> tuple[str, ...]:
    """The texts of one row: one or two."""
    return (text,) if isinstance(text, str) else tuple(text)


def is_one_row(texts: object, reads_pairs: bool) -> bool:
    """Whether what is given to predict is one row, not several: a str, or where pairs are read a tuple of two str."""
    if isinstance(texts, str):
        return True
    return reads_pairs and isinstance(texts, tuple) and len(texts) == 2 and all(isinstance(part, str) for part in texts)


def text_digest(text: GivenText, size: int) -> bytes:
    """`size` bytes that recognise a row. ("a b", "c"), ("a", "b c") and "a b c" differ."""
    if isinstance(text, str):
        return hashlib.blake2b(_bytes(text), digest_size=size).digest()
    return hashlib.blake2b(b"".join(map(_with_length, text)), digest_size=size, person=b"pair").digest()


def texts_digest(texts: Iterable[Any]) -> str:
    """sha256 over the rows, each text after its length: ["ab", "c"], ["a", "bc"] and [("ab", "c")] differ."""
    digest = hashlib.sha256()
    for text in texts:
        is_pair = isinstance(text, (tuple, list))
        digest.update(PAIR_FOLLOWS * is_pair + b"".join(map(_with_length, text if is_pair else [text])))
    return digest.hexdigest()


def _with_length(text: object) -> bytes:
    encoded = _bytes(text) if isinstance(text, str) else b""
    return len(encoded).to_bytes(8, "little") + encoded


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
