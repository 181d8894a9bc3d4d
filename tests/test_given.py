"""What callers give: rows, texts, labels and settings come out as they went in, or one sentence says why not."""

import pickle
import shutil
from enum import IntEnum
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from tiny import QUICK

import spin_native as sn
from spin_native.classifier.exits import Exit
from spin_native.classifier.tasks import Classes
from spin_native.features import extract as extract_module
from spin_native.features.pooling import POOLINGS

# What has no rows.

TABLE = pd.DataFrame({"text": ["good film", "bad film"]})
NO_ROWS = {
    "DataFrame": (TABLE, r"DataFrame of shape \[2, 1\]; .* df\['text'\]"),
    "arrow": (pa.table(TABLE), r"Table of shape \[2, 1\]"),
    "dict": ({"text": ["good film"]}, r"a dict has no rows; .*d\['text'\]"),
    "set": ({"good film", "bad film"}, "a set has no order"),
    "matrix": (np.array([["good film", "bad film"]]), r"shape \[1, 2\]; .*X\[:, 0\]"),
    "column": (np.array([["good film"], ["bad film"]]), r"shape \[2, 1\]; .*ravel\(\)"),
    "sparse": (scipy.sparse.csr_matrix(np.eye(2)), r"csr_matrix of shape \[2, 2\]"),
    "scalar": (np.array("good film"), "pass it in a list"),
    "tensor": (torch.ones(2, 2), r"Tensor of shape \[2, 2\]"),
    "None": (None, "got None"),
    "number": (5, "got 5"),
}


@pytest.mark.parametrize("kind", NO_ROWS)
def test_what_has_no_rows_is_refused_wherever_texts_come_in(clf, tiny_model, kind, unchecked):
    given, message = NO_ROWS[kind]
    model, tokenizer = clf._deployed.extractor.model, clf._deployed.extractor.tokenizer
    for use in (
        lambda: sn.SpinClassifier(str(tiny_model)).fit(given, ["a", "b"]),
        lambda: clf.predict(given),
        lambda: clf.predict_proba(given),
        lambda: clf.score(given, ["positive", "negative"]),
        lambda: clf.calibrate(given, ["positive", "negative"]),
        lambda: list(clf.output_blocks(given)),
        lambda: sn.extract(model, tokenizer, given, progress=False),
        lambda: list(tokenizer.batches(given)),
    ):
        with pytest.raises(sn.InputError, match=message):
            use()
    with pytest.raises(sn.InputError, match=r"explain: got a .*; expected one text"):
        clf.explain(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pn" * 40, "labels of the .*: got one str; expected several labels"),
        (np.eye(2)[[0, 1] * 40], r"shape \[80, 2\]; expected one label per row: for one-hot rows pass .argmax\(axis=1\)"),
        (scipy.sparse.csr_matrix(np.eye(80)), r"csr_matrix of shape \[80, 80\]"),
        ([["p"], ["n"]] * 40, r"the label of row 0 is \['p'\] \(list\)"),
        (np.array(["p", "n"] * 40)[:, None], r"ravel\(\)"),
        (pd.DataFrame({"label": ["p", "n"] * 40}), r"df\['label'\]"),
        ({"p": 1}, "a dict has no rows"),
        ({"p", "n"}, "a set has no order"),
        (pd.Series(["p", None] * 40, dtype="string"), "the label of row 1 is missing"),
        (pd.Series([0, None] * 40, dtype="Int64"), "the label of row 1 is missing .got <NA>"),
        (pd.Series([True, None] * 40, dtype="boolean"), "the label of row 1 is missing .got <NA>"),
        (pd.Series(["p", None] * 40, dtype="category"), "the label of row 1 is missing"),
        (pa.array(["p", None] * 40), "the label of row 1 is missing .got None"),
        ([pd.NaT, "p"] * 40, "the label of row 0 is missing .got NaT"),
        ([1.0, 2.5] * 40, "the label of row 1 is 2.5 .float."),
        ([2**70, 1] * 40, "label 1180591620717411303424 does not fit 64 bits beside the others; write the labels as text"),
        ([2**63 + 1, -1] * 40, "label 9223372036854775809 does not fit 64 bits"),
        ([True, 1] * 40, "labels are of two types, row 0 has True and row 1 has 1"),
        ([b"p", b"n"] * 40, r"the label of row 0 is b'p' \(bytes\)"),
        (["p\ud800", "n"] * 40, "the label of row 0 holds half a character"),
    ],
)
def test_labels_that_are_none_are_refused_by_row(tiny_model, clf, texts, given, message, unchecked):
    with pytest.raises(sn.InputError, match=message):
        sn.SpinClassifier(str(tiny_model), **QUICK).fit(texts, given)
    with pytest.raises(sn.InputError):
        clf.score(texts, given)


