"""Texts to token ids: tokenizer files read with the `tokenizers` library, ragged batches under a token budget."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from jaxtyping import Int
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor

from spin_native.errors import InputError, TextError
from spin_native.given import check_text, is_unicode
from spin_native.text.batch import TokenBatch
from spin_native.text.packing import MAX_TOKENS, WINDOW, pack, windows

END_OF_TEXT = "<|endoftext|>"
SpecialTokens = tuple[str, str] | None  # the first and the last token of every text


class TruncationWarning(UserWarning):
    """Some texts were longer than the model holds, and were truncated."""


class Encoded(NamedTuple):
    """Token ids per text, and whether the text was cut."""

    ids: list[list[int]]
    truncated: list[bool]


class Tokenizer:
    """Token ids as the model was trained on them, special tokens included.

    Special tokens in a text are not interpreted: a literal `</s>` in a tweet stays text. A text longer than `max_tokens` is
    truncated. An empty text becomes the special tokens alone; GPT-2, which has none, reads `<|endoftext|>`.

    fingerprint: sha256 of the files it was read from.
    """

    def __init__(self, backend: tokenizers.Tokenizer, max_tokens: int, fingerprint: str) -> None:
        backend.no_padding()
        backend.enable_truncation(max_tokens)
        backend.encode_special_tokens = True  # tokenizers' name for: do not look for special tokens in the text
        self._backend = backend
        self.max_tokens = max_tokens
        self.fingerprint = fingerprint

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encodes_special": self._backend.encode_special_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The tokenizers library leaves one setting out of its own pickles."""
        encodes_special = state.pop("_encodes_special")
        self.__dict__.update(state)
        self._backend.encode_special_tokens = encodes_special

    @cached_property
    def n_vocab(self) -> int:
        """One more than the largest token id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str], first_row: int = 0) -> Encoded:
        """Token ids of each text, at least one per text. `first_row`: the number of the first text in errors."""
        for row, text in enumerate(texts, first_row):
            check_text(text, row)
        try:
            encodings = self._backend.encode_batch_fast(list(texts))
        except TypeError:  # a lone surrogate: Python holds it, UTF-8 does not
            row = next(row for row, text in enumerate(texts) if not is_unicode(text))
            raise TextError(first_row + row, "holds half a character (a lone surrogate): read the file as UTF-8") from None
        ids = [encoding.ids or [self._end_of_text()] for encoding in encodings]
        return Encoded(ids, [bool(encoding.overflowing) for encoding in encodings])

    def token_strings(self, ids: Iterable[int] | Int[Tensor, "token"]) -> list[str]:
        """Each id as the vocabulary spells it: GPT-2 and RoBERTa write a space before a word as "\u0120".

        Raises InputError for an id that the vocabulary does not hold.
        """
        strings = []
        for token_id in map(int, ids):
            string = self._backend.id_to_token(token_id) if token_id >= 0 else None
            if string is None:
                raise InputError(f"token id {token_id} is not in the vocabulary, whose ids run from 0 to {self.n_vocab - 1}")
            strings.append(string)
        return strings

    def batches(
        self, texts: Iterable[str], max_tokens: int = MAX_TOKENS, window: int = WINDOW
    ) -> Iterator[tuple[TokenBatch, list[int]]]:
        """Batches of at most `max_tokens` tokens (one longer text alone), each with the rows of `texts` it holds.

        Within every `window` texts the longest come first, so rows of a batch are of near-equal length; a stream of any
        length works. Warns once, at the end, how many texts were cut.
        """
        first_row = n_truncated = 0
        for block in windows(texts, window):
            encoded = self.encode(block, first_row)
            for rows in pack([len(ids) for ids in encoded.ids], max_tokens):
                yield TokenBatch.from_rows([encoded.ids[row] for row in rows]), [first_row + row for row in rows]
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

    def _end_of_text(self) -> int:
        token_id = self._backend.token_to_id(END_OF_TEXT)
        if token_id is None:
            raise InputError(f"an empty text has no tokens, and the vocabulary holds no {END_OF_TEXT}: drop empty texts")
        return token_id

    @classmethod
    def from_files(cls, files: Mapping[str, Path], max_tokens: int, special_tokens: SpecialTokens) -> "Tokenizer":
        """From tokenizer.json; or vocab.json and merges.txt (GPT-2, RoBERTa); or vocab.txt (BERT, DistilBERT, MPNet).

        files: name -> path of those that exist, `tokenizer_config.json` included (its do_lower_case,
            tokenize_chinese_chars, strip_accents and add_prefix_space count).
        special_tokens: around every text, where no tokenizer.json says so.
        Raises InputError if no complete set is there, or one cannot be read.
        """
        used = hashlib.sha256()
        for name in sorted(files):
            used.update(name.encode() + files[name].read_bytes())
        settings = _settings(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
        try:
            if "tokenizer.json" in files:
                backend = tokenizers.Tokenizer.from_file(str(files["tokenizer.json"]))
            elif "vocab.json" in files and "merges.txt" in files:
                backend = _byte_level_bpe(files["vocab.json"], files["merges.txt"], special_tokens, settings)
            elif "vocab.txt" in files:
                backend = _word_piece(files["vocab.txt"], special_tokens, settings)
            else:
                raise InputError(
                    f"no tokenizer in {', '.join(sorted(files)) or 'no files'}: expected tokenizer.json, or vocab.json and "
                    "merges.txt, or vocab.txt"
                )
        except InputError:
            raise
        except Exception as error:  # the tokenizers library raises plain Exception
            raise InputError(f"{', '.join(map(str, files.values()))}: not readable as tokenizer files ({error})") from error
        return cls(backend, max_tokens, used.hexdigest())


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    return settings if isinstance(settings, dict) else {}


def _byte_level_bpe(
    vocab: Path, merges: Path, special_tokens: SpecialTokens, settings: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    add_prefix_space = bool(settings.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    return _with_special_tokens(backend, special_tokens, vocab)


def _word_piece(vocab: Path, special_tokens: SpecialTokens, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece.from_file(str(vocab), unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _with_special_tokens(backend, special_tokens, vocab)


def _with_special_tokens(backend: tokenizers.Tokenizer, special_tokens: SpecialTokens, vocab: Path) -> tokenizers.Tokenizer:
    if special_tokens is None:
        return backend
    ids = [(token, backend.token_to_id(token)) for token in special_tokens]
    for token, token_id in ids:
        if token_id is None:
            raise InputError(f"{vocab}: holds no {token}, which every text of this model needs: is it this model's vocabulary?")
    first, last = special_tokens
    backend.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ids)
    return backend
