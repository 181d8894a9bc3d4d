"""Token ids equal transformers' AutoTokenizer for random settings in every file of a tokenizer, on texts in many scripts."""

import json
import shutil

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    usable = [token for token in [*marks, *WORDS[:2], *LETTERS[:2]] if token in vocabulary] + listed
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


def fresh(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


RANDOM = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.parametrize("has_whole", [False, True], ids=["vocabulary", "tokenizer.json"])
@pytest.mark.parametrize("family", CONFIGS)
@RANDOM
@given(data=st.data())
def test_ids_equal_transformers_for_random_settings(family, has_whole, data, tmp_path_factory):
    if family == "xlm-roberta" and not has_whole:
        return
    folder = fresh(tmp_path_factory)
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