@pytest.mark.parametrize(
    "values", ["12" * 40, np.ones((80, 2)), {"a": 1}, pd.Series([1.0, None] * 40), [b"1", 2] * 40, [10**400] * 80]
)
def test_values_that_are_none_are_refused(tiny_model, texts, values, unchecked):
    with pytest.raises(sn.InputError, match=r"values of the training rows: |the value of row [01] is"):
        sn.SpinRegressor(str(tiny_model), **QUICK).fit(texts, values)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT, np.datetime64("NaT"), np.ma.masked])
def test_a_missing_text_is_named_by_its_row(clf, tiny_model, missing, unchecked):
    for use in (clf.predict, lambda rows: sn.extract(clf._deployed.extractor.model, clf._deployed.extractor.tokenizer, rows)):
        with pytest.raises(sn.InputError, match=r"^text 1 is missing \(got .*\): drop the row, or give it a text$"):
            use(["good film", missing])
    with pytest.raises(sn.InputError, match="rows to score: text 1 is missing"):
        clf.score(["good film", missing], ["positive", "positive"])


def test_polars_tables_have_no_rows_but_their_columns_have(clf, texts, unchecked):
    polars = pytest.importorskip("polars")
    table = polars.DataFrame({"text": texts})
    for given, message in (
        (table, r"shape \[80, 1\]; .* df\['text'\]"),
        (table.lazy(), r"LazyFrame; .*df.collect\(\)\['text'\]"),
    ):
        with pytest.raises(sn.InputError, match=message):
            clf.predict(given)
    assert np.array_equal(clf.predict_proba(table["text"]), clf.predict_proba(texts))
    X, y = np.random.default_rng(0).normal(size=(20, 3)), [0, 1] * 10
    probe = sn.LogisticProbe().fit(polars.DataFrame(X), polars.Series(y))
    np.testing.assert_allclose(probe.coef_, sn.LogisticProbe().fit(X, y).coef_, rtol=1e-6)


# What has rows.


class Grade(IntEnum):
    low = 3
    high = 5


