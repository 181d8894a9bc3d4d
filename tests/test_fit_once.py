"""A fit reads each array, opens the checkpoint and loads each model once; a fit that fails leaves the earlier one whole."""

from collections import Counter

import numpy as np
import pytest
from safetensors import safe_open

import spin_native as sn
from spin_native.checkpoints import Checkpoint
from spin_native.checkpoints import load as load_module
from spin_native.classifier import base as base_module
from spin_native.classifier import published
from spin_native.classifier.parts import ExtractedPart
from spin_native.errors import LeakWarning
from spin_native.features.store import Features
from spin_native.text.tokenizer import Tokenizer

SMALL = {"head": "refit", "poolings": ("mean", "max"), "etas": (0.8,), "mixing": "apart"}


def split(reviews):
    texts, labels = reviews
    return (texts[:60], labels[:60]), (texts[60:], labels[60:])


@pytest.mark.filterwarnings("ignore::spin_native.errors.LeakWarning")
@pytest.mark.parametrize(
    ("how", "stored"),
    [({}, False), ({}, True), ({"sample": 40}, True), ({"head": "frozen", "phase_two": "both"}, False)],
)
def test_after_the_probes_a_fit_reads_each_array_of_each_part_at_most_once(
    tiny_model, reviews, tmp_path, monkeypatch, how, stored, unchecked
):
    reads: Counter = Counter()
    true, probe = Features.array, published.sparsify

    def counted(self, **feature):
        reads[id(self), tuple(feature.values())] += 1
        return true(self, **feature)

    def probed(*arguments):
        layers = probe(*arguments)
        reads.clear()
        return layers

    monkeypatch.setattr(Features, "array", counted)
    monkeypatch.setattr(published, "sparsify", probed)
    train, test = split(reviews)
    store = tmp_path / "features" if stored else None
    settings = {**SMALL, **how, "exits": "all"}
    sn.SpinClassifier(str(tiny_model), baseline=False, **settings).fit(*train, test=test, store=store)
    assert set(reads.values()) == {1}
    assert len(reads) <= 6 * 3  # arrays of 3 parts
    sn.SpinClassifier(str(tiny_model), **settings).fit(*train, test=test, store=store and tmp_path / "others")
    # Baselines read, before the heads, the mean activations, and hidden states, which the heads do not.
    assert max(reads.values()) <= 2
    assert {feature[:2] for (_, feature), n in reads.items() if n == 2} <= {("activation", "mean")}
    assert len(reads) <= 6 * 3 + 4 * 3


def test_features_in_memory_are_freed_when_their_columns_are_gathered(tiny_model, reviews):
    features = sn.extract(sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model)), reviews[0], poolings=("mean",))
    first, *others = features.widths
    expected = features.array(**first._asdict())[:, [4, 9]]
    gathered = ExtractedPart(np.zeros(80, int), features).gathered({first: np.array([4, 9])})
    assert np.array_equal(gathered.take(first, np.array([4, 9])), expected)
    assert np.array_equal(gathered.take(first, np.array([9])), expected[:, 1:])
    assert list(features.widths) == others
    with pytest.raises(sn.InputError, match="there are sites activation; poolings mean; layers 1, 2"):
        features.array(**first._asdict())


@pytest.mark.parametrize("sample", [None, 40])
def test_a_fit_opens_the_checkpoint_once_and_loads_one_model_to_extract_and_one_to_deploy(
    tiny_model, reviews, tmp_path, monkeypatch, sample
):
    calls: Counter = Counter()
    for owner, name in ((Checkpoint, "load"), (load_module, "open_tensors"), (Tokenizer, "from_files")):
        true = getattr(owner, name)

        def counted(*given, _true=true, _name=name, **named):
            calls[_name] += 1
            return _true(*given, **named)

        monkeypatch.setattr(owner, name, counted)
    clf = sn.SpinClassifier(str(tiny_model), depth=2, sample=sample, **SMALL).fit(*reviews)
    assert calls == {"load": 2, "open_tensors": 1, "from_files": 1}
    read = []
    monkeypatch.setattr("spin_native.checkpoints.files.safe_open", lambda *a, **k: read.append(a) or safe_open(*a, **k))
    clf.save_pretrained(tmp_path / "a")
    n_read = len(read)
    clf.save_pretrained(tmp_path / "b")
    assert n_read == len(read)  # the fingerprint of a depth is computed once
    assert calls == {"load": 2, "open_tensors": 1, "from_files": 1}


@pytest.mark.parametrize("failure", [KeyboardInterrupt, sn.InputError])
def test_a_second_fit_that_is_interrupted_leaves_the_first_one_as_it_was(tiny_model, reviews, monkeypatch, failure):
    texts, labels = reviews
    clf = sn.SpinClassifier(str(tiny_model), depth=1, baseline=False, **SMALL).fit(texts, labels)
    before, answers = dict(vars(clf)), clf.predict(texts)

    def fail(*_given):
        raise failure("stop")

    for owner, name in ((published, "integrate"), (base_module, "Deployed")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(failure):
                clf.fit(texts, [label.upper() for label in labels])
        assert vars(clf) == before
        assert clf.classes_.tolist() == ["negative", "positive"]
        assert np.array_equal(clf.predict(texts), answers)


def test_given_validation_rows_that_are_training_rows_are_warned_of(tiny_model, reviews):
    texts, labels = reviews
    clf = sn.SpinClassifier(str(tiny_model), depth=1, baseline=False, **SMALL)
    with pytest.warns(LeakWarning, match="1 of 2 validation rows are among the training rows, too .the first is row 1"):
        clf.fit(texts, labels, validation=(["a text of its own", texts[5]], labels[4:6]))


def test_features_are_standardised_by_training_rows_alone(tiny_model, reviews):
    train, validation = split(reviews)
    held_out = [f"{text} very sad sad sad sad" for text in validation[0]]  # of other means than the training rows
    clf = sn.SpinClassifier(
        str(tiny_model), head="refit", depth=1, baseline=False, final_rows="all", poolings=("mean",), etas=(0.8,)
    )
    clf.fit(*train, validation=(held_out, validation[1]))
    features = sn.extract(sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model)), train[0], poolings=("mean",))
    read = clf.head_.read(ExtractedPart(np.zeros(60, int), features)).astype(np.float64)
    np.testing.assert_allclose(clf.head_.standardizer.mean, read.mean(0), rtol=1e-5)
    np.testing.assert_allclose(clf.head_.standardizer.scale, read.std(0), rtol=1e-5)
