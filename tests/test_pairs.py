"""Pairs of texts: ids and token types as transformers' tokenizers give them, values as its models, and the same everywhere."""

import copy
import hashlib
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from commands import QUICK_OPTIONS, Spin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import MAX_TOKENS, N_VOCAB, QUICK, checkpoint, our_values
from tokenizer_folders import (
    BERT_MARKS,
    CONFIGS,
    END_OF_TEXT,
    FAST_BPE_TOKENS,
    ROBERTA_MARKS,
    WORDS,
    write_config,
    write_fast_bpe,
    write_vocabulary,
)
from tokenizers import processors

import spin_native as sn
from spin_native.classifier.estimators import load_pretrained
from spin_native.classifier.splits import split
from spin_native.classifier.tasks import Classes
from spin_native.errors import LeakWarning
from spin_native.features.blocks import text_ids, texts_digest
from spin_native.parity import activation_functions
from spin_native.text.batch import TokenBatch

transformers.logging.set_verbosity_error()

PAIRS = [
    ("the film was good", "the film"),
    ("", "good"),
    ("good", ""),
    ("", ""),
    ("the caf\u00e9 [SEP] </s> <|endoftext|>", " was @USER good"),
    ("the film was good " * 9, "good"),
    ("good", "the film was good " * 9),
    ("the film was good " * 9, "was the good film " * 9),
    ("the film was good film", "was " * 40),
    ("good\n", "\u65e5\u672c good"),
]
TEXT = st.lists(st.sampled_from([*WORDS, "[SEP]", "</s>", "@USER", " ", "\u0301"]), max_size=14).map(" ".join)


def written(folder, family, has_whole, **config):
    """A tokenizer folder of a family, its config.json beside it, with a tokenizer.json or without."""
    whole = write_vocabulary(folder, family)
    write_config(folder, family, 400)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if has_whole:
        if family != "gpt2":
            marks = BERT_MARKS if family in ("bert", "distilbert") else ROBERTA_MARKS
            first, last = ("[CLS]", "[SEP]") if marks is BERT_MARKS else ("<s>", "</s>")
            ids = [(last, whole.token_to_id(last)), (first, whole.token_to_id(first))]
            whole.post_processor = processors.BertProcessing(*ids)
            whole.add_special_tokens(marks)
        whole.save(str(folder / "tokenizer.json"))
    return folder


def assert_encoded_as_transformers(folder, pairs):
    """Ids, token types and truncation, against AutoTokenizer on (first, second)."""
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    ours = sn.load_tokenizer(str(folder))
    encoded = ours.encode(pairs)
    types = encoded.token_types or [[0] * len(ids) for ids in encoded.ids]
    texts = [list(part) for part in zip(*pairs, strict=True)]  # tokenizer(first, "") would read a single text
    wholes = reference(*texts, split_special_tokens=True)["input_ids"]
    expected = reference(*texts, truncation=True, max_length=ours.max_tokens, split_special_tokens=True)
    for row, (pair, whole) in enumerate(zip(pairs, wholes, strict=True)):
        if not whole:  # DIVERGENCES: GPT-2's empty text
            assert encoded.ids[row] == [reference.convert_tokens_to_ids(END_OF_TEXT)]
            continue
        assert encoded.ids[row] == expected["input_ids"][row], pair
        assert encoded.truncated[row] == (len(whole) > ours.max_tokens)
        if "token_type_ids" in expected:
            assert types[row] == expected["token_type_ids"][row], pair
    return encoded


LAYOUTS = [(family, has_whole) for family in CONFIGS for has_whole in (False, True) if has_whole or family != "xlm-roberta"]


@pytest.mark.parametrize(("family", "has_whole"), LAYOUTS)
def test_pairs_are_encoded_as_transformers_encodes_them(family, has_whole, tmp_path):
    encoded = assert_encoded_as_transformers(written(tmp_path, family, has_whole), PAIRS)
    assert 4 <= sum(encoded.truncated) < len(PAIRS)
    assert (encoded.token_types is not None) == (family in ("bert", "distilbert"))


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_long_pairs_are_cut_on_the_left_as_transformers_cuts_them(family, tmp_path):
    assert_encoded_as_transformers(written(tmp_path, family, False, truncation_side="left"), PAIRS)


