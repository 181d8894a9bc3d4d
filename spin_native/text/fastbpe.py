"""BERTweet's tokenizer (Nguyen et al. 2020): words cut by fastBPE, in plain Python as transformers' BertweetTokenizer has it.

The tokenizers library has no such model: here a piece inside a word ends in "@@", and the last piece of a word has no mark.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from spin_native.errors import InputError
from spin_native.text.pairs import Text
from spin_native.text.settings import TokenizerSettings, text_of

FIRST_ROLES = ("bos_token", "pad_token", "eos_token", "unk_token")  # ids 0 to 3, before those of vocab.txt
MAX_CACHED_WORDS = 100_000
END = "</w>"
WORD = re.compile(r"\S+\n?")


class FastBpeEncoding(NamedTuple):
    ids: list[int]
    overflowing: list[Any]  # encodings of what truncation took
    special_tokens_mask: list[int]  # 1 for the special tokens around the text

    @property
    def type_ids(self) -> list[int]:
        """BERTweet has no token types: all are 0."""
        return [0] * len(self.ids)


class FastBpe:
    """As much of `tokenizers.Tokenizer` as `Tokenizer` uses.

    vocab: token -> id, without added tokens. ranks: pair of pieces -> its place among the merges.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        ranks: Mapping[tuple[str, str], int],
        special: Mapping[str, str],
        settings: TokenizerSettings,
    ) -> None:
        self.vocab, self.ranks = dict(vocab), dict(ranks)
        self.added = {token.content: token_id for token_id, token in settings.added.items()}
        self.added_by_id = dict(settings.added)  # where two tokens claim an id, only the later one is looked for in texts
        next_id = len({*self.vocab, *self.added})
        self.special = {*special.values(), *map(text_of, settings.extra)}
        for content in [*special.values(), *map(text_of, settings.extra)]:
            if content not in self.added:
                self.added[content] = self.vocab.get(content, next_id)
                self.added_by_id[self.added[content]] = AddedToken(content, special=True)
                next_id += content not in self.vocab
        self.special.update(token.content for token in self.added_by_id.values() if token.special)
        self.unknown = self.vocab[special["unk_token"]]
        self.first, self.last = (self._id(special[role]) for role in ("cls_token", "sep_token"))
        self.encode_special_tokens = True
        self._spelling = {token_id: token for token, token_id in {**self.vocab, **self.added}.items()}
        self._cache: dict[str, list[int]] = {}
        self._max_length, self._direction = 0, "right"

    @classmethod
    def from_files(
        cls, vocab_file: Path, codes_file: Path, special: Mapping[str, str], settings: TokenizerSettings
    ) -> "FastBpe":
        """From vocab.txt ("token count" on each line) and bpe.codes ("left right count", strongest merge first)."""
        vocab = {special[role]: token_id for token_id, role in enumerate(FIRST_ROLES)}
        for number, line in enumerate(_lines(vocab_file), 1):
            token, space, _ = line.strip().rpartition(" ")
            if not space:
                raise InputError(f"{vocab_file}: line {number} is {line[:40]!r}; expected a token, a space and a count")
            vocab[token] = len(vocab)
        ranks = {}
        for rank, line in enumerate(_lines(codes_file)):
            pieces = line.split()[:-1]
            if line.isspace() or not line.endswith("\n"):  # transformers leaves out a last line without its end
                continue
            if len(pieces) != 2:
                raise InputError(f"{codes_file}: line {rank + 1} is {line[:40]!r}; expected two pieces and a count")
            ranks[pieces[0], pieces[1]] = rank
        return cls(vocab, ranks, special, settings)

    def no_padding(self) -> None:
        """There is none."""

    def enable_truncation(self, max_length: int, direction: str = "right") -> None:
        self._max_length, self._direction = max_length, direction

    def no_truncation(self) -> None:
        self._max_length = sys.maxsize

    def num_special_tokens_to_add(self, is_pair: bool) -> int:
        """How many special tokens stand around one text."""
        return 2

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return {**self.vocab, **self.added} if with_added_tokens else dict(self.vocab)

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return dict(self.added_by_id)

    def token_to_id(self, token: str) -> int | None:
        return self.added.get(token, self.vocab.get(token))

    def id_to_token(self, token_id: int) -> str | None:
        return self._spelling.get(token_id)

    def encode_batch_fast(self, texts: Sequence[Text]) -> list[FastBpeEncoding]:
        return [self.encode(text) if isinstance(text, str) else self.encode_pair(*text) for text in texts]

    def encode(self, text: str, add_special_tokens: bool = True) -> FastBpeEncoding:
        """Token ids of one text; TypeError for a lone surrogate, as from the tokenizers library."""
        ids = self._ids_of_text(text)
        place = self._kept(len(ids), 2 * add_special_tokens)
        kept, cut = ids[place], [*ids[: place.start], *ids[place.stop :]]
        around = [self.first, *kept, self.last] if add_special_tokens else kept
        mask = [1, *[0] * len(kept), 1] if add_special_tokens else [0] * len(kept)
        return FastBpeEncoding(around, [FastBpeEncoding(cut, [], [0] * len(cut))] if cut else [], mask)

    def encode_pair(self, first: str, second: str) -> FastBpeEncoding:
        """Token ids of a pair, `<s> first </s></s> second </s>`; TypeError for a lone surrogate.

        A pair that is too long loses tokens of its longer text, then of both in turn, as transformers cuts it.
        """
        (of_first, cut), (of_second, also_cut) = self._kept_of_pair(self._ids_of_text(first), self._ids_of_text(second))
        around = [self.first, *of_first, self.last, self.last, *of_second, self.last]
        mask = [1, *[0] * len(of_first), 1, 1, *[0] * len(of_second), 1]
        cut = [*cut, *also_cut]
        return FastBpeEncoding(around, [FastBpeEncoding(cut, [], [0] * len(cut))] if cut else [], mask)

    def _kept_of_pair(self, first: list[Any], second: list[Any]) -> list[tuple[list[Any], list[Any]]]:
        """What truncation leaves of each text's tokens, and what it takes."""
        n_cut = max(0, len(first) + len(second) + 4 - max(self._max_length, 4))
        n_of_longer = min(abs(len(first) - len(second)), n_cut)
        n_of_first = (n_cut - n_of_longer) // 2 + n_of_longer * (len(first) > len(second))
        split = []
        for tokens, n in ((first, n_of_first), (second, n_cut - n_of_first)):
            if self._direction == "left":
                split.append((tokens[n:], tokens[:n]))
            else:
                split.append((tokens[: len(tokens) - n], tokens[len(tokens) - n :]))
        return split

    def _ids_of_text(self, text: str) -> list[int]:
        """Token ids without special tokens around them, not truncated."""
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise TypeError("lone surrogate")
        looked_for = self._looked_for()
        return [token_id for piece in self._split(text, looked_for) for token_id in self._ids(piece, looked_for)]

    def offsets(self, text: str) -> list[tuple[int, int] | None]:
        """The place of each token of `encode(text)`, text[start:end]; None for the special tokens around it."""
        places = self._places(text)
        return [None, *places[self._kept(len(places), 2)], None]

    def offsets_of_pair(self, first: str, second: str) -> list[tuple[int, int] | None]:
        """The place of each token of `encode_pair` in its own text; None for the special tokens."""
        texts = self._places(first), self._places(second)
        (of_first, _), (of_second, _) = self._kept_of_pair(*texts)
        return [None, *of_first, None, None, *of_second, None]

    def _places(self, text: str) -> list[tuple[int, int]]:
        """The place of each token of a text, not truncated."""
        looked_for, places, end = self._looked_for(), [], 0
        for piece in self._split(text, looked_for):
            words = [piece] if piece in looked_for else WORD.findall(piece)
            for part in (part for word in words for part in ([word] if piece in looked_for else self._parts(word))):
                start = text.index(part, end)
                end = start + len(part)
                places.append((start, end))
        return places

    def _looked_for(self) -> dict[str, AddedToken]:
        return {
            token.content: token
            for token in self.added_by_id.values()
            if token.content and not (self.encode_special_tokens and token.content in self.special)
        }

    def _kept(self, n_tokens: int, n_special: int) -> slice:
        """What truncation leaves of a text's tokens."""
        n_kept = min(n_tokens, max(self._max_length - n_special, 0))
        return slice(n_tokens - n_kept, n_tokens) if self._direction == "left" else slice(0, n_kept)

    def _ids(self, piece: str, looked_for: Mapping[str, AddedToken]) -> list[int]:
        """Ids of an added token, or of the words of a piece of text."""
        if piece in looked_for:
            return [self.added[piece]]
        return [token_id for word in WORD.findall(piece) for token_id in self._word(word)]

    def _word(self, word: str) -> list[int]:
        if word not in self._cache:
            if len(self._cache) >= MAX_CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = [self._id(piece) for piece in self._pieces(word)]
        return self._cache[word]

    def _pieces(self, word: str) -> list[str]:
        """A word's tokens as the vocabulary spells them."""
        *parts, last = self._parts(word)
        return [f"{part}@@" for part in parts] + [last]

    def _parts(self, word: str) -> list[str]:
        """Merge the two neighbours that come first in bpe.codes, until no neighbours stand there."""
        pieces = [*word[:-1], word[-1] + END]
        while len(pieces) > 1:
            best = min(pairwise(pieces), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            pieces = _merged(pieces, best)
        return [*pieces[:-1], pieces[-1].removesuffix(END)]

    def _id(self, token: str) -> int:
        found = self.token_to_id(token)
        return self.unknown if found is None else found

    def _split(self, text: str, looked_for: Mapping[str, AddedToken]) -> list[str]:
        """A text cut where added tokens stand, with their flags as transformers' Python tokenizers read them."""
        if not looked_for:
            return [text]
        longest_first = sorted(looked_for, key=len, reverse=True)
        pieces = [piece for piece in re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if piece]
        for index, piece in enumerate(pieces):
            token = looked_for.get(piece)
            if token is None:
                continue
            left, right = pieces[index - 1] if index else "", pieces[index + 1] if index + 1 < len(pieces) else ""
            if token.rstrip and right:
                pieces[index + 1] = right.lstrip()
            if token.lstrip and left:
                pieces[index - 1] = left.rstrip()
            if token.single_word and left and left[-1] != " ":
                pieces[index - 1] += piece
                pieces[index] = ""
            elif token.single_word and right and right[0] != " ":
                pieces[index] = ""
                pieces[index + 1] = piece + pieces[index + 1]
        return [piece for piece in pieces if piece]


def _merged(pieces: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """The pieces with every occurrence of the pair joined, from the left."""
    joined: list[str] = []
    index = 0
    while index < len(pieces):
        if tuple(pieces[index : index + 2]) == pair:
            joined.append(pieces[index] + pieces[index + 1])
            index += 2
        else:
            joined.append(pieces[index])
            index += 1
    return joined


def _lines(path: Path) -> list[str]:
    """The lines of a text file, split as Python's text files split them."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readlines()
    except ValueError as error:
        raise InputError(f"{path}: not readable as tokenizer files ({error}); fetch the file again") from error
