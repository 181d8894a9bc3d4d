"""Tokenizers equal transformers' on nasty texts; batches hold every row once; what is no text is named."""

import itertools
import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SHARED, checkpoint

import spin_native as sn
from spin_native.text.packing import pack, windows
from spin_native.text.tokenizer import Tokenizer, TruncationWarning

NASTY = [
    "A plain tweet, with @user and #tags.",
    "",
    " ",
    "emoji 🎻👩‍👩‍👧 and 日本語のテキスト",
    "Café naïve Ångström ǅ İstanbul",
    "tabs\tnew\nlines\r\nand\u00a0no-break\u200bspace",
    "control \x00 \x07 \x1b characters",
    "Pneumonoultramicroscopicsilicovolcanoconiosis" * 4,
    "don't won't I'll we've 12,345.67 $5 50%",
    "   leading and trailing   ",
    "ﬁ ligature, ½, ①, ﷽",
    "x" * 150 + " over a hundred letters in one word",
]
REFERENCES = {
    "bert": (["bert-base-uncased/vocab.txt"], lambda f: transformers.BertTokenizer(vocab=str(f["vocab.txt"]))),
    "distilbert": (
        ["distilbert-base-uncased/vocab.txt"],
        lambda f: transformers.BertTokenizer(vocab=str(f["vocab.txt"])),
    ),
    "distilbert-json": (
        ["distilbert-base-uncased/tokenizer.json"],
        lambda f: transformers.PreTrainedTokenizerFast(tokenizer_file=str(f["tokenizer.json"])),
    ),
    "roberta": (
        ["roberta-base/vocab.json", "roberta-base/merges.txt", "roberta-base/tokenizer_config.json"],
        lambda f: transformers.RobertaTokenizer(vocab=str(f["vocab.json"]), merges=str(f["merges.txt"])),
    ),
    "gpt2": (
        ["gpt2/vocab.json", "gpt2/merges.txt"],
        lambda f: transformers.GPT2Tokenizer(vocab=str(f["vocab.json"]), merges=str(f["merges.txt"])),
    ),
    "gpt2-json": (
        ["gpt2/tokenizer.json"],
        lambda f: transformers.PreTrainedTokenizerFast(tokenizer_file=str(f["tokenizer.json"])),
    ),
}
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="real tokenizer files lie in ../shared, which is not here")


def real(kind, max_tokens=512):
    paths, reference = REFERENCES[kind]
    files = {path.split("/")[1]: SHARED / "tokenizers" / path for path in paths}
    return Tokenizer.from_files(files, max_tokens, kind.split("-")[0]), reference(files)


@needs_shared
@pytest.mark.parametrize("kind", REFERENCES)
def test_ids_equal_transformers_on_nasty_texts(kind):
    ours, reference = real(kind)
    end_of_text = {"gpt2": [50256], "gpt2-json": [50256]}
    for text, ids in zip(NASTY, ours.encode(NASTY).ids, strict=True):
        expected = reference(text)["input_ids"] or end_of_text[kind]  # an empty text has no tokens in GPT-2
        assert ids == expected, text


