"""Tokenizer folders of tiny vocabularies, one per family, for comparisons with transformers."""

import json

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

N_POSITIONS, END_OF_TEXT = 24, "<|endoftext|>"
CONFIGS = {
    "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "type_vocab_size": 2},
    "distilbert": {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8},
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": N_POSITIONS},
}
CONFIGS["roberta"] = CONFIGS["xlm-roberta"] = CONFIGS["mpnet"] = {**CONFIGS["bert"], "pad_token_id": 1}
BERT_MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_MARKS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = ["the", "film", "was", "good", "caf\u00e9", "cafe", "Stra\u00dfe", "\u65e5", "\u672c", "\u0939\u093f", "USER", "Film"]
LETTERS = [*"abcdefghijklmnoprstuvwxyzABCEFU0123@#.,!?'<>/[]", "\u00e9", "\u0301", "\u0645", "\u0631", "\U0001f468"]
MARKERS = ["@USER", "HTTPURL", "[E1]", "[/E1]", "<extra>", "caf\u00e9s", "\u65e5\u672c", "new token"]


def word_piece_vocab(marks):
    return list(
        dict.fromkeys([*marks, *WORDS, *LETTERS, *("##" + letter for letter in LETTERS), "##film", "##s", "new", "token"])
    )


def byte_level_vocab(marks):
    """All bytes, and a few merges."""
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("\u0120", "f"),
        ("o", "o"),
        ("\u0120f", "i"),
        ("\u00c3", "\u00a9"),
        ("U", "S"),
        ("@", "US"),
    ]
    bytes_ = sorted(ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*marks, *bytes_, *("".join(pair) for pair in merges)])}
    return vocab, merges


def unigram_vocab():
    pieces = ["\u2581", "\u2581the", "\u2581film", "oo", "caf\u00e9", "\u65e5\u672c", "USER", "@", *LETTERS]
    return [*((mark, 0.0) for mark in ROBERTA_MARKS[:4]), *((p, -1.0 - i / 8) for i, p in enumerate(pieces)), ("<mask>", 0.0)]


def write_vocabulary(folder, family):
    """The vocabulary files of a family; returns what a tokenizer.json of them would hold, made with the tokenizers library."""
    if family in ("bert", "distilbert", "mpnet"):
        vocab = word_piece_vocab(BERT_MARKS if family != "mpnet" else [*ROBERTA_MARKS, "[UNK]"])
        (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
        whole = tokenizers.Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]"))
        whole.normalizer = normalizers.BertNormalizer(lowercase=False)
        whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return whole
    if family == "xlm-roberta":
        whole = tokenizers.Tokenizer(models.Unigram(unigram_vocab(), unk_id=3))
        whole.pre_tokenizer = pre_tokenizers.Metaspace()
        return whole
    vocab, merges = byte_level_vocab(ROBERTA_MARKS if family == "roberta" else [END_OF_TEXT])
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    whole = tokenizers.Tokenizer(models.BPE(vocab, merges))
    whole.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return whole


FAST_BPE_PAIRS = ["t h", "th e</w>", "f i", "fi l", "U S", "US E", "USE R</w>", "@ USER</w>", "g o", "o d</w>", "\u00e9 </w>"]
FAST_BPE_TOKENS = [
    "the",
    "fil@@",
    "m",
    "@USER",
    "@@@",
    "go@@",
    "od",
    "f@@",
    "i@@",
    "\u65e5",
    "\u00e9",
    *LETTERS[:30],
    "t@@",
    "h@@",
]


def write_fast_bpe(folder):
    (folder / "vocab.txt").write_text("".join(f"{token} {9}\n" for token in FAST_BPE_TOKENS), encoding="utf-8")
    (folder / "bpe.codes").write_text("".join(f"{pair} {9}\n" for pair in FAST_BPE_PAIRS), encoding="utf-8")


def write_config(folder, family, n_vocab, **more):
    shape = {"max_position_embeddings": N_POSITIONS + 2, "vocab_size": n_vocab, "layer_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps({"model_type": family, **shape, **CONFIGS[family], **more}))
