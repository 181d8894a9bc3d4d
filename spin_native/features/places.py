"""How texts become token ids, and which token is read by poolings that read one: the mask token ("mask"), or the one at a
given position ("position").
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from spin_native.errors import InputError, TextError
from spin_native.features.blocks import Block
from spin_native.given import is_whole, plain, rows_of
from spin_native.text.documents import Windows, encode_windows
from spin_native.text.pairs import GivenText, OneKind, Text, only_single
from spin_native.text.tokenizer import Encoded, Tokenizer

Place = Literal["mask", "position"]


class Places:
    """How texts are read, and which token of each text the wanted poolings read.

    poolings: those that are wanted, of any kind. positions: for "position", one position per text, from 0, special tokens
    included. windows: (size, stride) of the windows that long texts are read in (see documents.py), or None. Raises InputError
    for "mask" without a mask token, for positions that are missing or not wanted, and for windows that the model cannot read
    or together with a pooling that needs each text in one row.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        poolings: Iterable[str],
        positions: Iterable[int] | None,
        windows: tuple[int, int] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        wanted = set(poolings)
        self.windows = Windows.checked(windows, tokenizer)
        if self.windows is not None and (one_row := sorted(wanted & {*get_args(Place), "tokens"})):
            raise InputError(
                f"windows and poolings with {one_row[0]!r}: it reads tokens by their place in one row, but a long text is "
                "several windows; leave one of the two out"
            )
        self.mask_id = tokenizer.mask_id if "mask" in wanted else None
        if "mask" in wanted and self.mask_id is None:
            raise InputError(
                "poolings has 'mask', but this tokenizer has no mask token (GPT-2 was trained without one): use 'last', or "
                "'position' with positions"
            )
        if ("position" in wanted) != (positions is not None):
            raise InputError(
                "poolings has 'position', but positions is missing: give one position per text"
                if positions is None
                else "positions is given, but poolings does not have 'position', which reads it: add it, or leave it out"
            )
        self._positions = None if positions is None else _checked(positions)

    @property
    def reads_prompts(self) -> bool:
        """Whether a special token that is written in a text, such as [MASK], is read as such."""
        return self.mask_id is not None

    def encode(self, texts: Sequence[Text]) -> Encoded:
        """Token ids, as `Tokenizer.encode`; with "mask" as `Tokenizer.encoded_prompts`; in windows as `encode_windows`.

        Raises TextError for pairs in windows.
        """
        if self.windows is not None:
            return encode_windows(self._tokenizer, only_single(texts, "texts that are read in windows"), self.windows)
        if not self.reads_prompts:
            return self._tokenizer.encode(texts)
        return self._tokenizer.encoded_prompts(texts)

    def block(self, given: Sequence[GivenText], first_row: int, kind: OneKind) -> Block:
        """Token ids of the distinct texts; `first_row` numbers the first text in errors. kind: of the stream's rows."""
        texts = kind.checked(given, first_row)
        distinct: dict[tuple[Text, int | None], int] = {}
        positions = self._given(first_row, len(texts))
        row_of = np.array([distinct.setdefault(key, len(distinct)) for key in zip(texts, positions, strict=True)])
        numbers = (first_row + np.unique(row_of, return_index=True)[1]).tolist()
        try:
            encoded = self.encode([text for text, _ in distinct])
        except TextError as error:
            raise TextError(numbers[error.row], error.problem) from None
        except InputError:
            self._tokenizer.encode(texts, first_row)  # the same error, with the right row
            raise
        places = self._of(encoded.ids, [position for _, position in distinct], numbers)
        ids, is_truncated, of_windows, token_types = encoded
        return Block(texts, first_row, ids, is_truncated, row_of, None, places, of_windows, token_types)

    def _given(self, first_row: int, n_texts: int) -> Iterable[int | None]:
        """The position that was given for each of some consecutive texts (None: there are no positions)."""
        if self._positions is None:
            return repeat(None, n_texts)
        chosen = self._positions[first_row : first_row + n_texts]
        if len(chosen) < n_texts:
            raise InputError(f"positions has {len(self._positions)} entries, but there are more texts; expected one per text")
        return chosen

    def check_number(self, n_texts: int) -> None:
        """InputError if there were fewer texts than positions."""
        if self._positions is not None and n_texts < len(self._positions):
            raise InputError(f"positions has {len(self._positions)} entries for {n_texts} texts; expected one per text")

    def _of(
        self, ids: Sequence[Sequence[int]], given: Sequence[int | None], numbers: Sequence[int]
    ) -> dict[str, Int[np.ndarray, "row"]]:
        """The position that each pooling reads in each row of ids.

        given: of each row its given position. numbers: of each row its text's number, for errors. Raises TextError for a row
        without exactly one mask token, and for one that is too short for its position.
        """
        places = {}
        if self.mask_id is not None:
            places["mask"] = np.array([self._mask_of(row, number) for row, number in zip(ids, numbers, strict=True)], np.int64)
        if self._positions is not None:
            for row, position, number in zip(ids, given, numbers, strict=True):
                if position is not None and position >= len(row):
                    raise TextError(
                        number,
                        f"has {len(row)} tokens, so none at position {position}; expected a position from 0 to {len(row) - 1}",
                    )
            places["position"] = np.array(given, np.int64)
        return places

    def _mask_of(self, ids: Sequence[int], number: int) -> int:
        at = [position for position, token_id in enumerate(ids) if token_id == self.mask_id]
        if len(at) != 1:
            (mask,) = self._tokenizer.token_strings([self.mask_id or 0])
            raise TextError(number, f"has {len(at)} mask tokens; expected exactly one {mask}")
        return at[0]


def _checked(positions: Iterable[int]) -> list[int]:
    listed = [plain(position) for position in rows_of(positions, "positions", "position")]
    for row, position in enumerate(listed):
        if not is_whole(position) or position < 0:
            raise InputError(f"positions: entry {row} is {position!r}; expected a whole number, 0 or more")
    return listed
