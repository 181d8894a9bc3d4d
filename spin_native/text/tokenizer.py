"""Texts to token ids, and ragged batches under a token budget."""

import copy
import hashlib
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
from jaxtyping import Int
from torch import Tensor

from spin_native.errors import InputError, TextError
from spin_native.given import is_unicode, rows_of
from spin_native.text.batch import TokenBatch
from spin_native.text.classes import END_OF_TEXT
from spin_native.text.fastbpe import FastBpe
from spin_native.text.files import build, is_failure, reason
from spin_native.text.packing import MAX_TOKENS, WINDOW, pack, several, windows
from spin_native.text.pairs import HALF_CHARACTER, GivenText, OneKind, Text, only_single, parts

# The files that a fingerprint of earlier versions was made of.
OLD_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer_config.json")


class TruncationWarning(UserWarning):
    """Some texts were longer than the model holds, and were truncated."""


class Encoded(NamedTuple):
    """Token ids per text, and whether the text was cut.

    windows: how many tokens each window of a text has, where long texts are read in windows (see documents.py); None: every
    text is one row. token_types: BERT's type of each token; None: all are 0.
    """

    ids: list[list[int]]
    truncated: list[bool]
    windows: list[tuple[int, ...]] | None = None
    token_types: list[list[int]] | None = None

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu") -> TokenBatch:
        """Some of the texts as a batch, each one row."""
        types = None if self.token_types is None else [self.token_types[row] for row in rows]
        return TokenBatch.from_rows([self.ids[row] for row in rows], device, types)


class Whole(NamedTuple):
    """The token ids of one text to its end. n_before, n_after: how many of them are special tokens around the text."""

    ids: list[int]
    n_before: int
    n_after: int


