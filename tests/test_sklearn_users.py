"""What scikit-learn's users do with an estimator: copy it, search over it, score it, read features as arrays."""

import copy
import io
import json
import pickle
import shutil
import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.ensemble import VotingClassifier
from sklearn.metrics import mean_squared_error
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from tiny import QUICK, checkpoint, our_values, padded, rows_of_every_length

import spin_native as sn
from spin_native.classifier.exits import Exit, Promise
from spin_native.errors import TextError
from spin_native.features.extract import Extractor
from spin_native.features.store import FeatureKey
from spin_native.models import fast

# Copies.

COPIES = {
    "pickle": lambda clf, _: pickle.loads(pickle.dumps(clf)),
    "deepcopy": lambda clf, _: copy.deepcopy(clf),
    "copy": lambda clf, _: copy.copy(clf),
    "joblib": lambda clf, folder: joblib.load(joblib.dump(clf, folder / "clf")[0]),
    "twice": lambda clf, _: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(clf)))),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_predicts_the_same_bits_and_knows_what_the_first_one_knows(clf, texts, how, tmp_path):
    copied = COPIES[how](clf, tmp_path)
    assert np.array_equal(copied.predict_proba(texts), clf.predict_proba(texts))
    assert copied.get_params() == clf.get_params()
    assert (copied.classes_.tolist(), copied.depth_, copied.exit_) == (clf.classes_.tolist(), clf.depth_, clf.exit_)
    assert copied.depth_curve_ == clf.depth_curve_
    assert copied.explain("good film") == clf.explain("good film")
    for name, some in (("a", clf), ("b", copied)):
        some.save_pretrained(tmp_path / name)
    for file in ("spin_classifier.json", "head.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_what_was_changed_after_the_fit_travels_with_a_copy(clf, texts):
    changed = copy.copy(clf)
    changed.exit_ = Exit("confidence", 0.6)
    changed.promise_ = Promise(Exit("confidence", 0.6), 0.1, 0.9, 100, 0, 1.5, 100, "float32")
    changed.note = "kept, too"
    copied = pickle.loads(pickle.dumps(changed))
    assert (copied.exit_, copied.promise_, copied.note) == (changed.exit_, changed.promise_, changed.note)
    assert clf.exit_ == Exit("fixed", 2)
    changed.exit_ = "confidence:0.6"
    for one, other in zip(copied.predict(texts, return_depth=True), changed.predict(texts, return_depth=True), strict=True):
        assert np.array_equal(one, other)


def test_a_regressor_and_its_count_of_cut_texts_are_copied(tiny_model, texts, labels):
    reg = sn.SpinRegressor(str(tiny_model), **QUICK).fit(texts, [len(text) / 10 for text in texts])
    with pytest.warns(UserWarning, match="were cut"):
        reg.predict("film " * 99)
    copied = pickle.loads(pickle.dumps(reg))
    assert copied.n_truncated_ == reg.n_truncated_ == 1  # before and after the base model is loaded
    assert np.array_equal(copied.predict(texts), reg.predict(texts))
    assert copied.n_truncated_ == 1


def test_a_pickle_holds_no_base_model_and_names_it_if_it_is_gone(tiny_model, texts, labels, tmp_path):
    there = shutil.copytree(tiny_model, tmp_path / "there")
    clf = sn.SpinClassifier(there, **QUICK).fit(texts, labels)
    pickled = pickle.dumps(clf)
    assert len(pickled) < 20_000
    shutil.rmtree(there)
    copied = pickle.loads(pickled)
    assert copied.salient_neurons_.keys() == clf.salient_neurons_.keys()
    with pytest.raises(sn.InputError, match=r"loads its base model from where .*there': no such folder.*base_model="):
        copied.predict("good film")
    pickle.dumps(copied)
    again = sn.SpinClassifier(shutil.copytree(tiny_model, there), **QUICK).fit(texts, labels)
    shutil.rmtree(there)
    with pytest.raises(sn.InputError, match=r"there' cannot be read any more.*bring its files back"):
        pickle.dumps(again)


def test_a_copy_refuses_a_base_model_that_has_changed(tiny_model, texts, labels, tmp_path):
    there = shutil.copytree(tiny_model, tmp_path / "there")
    pickled = pickle.dumps(sn.SpinClassifier(there, **QUICK).fit(texts, labels))
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    with pytest.raises(sn.InputError, match=r"the weights of base model .* changed since the classifier was fitted"):
        pickle.loads(pickled).predict("good film")


def test_a_copy_is_fitted_again_without_the_first_one_noticing(clf, texts, labels):
    before = clf.predict_proba(texts)
    other = copy.deepcopy(clf).set_params(depth=1, exits=None)
    other.fit(texts, [label == "positive" for label in labels])
    assert other.classes_.tolist() == [False, True]
    assert pickle.loads(pickle.dumps(other)).classes_.tolist() == [False, True]
    assert np.array_equal(clf.predict_proba(texts), before)


def test_another_process_predicts_the_same_bits_and_checks_hold_without_asserts(clf, texts, tmp_path):
    joblib.dump(clf, tmp_path / "clf")
    program = (
        "import sys, joblib, numpy as np\n"
        "clf = joblib.load(sys.argv[1] + '/clf')\n"
        "np.save(sys.argv[1] + '/there.npy', clf.predict_proba(sys.argv[2:]))\n"
        "for use in (lambda: clf.predict({'a': 1}), lambda: clf.score('ab', 'ab'), lambda: clf.calibrate('ab', 'ab')):\n"
        "    try: use(); print('no error')\n"
        "    except ValueError as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", program, tmp_path, *texts[:9]], capture_output=True, text=True)
    assert done.stdout.split() == ["InputError"] * 3, done.stderr
    assert np.array_equal(np.load(tmp_path / "there.npy"), clf.predict_proba(texts[:9]))


