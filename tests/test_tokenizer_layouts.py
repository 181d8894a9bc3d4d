"""Token ids equal transformers' AutoTokenizer for random settings in every file of a tokenizer, on texts in many scripts."""

import hashlib
import json
import shutil
import warnings

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import SHARED
from tokenizers import models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel

import spin_native as sn

transformers.logging.set_verbosity_error()

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

SCRIPTS = (
    st.sampled_from([*WORDS, *LETTERS]),
    st.sampled_from([*MARKERS, *BERT_MARKS, *ROBERTA_MARKS, END_OF_TEXT]),
    st.text("abcxyz \u00c0\u00e9\u00f1\u00fc\u0130\u01c5\u00df\u0301", max_size=6),
    st.text("\u65e5\u672c\u8a9e\u4e00\u9fff\u3042\u30ab\uac00\U00020000\uff21", max_size=4),
    st.text("\u0645\u0631\u062d\u0628\u0627\u064b\u0640", max_size=5),
    st.text("\u0939\u093f\u0928\u094d\u0926\u0940", max_size=5),
    st.sampled_from(
        ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd"]
    ),
    st.text("\x00\x07\x1b\x1c\x85\xa0\u200b\u2028\u3000\ufeff\ufffd\t\r\n ", max_size=3),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=5),
)
TEXTS = st.lists(
    st.lists(st.tuples(st.one_of(SCRIPTS), st.sampled_from(["", " ", " ", "  "])).map("".join), max_size=9).map("".join),
    min_size=1,
    max_size=4,
)


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


def flags(**names):
    return st.fixed_dictionaries({}, optional={name: st.booleans() for name in names})


TOKEN_FLAGS = st.fixed_dictionaries(
    {name: st.booleans() for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
)
CONFIG_FLAGS = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.booleans() for name in ("do_lower_case", "tokenize_chinese_chars", "add_prefix_space")},
        **{name: st.booleans() for name in ("add_bos_token", "add_eos_token", "split_special_tokens")},
        "strip_accents": st.sampled_from([None, True, False]),
        "truncation_side": st.sampled_from(["left", "right"]),
        "model_max_length": st.sampled_from([7, 512, 10**30]),
    },
)
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@st.composite
def layouts(draw, family, vocabulary, has_whole):
    """Random contents of the JSON files beside a vocabulary. Tokens around a text are always listed once (DIVERGENCES)."""
    marks = {"bert": BERT_MARKS, "distilbert": BERT_MARKS, "gpt2": [END_OF_TEXT]}.get(family, ROBERTA_MARKS)
    config = draw(CONFIG_FLAGS)
    first_free = len(vocabulary)
    contents = draw(st.lists(st.sampled_from([*MARKERS, *marks]), unique=True, max_size=5))
    added = {first_free + i: {"content": token, **draw(TOKEN_FLAGS)} for i, token in enumerate(contents)}
    where = draw(st.sampled_from(["nowhere", "decoder", "added_tokens.json"]))
    listed = contents if where == "decoder" or (where == "added_tokens.json" and not has_whole) else []
    usable = [token for token in [*marks, *WORDS[:2], *LETTERS[:2]] if token in vocabulary]
    usable += [token for token in listed if " " not in token]  # transformers' template takes no token with a space
    roles = draw(st.dictionaries(st.sampled_from(ROLES), st.sampled_from(usable), max_size=3))
    if "unk_token" in roles:
        roles["unk_token"] = draw(st.sampled_from(marks))
    written = {"tokenizer_config.json": config}
    if where == "decoder":
        config["added_tokens_decoder"] = {str(token_id): token for token_id, token in added.items()}
    elif where == "added_tokens.json":
        written["added_tokens.json"] = {token["content"]: token_id for token_id, token in added.items()}
    if draw(st.booleans()) and where != "decoder":
        as_object = draw(st.booleans())
        entry = {name: draw(st.booleans()) for name in ("lstrip", "rstrip", "single_word", "normalized")}
        written["special_tokens_map.json"] = {
            role: {"content": token, **entry} if as_object else token for role, token in roles.items()
        }
    else:
        config.update(roles)
    if draw(st.booleans()):
        config[draw(st.sampled_from(["additional_special_tokens", "extra_special_tokens"]))] = draw(
            st.lists(st.sampled_from(MARKERS), unique=True, max_size=2)
        )
    names = {"bert": "Bert", "distilbert": "DistilBert", "mpnet": "MPNet", "roberta": "Roberta", "gpt2": "GPT2"}
    name = names.get(family, "XLMRoberta") + "Tokenizer"
    if named := draw(st.sampled_from([None, name, name + "Fast"])):
        config["tokenizer_class"] = named
    return written