KINDS = {
    "odd index": lambda rows: pd.Series(rows, index=range(900, 900 + len(rows))),
    "category": lambda rows: pd.Series(rows, dtype="category"),
    "arrow": pa.array,
    "chunked": lambda rows: pa.chunked_array([rows[:3], rows[3:]]),
    "dictionary": lambda rows: pa.array(rows).dictionary_encode(),
    "stream": iter,
    "object": lambda rows: np.array(rows, dtype=object),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_be_of_any_kind_that_has_an_order(clf, tiny_model, texts, labels, kind):
    given = KINDS[kind]
    assert np.array_equal(clf.predict_proba(given(texts)), clf.predict_proba(texts))
    assert clf.score(given(texts), given(labels)) == clf.score(texts, labels)
    again = sn.SpinClassifier(str(tiny_model), exits=(1,), **QUICK).fit(given(texts), given(labels))
    assert np.array_equal(again.predict_proba(texts), clf.predict_proba(texts))
    model, tokenizer = clf._deployed.extractor.model, clf._deployed.extractor.tokenizer
    assert sn.extract(model, tokenizer, given(texts), progress=False).n_rows == len(texts)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (pd.Series([1.0, 0.0] * 40), [0, 1]),
        (torch.tensor([7, -7] * 40), [-7, 7]),
        (list(torch.tensor([1, 2] * 40)), [1, 2]),
        (pd.Series([1, 2] * 40, dtype="Int64"), [1, 2]),
        (np.array([True, False] * 40), [False, True]),
        ([Grade.low, Grade.high] * 40, [3, 5]),
        ([2**63 + 1, 2**63 + 3] * 40, [2**63 + 1, 2**63 + 3]),
        (["a\0", "a"] * 40, ["a", "a\0"]),
        (["", "a\nb"] * 40, ["", "a\nb"]),
        ([np.str_("x"), "y"] * 40, ["x", "y"]),
    ],
)
def test_labels_come_out_as_they_went_in_and_so_they_are_saved(tiny_model, texts, given, expected, tmp_path):
    clf = sn.SpinClassifier(str(tiny_model), **QUICK).fit(texts, given)
    assert clf.classes_.tolist() == expected
    clf.save_pretrained(tmp_path)
    for some in (clf, sn.SpinClassifier.from_pretrained(tmp_path), pickle.loads(pickle.dumps(clf))):
        predicted = some.predict(texts).tolist()
        assert set(predicted) <= set(expected)
        assert {type(label) for label in predicted} == {type(expected[0])}
    assert clf.score(texts, given) == np.mean([a == b for a, b in zip(predicted, list(given), strict=True)])


def test_a_bool_is_no_whole_number_among_labels():
    with pytest.raises(sn.InputError, match="row 0 has the label True; known are 0, 1"):
        Classes.learn([0, 1], 2, "rows").encode([True, False], 2, "rows")


def test_the_row_in_an_error_is_the_one_that_was_given(tiny_model, texts, labels, monkeypatch):
    """A feature that is not finite is noticed after the split, in another order."""
    row = 37
    marked = [*texts[:row], "[PAD] sad sad sad", *texts[row + 1 :]]
    n_sad = sn.load_tokenizer(str(tiny_model)).encode(["sad"]).ids[0][1]

    def mean(values, batch):
        pooled = POOLINGS["mean"](values, batch)
        for index, ids in enumerate(batch.ids.split(batch.lengths)):
            pooled[index] += torch.inf * ((ids == n_sad).sum() == 3) if (ids == n_sad).sum() == 3 else 0
        return pooled

    monkeypatch.setattr(extract_module, "POOLINGS", {**POOLINGS, "mean": mean})
    for how in ({}, {"sample": 78}):
        with pytest.raises(sn.InputError, match=f"training rows: text {row}: activation 0 of layer 0 is not a finite float32"):
            sn.SpinClassifier(str(tiny_model), **QUICK, **how).fit(marked, labels)
    test = (["good film", "sad sad sad"], ["positive", "negative"])
    with pytest.raises(sn.InputError, match="test rows: text 1: activation"):
        sn.SpinClassifier(str(tiny_model), **QUICK).fit(texts, labels, test=test)
    with pytest.raises(sn.InputError, match="training rows: text 5 holds half a character"):
        sn.SpinClassifier(str(tiny_model), **QUICK).fit([*texts[:5], "a\ud800", *texts[6:]], labels)


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"Cs": 1.0}, "Cs is 1.0; expected positive numbers in a list"),
        ({"Cs": np.array([1.0, np.nan])}, "Cs is array"),
        ({"Cs": {1.0}}, "Cs is {1.0}"),
        ({"Cs": iter([1.0])}, "Cs is <list_iterator"),
        ({"Cs": [10**400]}, "Cs is"),
        ({"head_Cs": [True]}, "head_Cs is .True."),
        ({"head_Cs": "12"}, "head_Cs is '12'"),
        ({"etas": 0.5}, "etas is 0.5; expected one number or more in a list"),
        ({"etas": ["0.5"]}, "etas is"),
        ({"etas": None, "top_k": 5}, "top_k is 5; expected one number or more"),
        ({"etas": None, "top_k": [2.5]}, "top_k is 2.5; expected a whole number"),
        ({"etas": None, "top_k": [2**70]}, "a layer has 32 neurons"),
        ({"etas": None, "top_share": 0.5}, "top_share is 0.5"),
        ({"depth": "best", "tolerance": "half"}, "tolerance is 'half'; expected 0 or more"),
        ({"depth": "best", "tolerance": float("inf")}, "tolerance is inf"),
        ({"sample": 2.5}, "sample is 2.5; expected a number of rows"),
        ({"sample": True}, "sample is True"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 to 4294967295"),
        ({"seed": 2**40}, "seed is 1099511627776"),
        ({"seed": 1.0}, "seed is 1.0"),
        ({"metric": ["accuracy"]}, "metric is .'accuracy'.; expected one of"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"device": 0}, "device is 0; expected a name"),
        ({"device": "meta"}, "device 'meta' cannot be used"),
        ({"dtype": torch.float32}, "dtype is torch.float32; expected one of float32"),
        ({"dtype": None}, "dtype is None; expected one of float32"),
        ({"depth": 1.0}, "depth is 1.0; expected 1 to 3"),
        ({"depth": np.array([1])}, "depth is array"),
        ({"exits": 1}, "exits is 1; expected depths"),
        ({"exits": [True]}, "exits is .True.; expected depths"),
        ({"validation_share": "half"}, "validation_share is 'half'"),
        ({"validation_share": float("nan")}, "validation_share is nan"),
        ({"sites": 5}, "sites is 5; expected a sequence"),
        ({"poolings": {"mean"}}, "poolings is {'mean'}; expected a sequence"),
        ({"baseline": "no"}, "baseline is 'no'; expected True or False"),
        ({"allow_pickle": "no"}, "allow_pickle is 'no'; expected True or False"),
        ({"model": None}, "model is None; expected a folder or a Hub name"),
        ({"model": Path("nowhere")}, "nowhere': no such folder"),
        ({"revision": 5}, "revision is 5"),
    ],
)
def test_settings_are_checked_where_they_come_in(tiny_model, texts, labels, settings, message, unchecked, monkeypatch):
    monkeypatch.setattr("spin_native.classifier.training.Extraction.__call__", None)
    with pytest.raises(sn.InputError, match=message):
        sn.SpinClassifier(**{"model": str(tiny_model), **QUICK, **settings}).fit(texts, labels)