def test_errors_about_a_text_travel_between_processes():
    error = pickle.loads(pickle.dumps(TextError(3, "is bytes", "test rows")))
    assert (str(error), error.row) == ("test rows: text 3 is bytes", 3)


@pytest.mark.filterwarnings("ignore")  # joblib's
def test_cross_validation_voting_and_a_grid_with_two_workers(clf, texts, labels):
    unfitted = clone(clf)
    assert not hasattr(unfitted, "heads_")
    result = cross_validate(unfitted, texts, labels, cv=2, n_jobs=2, return_estimator=True)
    assert [one.score(texts, labels) > 0.6 for one in result["estimator"]] == [True, True]
    assert result["test_score"].tolist() == cross_val_score(unfitted, pd.Series(texts), np.array(labels), cv=2).tolist()
    vote = VotingClassifier([("a", unfitted), ("b", clone(clf).set_params(depth=1, exits=None))], voting="soft", n_jobs=2)
    vote.fit(texts, labels)
    copied = pickle.loads(pickle.dumps(vote))
    assert np.array_equal(copied.predict_proba(texts), vote.predict_proba(texts))
    grid = GridSearchCV(clone(clf), {"head_Cs": [(0.01,), (1.0,)], "etas": [(1.0,), np.array([0.5])]}, cv=2)
    assert grid.fit(texts, labels).best_estimator_.predict(texts).tolist() == grid.predict(texts).tolist()


def test_scikit_learn_knows_what_the_estimators_are(tiny_model, clf, unchecked):
    assert is_classifier(clf)
    assert is_regressor(sn.SpinRegressor(str(tiny_model)))
    assert clf.__sklearn_tags__().input_tags.string
    assert repr(sn.SpinClassifier("m", Cs=np.array([1.0]))) == "SpinClassifier(Cs=array([1.]), model='m')"


# Copies of models, extractors and tokenizers.


works_here = pytest.mark.skipif(not fast._works(torch.float32), reason="this torch or CPU does not reorder weights")


