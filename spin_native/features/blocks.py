"""Texts on their way to a model: blocks of token ids, encoded ahead of their use."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped, UInt8
from tqdm.auto import tqdm

from spin_native.text.batch import TokenBatch
from spin_native.text.pairs import GivenText, Text, text_digest, texts_digest


@dataclass(frozen=True)
class Block:
    """Consecutive texts of a stream as token ids. Equal texts share one row of ids, and the model runs it once.

    ids, is_truncated: of each distinct text. row_of: for each text its row of `ids`. first_row: the first text's place in the
    stream. bar: counts the texts whose features are computed. places: pooling ("mask", "position") -> the position that it
    reads in each row of ids. windows: of each row of ids, how many tokens each of its windows has, one window after the other;
    None: every text is one row of the model. token_types: of each row of ids its tokens' types; None: all 0.
    """

    texts: Sequence[Text]
    first_row: int
    ids: list[list[int]]
    is_truncated: list[bool]
    row_of: Int[np.ndarray, "text"]
    bar: "tqdm[None] | None" = None
    places: Mapping[str, Int[np.ndarray, "row"]] = field(default_factory=dict)
    windows: Sequence[tuple[int, ...]] | None = None
    token_types: Sequence[list[int]] | None = None

    def rows_of_model(self, row: int) -> list[list[int]]:
        """A row of ids as the rows that the model reads: one for each window."""
        ids = iter(self.ids[row])
        return [list(islice(ids, length)) for length in ([len(self.ids[row])] if self.windows is None else self.windows[row])]

    def batch(self, rows: Sequence[int], device: torch.device) -> TokenBatch:
        """Some rows of ids as a batch."""
        ids = [self.ids[row] for row in rows]
        if self.windows is None:
            types = None if self.token_types is None else [self.token_types[row] for row in rows]
            return TokenBatch.from_rows(ids, device, types)
        return TokenBatch.from_texts(ids, [self.windows[row] for row in rows], device)

    @property
    def copies(self) -> Int[np.ndarray, "row"]:
        """How many of the texts share each row of ids."""
        return np.bincount(self.row_of)

    def per_text(self, values: Shaped[np.ndarray, "row *rest"]) -> Shaped[np.ndarray, "text *rest"]:
        """One value per row of ids as one value per text."""
        return values if len(self.ids) == len(self.row_of) else values[self.row_of]


def ahead(
    encode: Callable[[Sequence[Any], int], Block], blocks: Iterable[list[Any]], first_row: int, is_ahead: bool
) -> Iterator[Block]:
    """Blocks of texts as token ids; with `is_ahead`, a thread encodes each block while the caller uses the one before.

    Not for a stream: its next texts may arrive late, and those that are here already must not wait for them.
    """
    with ThreadPoolExecutor(1) as worker:
        waiting: Future[Block] | None = None
        for block in blocks:
            coming = worker.submit(encode, block, first_row) if is_ahead else None
            first_row += len(block)
            if coming is None:
                yield encode(block, first_row - len(block))
            elif waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


def progress_bar(texts: Iterable[GivenText], progress: bool | None) -> "tqdm[None]":
    total = len(texts) if isinstance(texts, Sized) else None
    return tqdm(total=total, unit=" rows", disable=None if progress is None else not progress)


def texts_digests(texts: Sequence[GivenText], n_rows: Sequence[int]) -> list[str]:
    """`texts_digest` of consecutive blocks of so many texts; none if these are not all."""
    if len(texts) != sum(n_rows):
        return []
    ends = np.cumsum(n_rows).tolist()
    return [texts_digest(texts[end - rows : end]) for end, rows in zip(ends, n_rows, strict=True)]


def text_ids(texts: Sequence[GivenText]) -> UInt8[np.ndarray, "row 16"]:
    """16 bytes for each text or pair, the same for equal ones: enough to recognise it, not to read it."""
    return np.frombuffer(b"".join(text_digest(text, 16) for text in texts), np.uint8).reshape(-1, 16)
