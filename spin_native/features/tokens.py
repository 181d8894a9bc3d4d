"""Features of every token, with the token's text, its position, and where it stands in its text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from spin_native.errors import InputError
from spin_native.features import tables
from spin_native.features.blocks import Block
from spin_native.features.extract import BLOCK_BYTES, Extractor, Pooled, features_of
from spin_native.features.spec import FeatureDtype, FeatureKey, Site
from spin_native.features.store import Features
from spin_native.models import Transformer
from spin_native.models.transformer import Edit
from spin_native.text.packing import WINDOW
from spin_native.text.pairs import GivenText, Text
from spin_native.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Tokens:
    """Which tokens some texts have, text after text; special tokens included.

    row: the number of each token's text. position: its place among the text's tokens, from 0. token_id; token: as the
    vocabulary spells it. start, end: the token is text[start:end]; masked (NumPy's masked arrays) for a special token.
    part: of pairs, which of the two texts that is, 0 or 1; masked for a special token. None: each text is single.
    """

    row: Int[np.ndarray, "token"]
    position: Int[np.ndarray, "token"]
    token_id: Int[np.ndarray, "token"]
    token: Shaped[np.ndarray, "token"]
    start: np.ma.MaskedArray
    end: np.ma.MaskedArray
    part: np.ma.MaskedArray | None = None

    @classmethod
    def of(cls, texts: Sequence[Text], ids: Sequence[Sequence[int]], first_row: int, tokenizer: Tokenizer) -> "Tokens":
        """The tokens of some texts, numbered from `first_row`. ids: of each text."""
        lengths = [len(row) for row in ids]
        flat = np.array([token_id for row in ids for token_id in row], np.int64)
        known, place = np.unique(flat, return_inverse=True)
        strings = np.array(tokenizer.token_strings(known.tolist()), object)
        spans = [span for text in texts for span in tokenizer.offsets(text)]
        bounds = np.array([(0, 0) if span is None else span for span in spans], np.int64).reshape(-1, 2)
        is_special = np.array([span is None for span in spans], bool)
        of_pairs = [which for text in texts if not isinstance(text, str) for which in tokenizer.text_of_tokens(text)]
        part = np.ma.masked_array(np.array([which or 0 for which in of_pairs], np.int64), is_special) if of_pairs else None
        return cls(
            row=np.repeat(np.arange(first_row, first_row + len(texts)), lengths),
            position=np.concatenate([np.arange(length) for length in lengths]),
            token_id=flat,
            token=strings[place],
            start=np.ma.masked_array(bounds[:, 0], is_special),
            end=np.ma.masked_array(bounds[:, 1], is_special),
            part=part,
        )

    @classmethod
    def joined(cls, blocks: Sequence["Tokens"]) -> "Tokens":
        """Those of several blocks of texts, one after the other."""
        if not blocks:
            nothing, no_place = np.empty(0, np.int64), np.ma.masked_array(np.empty(0, np.int64), np.empty(0, bool))
            return cls(nothing, nothing, nothing, np.empty(0, object), no_place, no_place)
        if len(blocks) == 1:
            return blocks[0]
        row, position, token_id, token = (
            np.concatenate([getattr(block, name) for block in blocks]) for name in ("row", "position", "token_id", "token")
        )
        start, end = (np.ma.concatenate([getattr(block, name) for block in blocks]) for name in ("start", "end"))
        parts = [block.part for block in blocks if block.part is not None]
        return cls(row, position, token_id, token, start, end, np.ma.concatenate(parts) if parts else None)

    def columns(self, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """The columns of a table, in order; some of the tokens."""
        present = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: values[rows] for name, values in present.items() if values is not None}


class TokenFeatures(Features):
    """Features of every token of every text, in memory: features["activation", "tokens", 3] is [token, width].

    Tokens are in text order, whatever the batches were. len: the number of tokens. See Tokens for row, position, token_id,
    token, start, end, and for pairs part; they are the first columns of `to_pandas` and `to_parquet`, where start, end and part
    of a special token are null.
    """

    def __init__(self, widths: Mapping[FeatureKey, int]) -> None:
        super().__init__(widths)
        self._token_blocks: list[Tokens] = []

    @property
    def tokens(self) -> Tokens:
        """Which tokens these are."""
        if len(self._token_blocks) != 1:  # join once, and free the pieces
            self._token_blocks = [Tokens.joined(self._token_blocks)]
        return self._token_blocks[0]

    @property
    def row(self) -> Int[np.ndarray, "token"]:
        return self.tokens.row

    @property
    def position(self) -> Int[np.ndarray, "token"]:
        return self.tokens.position

    @property
    def token_id(self) -> Int[np.ndarray, "token"]:
        return self.tokens.token_id

    @property
    def token(self) -> Shaped[np.ndarray, "token"]:
        return self.tokens.token

    @property
    def start(self) -> np.ma.MaskedArray:
        return self.tokens.start

    @property
    def end(self) -> np.ma.MaskedArray:
        return self.tokens.end

    @property
    def part(self) -> np.ma.MaskedArray | None:
        return self.tokens.part

    def append_tokens(self, block: Pooled, tokens: Tokens) -> None:
        """Add the tokens of the next texts."""
        self.append(block)
        self._token_blocks.append(tokens)

    def _beside(self, rows: slice) -> dict[str, Any]:
        return self.tokens.columns(rows)

    def _written_beside(self, rows: slice) -> dict[str, Any]:
        return self.tokens.columns(rows)


class TokenExtractor(Extractor):
    """An Extractor whose features all are per token (pooling "tokens")."""

    @property
    def rows_per_block(self) -> int:
        """As many of the longest texts as BLOCK_BYTES hold, and at least 16."""
        text_bytes = sum(self.widths.values()) * np.dtype(self.dtype).itemsize * self.tokenizer.max_tokens
        return min(max(BLOCK_BYTES // max(text_bytes, 1), 16), WINDOW)

    def run(self, texts: Iterable[GivenText], store: str | Path | None = None, progress: bool | None = None) -> TokenFeatures:
        """The features of all tokens, in memory."""
        if store is not None:
            raise InputError(
                "store and poolings=('tokens',): a store holds one row per text; leave store out, or write per-token features "
                "block by block with features.tokens.write_tokens"
            )
        features = TokenFeatures(self.widths)
        for tokens, block in self.token_blocks(texts, progress):
            features.append_tokens(block, tokens)
        return features

    def token_blocks(self, texts: Iterable[GivenText], progress: bool | None = None) -> Iterator[tuple[Tokens, Pooled]]:
        """The tokens of a stream of texts and their features, a block of texts at a time, in input order."""
        for block in self.encoded(texts, progress):
            ids = [block.ids[row] for row in block.row_of]
            yield Tokens.of(block.texts, ids, block.first_row, self.tokenizer), self.features(block)

    def features(self, block: Block, edit: Edit | None = None) -> Pooled:
        """The features of a block's tokens. edit: as of `pooled`."""
        lengths = np.array([len(ids) for ids in block.ids])
        ends = lengths.cumsum()
        spans = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]  # of each row of ids
        features = {feature: np.empty((ends[-1], width), self.dtype) for feature, width in self.widths.items()}
        last = max(feature.layer for feature in self.widths)
        for rows, batch in self.batches(block):
            at = np.concatenate([spans[row] for row in rows])
            for layer, values in self.pooled(block, rows, batch, last, edit):
                for feature, array in values.items():
                    features[feature][at] = array
                del layer
        if len(spans) == len(block.row_of):
            return features
        of_texts = np.concatenate([spans[row] for row in block.row_of])
        return {feature: array[of_texts] for feature, array in features.items()}

    def _check_finite(self, features: Pooled, block: Block, rows: Int[np.ndarray, "batch_row"]) -> None:
        super()._check_finite(features, block, np.repeat(rows, [len(block.ids[row]) for row in rows]))


def write_tokens(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[GivenText],
    path: str | Path,
    *,
    sites: Sequence[Site] = ("activation",),
    depth: int | None = None,
    edit: Edit | None = None,
    dtype: FeatureDtype = "float32",
    max_tokens: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> int:
    """Write the features of every token of a stream of texts as a Parquet file, block by block; returns the number of tokens.

    The file is what `extract(..., poolings=("tokens",)).to_parquet(path)` writes, with one block of texts in memory at a time.
    Arguments and errors are those of `extract` and `Features.to_parquet`.
    """
    tables.check_parquet(path)
    wanted = dict.fromkeys(features_of(model, sites, ("tokens",), depth))
    extractor = TokenExtractor(model, tokenizer, wanted, dtype=dtype, max_tokens=max_tokens, edit=edit)
    n_tokens = 0

    def blocks() -> Iterator[tuple[dict[str, np.ndarray], dict[str, Float[np.ndarray, "token _"]]]]:
        nonlocal n_tokens
        for tokens, block in extractor.token_blocks(texts, progress):
            n_tokens += len(tokens.row)
            yield tokens.columns(), {feature.name: array for feature, array in block.items()}

    tables.write_parquet(path, blocks(), overwrite=overwrite)
    return n_tokens
