"""Classifiers on disk: what is saved is loaded, old files too; a crash at any step leaves a whole classifier."""

import copy
import json
import os
import shutil

import numpy as np
import pytest
from old_classifier import LINEAR, PERCEPTRON, write_old
from safetensors.torch import load_file, save_file

import spin_native as sn
from spin_native.checkpoints import Checkpoint, Location
from spin_native.classifier.exits import Exit
from spin_native.classifier.heads import ConstantHead
from spin_native.classifier.saved import read_saved, restored, save_classifier
from spin_native.classifier.tasks import Classes
from spin_native.classifier.training import Fitted


def test_what_was_saved_before_final_rows_was_fitted_on_training_rows(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    path = tmp_path / "spin_classifier.json"
    description = json.loads(path.read_text())
    assert description["settings"].pop("final_rows") is None
    path.write_text(json.dumps(description))
    assert sn.SpinClassifier.from_pretrained(tmp_path).final_rows == "training"


def test_a_loaded_classifier_equals_the_saved_one(fitted, saved, reviews):
    again = sn.SpinClassifier.from_pretrained(saved)
    assert np.array_equal(again.predict_proba(reviews[0]), fitted.predict_proba(reviews[0]))
    assert again.depth_curve_ == fitted.depth_curve_
    assert again.baseline_ == fitted.baseline_
    assert again.get_params() == fitted.get_params()
    assert again.explain("good film") == fitted.explain("good film")


def test_parameters_set_after_the_fit_are_not_saved_as_those_of_the_fit(fitted, tmp_path):
    changed = copy.copy(fitted).set_params(dtype="bfloat16", metric="macro_f1", depth=1)
    for name, clf in (("changed", changed), ("fitted", fitted)):
        clf.save_pretrained(tmp_path / name)
    written, expected = ((tmp_path / name / "spin_classifier.json").read_bytes() for name in ("changed", "fitted"))
    assert written == expected


def copy_of(tiny_model, folder):
    shutil.copytree(tiny_model, folder)
    return folder


def change_weight(folder, name, by=1e-3):
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[0] += by
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_moved_base_model_is_named_and_a_changed_one_refused(tiny_model, reviews, tmp_path):
    here = copy_of(tiny_model, tmp_path / "here")
    how = {"head": "refit", "depth": 2, "baseline": False, "poolings": ("mean",), "etas": (0.8,)}
    sn.SpinClassifier(str(here), **how).fit(*reviews).save_pretrained(tmp_path / "clf")
    there = copy_of(tiny_model, tmp_path / "there")
    shutil.rmtree(here)
    with pytest.raises(sn.InputError, match="no such folder"):
        sn.SpinClassifier.from_pretrained(tmp_path / "clf")
    sn.SpinClassifier.from_pretrained(tmp_path / "clf", base_model=str(there))
    change_weight(there, "encoder.layer.2.output.dense.weight")  # past the depth: nothing that is run has changed
    sn.SpinClassifier.from_pretrained(tmp_path / "clf", base_model=str(there))
    change_weight(there, "encoder.layer.0.output.dense.weight")
    with pytest.raises(sn.InputError, match=r"the weights of base model .* changed since the classifier was fitted"):
        sn.SpinClassifier.from_pretrained(tmp_path / "clf", base_model=str(there))


def test_a_changed_tokenizer_is_refused(tiny_model, saved, tmp_path):
    there = copy_of(tiny_model, tmp_path / "there")
    words = (there / "vocab.txt").read_text().split("\n")
    words[5], words[9] = words[9], words[5]
    (there / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(sn.InputError, match=r"the tokenizer of base model .* changed"):
        sn.SpinClassifier.from_pretrained(saved, base_model=str(there))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop("labels"), "not a classifier that spin_native saved"),
        (lambda d: d["base_model"].pop("fingerprint"), "not a classifier that spin_native saved"),
        (lambda d: d.update(format=99), "format 99; expected 2"),
        (lambda d: d.update(labels=["a", "b", "c"]), "not a classifier that spin_native saved"),
        (lambda d: d.update(head_sha256="0"), "sha256 differs"),
    ],
)
def test_an_edited_description_is_refused(saved, edit, message):
    description = json.loads((saved / "spin_classifier.json").read_text())
    edit(description)
    (saved / "spin_classifier.json").write_text(json.dumps(description))
    with pytest.raises(sn.InputError, match=message):
        sn.SpinClassifier.from_pretrained(saved)


def test_damaged_tensors_and_folders_that_are_none_are_refused(saved, tmp_path):
    (saved / "head.safetensors").write_bytes((saved / "head.safetensors").read_bytes()[:-1])
    with pytest.raises(sn.InputError, match="sha256 differs"):
        sn.SpinClassifier.from_pretrained(saved)
    with pytest.raises(sn.InputError, match="no such folder"):
        sn.SpinClassifier.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(sn.InputError, match=r"holds no spin_classifier\.json"):
        sn.SpinClassifier.from_pretrained(tmp_path)


# A crash while saving.


@pytest.fixture
def save(tiny_model):
    """Save a classifier that is known by the share of its second class."""
    checkpoint = Checkpoint(Location(str(tiny_model)))
    estimator = sn.SpinClassifier(str(tiny_model), head="refit")
    settings = estimator._settings(Classes(np.array(["no", "yes"])))

    def save(folder, n_yes):
        head = ConstantHead.of(np.array([0] * 10 + [1] * n_yes), settings)
        fitted = Fitted(settings.task, 1, {1: head}, [], [], None, None, [], Exit("fixed", 1))
        save_classifier(folder, fitted, "accuracy", estimator.get_params(), checkpoint)

    return save