@pytest.mark.parametrize("flags", [["add_bos_token"], ["add_eos_token"], ["add_bos_token", "add_eos_token"]])
def test_the_tokens_that_files_ask_for_stand_around_each_text_of_a_pair_in_gpt2(flags, tmp_path):
    assert_encoded_as_transformers(written(tmp_path, "gpt2", False, **dict.fromkeys(flags, True)), PAIRS)


@pytest.mark.parametrize("side", ["right", "left"])
def test_pairs_are_encoded_as_bertweet_encodes_them(side, tmp_path):
    write_fast_bpe(tmp_path)
    write_config(tmp_path, "roberta", len(FAST_BPE_TOKENS) + 20)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertweetTokenizer", "truncation_side": side})
    )
    # transformers drops the second </s></s> of a left-cut pair whose second text is empty: it takes the pair for a single text.
    pairs = [pair for pair in PAIRS if side == "right" or pair[1]]
    assert assert_encoded_as_transformers(tmp_path, pairs).token_types is None


def test_a_pair_whose_second_text_is_empty_stays_a_pair(tmp_path):
    written(tmp_path, "bert", False)
    (one,) = sn.load_tokenizer(tmp_path).encode([("the film", "")]).ids
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert one == reference(["the film"], [""])["input_ids"][0] == [*reference("the film", "")["input_ids"], 3]


def test_a_pair_of_bertweet_that_is_cut_on_the_left_keeps_its_empty_second_text(tmp_path):
    write_fast_bpe(tmp_path)
    write_config(tmp_path, "roberta", len(FAST_BPE_TOKENS) + 20)
    files = {"tokenizer_class": "BertweetTokenizer", "truncation_side": "left"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(files))
    tokenizer = sn.load_tokenizer(tmp_path)
    (ids,) = tokenizer.encode([("film " + "the " * 40, "")]).ids
    assert tokenizer.token_strings(ids) == ["<s>", *["the"] * (tokenizer.max_tokens - 4), "</s>", "</s>", "</s>"]


