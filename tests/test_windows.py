"""Long texts read in windows: the windows are transformers', their features are pooled as those of one text."""

import json
import pickle
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
import transformers
from commands import Spin, write
from tiny import QUICK
from tokenizer_folders import write_config, write_fast_bpe, write_vocabulary

import spin_native as sn
from spin_native.analyses.ablation import Ablation, ablation_values
from spin_native.analyses.ablation_effects import text_rows
from spin_native.errors import InputError
from spin_native.features.extract import Extractor
from spin_native.features.store import ActivationStore, FeatureKey
from spin_native.models.fast import FusedAttention
from spin_native.parity import activation_functions
from spin_native.serving.predict import predict_files
from spin_native.text.batch import TokenBatch
from spin_native.text.documents import Windows, encode_windows
from spin_native.text.tokenizer import TruncationWarning

WORDS = ("good", "nice", "bad", "awful", "the", "film", "food", "was", "a", "very", "room", "and", "not", ",", ".")
SIZE, STRIDE = 9, 5  # 7 text tokens, of which 2 are read twice
WINDOWS = (SIZE, STRIDE)


def text_of(n_words, seed):
    return " ".join(np.random.default_rng(seed).choice(WORDS, n_words).tolist())


SHORT = [text_of(n, n) for n in range(8)]  # up to 7 words fit into a window
LONG = [text_of(n, 100 + n) for n in (8, 12, 13, 23, 40, 90)]
TEXTS = [*SHORT, *LONG, SHORT[3], LONG[2]]


@pytest.fixture(scope="module")
def model(tiny_model):
    return sn.load_model(tiny_model)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return sn.load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def reference(tiny_model):
    """transformers' windows of a text, and its model's values on each window by itself: (site, layer) -> [[token, width]]."""
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_model)
    bert = transformers.AutoModel.from_pretrained(tiny_model, attn_implementation="eager").eval()
    activations = []
    for module in activation_functions(bert):
        module.register_forward_hook(lambda _module, _inputs, output: activations.append(output[0].numpy()))

    def values(text):
        ids = theirs(text, truncation=True, max_length=SIZE, stride=SIZE - 2 - STRIDE, return_overflowing_tokens=True)
        of_site = {}
        for window in ids["input_ids"]:
            activations.clear()
            with torch.inference_mode():
                hidden = bert(torch.tensor([window]), output_hidden_states=True).hidden_states
            for site, layers in (("hidden", [layer[0].numpy() for layer in hidden]), ("activation", activations)):
                for layer, value in enumerate(layers):
                    of_site.setdefault((site, layer), []).append(value)
        return of_site

    return values


def arrays(features, rows=slice(None)):
    return {feature: features.array(**feature._asdict())[rows] for feature in features.widths}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for feature, array in one.items():
        assert array.tobytes() == other[feature].tobytes(), feature


HOW = {"sites": ("activation", "hidden"), "poolings": ("mean", "max", "first", "last"), "progress": False}


# The windows of a text.


def windows_of(tokenizer, text, size, stride):
    """Token ids of each window of one text."""
    encoded = encode_windows(tokenizer, [text], Windows(size, stride))
    assert encoded.truncated == [False]
    return [encoded.ids[0][start:end] for start, end in pairwise(accumulate(encoded.windows[0], initial=0))]


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "roberta", "gpt2", "xlm-roberta"])
@pytest.mark.parametrize(("size", "stride"), [(24, 22), (24, 1), (7, 3), (6, 4), (3, 1)])
def test_windows_are_those_of_transformers(tmp_path, family, size, stride):
    whole = write_vocabulary(tmp_path, family)
    if family == "xlm-roberta":  # it has no other files
        whole.save(str(tmp_path / "tokenizer.json"))
    write_config(tmp_path, family, 600)
    ours, theirs = sn.load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    how = {"truncation": True, "return_overflowing_tokens": True, "split_special_tokens": True}
    overlap = size - theirs.num_special_tokens_to_add() - stride
    for text in ("the", "the film was good " * 9, "Stra\u00dfe </s> [SEP] caf\u00e9 " * 5, "a" * 57):
        assert windows_of(ours, text, size, stride) == theirs(text, max_length=size, stride=overlap, **how)["input_ids"]
    assert windows_of(ours, "", size, stride) == ours.encode([""]).ids