@needs_shared
def test_mpnet_ids_equal_transformers_from_a_vocabulary_and_from_tokenizer_json(tmp_path):
    words = (SHARED / "tokenizers" / "bert-base-uncased" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocab = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words, "<mask>"])}
    (tmp_path / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    reference = transformers.MPNetTokenizer(vocab=vocab)
    reference.save_pretrained(tmp_path)
    for name in ("vocab.txt", "tokenizer.json"):
        ours = Tokenizer.from_files({name: tmp_path / name}, 512, "mpnet")
        for text, ids in zip(NASTY, ours.encode(NASTY).ids, strict=True):
            assert ids == reference(text)["input_ids"], (name, text)


def test_xlm_roberta_ids_equal_transformers(tmp_path):
    pieces = [
        "\u2581",
        "\u2581good",
        "\u2581b",
        "ad",
        "\u2581film",
        "s",
        "e",
        "a",
        "b",
        "d",
        "f",
        "i",
        "l",
        "m",
        "\u65e5\u672c",
        "\u00e9",
    ]
    vocab = [*((token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")), *((p, -1.0 - i / 8) for i, p in enumerate(pieces))]
    reference = transformers.XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)])
    reference.save_pretrained(tmp_path)
    ours = Tokenizer.from_files({"tokenizer.json": tmp_path / "tokenizer.json"}, 512, "xlm-roberta")
    texts = [*NASTY, "good films", "bad  film\n", "\u65e5\u672c good", "\uff47\uff4f\uff4f\uff44 caf\u00e9", "unknown words"]
    for text, ids in zip(texts, ours.encode(texts).ids, strict=True):
        assert ids == reference(text)["input_ids"], text


@needs_shared
@pytest.mark.parametrize("kind", REFERENCES)
def test_token_strings_equal_transformers(kind):
    ours, reference = real(kind)
    for ids in ours.encode(NASTY).ids:
        assert ours.token_strings(ids) == reference.convert_ids_to_tokens(ids)
    for unknown in (-1, ours.n_vocab):
        with pytest.raises(sn.InputError, match=f"token id {unknown} is not in the vocabulary"):
            ours.token_strings([unknown])


@needs_shared
@pytest.mark.parametrize(
    ("kind", "literal", "special"),
    [("roberta", "</s>", 2), ("roberta", "<mask>", 50264), ("bert", "[SEP]", 102), ("gpt2-json", "<|endoftext|>", 50256)],
)
def test_a_literal_special_token_stays_text(kind, literal, special):
    ours, _ = real(kind)
    (ids,) = ours.encode([f"so {literal} they said"]).ids
    inner = ids if kind.startswith("gpt2") else ids[1:-1]
    assert special not in inner
    assert len(inner) > 5


@needs_shared
def test_case_is_kept_where_the_config_says_so(tmp_path):
    files = {"vocab.txt": SHARED / "tokenizers" / "bert-base-uncased" / "vocab.txt"}
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = Tokenizer.from_files({**files, "tokenizer_config.json": tmp_path / "tokenizer_config.json"}, 512, "bert")
    lowered = Tokenizer.from_files(files, 512, "bert")
    assert lowered.encode(["FILM"]).ids == lowered.encode(["film"]).ids
    assert cased.encode(["FILM"]).ids != cased.encode(["film"]).ids
    assert cased.encode(["film"]).ids == lowered.encode(["film"]).ids
    assert cased.fingerprint != lowered.fingerprint


@needs_shared
@pytest.mark.parametrize(("kind", "empty"), [("roberta", [0, 2]), ("bert", [101, 102]), ("gpt2", [50256])])
def test_an_empty_text_is_its_special_tokens_or_the_end_of_text(kind, empty):
    assert real(kind)[0].encode([""]).ids == [empty]


@needs_shared
@pytest.mark.parametrize("kind", ["roberta", "bert", "gpt2"])
def test_a_long_text_is_cut_with_its_special_tokens_kept_and_counted(kind):
    ours, reference = real(kind, max_tokens=12)
    texts = ["short", "one two three four five six seven eight nine ten eleven twelve thirteen"]
    encoded = ours.encode(texts)
    assert sum(encoded.truncated) == 1
    assert encoded.ids[1] == reference(texts[1], truncation=True, max_length=12)["input_ids"]
    with pytest.warns(TruncationWarning, match="1 of 2 texts were longer than 12 tokens and were cut") as warned:
        list(ours.batches(texts, window=1))
    assert len(warned) == 1


@pytest.fixture
def tokenizer(tiny_model):
    return sn.load_tokenizer(str(tiny_model))


def test_the_padding_and_truncation_that_a_tokenizer_file_asks_for_are_not_followed(minilm):
    asked = json.loads((minilm / "tokenizer.json").read_text())
    assert asked["padding"]["strategy"] == {"Fixed": 128}
    ours = sn.load_tokenizer(str(minilm))
    assert [len(ids) for ids in ours.encode(["one", "word " * 300]).ids] == [3, 302]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 80))