@pytest.mark.parametrize("prepack", [pytest.param(True, marks=works_here), False])
def test_state_dicts_and_copies_of_models_are_whole(family, prepack):
    folder, _ = checkpoint(family)
    model, plain = sn.load_model(folder, prepack=prepack), sn.load_model(folder, prepack=False)
    state, expected = model.state_dict(), plain.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert str(plain.load_state_dict(state)) == "<All keys matched successfully>"
    values = our_values(model, padded(rows_of_every_length(), "none"))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied_values = our_values(copied, padded(rows_of_every_length(), "none"))
        assert all(torch.equal(copied_values[key], values[key]) for key in values)
    file = io.BytesIO()
    torch.save(model, file)
    whole = torch.load(io.BytesIO(file.getvalue()), weights_only=False).state_dict()
    assert all(torch.equal(whole[name], expected[name]) for name in expected)
    other = {name: tensor + 0.5 for name, tensor in expected.items()}
    model.load_state_dict(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({name: tensor for name, tensor in other.items() if not name.endswith("query.weight")})


def test_a_copied_extractor_gives_the_same_bits_and_reads_no_special_tokens_in_texts(tiny_model, texts):
    tokenizer = sn.load_tokenizer(str(tiny_model))
    wanted = {FeatureKey("activation", "mean", 1): None}
    extractor = Extractor(sn.load_model(str(tiny_model), 2), tokenizer, wanted)
    odd = ["a [SEP] film", "[CLS]", *texts]
    expected = np.asarray(extractor.run(odd, progress=False))
    for copied in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
        assert np.array_equal(np.asarray(copied.run(odd, progress=False)), expected)
        assert copied.tokenizer.encode(odd) == tokenizer.encode(odd)


# Features as arrays.


def test_features_are_one_array_or_an_error_that_names_one(tiny_model, texts, unchecked):
    model, tokenizer = sn.load_model(str(tiny_model), 1), sn.load_tokenizer(str(tiny_model))
    one = sn.extract(model, tokenizer, texts, poolings=("max",), progress=False)
    assert np.array_equal(np.asarray(one), one.array(site="activation", pooling="max", layer=0))
    assert pd.DataFrame(one).shape == (len(one), 32) == (80, 32)
    assert np.asarray(one, dtype=np.float64).dtype == np.float64
    several = sn.extract(model, tokenizer, texts, progress=False)
    for use in (np.asarray, list, pd.DataFrame, lambda features: sn.LogisticProbe().fit(features, [0, 1] * 40)):
        with pytest.raises(sn.InputError, match=r"take one with .array\(site='activation', pooling='mean', layer=0\)"):
            use(several)


# Scores.


@pytest.mark.parametrize("metric", ["mse", "mae", "pearson"])
def test_a_regressors_score_is_larger_for_better_and_its_curve_is_the_metric(tiny_model, texts, metric):
    values = [len(text) / 10 for text in texts]
    reg = sn.SpinRegressor(str(tiny_model), metric=metric, **QUICK).fit(texts, values)
    assert reg.score(texts, reg.predict(texts)) >= reg.score(texts, values)
    if metric == "mse":
        assert reg.score(texts, values) == pytest.approx(-mean_squared_error(values, reg.predict(texts)))
        assert all(row.validation > 0 for row in reg.depth_curve_)


def test_classes_and_heads_change_together(tiny_model, clf, texts, labels):
    changed = copy.copy(clf)
    other = sn.SpinClassifier(str(tiny_model), **{**QUICK, "depth": 1}).fit(texts, [f"not {label}" for label in labels])
    changed.heads_ = other.heads_
    for some in (changed, pickle.loads(pickle.dumps(changed))):
        assert (some.classes_.tolist(), some.depth_) == (["not negative", "not positive"], 1)
        assert np.array_equal(some.predict_proba(texts), other.predict_proba(texts))
        assert set(some.predict(texts)) <= set(some.classes_)
    with pytest.raises(sn.InputError, match="holds half a character"):
        changed.fit(["\ud800", *texts[1:]], ["x", "y"] * 40)
    assert changed.classes_.tolist() == ["not negative", "not positive"]
    assert clf.classes_.tolist() == ["negative", "positive"]


def test_what_is_no_head_of_this_task_cannot_become_one(tiny_model, clf, texts, unchecked):
    regressor = sn.SpinRegressor(str(tiny_model), **QUICK).fit(texts, np.linspace(0, 1, len(texts)))
    for heads, message in (
        (regressor.heads_, "heads of a regression; expected those of a classification"),
        ({}, "one head or more by depth"),
        (5, "heads_ is a int"),
    ):
        changed = copy.copy(clf)
        with pytest.raises(sn.InputError, match=message):
            changed.heads_ = heads
        assert np.array_equal(changed.predict_proba(texts), clf.predict_proba(texts))