@pytest.mark.parametrize("family", ["bert", "roberta", "bertweet"])
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_random_pairs_are_encoded_as_transformers_encodes_them(family, pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp(family)
    if family == "bertweet":
        write_fast_bpe(folder)
        write_config(folder, "roberta", len(FAST_BPE_TOKENS) + 20)
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertweetTokenizer"}))
    else:
        written(folder, family, False)
    assert_encoded_as_transformers(folder, pairs)


def test_a_tokenizer_json_of_another_class_joins_pairs_by_its_own_template(tmp_path):
    whole = write_vocabulary(tmp_path, "bert")
    write_config(tmp_path, "bert", 400)
    whole.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="$B:1 [SEP]:1 $A:0", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    whole.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    encoded = assert_encoded_as_transformers(tmp_path, PAIRS[:1])
    (first,), (second,) = (sn.load_tokenizer(tmp_path).encode([text]).ids for text in PAIRS[0])
    assert encoded.ids[0] == [*second[1:], 3, *first[1:]]


# The models.


def padded_pairs():
    """Rows of every length with random token types, as padded tensors."""
    generator = torch.Generator().manual_seed(5)
    shape = (MAX_TOKENS, MAX_TOKENS)
    ids, types = torch.randint(4, N_VOCAB, shape, generator=generator), torch.randint(0, 2, shape, generator=generator)
    mask = torch.arange(MAX_TOKENS) < torch.randperm(MAX_TOKENS, generator=generator)[:, None] + 1
    return ids, mask, types


def test_token_types_reach_every_layer_of_bert_as_in_transformers():
    folder, model = checkpoint("bert")
    ids, mask, types = padded_pairs()
    batch = TokenBatch.from_padded(ids, mask, types)
    found = {}
    hooks = [
        function.register_forward_hook(lambda _m, _i, out, layer=layer: found.update({("activation", layer): out[mask]}))
        for layer, function in enumerate(activation_functions(model))
    ]
    with torch.inference_mode():
        states = model(ids, attention_mask=mask.long(), token_type_ids=types, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    found |= {("hidden", layer): state[mask] for layer, state in enumerate(states)}
    ours = our_values(sn.load_model(folder, dtype=torch.float64, prepack=False), batch)
    assert ours.keys() == found.keys()
    assert max(float((ours[key] - found[key]).abs().max()) for key in ours) <= 1e-12
    for prepack in ("kernels", "auto"):
        fast = our_values(sn.load_model(folder, prepack=prepack), batch)
        assert max(float((fast[key] - found[key]).abs().max()) for key in found) <= 1e-5
    without = our_values(sn.load_model(folder, dtype=torch.float64), TokenBatch.from_padded(ids, mask))
    assert float((without["hidden", 0] - found["hidden", 0]).abs().max()) > 1e-3


def test_token_types_of_zero_give_the_same_bits_as_none():
    folder, _ = checkpoint("bert")
    ids, mask, types = padded_pairs()
    model = sn.load_model(folder)
    with_zeros, without = (our_values(model, TokenBatch.from_padded(ids, mask, given)) for given in (types * 0, None))
    assert all(torch.equal(with_zeros[key], without[key]) for key in without)


@pytest.mark.parametrize("other", ["distilbert", "gpt2", "mpnet"])
def test_families_without_token_types_ignore_them(other):
    folder, _ = checkpoint(other)
    ids, mask, types = padded_pairs()
    model = sn.load_model(folder)
    given, without = (our_values(model, TokenBatch.from_padded(ids, mask, of_tokens)) for of_tokens in (types, None))
    assert all(torch.equal(given[key], without[key]) for key in without)


def test_a_token_type_that_the_model_lacks_is_refused():
    folder, _ = checkpoint("roberta")
    batch = TokenBatch.from_rows([[5, 6], [7]], token_types=[[0, 1], [0]])
    with pytest.raises(sn.InputError, match="token types run from 0 to 1, the model has types 0 to 0"):
        our_values(sn.load_model(folder), batch)


def test_a_batch_keeps_its_token_types_with_its_rows(unchecked):
    batch = TokenBatch.from_rows([[5, 6, 7], [8], [9, 4]], token_types=[[0, 1, 1], [0], [0, 1]])
    kept, _ = batch.only(torch.tensor([0, 2]))
    assert kept.token_types.tolist() == [0, 1, 1, 0, 1]
    assert batch.to("cpu").token_types.tolist() == [0, 1, 1, 0, 0, 1]
    with pytest.raises(sn.InputError, match="token_types differ in shape"):
        TokenBatch.from_rows([[5, 6]], token_types=[[0]])
    with pytest.raises(sn.InputError, match=r"got 1 token types for 2 token ids"):
        TokenBatch(torch.tensor([5, 6]), (2,), token_types=torch.tensor([0]))
    with pytest.raises(sn.InputError, match=r"token_type_ids are \[1, 1\]"):
        TokenBatch.from_padded(torch.tensor([[5, 6]]), torch.ones(1, 2), torch.zeros(1, 1, dtype=torch.long))


# Features.


@pytest.fixture(scope="session")
def pairs(reviews):
    """The reviews, each cut in two, and each pair different from the others."""
    texts, _ = reviews
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    return [(first, f"{second} {'not ' * (row % 2)}{', ' * (row // 9)}") for row, (first, second) in enumerate(halves)]


@pytest.fixture(scope="session")
def loaded(tiny_model):
    return sn.load_model(tiny_model), sn.load_tokenizer(tiny_model)


def test_features_of_pairs_are_those_of_transformers(tiny_model, pairs):
    model, tokenizer = sn.load_model(tiny_model, dtype=torch.float64), sn.load_tokenizer(tiny_model)
    features = sn.extract(model, tokenizer, pairs, sites=["hidden"], poolings=["mean"])
    reference = transformers.AutoModel.from_pretrained(tiny_model, dtype=torch.float64).eval()
    encode = transformers.AutoTokenizer.from_pretrained(tiny_model)
    for row in (0, 1, 40, 79):
        with torch.inference_mode():
            encoded = encode(*pairs[row], truncation=True, max_length=24, return_tensors="pt")
            states = reference(**encoded, output_hidden_states=True).hidden_states
        for layer, state in enumerate(states):
            expected = state[0].mean(0).numpy()
            assert np.abs(features["hidden", "mean", layer][row] - expected).max() <= 1e-6  # stored as float32


def test_a_pairs_features_have_the_same_bits_in_every_batch(loaded, pairs):
    model, tokenizer = loaded
    together = sn.extract(model, tokenizer, pairs)
    as_lists = sn.extract(model, tokenizer, map(list, pairs), max_tokens=30)
    alone = [sn.extract(model, tokenizer, [pair]) for pair in pairs[:10]]
    for feature in together.widths:
        assert np.array_equal(together[feature], as_lists[feature])
        assert np.array_equal(together[feature][:10], np.concatenate([one[feature] for one in alone]))


def test_equal_pairs_are_computed_once_and_pairs_cut_elsewhere_are_others(loaded, monkeypatch):
    model, tokenizer = loaded
    n_rows = []
    run = TokenBatch.from_rows
    monkeypatch.setattr(TokenBatch, "from_rows", lambda rows, *rest: n_rows.append(len(rows)) or run(rows, *rest))
    features = sn.extract(model, tokenizer, [("good film", "was"), ("good", "film was"), ["good film", "was"]])
    assert sum(n_rows) == 2
    values = features["activation", "mean", 0]
    assert np.array_equal(values[0], values[2])
    assert not np.array_equal(values[0], values[1])


def test_a_pair_is_recognised_by_both_of_its_texts_and_single_texts_as_before():
    rows = ["a b c", ("a b", "c"), ("a", "b c"), ("a b c", ""), ("", "a b c"), ["a b", "c"]]
    ids = [bytes(one) for one in text_ids(rows)]
    assert len(set(ids)) == 5
    assert ids[1] == ids[5]
    assert ids[0] == hashlib.blake2b(b"a b c", digest_size=16).digest()
    digests = {texts_digest(one) for one in (["a", "b"], [("a", "b")], ["ab"], [("ab", "")], [("a", "b"), ("", "")])}
    assert len(digests) == 5
    length = (1).to_bytes(8, "little")
    assert texts_digest(["a", "b"]) == hashlib.sha256(length + b"a" + length + b"b").hexdigest()


def test_a_store_of_pairs_answers_for_some_of_them_and_not_for_their_texts(loaded, pairs, tmp_path):
    model, tokenizer = loaded
    whole = sn.extract(model, tokenizer, pairs, store=tmp_path / "store")
    some = sn.extract(model, tokenizer, [list(pairs[7]), pairs[3]], poolings=["max"], store=tmp_path / "store")
    for feature in some.widths:
        assert np.array_equal(some[feature], whole[feature][[7, 3]])
    with pytest.raises(sn.InputError, match="is not among the 80 texts of this store"):
        sn.extract(model, tokenizer, [" ".join(pairs[7])], poolings=["max"], store=tmp_path / "store")


def test_tokens_of_a_pair_name_their_text_and_their_place_in_it(loaded):
    model, tokenizer = loaded
    tokens = sn.extract(model, tokenizer, [("good film", "was bad"), ("bad", "")], poolings=["tokens"], depth=1)
    assert tokens.token.tolist() == ["[CLS]", "good", "film", "[SEP]", "was", "bad", "[SEP]", "[CLS]", "bad", "[SEP]", "[SEP]"]
    assert tokens.part.tolist() == [None, 0, 0, None, 1, 1, None, None, 0, None, None]
    assert tokens.start.tolist() == [None, 0, 5, None, 0, 4, None, None, 0, None, None]
    assert tokens.to_pandas()["part"].isna().sum() == 6
    assert sn.extract(model, tokenizer, ["good film"], poolings=["tokens"], depth=1).part is None


def test_tokens_of_a_pair_of_bertweet_name_their_text(tmp_path):
    write_fast_bpe(tmp_path)
    write_config(tmp_path, "roberta", len(FAST_BPE_TOKENS) + 20)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertweetTokenizer"}))
    tokenizer = sn.load_tokenizer(tmp_path)
    pair = ("the", "the film " * 20)
    (ids,), places, which = tokenizer.encode([pair]).ids, tokenizer.offsets(pair), tokenizer.text_of_tokens(pair)
    assert len(ids) == len(places) == len(which) == tokenizer.max_tokens
    assert which == [None, 0, None, None, *[1] * (tokenizer.max_tokens - 5), None]
    assert places[:7] == [None, (0, 3), None, None, (0, 3), (4, 7), (7, 8)]  # the, the, fil@@, m


# The classifier.


@pytest.fixture(scope="session")
def labels_of_pairs(reviews):
    return reviews[1]


@pytest.fixture(scope="session")
def pair_clf(tiny_model, pairs, labels_of_pairs):
    """Fitted on pairs, with two heads."""
    return sn.SpinClassifier(tiny_model, exits=(1,), **QUICK).fit(pairs, labels_of_pairs)


def test_a_classifier_of_pairs_takes_one_pair_or_several(pair_clf, pairs, labels_of_pairs):
    assert pair_clf.pairs_
    several = pair_clf.predict(pairs)
    assert pair_clf.predict(pairs[3]) == several[3]
    assert pair_clf.predict([pairs[3]]).tolist() == [several[3]]
    assert pair_clf.predict_proba(pairs[3]).shape == (2,)
    assert np.array_equal(pair_clf.predict_proba(map(list, pairs)), pair_clf.predict_proba(pairs))
    assert pair_clf.score(pairs, labels_of_pairs) == np.mean(several == np.array(labels_of_pairs))
    assert pair_clf.score(pd.Series(pairs), labels_of_pairs) == pair_clf.score(pairs, labels_of_pairs)
    assert len(pair_clf.explain(pairs[0])) == 5


def test_a_classifier_of_texts_still_takes_a_tuple_of_two_texts_for_two_rows(clf):
    assert not clf.pairs_
    assert len(clf.predict(("good film", "bad film"))) == 2


def test_a_classifier_reads_only_what_it_was_fitted_on(clf, pair_clf, pairs, unchecked):
    pair, texts = "text 0 is a single text, those that the classifier was fitted on are pairs", "those that the classifier was"
    for call in (pair_clf.predict, pair_clf.predict_proba, lambda rows: pair_clf.score(rows, ["positive"])):
        with pytest.raises(sn.InputError, match=pair):
            call(["good film"])
    with pytest.raises(sn.InputError, match=pair):
        pair_clf.predict("good film")
    with pytest.raises(sn.InputError, match="explain: got a str; expected one pair of texts"):
        pair_clf.explain("good film")
    with pytest.raises(sn.InputError, match=f"text 0 is tuple, a pair of texts, {texts} fitted on are single texts"):
        clf.predict(pairs)
    with pytest.raises(sn.InputError, match="explain: got a tuple; expected one text"):
        clf.explain(pairs[0])


def test_a_saved_classifier_remembers_that_it_reads_pairs(pair_clf, pairs, tmp_path):
    pair_clf.save_pretrained(tmp_path)
    read = load_pretrained(tmp_path)
    assert read.pairs_
    assert np.array_equal(read.predict_proba(pairs), pair_clf.predict_proba(pairs))
    with pytest.raises(sn.InputError, match="are pairs"):
        read.predict(["good film"])
    copied = pickle.loads(pickle.dumps(pair_clf))
    assert copied.pairs_
    assert copied.predict(pairs[3]) == pair_clf.predict(pairs[3])


def test_a_classifier_saved_before_there_were_pairs_reads_single_texts(clf, tmp_path):
    clf.save_pretrained(tmp_path)
    saved = tmp_path
    description = json.loads((saved / "spin_classifier.json").read_text())
    del description["pairs"]
    (saved / "spin_classifier.json").write_text(json.dumps(description))
    read = load_pretrained(saved)
    assert not read.pairs_
    assert len(read.predict(["good film", "bad film"])) == 2


def test_heads_that_are_assigned_still_read_pairs(pair_clf, pairs):
    other = copy.copy(pair_clf)
    other.heads_ = {1: pair_clf.heads_[1]}
    assert len(other.predict(pairs)) == 80
    with pytest.raises(sn.InputError, match="are pairs"):
        other.predict(["good film"])


def test_calibration_counts_equal_pairs_once_and_warns_of_those_that_fit_saw(pair_clf, pairs, labels_of_pairs):
    calibrated = copy.copy(pair_clf)
    with pytest.warns(UserWarning, match=r"160 rows are too few .* \(80 different texts\)"):
        calibrated.calibrate([*pairs, *map(list, pairs)], labels_of_pairs * 2)
    others = [(f"{first} {row}", second) for first, second in pairs for row in range(6)]
    with pytest.warns(LeakWarning, match="1 of 481 rows to calibrate on are among the rows that fit saw"):
        calibrated.calibrate([*others, pairs[0]], [*np.repeat(labels_of_pairs, 6), labels_of_pairs[0]])


def test_a_pair_on_both_sides_is_a_leak_and_a_pair_cut_elsewhere_is_not(tiny_model, pairs, labels_of_pairs):
    moved = [(f"{first}{second[:3]}", second[3:]) for first, second in pairs]
    clf = sn.SpinClassifier(tiny_model, **QUICK)
    with pytest.warns(LeakWarning, match="1 of 41 validation rows are among the training rows"):
        clf.fit(pairs, labels_of_pairs, validation=([*moved[:40], list(pairs[1])], [*labels_of_pairs[:40], labels_of_pairs[1]]))


def test_equal_pairs_stay_on_one_side_of_the_split(pairs):
    doubled = [pair for pair in pairs for _ in range(2)]
    labels = np.arange(160) // 2 % 2
    train, validation, leaks = split(Classes.learn(labels, 160, "rows"), doubled, labels, 0.25, 0)
    assert not leaks
    assert {doubled[row] for row in train}.isdisjoint(doubled[row] for row in validation)


def test_features_of_pairs_serve_a_fit(tiny_model, loaded, pairs, labels_of_pairs, pair_clf):
    features = sn.extract(*loaded, pairs, poolings=["mean"])
    fitted = sn.SpinClassifier(tiny_model, exits=(1,), **QUICK).fit(pairs, labels_of_pairs, features=features)
    assert np.allclose(fitted.predict_proba(pairs), pair_clf.predict_proba(pairs), atol=1e-6)


def test_ablation_takes_pairs(pair_clf, pairs):
    rows, others = pairs[:20], pairs[40:]
    for how in ("zero", "mean", "resample"):
        effects = pair_clf.ablate(rows, how=how, values_from=None if how == "zero" else others, n_draws=2)
        assert effects["label_before"][0, :, 0].tolist() == list(pair_clf.predict(rows, exit="fixed:2"))
        assert effects.of("chosen")["mean_absolute_change"].max() > 0


def test_a_regressor_takes_pairs(tiny_model, pairs):
    clf = sn.SpinRegressor(tiny_model, **QUICK).fit(pairs, [len(second) for _, second in pairs])
    assert isinstance(clf.predict(pairs[0]), float)
    assert clf.predict(pairs).shape == (80,)


# What cannot be used.


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "b"), "c"], "text 1 is a single text, the rows before it are pairs"),
        (["a", ("b", "c")], "text 1 is tuple, a pair of texts, the rows before it are single texts"),
        ([("a", "b"), ("c", None)], r"text 1 is a pair whose second text is missing \(got None\)"),
        ([("a", "b"), (float("nan"), "c")], r"text 1 is a pair whose first text is missing"),
        ([("a", b"b")], "text 0 is a pair whose second text is bytes"),
        ([("a", "b"), ("a", "b", "c")], "text 1 is tuple of 3; expected one text .str., or a pair of two texts"),
        ([("a",)], "text 0 is tuple of 1; expected"),
        ([("a", "half \udc80")], "text 0 holds half a character"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_row(rows, message, loaded, tiny_model, pair_clf, unchecked):
    model, tokenizer = loaded
    calls = [
        tokenizer.encode,
        lambda given: list(tokenizer.batches(given, window=1)),
        lambda given: sn.extract(model, tokenizer, given),
        lambda given: sn.SpinClassifier(tiny_model).fit(given, ["x"] * len(given)),
    ]
    for call in calls:
        with pytest.raises(sn.InputError, match=message):
            call(rows)


def test_validation_rows_of_the_other_kind_are_refused(tiny_model, pairs, labels_of_pairs):
    texts = [first for first, _ in pairs]
    with pytest.raises(sn.InputError, match="validation rows: text 0 is a single text, the training rows are pairs"):
        sn.SpinClassifier(tiny_model).fit(pairs, labels_of_pairs, validation=(texts, labels_of_pairs))


def test_pairs_in_windows_are_refused(loaded, pairs):
    with pytest.raises(sn.InputError, match="texts that are read in windows are single texts"):
        sn.extract(*loaded, pairs, windows=(8, 4))


def test_prompts_are_single_texts(loaded, unchecked):
    with pytest.raises(sn.InputError, match="text 0 is tuple, a pair of texts, prompts are single texts"):
        loaded[1].encode_prompts([("good", "[MASK]")])


# Files and the command line.


@pytest.fixture
def spin(capsys):
    return Spin(capsys)


@pytest.fixture
def table(pairs, labels_of_pairs, tmp_path):
    """A CSV file of the pairs, the second texts in a column of their own."""
    path = tmp_path / "pairs.csv"
    firsts, seconds = zip(*pairs, strict=True)
    pd.DataFrame({"premise": firsts, "hypothesis": seconds, "label": labels_of_pairs}).to_csv(path, index=False)
    return path


COLUMNS = ("--text", "premise", "--text-pair", "hypothesis")


def test_predict_files_reads_pairs_from_two_columns(pair_clf, pairs, table, tmp_path):
    frame = pd.read_csv(table)
    frame.loc[2, "hypothesis"] = None
    frame.to_json(tmp_path / "pairs.jsonl", orient="records", lines=True)
    out = tmp_path / "out.jsonl"
    done = sn.predict_files(pair_clf, tmp_path / "pairs.jsonl", out, text="premise", text_pair="hypothesis")
    assert (done.n_rows, done.n_rejected, done.rejected_rows) == (80, 1, (2,))
    answers = [json.loads(line)["predicted_label"] for line in out.read_text().splitlines()]
    assert answers == [None if row == 2 else label for row, label in enumerate(pair_clf.predict(pairs))]


def test_predict_files_asks_for_the_columns_that_the_classifier_reads(clf, pair_clf, table, tmp_path):
    with pytest.raises(sn.InputError, match="was fitted on pairs of texts: name the column of the second texts"):
        sn.predict_files(pair_clf, table, tmp_path / "out.csv", text="premise")
    with pytest.raises(sn.InputError, match="was fitted on single texts, but 'hypothesis' is named"):
        sn.predict_files(clf, table, tmp_path / "out.csv", text="premise", text_pair="hypothesis")
    with pytest.raises(sn.InputError, match="column 'premise' is named for the first and the second text"):
        sn.predict_files(pair_clf, table, tmp_path / "out.csv", text="premise", text_pair="premise")
    with pytest.raises(sn.InputError, match="no column 'conclusion'"):
        sn.predict_files(pair_clf, table, tmp_path / "out.csv", text="premise", text_pair="conclusion")
    assert not (tmp_path / "out.csv").exists()


def test_the_commands_take_pairs(spin, tiny_model, pairs, labels_of_pairs, table, tmp_path):
    folder, out = tmp_path / "clf", tmp_path / "out.csv"
    code, _, err = spin(
        "fit", table, *COLUMNS, "--model", tiny_model, "--out", folder, "--depth", "2", "--exits", "1", *QUICK_OPTIONS
    )
    assert code == 0, err
    clf = load_pretrained(folder)
    assert clf.pairs_
    _, shown, _ = spin("evaluate", folder, table, *COLUMNS, "--json")
    assert json.loads(shown)["accuracy"] == clf.score(pairs, labels_of_pairs)
    code, _, err = spin("calibrate", folder, table, *COLUMNS, "--max-accuracy-drop", "0.2")
    assert code == 0, err
    clf = load_pretrained(folder)
    _, shown, _ = spin("predict", folder, *pairs[5], "--json")
    assert [json.loads(shown)[name] for name in ("text", "text_pair", "label")] == [*pairs[5], clf.predict(pairs[5])]
    assert spin("predict", folder, *pairs[5])[1].rstrip("\n").split("\t")[-2:] == list(pairs[5])
    assert spin("predict", folder, "--in", table, "--out", out, *COLUMNS)[0] == 0
    assert pd.read_csv(out)["predicted_label"].tolist() == list(clf.predict(pairs))
    assert spin("extract", tiny_model, table, *COLUMNS, "--out", tmp_path / "store")[0] == 0
    stored = sn.ActivationStore(tmp_path / "store")
    again = sn.extract(sn.load_model(tiny_model), sn.load_tokenizer(tiny_model), pairs)
    assert np.array_equal(stored["activation", "max", 2], again["activation", "max", 2])


def test_the_commands_refuse_single_texts_for_a_classifier_of_pairs(spin, pair_clf, table, tmp_path):
    folder = tmp_path / "clf"
    pair_clf.save_pretrained(folder)
    for texts in (["good film"], ["-"], ["a", "b", "c"]):
        assert "was fitted on pairs of texts; give two TEXTS" in spin.fails("predict", folder, *texts)
    for name in ("evaluate", "calibrate"):
        message = spin.fails(name, folder, table, "--text", "premise")
        assert "name the column of the second texts (--text-pair)" in message
    assert "--text-pair names a column" in spin("predict", folder, "a", "b", "--text-pair", "x")[2]