def test_windows_of_bertweet_by_hand(tmp_path):
    write_fast_bpe(tmp_path)
    write_config(tmp_path, "roberta", 200, tokenizer_class="BertweetTokenizer")
    ours, theirs = sn.load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the film @USER god was " * 7
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    first, last = theirs.cls_token_id, theirs.sep_token_id
    starts = [start for start in range(0, len(ids), 4) if start == 0 or start - 4 + 8 < len(ids)]
    assert windows_of(ours, text, 10, 4) == [[first, *ids[start : start + 8], last] for start in starts]


def test_windows_begin_with_the_text_where_truncation_keeps_its_end(tmp_path):
    write_vocabulary(tmp_path, "bert")
    write_config(tmp_path, "bert", 600)
    right = windows_of(sn.load_tokenizer(tmp_path), "the film was good " * 9, 12, 7)
    (tmp_path / "tokenizer_config.json").write_text('{"truncation_side": "left"}')
    assert windows_of(sn.load_tokenizer(tmp_path), "the film was good " * 9, 12, 7) == right


def test_a_copied_tokenizer_cuts_the_same_windows_and_truncation_stays(tokenizer):
    text = LONG[-1] + " [SEP]"  # the copy, too, reads it as text
    expected, cut = windows_of(tokenizer, text, *WINDOWS), tokenizer.encode([text])
    assert windows_of(pickle.loads(pickle.dumps(tokenizer)), text, *WINDOWS) == expected
    assert tokenizer.encode([text]) == cut
    assert len(cut.ids[0]) == tokenizer.max_tokens


# Their features.


def test_features_are_pooled_over_the_tokens_of_all_windows_as_transformers_computes_them(model, tokenizer, reference):
    features = sn.extract(model, tokenizer, TEXTS, windows=WINDOWS, **HOW)
    for row, text in enumerate(TEXTS):
        values = reference(text)
        for feature in features.widths:
            of_windows = values[feature.site, feature.layer]
            tokens = np.concatenate(of_windows)
            by_hand = {
                "mean": tokens.mean(0),
                "max": tokens.max(0),
                "first": of_windows[0][0],
                "last": of_windows[-1][-1],
            }[feature.pooling]
            np.testing.assert_allclose(features.array(**feature._asdict())[row], by_hand, atol=2e-5)


def test_short_texts_have_the_same_bits_with_and_without_windows(model, tokenizer):
    rows = slice(len(SHORT))
    with_windows = sn.extract(model, tokenizer, TEXTS, windows=WINDOWS, **HOW)
    assert_same_bits(arrays(with_windows, rows), arrays(sn.extract(model, tokenizer, SHORT, **HOW)))


@pytest.mark.parametrize("max_tokens", [1, 30, 100, None])
def test_a_text_has_the_same_bits_in_every_order_and_batch(model, tokenizer, max_tokens):
    expected = arrays(sn.extract(model, tokenizer, TEXTS, windows=WINDOWS, **HOW))
    order = np.random.default_rng(3).permutation(len(TEXTS))
    shuffled = sn.extract(model, tokenizer, [TEXTS[row] for row in order], windows=WINDOWS, max_tokens=max_tokens, **HOW)
    assert_same_bits(arrays(shuffled), {feature: array[order] for feature, array in expected.items()})


def test_a_batch_holds_whole_texts_and_a_longer_text_alone(model, tokenizer):
    extractor = Extractor(model, tokenizer, {FeatureKey("hidden", "mean", 0): None}, max_tokens=40, windows=WINDOWS)
    (block,) = extractor.encoded(TEXTS, False)
    n_tokens = [len(ids) for ids in block.ids]
    for rows, batch in extractor.batches(block):
        assert batch.texts.lengths == tuple(n_tokens[row] for row in rows)
        assert max(batch.lengths) <= SIZE
        assert batch.n_tokens <= 40 or len(rows) == 1


def test_no_text_counts_as_truncated(model, tokenizer):
    extractor = Extractor(model, tokenizer, {FeatureKey("hidden", "mean", 0): None}, windows=WINDOWS)
    extractor.run(LONG)  # a TruncationWarning would be an error here
    assert extractor.n_truncated == 0
    with pytest.warns(TruncationWarning, match="3 of 6 texts were longer than 24 tokens and were cut"):
        sn.extract(model, tokenizer, LONG, depth=1)


def test_an_edit_by_noise_is_drawn_for_a_text_whatever_batch_its_windows_are_in(model, tokenizer):
    edit = Ablation({0: np.arange(8)}, "noise")
    together = sn.extract(model, tokenizer, TEXTS, windows=WINDOWS, edit=edit, **HOW)
    alone = [sn.extract(model, tokenizer, [text], windows=WINDOWS, edit=edit, **HOW) for text in LONG]
    for row, one in enumerate(alone, len(SHORT)):
        assert_same_bits(arrays(together, slice(row, row + 1)), arrays(one))