class Tokenizer:
    """Token ids as the model was trained on them, special tokens included.

    Special tokens in a text are not interpreted: a literal `</s>` in a tweet stays text. A text longer than `max_tokens` is
    truncated. An empty text becomes the special tokens alone; GPT-2, which has none, reads `<|endoftext|>`.

    A row may be a pair of texts, a tuple or list of two: it becomes what transformers' `tokenizer(first, second)` gives, and
    where it is too long, tokens of the longer text go first. BERT reads `[CLS] first [SEP] second [SEP]` with token types 0 and
    1, RoBERTa, XLM-R and MPNet `<s> first </s></s> second </s>`. GPT-2 has no form for pairs: it reads one text right after the
    other, so give the second one a space or a line break at its beginning.

    backend: what cuts texts into tokens. fingerprint: sha256 over all that can change ids.
    truncation_side: "right", or "left" to keep the end of a long text.
    end_of_text: the id that stands for an empty text, where no special tokens do. mask, unknown: the ids of these tokens.
    n_embedded: rows of the model's embedding; None: any id is good. files: the tokenizer's files.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer | FastBpe,
        max_tokens: int,
        fingerprint: str,
        *,
        truncation_side: str = "right",
        end_of_text: int | None = None,
        mask: int | None = None,
        unknown: int | None = None,
        n_embedded: int | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> None:
        backend.no_padding()
        backend.enable_truncation(max_tokens, direction=truncation_side)
        self._backend = backend
        self.max_tokens = max_tokens
        self.fingerprint = fingerprint
        self.n_embedded = n_embedded
        self._end_of_text = end_of_text
        self._unknown = unknown
        # The id of the token that a masked language model was trained to fill in; None for GPT-2, which has none.
        self.mask_id = mask if mask is None or n_embedded is None or mask < n_embedded else None
        self._files = dict(files or {})

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name != "_untruncated"}
        return {**kept, "_encodes_special": self._backend.encode_special_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The tokenizers library leaves one setting out of its own pickles."""
        encodes_special = state.pop("_encodes_special")
        self.__dict__.update(state)
        self._backend.encode_special_tokens = encodes_special

    @cached_property
    def n_vocab(self) -> int:
        """One more than the largest token id of the vocabulary."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def n_ids(self) -> int:
        """One more than the largest token id that `encode` returns."""
        return self.n_vocab if self.n_embedded is None else min(self.n_vocab, self.n_embedded)

    @cached_property
    def old_fingerprint(self) -> str:
        """The fingerprint as earlier versions made it: sha256 over the names and bytes of OLD_FILES."""
        used = hashlib.sha256()
        for name in sorted(self._files.keys() & set(OLD_FILES)):
            used.update(name.encode() + self._files[name].read_bytes())
        return used.hexdigest()

    def fingerprint_like(self, stored: str) -> str:
        """The fingerprint to compare with a stored one, which an earlier version may have made."""
        return stored if stored == self.old_fingerprint else self.fingerprint

    def encode(self, texts: Sequence[GivenText], first_row: int = 0) -> Encoded:
        """Token ids of each row, at least one per row. `first_row`: the number of the first row in errors.

        Raises InputError for what is neither a text nor a pair, for rows of both kinds, and for a text with a token that the
        model's embedding has no row for.
        """
        kind = OneKind()
        encodings = self._encodings(self._backend, kind.checked(several(texts), first_row), first_row)
        ids = [encoding.ids or self._empty() for encoding in encodings]
        self._check_embedded(ids, first_row)
        types = [encoding.type_ids or [0] for encoding in encodings] if kind.is_pair else []
        has_types = any(map(any, types))
        truncated = [bool(encoding.overflowing) for encoding in encodings]
        return Encoded(ids, truncated, token_types=types if has_types else None)

    def encode_whole(self, texts: Sequence[str]) -> list[Whole]:
        """Token ids of each text to its end, however long it is. Raises InputError as `encode` does."""
        read = []
        for encoding in self._encodings(self._untruncated, only_single(several(texts), "texts that are read whole"), 0):
            mask = encoding.special_tokens_mask
            n_before = mask.index(0) if 0 in mask else len(mask)
            n_after = mask[::-1].index(0) if 0 in mask else 0
            read.append(Whole(encoding.ids or self._empty(), n_before, n_after))
        self._check_embedded([whole.ids for whole in read], 0)
        return read

    @cached_property
    def _untruncated(self) -> tokenizers.Tokenizer | FastBpe:
        """The backend without truncation: a copy, because another thread may use the backend at this moment."""
        backend = copy.deepcopy(self)._backend
        backend.no_truncation()
        return backend

    @property
    def n_special(self) -> int:
        """How many special tokens stand around a text."""
        return self._backend.num_special_tokens_to_add(is_pair=False)

    def _encodings(self, backend: tokenizers.Tokenizer | FastBpe, listed: Sequence[Text], first_row: int) -> list[Any]:
        """What a backend makes of each text or pair."""
        try:
            return backend.encode_batch_fast(listed)
        except BaseException as error:
            if not is_failure(error):
                raise
            raise self._refused(listed, first_row, error) from None

    def _refused(self, texts: Sequence[Text], first_row: int, error: BaseException) -> InputError:
        """The error that names the first text which cannot be encoded."""
        for row, text in enumerate(texts, first_row):
            if not all(map(is_unicode, parts(text))):
                return TextError(row, HALF_CHARACTER)
        for row, text in enumerate(texts, first_row):
            try:
                self._backend.encode_batch_fast([text])
            except BaseException as of_text:
                if not is_failure(of_text):
                    raise
                return TextError(row, f"cannot be encoded by this tokenizer ({str(text)[:40]!r}: {reason(of_text)})")
        return InputError(f"texts from {first_row} on cannot be encoded by this tokenizer ({reason(error)})")

    def _check_embedded(self, rows: list[list[int]], first_row: int) -> None:
        """InputError, naming text and token, if a token's id lies past the embedding."""
        if self.n_embedded is None or self.n_vocab <= self.n_embedded:
            return
        for row, ids in enumerate(rows, first_row):
            if max(ids) >= self.n_embedded:
                token_id = next(token_id for token_id in ids if token_id >= self.n_embedded)
                raise TextError(
                    row,
                    f"has token {self._backend.id_to_token(token_id)!r} of id {token_id}, the embedding has rows 0 to "
                    f"{self.n_embedded - 1}: these files belong to different models, or the embedding was not resized for an "
                    "added token",
                )

    def token_strings(self, ids: Iterable[int] | Int[Tensor, "token"]) -> list[str]:
        """Each id as the vocabulary spells it: GPT-2 and RoBERTa write a space before a word as "\u0120".

        Raises InputError for an id that the vocabulary does not hold.
        """
        strings = []
        for token_id in rows_of(ids, "ids", "id"):
            try:
                whole = operator.index(token_id)
            except TypeError:
                raise InputError(
                    f"token id {str(token_id)[:40]!r} is {type(token_id).__name__}; expected a whole number"
                ) from None
            string = self._backend.id_to_token(whole) if 0 <= whole < self.n_vocab else None
            if string is None:
                raise InputError(f"token id {whole} is not in the vocabulary, whose ids run from 0 to {self.n_vocab - 1}")
            strings.append(string)
        return strings

    def offsets(self, text: GivenText) -> list[tuple[int, int] | None]:
        """Where each token of `encode([text])` stands: text[start:end], without spaces at its ends; None for a special token.

        The tokens of a character that was cut into bytes all have that character's place. A token of a pair has its place in
        its own text; `text_of_tokens` says in which one.
        """
        if isinstance(self._backend, FastBpe):
            return self._backend.offsets(text) if isinstance(text, str) else self._backend.offsets_of_pair(*text)
        texts, encoding = parts(text), self._encoding(text)
        places: list[tuple[int, int] | None] = []
        which_text = zip(encoding.offsets, encoding.special_tokens_mask, encoding.sequence_ids, strict=True)
        for (start, end), is_special, which in which_text:
            own = texts[which or 0]
            while start < end and own[start] == " ":
                start += 1
            while start < end and own[end - 1] == " ":
                end -= 1
            places.append(None if is_special else (start, end))
        return places or [None]  # an empty text: GPT-2 reads END_OF_TEXT

    def text_of_tokens(self, pair: GivenText) -> list[int | None]:
        """For each token of `encode([pair])` 0 for the first text, 1 for the second one; None for a special token."""
        if isinstance(self._backend, FastBpe):
            places = self._backend.offsets_of_pair(*pair)
            between = places.index(None, 1)
            return [None if place is None else int(at > between) for at, place in enumerate(places)]
        return self._encoding(pair).sequence_ids or [None]

    def _encoding(self, text: GivenText) -> tokenizers.Encoding:
        """One row by the tokenizers library."""
        assert isinstance(self._backend, tokenizers.Tokenizer)
        texts = parts(text)
        return self._backend.encode(texts[0], texts[1] if len(texts) == 2 else None)

    def ids_of_word(self, word: str) -> list[int]:
        """The one token id of a word as it stands in running text, after a space: " great" in GPT-2 and RoBERTa.

        Raises InputError if that is not exactly one token of the vocabulary; the message lists the pieces.
        """
        if not isinstance(word, str) or not word.strip() or not is_unicode(word):
            raise InputError(f"ids_of_word: got {word!r}; expected one word, a str that is not empty")
        encoding = self._backend.encode(" " + word.strip(), add_special_tokens=False)
        ids = [*encoding.ids, *(token_id for rest in encoding.overflowing for token_id in rest.ids)]
        if len(ids) != 1:
            pieces = ", ".join(self.token_strings(ids))
            raise InputError(f"the word {word!r} is {len(ids)} tokens ({pieces}); expected one: use another word")
        if ids[0] == self._unknown or ids[0] >= self.n_ids:
            raise InputError(f"the word {word!r} is not in the vocabulary ({self.token_strings(ids)[0]}): use another word")
        return ids

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt. Unlike in `encode`, a special token that is written in a prompt is read as such.

        Raises InputError for a prompt that is not a str, or has more tokens than the model reads: truncated, it would lose the
        position that is probed.
        """
        return self.encoded_prompts(OneKind(False, "prompts").checked(several(prompts))).ids

    def encoded_prompts(self, prompts: Sequence[GivenText]) -> Encoded:
        """The same for prompts that may be pairs."""
        reading = copy.deepcopy(self)
        reading._backend.encode_special_tokens = False  # the library's name for: special tokens in a text are text
        encoded = reading.encode(prompts)
        for row, truncated in enumerate(encoded.truncated):
            if truncated:
                problem = f"has more than {self.max_tokens} tokens, all that the model reads: shorten it"
                raise TextError(row, problem, "prompts")
        return encoded

    def batches(
        self, texts: Iterable[GivenText], max_tokens: int = MAX_TOKENS, window: int = WINDOW
    ) -> Iterator[tuple[TokenBatch, list[int]]]:
        """Batches of at most `max_tokens` tokens (one longer text alone), each with the rows of `texts` it holds.

        Within every `window` texts the longest come first, so rows of a batch are of near-equal length; a stream of any
        length works. Warns once, at the end, how many texts were cut.
        """
        first_row = n_truncated = 0
        kind = OneKind()
        for block in windows(texts, window):
            encoded = self.encode(kind.checked(block, first_row), first_row)
            for rows in pack([len(ids) for ids in encoded.ids], max_tokens):
                yield encoded.batch(rows), [first_row + row for row in rows]
            first_row += len(block)
            n_truncated += sum(encoded.truncated)
        self.warn_truncated(n_truncated, first_row)

    def warn_truncated(self, n_truncated: int, n_texts: int) -> None:
        if n_truncated:
            warnings.warn(
                f"{n_truncated} of {n_texts} texts were longer than {self.max_tokens} tokens and were cut",
                TruncationWarning,
                stacklevel=3,
            )

    def _empty(self) -> list[int]:
        if self._end_of_text is None:
            raise InputError(f"an empty text has no tokens, and the vocabulary holds no {END_OF_TEXT}: drop empty texts")
        return [self._end_of_text]

    @classmethod
    def from_files(
        cls,
        files: Mapping[str, Path],
        max_tokens: int,
        family: str,
        *,
        tokenizer_class: str | None = None,
        n_embedded: int | None = None,
        special_tokens_in_text: bool = False,
    ) -> "Tokenizer":
        """From tokenizer.json; vocab.json and merges.txt; vocab.txt; or vocab.txt and bpe.codes (BERTweet).

        files: name -> path of those that exist, with tokenizer_config.json, special_tokens_map.json and added_tokens.json.
        family: config.json's model_type. tokenizer_class: as config.json names it; tokenizer_config.json goes before it.
        n_embedded: rows of the model's embedding; None: any id is good. special_tokens_in_text: see `load_tokenizer`.
        Raises InputError if no complete set is there, or one cannot be read.
        """
        built = build(files, family, tokenizer_class, special_tokens_in_text)
        return cls(
            built.backend,
            max_tokens,
            built.fingerprint,
            truncation_side=built.truncation_side,
            end_of_text=built.end_of_text,
            mask=built.mask,
            unknown=built.unknown,
            n_embedded=n_embedded,
            files=files,
        )