def test_numpys_numbers_and_arrays_count_as_numbers(clf, tiny_model, texts, labels, unchecked):
    numbers = {"depth": np.int32(2), "seed": np.uint8(0), "exits": np.array([1]), "etas": np.array([0.8]), "sample": None}
    some = sn.SpinClassifier(tiny_model, **{**QUICK, **numbers, "baseline": np.False_}).fit(np.array(texts), labels)
    assert np.array_equal(some.predict_proba(texts), clf.predict_proba(texts))
    assert len(some.explain(np.str_("good film"), np.int64(2))) == 2
    assert sn.load_model(str(tiny_model), np.int64(1)).depth == 1
    assert np.array_equal(some.predict_proba(texts, exit=Exit("fixed", np.int64(1))), clf.predict_proba(texts, exit="fixed:1"))


def test_arguments_that_contradict_each_other_or_have_another_form_are_refused(clf, tiny_model, texts, labels, unchecked):
    new = sn.SpinClassifier(str(tiny_model), **QUICK, validation_share=0.3)
    with pytest.raises(sn.InputError, match=r"validation_share=0.3 is for a fit without validation rows"):
        new.fit(texts[:40], labels[:40], validation=(texts[40:], labels[40:]))
    with pytest.raises(sn.InputError, match=r"validation rows: got a DataFrame; expected .texts, labels."):
        sn.SpinClassifier(str(tiny_model), **QUICK).fit(texts, labels, validation=TABLE)
    for exit_ in (5, True, ["fixed"]):
        with pytest.raises(sn.InputError, match="expected fixed, fixed:DEPTH"):
            clf.predict(texts, exit=exit_)
    for value in (True, "1"):
        with pytest.raises(sn.InputError, match="the exit's value is"):
            Exit("confidence", value)
    for arguments in ({"by": "patient"}, {"confidence": "high"}, {"max_accuracy_drop": float("nan")}, {"confidence": True}):
        with pytest.raises(sn.InputError, match=r"expected (confidence or patience|shares between 0 and 1)"):
            clf.calibrate(texts, labels, **arguments)
    for n_neurons in (0, 2.5, True):
        with pytest.raises(sn.InputError, match="n_neurons is"):
            clf.explain("good film", n_neurons)
    with pytest.raises(sn.InputError, match=r"model is a str; expected what sn.load_model returns"):
        sn.extract(str(tiny_model), clf._deployed.extractor.tokenizer, texts)
    with pytest.raises(sn.InputError, match="window is 0"):
        list(clf._deployed.extractor.tokenizer.batches(texts, window=0))