def write_config(folder, family, n_vocab, **more):
    shape = {"max_position_embeddings": N_POSITIONS + 2, "vocab_size": n_vocab, "layer_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps({"model_type": family, **shape, **CONFIGS[family], **more}))


def assert_ids_equal(folder, texts, splits_added_tokens=False):
    """Both readings of special tokens in a text, against transformers.

    splits_added_tokens: transformers with split_special_tokens also splits added tokens that are not special (DIVERGENCES).
    """
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    for special_tokens_in_text, options in ((False, {"split_special_tokens": True}), (True, {})):
        if splits_added_tokens and not special_tokens_in_text:
            continue
        ours = sn.load_tokenizer(str(folder), special_tokens_in_text=special_tokens_in_text)
        for text in texts:
            expected = reference(text, truncation=True, max_length=ours.max_tokens, **options)["input_ids"]
            if expected:
                assert ours.encode([text]).ids == [expected], (text, special_tokens_in_text)
            elif END_OF_TEXT in reference.get_vocab():  # DIVERGENCES: an empty text
                assert ours.encode([text]).ids == [reference.convert_tokens_to_ids([END_OF_TEXT])]
            else:
                with pytest.raises(sn.InputError, match="an empty text has no tokens"):
                    ours.encode([text])


RANDOM = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


LAYOUTS = [(family, has_whole) for family in CONFIGS for has_whole in (False, True) if has_whole or family != "xlm-roberta"]


@pytest.mark.parametrize(("family", "has_whole"), LAYOUTS)
@RANDOM
@given(data=st.data())
def test_ids_equal_transformers_for_random_settings(family, has_whole, data, tmp_path_factory):
    check_random_settings(family, has_whole, data, tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.nightly
@pytest.mark.parametrize(("family", "has_whole"), LAYOUTS)
@settings(RANDOM, max_examples=1000)
@given(data=st.data())
def test_ids_equal_transformers_for_many_random_settings(family, has_whole, data, tmp_path_factory):
    check_random_settings(family, has_whole, data, tmp_path_factory.mktemp("tokenizer"))


def check_random_settings(family, has_whole, data, folder):
    whole = write_vocabulary(folder, family)
    vocabulary = whole.get_vocab()
    write_config(folder, family, len(vocabulary) + 20)
    if has_whole:
        added = data.draw(st.lists(st.tuples(st.sampled_from(MARKERS), TOKEN_FLAGS), max_size=3), label="tokenizer.json")
        whole.add_tokens([tokenizers.AddedToken(token, **options) for token, options in added])
        if data.draw(st.booleans(), label="truncation"):
            whole.enable_truncation(5, direction=data.draw(st.sampled_from(["left", "right"])))
        if data.draw(st.booleans(), label="template"):
            mark = END_OF_TEXT if family == "gpt2" else "the" if "the" in vocabulary else "a"
            whole.post_processor = processors.TemplateProcessing(single=f"{mark} $A", special_tokens=[(mark, vocabulary[mark])])
        whole.save(str(folder / "tokenizer.json"))
    written = data.draw(layouts(family, vocabulary, has_whole), label="files")
    if has_whole and data.draw(st.booleans(), label="as it stands"):
        written["tokenizer_config.json"]["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    assert_ids_equal(folder, data.draw(TEXTS, label="texts"))
    shutil.rmtree(folder)


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


@RANDOM
@given(data=st.data())
def test_bertweet_ids_equal_transformers_for_random_settings(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_fast_bpe(folder)
    vocabulary = [*ROBERTA_MARKS[:4], *dict.fromkeys(FAST_BPE_TOKENS)]
    write_config(folder, "roberta", len(vocabulary) + 20)
    written = data.draw(layouts("roberta", vocabulary, True), label="files")
    written["tokenizer_config.json"]["tokenizer_class"] = "BertweetTokenizer"
    written["tokenizer_config.json"].pop("split_special_tokens", None)
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_ids_equal(folder, data.draw(TEXTS, label="texts"), splits_added_tokens=True)
    shutil.rmtree(folder)


REAL = ("bert-base-uncased", "distilbert-base-uncased", "roberta-base", "gpt2")


@pytest.mark.skipif(not SHARED.exists(), reason="real tokenizer files lie in ../shared, which is not here")
@pytest.mark.parametrize("folder", REAL)
@settings(RANDOM, max_examples=2)
@given(data=st.data())
def test_ids_equal_transformers_for_random_settings_of_real_tokenizers(folder, data, tmp_path_factory):
    copy = tmp_path_factory.mktemp("tokenizer")
    family = folder.split("-")[0]
    for path in (SHARED / "tokenizers" / folder).iterdir():
        if path.name in ("vocab.txt", "vocab.json", "merges.txt") or (
            path.name == "tokenizer.json" and data.draw(st.booleans())
        ):
            shutil.copy(path, copy)
    write_config(copy, family, 60000)
    vocabulary = transformers.AutoTokenizer.from_pretrained(copy).get_vocab()
    for name, content in data.draw(layouts(family, vocabulary, True)).items():
        (copy / name).write_text(json.dumps(content), encoding="utf-8")
    assert_ids_equal(copy, data.draw(TEXTS))
    shutil.rmtree(copy)


@pytest.fixture
def bert(tmp_path):
    """A folder with a vocab.txt and a config of BERT."""
    write_vocabulary(tmp_path, "bert")
    write_config(tmp_path, "bert", 200)
    return tmp_path


def configured(folder, **content):
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return sn.load_tokenizer(folder)


def test_a_long_text_is_cut_on_the_left_where_the_files_say_so(bert):
    text = "the " * 40 + "film"
    reference = transformers.AutoTokenizer.from_pretrained(bert, truncation_side="left")
    ours = configured(bert, truncation_side="left")
    assert ours.encode([text]).ids == [reference(text, truncation=True, max_length=N_POSITIONS + 2)["input_ids"]]
    assert ours.encode([text]).truncated == [True]


def test_markers_are_read_as_themselves_only_where_the_caller_asks_for_it(bert):
    marker = {"content": "[E1]", "special": True}
    configured(bert, added_tokens_decoder={"130": marker})
    reference = transformers.AutoTokenizer.from_pretrained(bert)
    marked = sn.load_tokenizer(bert, special_tokens_in_text=True)
    (read,) = marked.encode(["[E1] film [SEP]"]).ids
    assert read == reference("[E1] film [SEP]")["input_ids"]
    plain = sn.load_tokenizer(bert)
    assert plain.encode(["[E1] film [SEP]"]).ids != [read]
    assert plain.fingerprint != marked.fingerprint


def test_the_fingerprint_changes_with_what_can_change_ids_and_with_nothing_else(bert):
    first = configured(bert, do_lower_case=True)
    for same in (
        {"model_max_length": 77, "chat_template": "x", "tokenizer_class": "BertTokenizerFast", "do_lower_case": True},
        {"strip_accents": True},  # what lower-casing does anyway
        {"pad_token": "[MASK]", "add_prefix_space": True, "add_bos_token": True},
    ):
        assert configured(bert, **same).fingerprint == first.fingerprint, same
    for other in (
        {"do_lower_case": False},
        {"strip_accents": False},
        {"cls_token": "[MASK]"},
        {"unk_token": "[MASK]"},
        {"truncation_side": "left"},
        {"added_tokens_decoder": {"130": {"content": "@USER", "special": False}}},
        {"tokenize_chinese_chars": False},
    ):
        assert configured(bert, **other).fingerprint != first.fingerprint, other
    configured(bert)
    transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(bert)  # the same tokenizer as tokenizer.json
    assert (bert / "tokenizer.json").exists()
    assert sn.load_tokenizer(bert).fingerprint == first.fingerprint


def test_a_classifier_and_a_store_with_a_fingerprint_of_the_old_kind_are_still_accepted(fitted, saved, tiny_model, tmp_path):
    old = sn.load_tokenizer(tiny_model).old_fingerprint
    digest = hashlib.sha256(b"vocab.txt" + (tiny_model / "vocab.txt").read_bytes()).hexdigest()
    assert old == digest
    description = json.loads((saved / "spin_classifier.json").read_text())
    description["base_model"]["tokenizer_fingerprint"] = old
    (saved / "spin_classifier.json").write_text(json.dumps(description))
    texts = ["good film", "bad film"]
    assert list(sn.SpinClassifier.from_pretrained(str(saved)).predict(texts)) == list(fitted.predict(texts))
    model, tokenizer, store = sn.load_model(str(tiny_model)), sn.load_tokenizer(tiny_model), tmp_path / "store"
    sn.extract(model, tokenizer, texts, store=store)
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, "tokenizer_fingerprint": old}))
    assert sn.extract(model, tokenizer, texts, store=store).n_rows == 2


def test_a_token_past_the_embedding_is_an_error_only_when_a_text_uses_it(bert):
    n_vocab = len(word_piece_vocab(BERT_MARKS))
    write_config(bert, "bert", n_vocab)
    ours = configured(bert, added_tokens_decoder={str(n_vocab): {"content": "@USER", "normalized": False}})
    assert len(ours.encode(["the film"]).ids[0]) == 4
    message = rf"text 1: token '@USER' has id {n_vocab}, the embedding has rows 0 to {n_vocab - 1}"
    with pytest.raises(sn.InputError, match=message):
        ours.encode(["the film", "the @USER"])
    with pytest.raises(sn.InputError, match=message):
        list(ours.batches(["the film", "the @USER"]))


@pytest.mark.parametrize("wrong", ["a str", b"bytes", {"a": 1}, {"a"}, None, 3])
def test_what_is_no_sequence_of_texts_or_ids_is_refused(bert, wrong, unchecked):
    ours = sn.load_tokenizer(bert)
    for read in (ours.encode, ours.token_strings):
        with pytest.raises(sn.InputError, match="expected"):
            read(wrong)


def test_ids_that_are_not_whole_numbers_of_the_vocabulary_are_refused(bert, unchecked):
    for wrong in ([1.5], ["1"], [None], [2**40], [2**70]):
        with pytest.raises(sn.InputError, match="token id"):
            sn.load_tokenizer(bert).token_strings(wrong)


DEEP = "[" * 100_000 + "]" * 100_000
DAMAGE = {
    "tokenizer_config.json": [
        b"\xff\xfe{",
        DEEP,
        "[1]",
        "{",
        '{"a": ' + "9" * 5000 + "}",
        '{"do_lower_case": "false"}',
        '{"strip_accents": 3}',
        '{"tokenizer_class": ["BertTokenizer"]}',
        '{"truncation_side": "middle"}',
        '{"cls_token": 3}',
        '{"cls_token": null}',
        '{"unk_token": null}',
        '{"added_tokens_decoder": {"-1": {"content": "a"}}}',
        '{"added_tokens_decoder": {"99999999999999999999999": {"content": "a"}}}',
        '{"added_tokens_decoder": {"9": {"content": "a", "lstrip": 3}}}',
        '{"added_tokens_decoder": {"9": {}}}',
        '{"added_tokens_decoder": [3]}',
        '{"additional_special_tokens": "a"}',
        '{"extra_special_tokens": [3]}',
        '{"fast_tokenizer_files": ["tokenizer.4.0.json"]}',
        '{"cls_token": "[NEW]"}',
        '{"cls_token": "\\ud800"}',
    ],
    "special_tokens_map.json": [DEEP, '{"cls_token": {"content": 3}}', '{"cls_token": []}'],
    "added_tokens.json": [DEEP, '{"a": -1}', '{"a": 1.5}', '{"a": 18446744073709551616}', '{"a": true}', "[]"],
    "tokenizer.json": [
        DEEP,
        "{}",
        "[]",
        '{"model": []}',
        '{"model": {"vocab": 3}}',
        '{"model": {"vocab": {"a": -1}}}',
        '{"model": {"vocab": {"a": 18446744073709551616}}}',
        '{"model": {"vocab": {}}}',
        '{"model": {"vocab": {"\\ud800": 1}}}',
        '{"model": {"vocab": {"[CLS]": 0}}, "added_tokens": [3]}',
        '{"model": {"vocab": {"[CLS]": 0}}, "truncation": 3}',
    ],
    "vocab.txt": [b"\xff\xfe", "", "\n\n"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, contents in DAMAGE.items() for content in contents])
def test_a_damaged_file_is_one_error_that_names_it(bert, name, content):
    (bert / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(sn.InputError, match=name.replace(".", r"\.")):
        sn.load_tokenizer(bert)


def test_a_panic_inside_the_tokenizers_library_is_one_error(tmp_path):
    write_config(tmp_path, "gpt2", 300)
    whole = write_vocabulary(tmp_path, "gpt2")
    whole.post_processor = processors.TemplateProcessing(single="a $A", special_tokens=[("a", 1)])
    content = json.loads(whole.to_str())
    content["post_processor"]["special_tokens"] = {}  # tokenizers 0.23 panics
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(sn.InputError, match=r"tokenizer\.json.*not readable as tokenizer files \(PanicException"):
        sn.load_tokenizer(tmp_path)


def test_an_unknown_word_without_an_unknown_token_names_its_text(bert):
    vocab = [word for word in word_piece_vocab(BERT_MARKS) if word != "[UNK]"]
    (bert / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    ours = sn.load_tokenizer(bert)
    assert len(ours.encode(["the film"]).ids[0]) == 4
    with pytest.raises(sn.InputError, match=r"text 3 .*cannot be encoded by this tokenizer .*Missing \[UNK\]"):
        ours.encode(["the film", "\u2603"], first_row=2)


def test_a_sentencepiece_model_alone_and_a_class_without_its_files_are_refused_with_the_remedy(tmp_path):
    write_config(tmp_path, "xlm-roberta", 50)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"model")
    with pytest.raises(sn.InputError, match=r"a sentencepiece model, but no tokenizer\.json; load it with transformers"):
        sn.load_tokenizer(tmp_path)
    write_vocabulary(tmp_path, "bert")
    with pytest.raises(sn.InputError, match=r"XLMRobertaTokenizer needs tokenizer\.json; load it with transformers"):
        sn.load_tokenizer(tmp_path)
    write_config(tmp_path, "roberta", 50)
    with pytest.raises(sn.InputError, match=r"RobertaTokenizer needs vocab\.json with merges\.txt or tokenizer\.json"):
        sn.load_tokenizer(tmp_path)


def test_bertweet_is_recognised_by_its_files_and_its_normalization_is_refused(tmp_path):
    write_fast_bpe(tmp_path)
    write_config(tmp_path, "roberta", 200)
    by_files = sn.load_tokenizer(tmp_path)
    write_config(tmp_path, "roberta", 200, tokenizer_class="BertweetTokenizer")
    assert sn.load_tokenizer(tmp_path).fingerprint == by_files.fingerprint
    with pytest.raises(sn.InputError, match="asks for BERTweet's normalization of tweets, which is not implemented"):
        configured(tmp_path, normalization=True)
    (tmp_path / "bpe.codes").write_text("t\n")
    with pytest.raises(sn.InputError, match=r"bpe\.codes: line 1 is 't.n'; expected two pieces and a count"):
        configured(tmp_path)