def test_batches_hold_every_row_once_within_the_budget_longest_first(lengths, max_tokens):
    batches = pack(lengths, max_tokens)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    laid = [lengths[row] for row in itertools.chain(*batches)]
    assert laid == sorted(lengths, reverse=True)
    assert all(len(rows) == 1 or sum(lengths[row] for row in rows) <= max_tokens for rows in batches)


def test_batches_name_the_rows_they_hold_across_windows(tokenizer):
    texts = ["good " * (row % 7) + "film" for row in range(50)]
    found = {}
    for batch, rows in tokenizer.batches(texts, max_tokens=20, window=8):
        assert len({row // 8 for row in rows}) == 1
        parts = batch.ids.split(list(batch.lengths))
        found.update({row: ids.tolist() for row, ids in zip(rows, parts, strict=True)})
    assert [found[row] for row in range(50)] == tokenizer.encode(texts).ids


def test_an_endless_stream_is_read_window_by_window(tokenizer):
    taken = []

    def endless():
        for row in itertools.count():
            taken.append(row)
            yield "good film"

    first = next(iter(tokenizer.batches(endless(), window=16)))
    assert len(first[1]) == len(taken) == 16


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "text 7 is missing .got None"),
        (float("nan"), "text 7 is missing .got nan"),
        (b"bytes", "text 7 is bytes; expected str: decode it"),
        (3.5, r"text 7 is float \(3.5\); expected str"),
        (["a"], r"text 7 is list"),
        ("half \udc80 a character", "text 7 holds half a character .a lone surrogate.: read the file as UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_with_its_row(tokenizer, wrong, message, unchecked):
    with pytest.raises(sn.InputError, match=message):
        list(tokenizer.batches(["good"] * 7 + [wrong] + ["bad"] * 3, window=4))


def test_one_str_and_a_budget_of_nothing_are_refused(tokenizer):
    with pytest.raises(sn.InputError, match=r"texts is one str; expected several texts"):
        list(tokenizer.batches("good film"))
    with pytest.raises(sn.InputError, match="max_tokens is 0"):
        list(tokenizer.batches(["good"], max_tokens=0))
    assert list(windows([], 3)) == []


def test_an_empty_gpt2_text_without_an_end_of_text_token_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    files = {name: tmp_path / name for name in ("vocab.json", "merges.txt")}
    plain = Tokenizer.from_files(files, 9, "gpt2")
    assert plain.encode(["ab"]).ids == [[0, 1]]
    with pytest.raises(sn.InputError, match=r"an empty text has no tokens.*<\|endoftext\|>"):
        plain.encode([""])
    with pytest.raises(sn.InputError, match="holds no <s>, which every text of this model needs"):
        Tokenizer.from_files(files, 9, "roberta")


def test_a_tokenizer_that_does_not_fit_is_missing_or_is_damaged_is_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(Path(checkpoint("bert")[0], "config.json").read_bytes())
    with pytest.raises(sn.InputError, match=r"holds no tokenizer\.json, vocab\.json with merges\.txt, or vocab\.txt"):
        sn.load_tokenizer(str(tmp_path))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(47))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    past_the_embedding = sn.load_tokenizer(str(tmp_path))
    assert past_the_embedding.encode(["45"]).ids == [[2, 49, 3]]
    with pytest.raises(sn.InputError, match="text 8 has token '46' of id 50, the embedding has rows 0 to 49"):
        past_the_embedding.encode(["45", "46"], first_row=7)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model":')
    with pytest.raises(sn.InputError, match="not readable as tokenizer files"):
        sn.load_tokenizer(str(tmp_path))


def test_a_tokenizer_of_another_model_is_refused_at_extraction(tiny_model):
    with pytest.raises(sn.InputError, match="they do not belong together"):
        sn.extract(sn.load_model(checkpoint("bert")[0]), sn.load_tokenizer(str(tiny_model)), ["good"])
