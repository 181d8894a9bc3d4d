"""A ragged batch: the real tokens of all rows, end to end, and how many belong to each row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from itertools import groupby, islice, pairwise
from typing import TypeVar

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from spin_native.errors import InputError

Result = TypeVar("Result")


def outside_inference_mode(compute: Callable[["TokenBatch"], Result]) -> Callable[["TokenBatch"], Result]:
    """For what a batch caches: a tensor made in torch's inference mode could not take part in a later backward pass."""

    @wraps(compute)
    def computed(batch: "TokenBatch") -> Result:
        with torch.inference_mode(False):
            return compute(batch)

    return computed


@dataclass(frozen=True)
class Run:
    """`n_rows` neighbouring rows of one length, in a batch sorted longest first; the first begins at token `start`."""

    start: int
    n_rows: int
    length: int


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """The tokens of several rows, end to end: a row is a text, or one window of a long text.

    Only attention lets tokens meet, those of one row; every other operation treats each token by itself. So no padding is
    carried: it cannot leak into a mean, and no arithmetic is spent on it.

    ids: token ids of all rows, one after the other.
    lengths: tokens per row; every row has at least one.
    mask: which positions of the padded tensor held the tokens, if the batch came from one.
    n_windows: how many rows each text has, side by side; None: every row is a text.
    token_types: BERT's type of each token, 1 in the second text of a pair; None: all 0.
    """

    ids: Int[Tensor, "token"]
    lengths: tuple[int, ...]
    mask: Bool[Tensor, "row position"] | None = None
    n_windows: tuple[int, ...] | None = None
    token_types: Int[Tensor, "token"] | None = None

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1 or sum(self.lengths) != len(self.ids):
            raise InputError(
                f"TokenBatch: got {len(self.ids)} token ids for rows of {list(self.lengths)[:8]} tokens; expected at least "
                "one row, at least one token in each, and lengths that add up to the number of ids"
            )
        if self.token_types is not None and len(self.token_types) != len(self.ids):
            raise InputError(f"TokenBatch: got {len(self.token_types)} token types for {len(self.ids)} token ids")
        if self.n_windows is not None and (0 in self.n_windows or sum(self.n_windows) != len(self.lengths)):
            raise InputError(
                f"TokenBatch: got {len(self.lengths)} rows for texts of {list(self.n_windows)[:8]} windows; expected at least "
                "one window per text, and as many windows as rows"
            )
        with torch.inference_mode(False):
            for name, tensor in (("ids", self.ids), ("mask", self.mask), ("token_types", self.token_types)):
                if tensor is not None and tensor.is_inference():
                    object.__setattr__(self, name, tensor.clone())  # the way to set a field of a frozen dataclass

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
        token_types: Sequence[Sequence[int]] | None = None,
    ) -> "TokenBatch":
        """A batch of the given token ids, one sequence per row. token_types: of each row the types of its tokens."""
        lengths = tuple(len(row) for row in rows)
        if token_types is not None and lengths != tuple(len(row) for row in token_types):
            raise InputError("TokenBatch.from_rows: token_types differ in shape from the token ids; expected one per token")
        ids, types = (
            None
            if given is None
            else torch.tensor([number for row in given for number in row], dtype=torch.long, device=device)
            for given in (rows, token_types)
        )
        assert ids is not None
        return cls(ids, lengths, token_types=types)

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[Sequence[int]],
        windows: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
    ) -> "TokenBatch":
        """A batch of texts in windows: a row per window. texts: token ids, window after window. windows: their lengths."""
        if all(len(of_text) == 1 for of_text in windows):
            return cls.from_rows(texts, device)
        flat = [token_id for text in texts for token_id in text]
        lengths = tuple(length for of_text in windows for length in of_text)
        n_windows = tuple(len(of_text) for of_text in windows)
        return cls(torch.tensor(flat, dtype=torch.long, device=device), lengths, n_windows=n_windows)

    @classmethod
    def from_padded(
        cls,
        input_ids: Int[Tensor, "row position"],
        attention_mask: Shaped[Tensor, "row position"],
        token_type_ids: Int[Tensor, "row position"] | None = None,
    ) -> "TokenBatch":
        """The usual padded tensors without their padding, which may be on either side. token_type_ids: None: all 0.

        Raises InputError for a mask that is not 0/1, has a hole inside a row, or leaves a row without a token.
        """
        if token_type_ids is not None and token_type_ids.shape != input_ids.shape:
            raise InputError(
                f"TokenBatch.from_padded: input_ids are {list(input_ids.shape)}, token_type_ids are "
                f"{list(token_type_ids.shape)}; expected both [batch, position]"
            )
        if input_ids.shape != attention_mask.shape or input_ids.ndim != 2:
            raise InputError(
                f"TokenBatch.from_padded: input_ids are {list(input_ids.shape)}, attention_mask is "
                f"{list(attention_mask.shape)}; expected both [batch, position]"
            )
        mask = checked_mask(attention_mask, "TokenBatch.from_padded")
        lengths = mask.sum(1)
        # Where a row's tokens stand together, real tokens begin exactly once.
        begins = mask[:, 0].long() + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
        if (begins != 1).any():
            row = int((begins != 1).nonzero()[0])
            raise InputError(
                f"TokenBatch.from_padded: the attention_mask of row {row} has a hole; expected the real tokens side by "
                "side with padding only before or after them"
            )
        types = None if token_type_ids is None else token_type_ids[mask]
        return cls(input_ids[mask], tuple(lengths.tolist()), mask, token_types=types)

    @property
    def n_rows(self) -> int:
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @property
    def texts(self) -> "TokenBatch":
        """The same tokens with a row per text, whose windows are joined: what poolings read, and no model."""
        return self if self.n_windows is None else self._texts

    @cached_property
    @outside_inference_mode
    def _texts(self) -> "TokenBatch":
        lengths = iter(self.lengths)
        return TokenBatch(self.ids, tuple(sum(islice(lengths, n)) for n in self.n_windows or ()))

    @cached_property
    @outside_inference_mode
    def text_of_row(self) -> Int[Tensor, "row"]:
        """Which text each row belongs to."""
        rows = torch.arange(self.n_rows, device=self.ids.device)
        if self.n_windows is None:
            return rows
        return torch.repeat_interleave(rows[: len(self.n_windows)], torch.tensor(self.n_windows, device=self.ids.device))

    def rows_of(self, texts: Int[Tensor, "text"]) -> Int[Tensor, "row"]:
        """The rows of some texts, ascending: all their windows."""
        return texts if self.n_windows is None else torch.isin(self.text_of_row, texts).nonzero()[:, 0]

    def texts_of(self, rows: Int[Tensor, "row"]) -> Int[Tensor, "text"]:
        """The texts that some rows belong to, ascending, each once."""
        return rows if self.n_windows is None else self.text_of_row[rows].unique()

    @cached_property
    @outside_inference_mode
    def starts(self) -> Int[Tensor, "row"]:
        """The index of each row's first token."""
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return lengths.cumsum(0) - lengths

    @cached_property
    @outside_inference_mode
    def bounds(self) -> Int[Tensor, "bound"]:
        """Where each row starts, and where the last one ends; int32, as CUDA's kernels expect."""
        lengths = torch.tensor((0, *self.lengths), device=self.ids.device)
        return lengths.cumsum(0).to(torch.int32)

    @cached_property
    @outside_inference_mode
    def row_of_token(self) -> Int[Tensor, "token"]:
        """Which row each token belongs to."""
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return torch.repeat_interleave(torch.arange(self.n_rows, device=self.ids.device), lengths)

    @cached_property
    @outside_inference_mode
    def positions(self) -> Int[Tensor, "token"]:
        """Each token's position within its row, from 0."""
        return torch.arange(self.n_tokens, device=self.ids.device) - self.starts[self.row_of_token]

    @cached_property
    @outside_inference_mode
    def runs(self) -> tuple[Run, ...]:
        """The rows, longest first, as runs of one length."""
        runs, start = [], 0
        for length, rows in groupby(sorted(self.lengths, reverse=True)):
            n_rows = len(list(rows))
            runs.append(Run(start, n_rows, length))
            start += n_rows * length
        return tuple(runs)

    @cached_property
    @outside_inference_mode
    def longest_first(self) -> Int[Tensor, "token"] | None:
        """Token indices that sort the rows longest first, the order of `runs`; None if they are sorted already."""
        if all(above >= below for above, below in pairwise(self.lengths)):
            return None
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return torch.argsort(lengths[self.row_of_token], descending=True, stable=True)

    @cached_property
    @outside_inference_mode
    def input_order(self) -> Int[Tensor, "token"] | None:
        """Token indices that undo `longest_first`."""
        return None if self.longest_first is None else torch.argsort(self.longest_first)

    def only(self, rows: Int[Tensor, "kept"]) -> tuple["TokenBatch", Int[Tensor, "kept_token"]]:
        """Some of the rows, in their order, and the indices of their tokens in this batch."""
        is_kept = torch.zeros(self.n_rows, dtype=torch.bool, device=self.ids.device).index_fill_(0, rows, True)
        tokens = is_kept[self.row_of_token].nonzero()[:, 0]
        lengths = tuple(length for length, stays in zip(self.lengths, is_kept.tolist(), strict=True) if stays)
        types = None if self.token_types is None else self.token_types[tokens]
        n_windows = None
        if self.n_windows is not None:
            counts = torch.bincount(self.text_of_row[is_kept]).tolist()
            n_windows = tuple(count for count in counts if count)
        return TokenBatch(self.ids[tokens], lengths, n_windows=n_windows, token_types=types), tokens

    def to_padded(self, x: Shaped[Tensor, "token *rest"]) -> Shaped[Tensor, "row position *rest"]:
        """Lay per-token values out as [batch, position, ...], zeros in the padding.

        The layout is that of the tensors the batch came from; a batch that was never padded is padded on the right.
        """
        mask = self.mask
        if mask is None:
            lengths = torch.tensor(self.lengths, device=x.device)[:, None]
            mask = torch.arange(max(self.lengths), device=x.device)[None, :] < lengths
        padded = x.new_zeros((*mask.shape, *x.shape[1:]))
        padded[mask.to(x.device)] = x
        return padded

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on another device."""
        mask, types = (None if tensor is None else tensor.to(device) for tensor in (self.mask, self.token_types))
        return TokenBatch(self.ids.to(device), self.lengths, mask, self.n_windows, types)


def checked_mask(mask: Shaped[Tensor, "row position"], caller: str) -> Bool[Tensor, "row position"]:
    """A 0/1 mask as booleans; InputError for other values and for a row that is all padding."""
    real = mask.bool()
    if (real.to(mask.dtype) != mask).any():
        raise InputError(f"{caller}: the mask holds values other than 0 and 1; expected 1 on real tokens, 0 on padding")
    empty = (~real.any(1)).nonzero()
    if len(empty):
        raise InputError(f"{caller}: row {int(empty[0])} is all padding; drop the row, or give it a token")
    return real
