"""Token ids equal transformers' AutoTokenizer for random settings in every file of a tokenizer, on texts in many scripts."""

import json
import shutil
import warnings

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import SHARED
from tokenizer_folders import (
    BERT_MARKS,
    CONFIGS,
    END_OF_TEXT,
    FAST_BPE_TOKENS,
    LETTERS,
    MARKERS,
    ROBERTA_MARKS,
    WORDS,
    write_config,
    write_fast_bpe,
    write_vocabulary,
)
from tokenizers import processors

import spin_native as sn

transformers.logging.set_verbosity_error()

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