def saved_n_yes(folder):
    head = restored(read_saved(Location(str(folder)))).heads[1]
    return round(10 * float(np.exp(head.model.intercept_[0])))


def crash_at(monkeypatch, call, k, action):
    """Run `action`, whose k-th call of os.replace or os.fsync fails; whether it got that far."""
    true, count = getattr(os, call), iter(range(10**6))

    def failing(*given):
        if next(count) == k:
            raise OSError(28, "No space left on device")
        return true(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        try:
            action()
        except (sn.InputError, OSError):
            return True
    return False


def test_a_label_with_half_a_character_is_refused_when_it_is_saved(tiny_model, tmp_path):
    estimator = sn.SpinClassifier(str(tiny_model), head="refit")
    settings = estimator._settings(Classes(np.array(["a\ud83d", "b"])))
    fitted = Fitted(
        settings.task, 1, {1: ConstantHead.of(np.array([0, 1]), settings)}, [], [], None, None, [], Exit("fixed", 1)
    )
    with pytest.raises(sn.InputError, match="holds half a character"):
        save_classifier(tmp_path / "clf", fitted, "accuracy", estimator.get_params(), Checkpoint(Location(tiny_model)))
    assert not (tmp_path / "clf").exists()


# The JSON file is replaced by the second os.replace; the third os.fsync is the last one before it.
@pytest.mark.parametrize(("call", "first_after_commit"), [("replace", 2), ("fsync", 3)])
def test_a_crash_at_any_step_leaves_the_old_classifier_or_after_the_commit_the_new_one(
    save, tmp_path, monkeypatch, call, first_after_commit
):
    k = 0
    while True:
        folder = tmp_path / f"{call}{k}"
        save(folder, 20)
        if not crash_at(monkeypatch, call, k, lambda folder=folder: save(folder, 30)):
            break
        assert saved_n_yes(folder) == (20 if k < first_after_commit else 30)
        for again in range(9):  # a second crash, in the folder that the first one left
            before = saved_n_yes(folder)
            crashed = crash_at(monkeypatch, call, again, lambda folder=folder: save(folder, 40))
            assert saved_n_yes(folder) in ((before, 40) if crashed else (40,))
        assert sorted(path.name for path in folder.iterdir()) == ["head.safetensors", "spin_classifier.json"]
        k += 1
    assert k > first_after_commit


def test_a_full_disk_is_one_sentence_that_names_the_folder(save, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_given: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(sn.InputError, match=r"clf: the classifier could not be written .*No space left.*make room"):
        save(tmp_path / "clf", 20)


# What earlier versions wrote.


@pytest.mark.parametrize(("kind", "model"), [("refit", LINEAR), ("frozen", LINEAR), ("weighted", PERCEPTRON)])
def test_a_classifier_of_an_earlier_version_is_read(tiny_model, reviews, tmp_path, kind, model):
    """The file's numbers by hand: standardise, multiply, sigmoid."""
    tensors = write_old(tmp_path, tiny_model, kind, model)
    checkpoint = Checkpoint(Location(tiny_model))
    clf = sn.SpinClassifier.from_pretrained(tmp_path)
    features = sn.extract(
        sn.load_model(str(tiny_model)), checkpoint.tokenizer, reviews[0], sites=("activation", "hidden"), poolings=("mean",)
    )
    read = [
        features.array(site="activation", pooling="mean", layer=0)[:, [3, 17]],
        features.array(site="hidden", pooling="mean", layer=1)[:, [5]],
    ]
    z = (np.concatenate(read, 1) - tensors["2.mean"]) / tensors["2.scale"]
    if model is LINEAR:
        logit = z @ model["2.coef"][0] + 0.25
    else:
        logit = (np.maximum(z @ model["2.weights.0"] + [0.1, -0.2], 0) @ model["2.weights.1"])[:, 0] + 0.3
    np.testing.assert_allclose(clf.predict_proba(reviews[0], exit="fixed:2")[:, 1], 1 / (1 + np.exp(-logit)), rtol=1e-4)
    first = clf.predict_proba(reviews[0], exit="fixed:1")
    np.testing.assert_allclose(first, np.tile([1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(0.5))], (len(first), 1)))
    assert (str(clf.exit_), clf.promise_.n_rows, clf.baseline_.C, clf.controls_.bottom) == ("confidence:0.75", 500, 0.1, 0.25)
    assert (clf.top_k, clf.etas, clf.head_.kind) == ((2,), None, kind)  # today etas beside top_k are refused
    clf.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "head.safetensors").read_bytes() == (tmp_path / "head.safetensors").read_bytes()


# The base model.


def test_a_base_model_of_another_config_is_refused(tiny_model, saved, tmp_path):
    there = copy_of(tiny_model, tmp_path / "there")
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    with pytest.raises(sn.InputError, match=r"the weights of base model .* changed since the classifier was fitted"):
        sn.SpinClassifier.from_pretrained(saved, base_model=str(there))


def test_a_changed_base_model_is_refused_before_its_weights_are_loaded(tiny_model, saved, tmp_path, monkeypatch):
    there = copy_of(tiny_model, tmp_path / "there")
    change_weight(there, "encoder.layer.0.attention.self.query.weight")
    monkeypatch.setattr(Checkpoint, "load", None)
    with pytest.raises(sn.InputError, match=r"the weights of base model .* changed since the classifier was fitted"):
        sn.SpinClassifier.from_pretrained(saved, base_model=str(there))