def test_paths_name_folders_everywhere(clf, tiny_model, texts, labels, tmp_path):
    odd = tmp_path / "a folder \N{PARROT}"
    model = Path(shutil.copytree(tiny_model, odd / "model"))
    some = sn.SpinClassifier(model, exits=(1,), **QUICK).fit(texts, labels, store=odd / "store")
    some.save_pretrained(odd / "clf")
    again = sn.SpinClassifier.from_pretrained(odd / "clf", base_model=model)
    assert again.model == model
    for one in (again, clone(some).fit(texts, labels), pickle.loads(pickle.dumps(some))):
        assert np.array_equal(one.predict_proba(texts), clf.predict_proba(texts))
    with pytest.raises(sn.InputError, match=r"^classifier '.*nowhere': no such folder; expected a folder with spin_classifier"):
        sn.SpinClassifier.from_pretrained(Path("nowhere"))


# The public probes.


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ("ab" * 10, "y: got one str; expected several labels"),
        ({"a": 1}, "y: a dict has no rows"),
        (pd.Series([0, None] * 10, dtype="Int64"), "y of row 1 is missing .got <NA>"),
        (["a", None] * 10, "y of row 1 is missing .got None"),
        ([0.0, float("nan")] * 10, "y of row 1 is missing .got nan"),
        (np.eye(2)[[0, 1] * 10] * 2, "y of row 0, label 0 is 2.0; expected 0 or 1"),  # 0/1 columns are several labels
        (["a\0", "a"] * 10, "y of row 0 is 'a.x00', and NumPy drops the NUL"),
        ([2**63 + 1, -1] * 10, "y of row 0 is 9223372036854775809, which does not fit 64 bits"),
        ([1, "a"] * 10, "y is of two types, row 0 has 1 and row 1 has 'a'"),
    ],
)
def test_a_probe_names_the_row_of_an_unusable_label(y, message, unchecked):
    X = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(sn.InputError, match=f"LogisticProbe: {message}"):
        sn.LogisticProbe().fit(X, y)


@pytest.mark.parametrize("settings", [{"C": "1"}, {"C": True}, {"C": None}, {"tol": "x"}, {"max_iter": 2.5}, {"l1_ratio": "a"}])
def test_a_probes_settings_are_checked(settings, unchecked):
    X, y = np.random.default_rng(0).normal(size=(20, 3)), [0, 1] * 10
    with pytest.raises(sn.InputError, match=f"LogisticProbe: {next(iter(settings))} is .*; expected"):
        sn.LogisticProbe(**settings).fit(X, y)


def test_a_probe_refuses_features_that_are_none_and_is_copied(unchecked):
    X, y = np.random.default_rng(0).normal(size=(20, 3)), pa.array(["a", "b"] * 10)
    probe = sn.LogisticProbe(max_iter=np.int64(200)).fit(X, y)
    assert np.array_equal(pickle.loads(pickle.dumps(probe)).predict_proba(X), probe.predict_proba(X))
    for features in (scipy.sparse.csr_matrix(X), X * np.nan, X[:, 0], X[:, :2]):
        with pytest.raises(sn.InputError, match=r"LogisticProbe: [^\n]*$"):
            probe.predict(features)
