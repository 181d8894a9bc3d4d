"""Long texts as several windows of tokens, which overlap or touch, each with its own special tokens."""

from collections.abc import Sequence
from typing import NamedTuple

from spin_native.errors import InputError
from spin_native.given import is_whole
from spin_native.text.tokenizer import Encoded, Tokenizer, Whole


class Windows(NamedTuple):
    """How a text is read that has more than `size` tokens.

    size: tokens of a window, special tokens included. stride: how many text tokens later the next window starts.
    """

    size: int
    stride: int

    @classmethod
    def of(cls, given: object) -> "Windows | None":
        """(size, stride) as Windows, None as None; InputError for anything else than two whole numbers from 1."""
        if given is None:
            return None
        listed = list(given) if isinstance(given, (tuple, list)) else []
        if len(listed) != 2 or not all(is_whole(number) and number >= 1 for number in listed):
            raise InputError(
                f"windows is {given!r}; expected (size, stride): the tokens of a window, and how many tokens later the next "
                "one starts, two whole numbers from 1; or None"
            )
        return cls(*map(int, listed))

    @classmethod
    def checked(cls, given: object, tokenizer: Tokenizer) -> "Windows | None":
        """As `of`; InputError, too, where a window is longer than the model's rows or leaves tokens of a text out."""
        windows = cls.of(given)
        if windows is None:
            return None
        n_special = tokenizer.n_special
        if not n_special < windows.size <= tokenizer.max_tokens:
            raise InputError(
                f"windows: size is {windows.size}; expected {n_special + 1} to {tokenizer.max_tokens} tokens, of which "
                f"{n_special} are special: the model reads no longer rows"
            )
        if windows.stride > (n_text := windows.size - n_special):
            raise InputError(
                f"windows: stride is {windows.stride}; expected 1 to {n_text}, the text tokens of a window of {windows.size}: "
                "with a larger stride, tokens between two windows would not be read"
            )
        return windows

    def cut(self, whole: Whole) -> list[list[int]]:
        """The token ids of each window of a text.

        All windows but the last are full. The last one starts a stride after the one before and ends with the text.
        """
        if len(whole.ids) <= self.size:
            return [whole.ids]
        end = len(whole.ids) - whole.n_after
        before, text, after = whole.ids[: whole.n_before], whole.ids[whole.n_before : end], whole.ids[end:]
        n_text = self.size - len(before) - len(after)
        starts = range(0, len(text) - n_text + self.stride, self.stride)
        return [before + text[start : start + n_text] + after for start in starts]


def encode_windows(tokenizer: Tokenizer, texts: Sequence[str], windows: Windows) -> Encoded:
    """Token ids of each text to its end: those of its windows, one window after the other. Nothing is cut."""
    cut = [windows.cut(whole) for whole in tokenizer.encode_whole(texts)]
    ids = [[token_id for window in text for token_id in window] for text in cut]
    return Encoded(ids, [False] * len(ids), [tuple(map(len, text)) for text in cut])
