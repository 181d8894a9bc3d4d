"""Tokenizer files of every layout: what counts, what is refused and how, and where ids differ from transformers' on purpose."""

import hashlib
import json

import pytest
import transformers
from tokenizer_folders import BERT_MARKS, N_POSITIONS, word_piece_vocab, write_config, write_fast_bpe, write_vocabulary
from tokenizers import processors

import spin_native as sn
from spin_native.text.files import DIVERGENCES

transformers.logging.set_verbosity_error()


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
    message = rf"text 1 has token '@USER' of id {n_vocab}, the embedding has rows 0 to {n_vocab - 1}"
    with pytest.raises(sn.InputError, match=message):
        ours.encode(["the film", "the @USER"])
    with pytest.raises(sn.InputError, match=message):
        list(ours.batches(["the film", "the @USER"]))


@pytest.mark.parametrize("wrong", ["a str", b"bytes", {"a": 1}, {"a"}, None, 3])
def test_what_is_no_sequence_of_texts_or_ids_is_refused(bert, wrong, unchecked):
    ours = sn.load_tokenizer(bert)
    for read in (ours.encode, ours.token_strings):
        with pytest.raises(sn.InputError, match=r"expected|pass a list"):
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


def test_a_sentencepiece_model_alone_and_a_class_without_its_files_are_refused(tmp_path):
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


def test_offsets_of_bertweet_spell_its_tokens(tmp_path):
    write_fast_bpe(tmp_path)
    write_config(tmp_path, "roberta", 200, tokenizer_class="BertweetTokenizer")
    for ours in (sn.load_tokenizer(tmp_path), sn.load_tokenizer(tmp_path, special_tokens_in_text=True)):
        for text in ("the film  was", " film\nthe ", "was <mask> the", "the @@ @ film" + " was" * 300, ""):
            ids, places = ours.encode([text]).ids[0], ours.offsets(text)
            assert places[0] is places[-1] is None
            assert len(places) == len(ids)
            ids_of = ours._backend.get_vocab()
            for token_id, (start, end) in zip(ids[1:-1], places[1:-1], strict=True):
                spelled = text[start:end]
                assert token_id in (ids_of.get(spelled), ids_of.get(f"{spelled}@@"), ids_of["<unk>"]), text
            assert places[1:-1] == sorted(places[1:-1])


def test_the_mask_and_the_words_of_bertweet_are_transformers(tmp_path):
    write_fast_bpe(tmp_path)
    write_config(tmp_path, "roberta", 200, tokenizer_class="BertweetTokenizer")
    ours, reference = sn.load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.mask_id == reference.mask_token_id
    assert ours.encode_prompts(["the <mask> film"]) == [reference("the <mask> film")["input_ids"]]
    assert ours.ids_of_word("the") == reference("the", add_special_tokens=False)["input_ids"]
    with pytest.raises(sn.InputError, match=r"is \d+ tokens"):
        ours.ids_of_word("the film")


def test_a_first_token_that_no_file_lists_is_refused(bert):
    with pytest.raises(sn.InputError, match=r"holds no \[NEW\], which every text of this model needs"):
        configured(bert, cls_token="[NEW]")


def test_an_unknown_class_uses_tokenizer_json_as_it_stands(tmp_path):
    write_config(tmp_path, "bert", 200)
    write_vocabulary(tmp_path, "bert").save(str(tmp_path / "tokenizer.json"))  # keeps case; BertTokenizer would not
    ours = configured(tmp_path, tokenizer_class="OfMyOwn")
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode(["Film film"]).ids == [reference("Film film")["input_ids"]]
    assert ours.encode(["Film"]).ids != ours.encode(["film"]).ids


def test_a_tokenizer_json_of_another_kind_than_its_class_is_refused(tmp_path):
    """Built anyway, it would give other ids without a word: a Unigram vocabulary read by RoBERTa's class, for one."""
    write_config(tmp_path, "roberta", 200)
    write_vocabulary(tmp_path, "bert").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(sn.InputError, match="holds a WordPiece model, RobertaTokenizer needs BPE; name the right"):
        sn.load_tokenizer(tmp_path)


def test_model_max_length_is_no_limit(bert):
    assert len(configured(bert, model_max_length=5).encode(["the " * 90]).ids[0]) == N_POSITIONS + 2


def test_a_lone_surrogate_is_refused_in_every_kind_of_tokenizer(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bertweet")
    write_fast_bpe(folder)
    write_config(folder, "roberta", 200)
    for tokenizer in (sn.load_tokenizer(bert), sn.load_tokenizer(folder)):
        with pytest.raises(sn.InputError, match="text 1 holds half a character"):
            tokenizer.encode(["the", "half \ud83d"])


# Every divergence from transformers -> the test that shows it.
SHOWN_BY = {
    "a special token in a text": test_markers_are_read_as_themselves_only_where_the_caller_asks_for_it,
    "an added token of BERTweet that is not special": "test_tokenizer_layouts: splits_added_tokens",
    "an empty text without special tokens around it (GPT-2)": "test_tokenizer_layouts: assert_ids_equal",
    "a pair whose second text is empty": "test_pairs: test_a_pair_whose_second_text_is_empty_stays_a_pair",
    "a lone surrogate": test_a_lone_surrogate_is_refused_in_every_kind_of_tokenizer,
    "model_max_length and tokenizer.json's truncation length": test_model_max_length_is_no_limit,
    "a first or last token that no file lists": test_a_first_token_that_no_file_lists_is_refused,
    "missing vocabulary files": test_a_sentencepiece_model_alone_and_a_class_without_its_files_are_refused,
    "a sentencepiece model (.model)": test_a_sentencepiece_model_alone_and_a_class_without_its_files_are_refused,
    "BERTweet with normalization": test_bertweet_is_recognised_by_its_files_and_its_normalization_is_refused,
    "a setting of a wrong type": test_a_damaged_file_is_one_error_that_names_it,
    "another tokenizer class": test_an_unknown_class_uses_tokenizer_json_as_it_stands,
}


def test_every_divergence_from_transformers_is_shown_by_a_test():
    assert SHOWN_BY.keys() == DIVERGENCES.keys()
