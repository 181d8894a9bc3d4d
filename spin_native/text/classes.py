"""Vocabularies to tokenizers: each class of transformers 5 that the families use, as that release builds it.

transformers 5 does not run the tokenizer.json of these classes as it stands. It takes the vocabulary and the merges out of it,
and builds the rest from tokenizer_config.json and the defaults of the class.
"""

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from spin_native.text.settings import ROLES, Token, text_of

END_OF_TEXT = "<|endoftext|>"
BERT_TOKENS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
GPT2_TOKENS = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
Joins = Literal["types", "doubled", "repeated"]
CLASS_OF_FAMILY = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "mpnet": "MPNetTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
# Other names of the same classes, without the "Tokenizer" at their end.
ALIASES = {
    **dict.fromkeys(("DistilBert", "Electra", "MobileBert", "SqueezeBert", "LayoutLM", "Lxmert", "ConvBert"), "BertTokenizer"),
    **dict.fromkeys(("Bart", "Longformer", "LED"), "RobertaTokenizer"),
}


@dataclass(frozen=True)
class Parts:
    """What a class builds its tokenizer from.

    vocab: token -> id, or pairs of a token and its score in the order of ids. merges: pairs, strongest first.
    charsmap: the table of sentencepiece's normalization (base64), if there is one.
    special: role -> token. flags: those that the files set.
    """

    vocab: Any
    merges: list[tuple[str, str]]
    charsmap: str | None
    special: dict[str, Token]
    flags: dict[str, bool]


@dataclass(frozen=True)
class TokenizerClass:
    """How transformers builds one class of tokenizers.

    build: parts -> tokenizer without added tokens, and what of the parts can change its ids.
    vocabulary: its files where there is no tokenizer.json. special: default special tokens.
    around: the roles of the tokens before and after every text; None: the post-processor of tokenizer.json, or add_bos_token
        and add_eos_token, say it.
    mask_strips: the mask takes the space before it.
    joins: how the tokens around a text join two: "types", `[CLS] a [SEP] b [SEP]` with token types 0 and 1; "doubled",
        `<s> a </s></s> b </s>` with types 0; "repeated", the tokens around each text.
    """

    build: Callable[[Parts], tuple[tokenizers.Tokenizer, dict[str, Any]]]
    vocabulary: tuple[str, ...]
    special: dict[str, Token]
    around: tuple[str, str] | None
    mask_strips: bool = False
    joins: Joins = "doubled"

    def tokens(self, named: Mapping[str, Token | None]) -> dict[str, Token]:
        """Role -> special token, in transformers' order: those that files name, else the default ones. Null in a file: none."""
        special = {**self.special, **named}
        if self.mask_strips and isinstance(mask := special.get("mask_token"), str):
            special["mask_token"] = AddedToken(mask, lstrip=True)
        return in_order(special)


def word_piece(parts: Parts) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    vocab, unknown = _ids(parts.vocab), text_of(parts.special["unk_token"])
    lowercase = parts.flags.get("do_lower_case", True)
    text = {
        "lowercase": lowercase,
        "strip_accents": parts.flags.get("strip_accents", lowercase),
        "handle_chinese_chars": parts.flags.get("tokenize_chinese_chars", True),
    }
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(clean_text=True, **text)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend, {"model": "WordPiece", "vocab": vocab, "unknown": vocab.get(unknown), "text": text}


def byte_level_bpe(parts: Parts) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    vocab, prefix = _ids(parts.vocab), parts.flags.get("add_prefix_space", False)
    backend = tokenizers.Tokenizer(models.BPE(vocab, parts.merges, continuing_subword_prefix="", end_of_word_suffix=""))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return backend, {"model": "BPE", "vocab": vocab, "merges": parts.merges, "prefix_space": prefix}


def unigram(parts: Parts) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    vocab, prefix = [(piece, score) for piece, score in parts.vocab], parts.flags.get("add_prefix_space", True)
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=False))
    if parts.charsmap is not None:
        backend.normalizer = normalizers.Precompiled(base64.b64decode(parts.charsmap))
    words = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always" if prefix else "never")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    return backend, {"model": "Unigram", "vocab": vocab, "charsmap": parts.charsmap, "prefix_space": prefix}


def in_order(special: Mapping[str, Token | None]) -> dict[str, Token]:
    """Role -> token in transformers' order, without the roles that are None."""
    return {role: token for role in dict.fromkeys([*ROLES, *special]) if (token := special.get(role)) is not None}


def _ids(vocab: Any) -> dict[str, int]:
    """Token -> id, also from a list in the order of ids: of tokens, or of pairs of a token and its score."""
    if isinstance(vocab, dict):
        return vocab
    return {token[0] if isinstance(token, list) else token: index for index, token in enumerate(vocab)}


def parts_of_file(model: dict[str, Any], normalizer: dict[str, Any] | None) -> tuple[Any, list[tuple[str, str]], str | None]:
    """Vocabulary, merges and charsmap from these two parts of tokenizer.json."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or [])
    merges = [(left, right) for left, right in pairs]
    return model["vocab"], merges, next(_charsmaps(normalizer), None)


def _charsmaps(normalizer: dict[str, Any] | None) -> Iterator[str]:
    if normalizer:
        steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
        yield from (step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled")


# What tokenizer.json must hold for each way to build.
MODEL_OF: dict[Callable[..., Any], str] = {word_piece: "WordPiece", byte_level_bpe: "BPE", unigram: "Unigram"}
VOCAB_TXT, VOCAB_AND_MERGES = ("vocab.txt",), ("vocab.json", "merges.txt")
CLASSES = {
    "BertTokenizer": TokenizerClass(word_piece, VOCAB_TXT, {**BERT_TOKENS}, ("cls_token", "sep_token"), joins="types"),
    "MPNetTokenizer": TokenizerClass(
        word_piece, VOCAB_TXT, {**ROBERTA_TOKENS, "unk_token": "[UNK]"}, ("cls_token", "sep_token"), mask_strips=True
    ),
    "RobertaTokenizer": TokenizerClass(byte_level_bpe, VOCAB_AND_MERGES, {**ROBERTA_TOKENS}, ("cls_token", "sep_token")),
    "GPT2Tokenizer": TokenizerClass(byte_level_bpe, VOCAB_AND_MERGES, {**GPT2_TOKENS}, None, joins="repeated"),
    "XLMRobertaTokenizer": TokenizerClass(unigram, (), {**ROBERTA_TOKENS}, ("bos_token", "eos_token")),
}
