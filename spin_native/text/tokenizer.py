"""Texts to token ids: tokenizer files read with the `tokenizers` library, ragged batches under a token budget."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import tokenizers
from jaxtyping import Int
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor

from spin_native.errors import InputError
from spin_native.text.batch import TokenBatch
from spin_native.text.packing import MAX_TOKENS, WINDOW, pack, windows

END_OF_TEXT = "<|endoftext|>"
MASKS = {"[CLS]": "[MASK]", "<s>": "<mask>"}  # first token of every text -> mask token. MPNet's vocabulary holds both masks
UNKNOWN = ("[UNK]", "<unk>")
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
            raise InputError(
                f"text {first_row + row} holds half a character (a lone surrogate): read the file as UTF-8"
            ) from None
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

    def offsets(self, text: str) -> list[tuple[int, int] | None]:
        """Where each token of `encode([text])` stands: text[start:end], without spaces at its ends; None for a special token.

        The tokens of a character that was cut into bytes all have that character's place.
        """
        encoding = self._backend.encode(text)
        places: list[tuple[int, int] | None] = []
        for (start, end), is_special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
            while start < end and text[start] == " ":
                start += 1
            while start < end and text[end - 1] == " ":
                end -= 1
            places.append(None if is_special else (start, end))
        return places or [None]  # an empty text: GPT-2 reads END_OF_TEXT

    @cached_property
    def mask_id(self) -> int | None:
        """The id of the token that a masked language model was trained to fill in; None for GPT-2, which has none."""
        first = self._backend.encode("").tokens[:1]
        return self._backend.token_to_id(MASKS[first[0]]) if first and first[0] in MASKS else None

    def ids_of_word(self, word: str) -> list[int]:
        """The one token id of a word as it stands in running text, after a space: " great" in GPT-2 and RoBERTa.

        Raises InputError if that is not exactly one token of the vocabulary; the message lists the pieces.
        """
        if not isinstance(word, str) or not word.strip() or not is_unicode(word):
            raise InputError(f"ids_of_word: got {word!r}; expected one word, a str that is not empty")
        encoding = self._backend.encode(" " + word.strip(), add_special_tokens=False)
        if len(encoding.ids) != 1 or encoding.overflowing:
            pieces = [*encoding.tokens, *(token for rest in encoding.overflowing for token in rest.tokens)]
            raise InputError(f"the word {word!r} is {len(pieces)} tokens ({', '.join(pieces)}); expected one: use another word")
        if encoding.tokens[0] in UNKNOWN:
            raise InputError(f"the word {word!r} is not in the vocabulary ({encoding.tokens[0]}): use another word")
        return list(encoding.ids)

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


def check_text(text: object, row: int) -> None:
    """InputError unless `text` is a str; names the row and what it holds instead."""
    if isinstance(text, str):
        return
    if text is None or text != text:  # None, NaN
        raise InputError(f"text {row} is missing (got {text!r}): drop the row, or give it a text")
    if isinstance(text, bytes):
        raise InputError(f"text {row} is bytes; expected str: decode it, for example with .decode('utf-8')")
    raise InputError(f"text {row} is {type(text).__name__} ({str(text)[:40]}); expected str")


def checked_texts(texts: Iterable[object], what: str) -> list[str]:
    """The texts as a list; InputError, naming the row, unless all are str and there is at least one."""
    if isinstance(texts, (str, bytes)):
        raise InputError(f"{what}: got one {type(texts).__name__}; expected several texts, for example a list")
    listed = list(texts)
    if not listed:
        raise InputError(f"{what}: no texts; expected at least one")
    for row, text in enumerate(listed):
        check_text(text, row)
    return cast("list[str]", listed)


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