@pytest.mark.parametrize(
    ("windows", "says"),
    [
        ((25, 5), r"windows: size is 25; expected 3 to 24 tokens, of which 2 are special"),
        ((2, 1), r"windows: size is 2; expected 3 to 24 tokens"),
        ((9, 8), r"windows: stride is 8; expected 1 to 7, the text tokens of a window of 9"),
        ((9, 0), r"windows is \(9, 0\); expected \(size, stride\)"),
        ((9,), r"windows is \(9,\); expected \(size, stride\)"),
        ((9, 2.5), r"windows is \(9, 2.5\); expected"),
        ((9, True), r"windows is \(9, True\); expected"),
        (9, r"windows is 9; expected"),
        ("9,5", r"windows is '9,5'; expected"),
    ],
)
def test_windows_that_mean_nothing_are_refused(model, tokenizer, tiny_model, windows, says, unchecked):
    with pytest.raises(InputError, match=says):
        sn.extract(model, tokenizer, TEXTS, windows=windows)
    with pytest.raises(InputError, match=says):
        sn.SpinClassifier(tiny_model, windows=windows, **QUICK).fit(["good", "bad"] * 10, ["a", "b"] * 10)


@pytest.mark.parametrize("pooling", ["mask", "position", "tokens"])
def test_poolings_that_read_a_place_in_one_row_are_refused(model, tokenizer, pooling):
    positions = [0] * len(SHORT) if pooling == "position" else None
    with pytest.raises(InputError, match=f"windows and poolings with '{pooling}': .* leave one of the two out"):
        sn.extract(model, tokenizer, SHORT, poolings=(pooling,), positions=positions, windows=WINDOWS)


# Batches of windows.


def test_texts_and_rows_of_a_batch_by_hand():
    batch = TokenBatch.from_texts([[1, 2, 3, 4, 5], [6], [7, 8, 9]], [(2, 2, 1), (1,), (1, 2)])
    assert batch.lengths == (2, 2, 1, 1, 1, 2)
    assert batch.texts.lengths == (5, 1, 3)
    assert batch.texts.ids.tolist() == batch.ids.tolist() == list(range(1, 10))
    assert batch.text_of_row.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.rows_of(torch.tensor([0, 2])).tolist() == [0, 1, 2, 4, 5]
    assert batch.texts_of(torch.tensor([0, 1, 2, 4, 5])).tolist() == [0, 2]
    kept, tokens = batch.only(torch.tensor([0, 1, 2, 4, 5]))
    assert (kept.lengths, kept.texts.lengths) == ((2, 2, 1, 1, 2), (5, 3))
    assert kept.ids.tolist() == (tokens + 1).tolist() == [1, 2, 3, 4, 5, 7, 8, 9]
    assert batch.to("cpu").texts.lengths == (5, 1, 3)
    plain = TokenBatch.from_rows([[1, 2], [3]])
    assert plain.texts is plain
    assert plain.rows_of(torch.tensor([1])).tolist() == plain.texts_of(torch.tensor([1])).tolist() == [1]


def test_a_batch_with_other_than_its_windows_is_refused():
    for n_windows in ((1, 1), (2, 0, 1), (4,), ()):
        with pytest.raises(InputError, match=r"got 3 rows for texts of .* as many windows as rows"):
            TokenBatch(torch.arange(4), (2, 1, 1), n_windows=n_windows)


# Stores.


def test_an_interrupted_store_resumes_with_its_windows(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(Extractor, "rows_per_block", 5)

    def interrupted():
        yield from TEXTS[:12]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sn.extract(model, tokenizer, interrupted(), windows=WINDOWS, store=tmp_path / "s", **HOW)
    assert ActivationStore(tmp_path / "s").n_rows == 10
    resumed = sn.extract(model, tokenizer, TEXTS, windows=WINDOWS, store=tmp_path / "s", **HOW)
    assert_same_bits(arrays(resumed), arrays(sn.extract(model, tokenizer, TEXTS, windows=WINDOWS, **HOW)))


def test_a_store_answers_no_question_about_other_windows(model, tokenizer, tmp_path):
    sn.extract(model, tokenizer, SHORT, windows=WINDOWS, store=tmp_path / "windows")
    sn.extract(model, tokenizer, SHORT, store=tmp_path / "none")
    assert ActivationStore(tmp_path / "windows").spec.windows == WINDOWS
    for store, windows, says in (
        ("windows", None, r"windows is \(9, 5\), now None"),
        ("windows", (9, 4), r"windows is \(9, 5\), now .*4"),
        ("none", WINDOWS, r"windows is None, now .*9"),
    ):
        for texts in (SHORT, SHORT[:3]):
            with pytest.raises(InputError, match=says):
                sn.extract(model, tokenizer, texts, windows=windows, store=tmp_path / store)
    smaller = sn.extract(model, tokenizer, SHORT[4:1:-1], poolings=("max",), windows=WINDOWS, store=tmp_path / "windows")
    assert smaller.n_rows == 3


def test_a_store_that_does_not_say_its_windows_had_none(model, tokenizer, tmp_path):
    first = sn.extract(model, tokenizer, SHORT, store=tmp_path / "s")
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    assert manifest.pop("windows") is None
    (tmp_path / "s/manifest.json").write_text(json.dumps(manifest))
    assert_same_bits(arrays(sn.extract(model, tokenizer, SHORT, store=tmp_path / "s")), arrays(first))


# Classifiers.


@pytest.fixture(scope="module")
def documents():
    """60 texts of 7 to 66 words of filler; the word that decides stands at the end, which a cut text has lost."""
    random = np.random.default_rng(0)
    texts, labels = [], []
    for row in range(60):
        words = random.choice(["the", "film", "food", "was", "a", "room"], 7 + row).tolist()
        texts.append(" ".join([*words, *[("good", "awful")[row % 2]] * 5]))
        labels.append(("positive", "negative")[row % 2])
    return texts, labels


@pytest.fixture(scope="module")
def clf(tiny_model, documents):
    settings = {**QUICK, "depth": 3, "exits": "all"}
    return sn.SpinClassifier(tiny_model, windows=WINDOWS, **settings).fit(*documents)


def test_the_end_of_a_long_text_decides_with_windows_only(clf, tiny_model, documents):
    texts, labels = (column[-25:] for column in documents)  # of more words than the model holds
    assert clf.score(texts, labels) >= 0.9
    assert clf.n_truncated_ == 0
    with pytest.warns(TruncationWarning):
        cut = sn.SpinClassifier(tiny_model, **QUICK).fit(*documents)
    with pytest.warns(TruncationWarning):
        assert cut.score(texts, labels) < 0.9


@pytest.mark.parametrize("exit_", ["confidence:0.8", "patience:1", "fixed:2"])
def test_a_long_text_that_exits_gets_to_the_bit_what_its_fixed_depth_gives(clf, documents, exit_):
    texts = [*documents[0], *SHORT]
    blocks = list(clf.output_blocks(texts, False, exit_))
    outputs, depths = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    for depth in (1, 2, 3):
        fixed = clf.predict_proba(texts, exit=f"fixed:{depth}")
        assert np.array_equal(outputs[depths == depth], fixed[depths == depth])
    if exit_.startswith("confidence"):
        assert len(set(depths.tolist())) > 1


def test_all_windows_of_a_text_exit_together(clf, documents, monkeypatch):
    texts = documents[0]
    _, depths = clf.predict(texts, exit="confidence:0.8", return_depth=True)
    encoded = encode_windows(clf._deployed.checkpoint.tokenizer, texts, Windows(*WINDOWS))
    n_tokens = np.array([sum(lengths) for lengths in encoded.windows])
    tokens = []
    true = FusedAttention.forward

    def counted(self, query, *arguments):
        tokens.append(len(query))
        return true(self, query, *arguments)

    monkeypatch.setattr(FusedAttention, "forward", counted)
    clf.predict(texts, exit="confidence:0.8")
    assert tokens == [n_tokens[depths >= depth].sum() for depth in (1, 2, 3)]


def test_a_text_alone_has_the_answer_that_it_has_among_others(clf, documents):
    together = clf.predict_proba(documents[0], exit="confidence:0.8")
    assert np.array_equal([clf.predict_proba(text, exit="confidence:0.8") for text in documents[0][::9]], together[::9])


def test_saved_and_pickled_classifiers_keep_their_windows(clf, documents, tmp_path):
    expected = clf.predict_proba(documents[0])
    clf.save_pretrained(tmp_path / "c")
    for copied in (sn.SpinClassifier.from_pretrained(tmp_path / "c"), pickle.loads(pickle.dumps(clf))):
        assert copied.windows == WINDOWS
        assert np.array_equal(copied.predict_proba(documents[0]), expected)
        assert copied.n_truncated_ == 0
    changed = pickle.loads(pickle.dumps(clf)).set_params(windows=None)  # means nothing until the next fit
    assert np.array_equal(changed.predict_proba(documents[0]), expected)
    changed.heads_ = changed.heads_
    assert np.array_equal(changed.predict_proba(documents[0]), expected)


def test_a_saved_classifier_that_does_not_say_its_windows_had_none(fitted, saved, reviews):
    description = json.loads((saved / "spin_classifier.json").read_text())
    assert description["settings"].pop("windows") is None
    (saved / "spin_classifier.json").write_text(json.dumps(description))
    loaded = sn.SpinClassifier.from_pretrained(saved)
    assert loaded.windows is None
    assert np.array_equal(loaded.predict_proba(reviews[0]), fitted.predict_proba(reviews[0]))


def test_a_fit_on_given_features_needs_those_of_its_windows(clf, tiny_model, model, tokenizer, documents):
    settings = {**QUICK, "depth": 3, "exits": "all"}
    features = sn.extract(model, tokenizer, documents[0], windows=WINDOWS)
    given = sn.SpinClassifier(tiny_model, windows=WINDOWS, **settings).fit(*documents, features=features)
    assert np.array_equal(given.predict_proba(documents[0]), clf.predict_proba(documents[0]))
    with pytest.raises(InputError, match=r"features: windows is .*9.*, this fit needs None; extract them with .* windows"):
        sn.SpinClassifier(tiny_model, **settings).fit(*documents, features=features)


def test_a_regressor_a_calibration_and_explain_read_whole_texts(clf, tiny_model, documents):
    texts, labels = documents
    numbers = [float(label == "positive") for label in labels]
    regressor = sn.SpinRegressor(tiny_model, windows=WINDOWS, **QUICK).fit(texts, numbers)
    assert np.corrcoef(regressor.predict(texts), numbers)[0, 1] > 0.7
    copied = pickle.loads(pickle.dumps(clf))
    copied.calibrate([f"{text} ." for text in texts], labels, max_accuracy_drop=0.2)
    assert copied.n_truncated_ == 0
    contributed = [sum(c.contribution for c in clf.explain(f"{texts[-1]} {end}", 1000)) for end in ("good", "awful")]
    assert contributed[0] != contributed[1]  # the texts differ past what the model holds


def test_ablation_by_the_mean_takes_it_over_the_tokens_of_all_windows(model, tokenizer):
    feature = FeatureKey("activation", "mean", 1)
    extractor = Extractor(model, tokenizer, {feature: None}, windows=WINDOWS)
    rows, text_of, _ = text_rows(extractor, [LONG[-1]])
    assert max(map(len, rows)) == SIZE
    means = ablation_values(model, rows, "mean", text_of=text_of).values[1]
    np.testing.assert_allclose(means, extractor.run([LONG[-1]]).array(**feature._asdict())[0], atol=1e-6)


def test_ablation_by_resampling_never_draws_from_another_window_of_the_text(clf, documents):
    texts = documents[0][-2:]
    clf.ablate(texts, neurons=3, how="resample", values_from=texts, n_draws=2)
    with pytest.raises(InputError, match="hold no other text than this one"):
        clf.ablate(texts[:1], neurons=3, how="resample", values_from=texts[:1], n_draws=2)


# The command line.


def test_the_commands_fit_extract_and_predict_read_windows(tiny_model, documents, clf, tmp_path, capsys):
    spin, (texts, labels) = Spin(capsys), documents
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    data = write(tmp_path / "train.csv", rows)
    quick = ("--depth", 3, "--exits", "all", "--poolings", "mean", "--head", "refit", "--etas", "0.8", "--no-baseline")
    code, _, err = spin("fit", data, "--model", tiny_model, "--windows", "9,5", *quick, "--out", tmp_path / "c")
    assert code == 0, err
    loaded = sn.SpinClassifier.from_pretrained(tmp_path / "c")
    assert loaded.windows == WINDOWS
    assert np.array_equal(loaded.predict_proba(texts), clf.predict_proba(texts))
    predicted = predict_files(loaded, data, tmp_path / "out.jsonl")
    assert (predicted.n_rows, predicted.n_truncated) == (60, 0)
    answers = [json.loads(line)["predicted_label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert answers == clf.predict(texts).tolist()
    code, _, err = spin("extract", tiny_model, data, "--windows", "9,5", "--out", tmp_path / "s")
    assert code == 0, err
    assert ActivationStore(tmp_path / "s").spec.windows == WINDOWS
    assert "windows: size is 99; expected 3 to 24 tokens" in spin.fails(
        "extract", tiny_model, data, "--windows", "99,5", "--out", tmp_path / "t"
    )
