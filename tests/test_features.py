"""Features as arrays, pandas frames and Parquet files; features of an edited model; stores that answer smaller questions."""

import hashlib
import json
import pickle
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import spin_native as sn
from spin_native.analyses.ablation import Ablation
from spin_native.features import tables
from spin_native.features.extract import Extractor
from spin_native.features.spec import FeatureKey

WORDS = ["good", "bad", "nice", "awful", "fine", "the", "a", "was", "film", "food"]
TEXTS = [" ".join(WORDS[(row + i) % len(WORDS)] for i in range(1 + row % 13)) for row in range(40)]


@pytest.fixture
def parts(tiny_model):
    return sn.load_model(str(tiny_model), dtype=torch.float64), sn.load_tokenizer(str(tiny_model))


@pytest.fixture
def small_shards(monkeypatch):
    """Ten rows a shard."""
    monkeypatch.setattr(Extractor, "rows_per_block", 10)


def test_square_brackets_give_one_array_and_len_the_rows(parts):
    features = sn.extract(*parts, TEXTS)
    assert len(features) == 40
    assert np.array_equal(features["activation", "mean", 2], features.array(site="activation", pooling="mean", layer=2))


def test_square_brackets_of_something_else_list_what_there_is(parts, unchecked):
    features = sn.extract(*parts, TEXTS, depth=1)
    with pytest.raises(sn.InputError, match=r"there are sites activation; poolings mean, max; layers 0"):
        features["activation", "mean", 1]
    for key in (0, "activation", ("activation", "mean")):
        with pytest.raises(sn.InputError, match=r"take one with .array\(site='activation', pooling='mean', layer=0\)"):
            features[key]


def test_a_frame_has_a_row_per_text_and_a_column_per_neuron(parts):
    features = sn.extract(*parts, TEXTS, depth=2)
    frame = features.to_pandas()
    assert frame.shape == (40, 2 * 2 * 32)
    assert (frame.dtypes == np.float32).all()
    assert np.array_equal(frame["activation.max.1.17"], features["activation", "max", 1][:, 17])


def test_a_frame_without_pandas_is_one_sentence(parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(sn.InputError, match=r"^to_pandas needs pandas, which is not installed: pip install pandas$"):
        sn.extract(*parts, TEXTS, depth=1).to_pandas()


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_parquet_file_holds_every_array_as_a_column_of_vectors(parts, tmp_path, monkeypatch, small_shards, on_disk):
    monkeypatch.setattr(tables, "WRITTEN_BYTES", 6 * 4 * 32 * 4)  # six rows at a time
    features = sn.extract(*parts, TEXTS, depth=2, store=tmp_path / "s" if on_disk else None)
    features.to_parquet(tmp_path / "f.parquet")
    assert pq.ParquetFile(tmp_path / "f.parquet").num_row_groups == (4 if on_disk else 7)
    frame = pd.read_parquet(tmp_path / "f.parquet")
    assert list(frame["row"]) == list(range(40))
    assert list(frame.columns) == ["row", *(f.name for f in features.widths)]
    for feature in features.widths:
        assert np.array_equal(np.stack(frame[feature.name]), features[feature])


def test_float16_features_are_written_as_the_same_numbers_in_float32(parts, tmp_path):
    features = sn.extract(*parts, TEXTS, dtype="float16")
    features.to_parquet(tmp_path / "f.parquet")
    column = pq.read_table(tmp_path / "f.parquet")["activation.mean.0"]
    assert str(column.type) == "fixed_size_list<element: float>[32]"
    assert np.array_equal(np.stack(column.to_numpy()), features["activation", "mean", 0])


def test_no_texts_make_a_file_of_no_rows(parts, tmp_path):
    for name, store in (("memory", None), ("disk", tmp_path / "s")):
        sn.extract(*parts, [], depth=1, store=store).to_parquet(tmp_path / f"{name}.parquet")
        assert pq.read_table(tmp_path / f"{name}.parquet").num_rows == 0


def test_a_parquet_file_is_not_replaced_without_being_asked_and_needs_its_ending(parts, tmp_path):
    features = sn.extract(*parts, TEXTS[:2], depth=1)
    features.to_parquet(tmp_path / "f.parquet")
    with pytest.raises(sn.InputError, match="already exists"):
        features.to_parquet(tmp_path / "f.parquet")
    features.to_parquet(tmp_path / "f.parquet", overwrite=True)
    with pytest.raises(sn.InputError, match=r"f\.csv: .*expected a name that ends in \.parquet"):
        features.to_parquet(tmp_path / "f.csv")


# Features of an edited model.


def test_an_edit_changes_what_later_layers_give_as_a_hook_in_transformers_does(parts, tiny_model):
    neurons = {0: np.array([1, 5, 30]), 1: np.array([7])}
    edited = sn.extract(*parts, TEXTS, sites=("hidden", "activation"), edit=Ablation(neurons), max_tokens=50)
    theirs = transformers.BertModel.from_pretrained(tiny_model, attn_implementation="eager").double().eval()
    tokenizer = transformers.BertTokenizerFast(str(tiny_model / "vocab.txt"))

    def without(layer):
        def hook(_module, _given, out):
            return out.index_fill(-1, torch.as_tensor(neurons[layer]), 0.0)

        return hook

    for layer in neurons:
        theirs.encoder.layer[layer].intermediate.register_forward_hook(without(layer))
    with torch.inference_mode():
        for row, text in enumerate(TEXTS):
            states = theirs(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
            for layer, state in enumerate(states):
                got = edited["hidden", "mean", layer][row]
                np.testing.assert_allclose(got, state[0].mean(0).numpy(), rtol=1e-6, atol=1e-6)


def test_an_edited_layers_own_features_are_those_that_the_layer_writes(parts):
    plain, edited = sn.extract(*parts, TEXTS), sn.extract(*parts, TEXTS, edit=Ablation({1: np.arange(5)}))
    before, after = (features["activation", "mean", 1] for features in (plain, edited))
    assert (after[:, :5] == 0).all()
    assert np.array_equal(after[:, 5:], before[:, 5:])
    for layer, is_same in ((0, True), (2, False)):
        assert np.array_equal(plain["activation", "mean", layer], edited["activation", "mean", layer]) is is_same


def test_an_ablation_of_neurons_that_the_model_lacks_is_refused(parts):
    for neurons, message in (
        ({9: np.array([1])}, "ablation: no layer 9; the model has layers 0 to "),
        ({0: np.array([1, 9999])}, "ablation: layer 0 has neurons 1 to 9999; expected 0 to "),
    ):
        with pytest.raises(sn.InputError, match=message):
            sn.extract(*parts, TEXTS, edit=Ablation(neurons))


def test_an_edit_that_returns_another_shape_is_refused(parts, unchecked):
    for edit in (lambda layer: None, lambda layer: layer.activation[:1], lambda layer: layer.activation[:, :3]):
        with pytest.raises(sn.InputError, match=r"edit returned .*; expected a tensor of the activation's shape"):
            sn.extract(*parts, TEXTS, edit=edit, depth=1)


def test_an_edit_goes_with_no_store_and_has_to_be_a_function(parts, tmp_path, unchecked):
    with pytest.raises(sn.InputError, match="store and edit: a store cannot record which edit it was made with"):
        sn.extract(*parts, TEXTS, edit=Ablation({}), store=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    with pytest.raises(sn.InputError, match="edit is a dict; expected a function of a Layer"):
        sn.extract(*parts, TEXTS, edit={})


def test_an_ablation_of_neurons_that_the_model_does_not_have_is_refused(parts):
    with pytest.raises(sn.InputError, match="no layer 99; the model has layers 0 to 2"):
        sn.extract(*parts, TEXTS[:2], edit=Ablation({99: np.array([0])}))
    with pytest.raises(sn.InputError, match="layer 1 has neurons -1 to -1; expected 0 to 31"):
        sn.extract(*parts, TEXTS[:2], edit=Ablation({1: np.array([-1])}))


# A store answers smaller questions.


@pytest.fixture
def whole(parts, tmp_path, small_shards):
    """A store of everything, in shards of ten rows."""
    return sn.extract(*parts, TEXTS, sites=("activation", "hidden"), poolings=("mean", "max", "last"), store=tmp_path / "s")


@pytest.fixture
def standstill(whole, parts, monkeypatch):
    """From now on no model may run."""

    def layers(*_given, **_how):
        raise AssertionError("the model was run")

    monkeypatch.setattr(type(parts[0]), "layers", layers)


def test_fewer_layers_sites_and_poolings_come_out_of_the_store(parts, whole, standstill, tmp_path):
    fewer = sn.extract(*parts, TEXTS, sites=("hidden",), poolings=("last", "max"), depth=2, store=tmp_path / "s")
    assert [f.name for f in fewer.widths] == ["hidden.last.0", "hidden.max.0", "hidden.last.1", "hidden.max.1"]
    for feature in fewer.widths:
        assert np.array_equal(fewer[feature], whole[feature])


def test_some_texts_in_another_order_come_out_of_the_store(parts, whole, standstill, tmp_path):
    rows = np.random.default_rng(0).permutation(40)[:23]
    some = sn.extract(*parts, iter([TEXTS[row] for row in rows]), store=tmp_path / "s")
    assert len(some) == 23
    for feature in some.widths:
        assert np.array_equal(some[feature], whole[feature][rows])
    some.to_parquet(tmp_path / "some.parquet")
    assert np.array_equal(
        np.stack(pd.read_parquet(tmp_path / "some.parquet")["activation.max.2"]), some["activation", "max", 2]
    )


def test_a_store_of_no_texts_answers_for_no_texts_only(parts, tmp_path):
    sn.extract(*parts, [], store=tmp_path / "none")
    with pytest.raises(sn.InputError, match="text 0 is not among the 0 texts of this store"):
        sn.extract(*parts, TEXTS[:3], depth=1, store=tmp_path / "none")


def test_equal_texts_come_out_of_the_store_as_often_as_they_are_asked_for(parts, tmp_path, small_shards):
    texts = [*TEXTS[:9], TEXTS[3], TEXTS[4], TEXTS[3], *TEXTS[9:14]]  # over two shards
    stored = sn.extract(*parts, texts, store=tmp_path / "twice")
    asked = [TEXTS[12], TEXTS[3], TEXTS[3], TEXTS[0], TEXTS[3]]
    some = sn.extract(*parts, asked, poolings=("max",), store=tmp_path / "twice")
    assert len(some) == 5
    expected = stored["activation", "max", 1][[15, 3, 3, 0, 3]]
    assert np.array_equal(some["activation", "max", 1], expected)


def test_some_neurons_come_out_of_the_store(parts, whole, standstill, tmp_path):
    chosen = np.array([3, 8, 31])
    few = Extractor(*parts, {FeatureKey("activation", "mean", 1): chosen}).run(TEXTS[::-1], tmp_path / "s")
    assert np.array_equal(few["activation", "mean", 1], whole["activation", "mean", 1][::-1, chosen])


def test_a_model_of_fewer_layers_reads_the_store_of_the_whole_one(tiny_model, parts, whole, standstill, tmp_path):
    shallow = sn.load_model(str(tiny_model), 1, dtype=torch.float64)
    few = sn.extract(shallow, parts[1], TEXTS, store=tmp_path / "s")
    assert np.array_equal(few["activation", "max", 0], whole["activation", "max", 0])


def test_a_question_that_the_store_cannot_answer_is_refused(parts, whole, tiny_model, tmp_path):
    with pytest.raises(sn.InputError, match=r"text 1 is not among the 40 texts of this store; choose another folder"):
        sn.extract(*parts, [TEXTS[3], "other"], depth=1, store=tmp_path / "s")
    with pytest.raises(sn.InputError, match="holds features of another extraction"):
        sn.extract(*parts, TEXTS, poolings=("first",), store=tmp_path / "s")
    with pytest.raises(sn.InputError, match="holds features of another extraction"):
        sn.extract(*parts, TEXTS, depth=1, max_tokens=7, store=tmp_path / "s")
    with pytest.raises(sn.InputError, match="holds features of another extraction"):
        sn.extract(*parts, TEXTS, depth=1, dtype="float16", store=tmp_path / "s")
    narrower = sn.load_model(str(tiny_model))
    with pytest.raises(sn.InputError, match="holds features of another extraction"):
        sn.extract(narrower, parts[1], TEXTS, depth=1, store=tmp_path / "s")


def test_other_weights_are_not_taken_for_those_of_the_store(parts, whole, tiny_model, tmp_path):
    torch.manual_seed(5)
    config = transformers.BertConfig.from_pretrained(tiny_model)
    transformers.BertModel(config).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "vocab.txt").write_bytes((tiny_model / "vocab.txt").read_bytes())
    other = sn.load_model(str(tmp_path / "other"), dtype=torch.float64)
    with pytest.raises(sn.InputError, match="holds features of another extraction"):
        sn.extract(other, sn.load_tokenizer(str(tmp_path / "other")), TEXTS, depth=1, store=tmp_path / "s")


def test_a_damaged_store_answers_nothing(parts, whole, tmp_path):
    shard = tmp_path / "s" / "rows-0000000020.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(sn.InputError, match=r"rows-0000000020\.safetensors: this shard was changed or damaged"):
        sn.extract(*parts, TEXTS, depth=1, store=tmp_path / "s")


def test_a_store_of_an_earlier_version_answers_for_all_its_texts_only(parts, whole, tmp_path):
    """It names the texts of a shard, not those of a row."""
    manifest = tmp_path / "s" / "manifest.json"
    listed = json.loads(manifest.read_text())
    for shard in listed["shards"]:
        path = tmp_path / "s" / shard["file"]
        save_file({name: tensor for name, tensor in load_file(path).items() if name != "text_ids"}, path)
        shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    del listed["reads"]
    manifest.write_text(json.dumps(listed))
    few = sn.extract(*parts, TEXTS, depth=1, store=tmp_path / "s")
    assert np.array_equal(few["activation", "max", 0], whole["activation", "max", 0])
    with pytest.raises(sn.InputError, match="holds features of another extraction"):
        sn.extract(*parts, TEXTS[:20], depth=1, store=tmp_path / "s")
    everything = {"sites": ("activation", "hidden"), "poolings": ("mean", "max", "last")}
    with pytest.raises(sn.InputError, match="holds 40 rows, but only 20 texts were given"):
        sn.extract(*parts, TEXTS[:20], **everything, store=tmp_path / "s")


def test_a_store_that_read_prompts_does_not_answer_for_texts(parts, tmp_path):
    prompts = ["the film was [MASK]", "[MASK] food"]
    sn.extract(*parts, prompts, poolings=("mask", "mean"), store=tmp_path / "s")
    with pytest.raises(sn.InputError, match="holds features of another extraction"):
        sn.extract(*parts, prompts, poolings=("mean",), store=tmp_path / "s")


# A fit from features that are there already.

SITES = ("activation", "hidden")


def learnt(clf, folder):
    """All that a fit learns: its heads to the bit, and its curves."""
    clf.save_pretrained(folder)
    return (folder / "head.safetensors").read_bytes(), clf.depth_curve_, clf.layer_curve_, clf.baseline_, clf.controls_


@pytest.mark.filterwarnings("ignore::spin_native.errors.LeakWarning")
@pytest.mark.parametrize(
    ("how", "on_disk"),
    [
        ({"depth": 2}, True),
        ({"sample": 40, "depth": 1}, False),
        ({"seed": 3, "baseline": False, "depth": 1}, False),
        pytest.param({"phase_two": "both", "head": "frozen"}, True, marks=pytest.mark.nightly),
    ],
)
def test_a_fit_from_features_learns_the_same_bits_as_one_from_texts(tiny_model, reviews, tmp_path, how, on_disk, monkeypatch):
    texts, labels = reviews
    model, tokenizer = sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model))
    features = sn.extract(model, tokenizer, texts[::-1], sites=SITES, store=tmp_path / "s" if on_disk else None)
    few = {"head": "refit", "etas": (0.8,), "mixing": "apart", **how}
    expected = sn.SpinClassifier(str(tiny_model), **few).fit(texts[:60], labels[:60], test=(texts[60:], labels[60:]))

    def no_run(*_given, **_how):
        raise AssertionError("the model was run")

    monkeypatch.setattr(Extractor, "features", no_run)
    clf = sn.SpinClassifier(str(tiny_model), **few)
    clf.fit(texts[:60], labels[:60], test=(texts[60:], labels[60:]), features=features)
    assert learnt(clf, tmp_path / "a") == learnt(expected, tmp_path / "b")
    assert features["activation", "mean", 0].shape == (80, 32)  # a fit takes nothing away


def test_features_that_do_not_fit_the_fit_are_refused_in_one_sentence(tiny_model, reviews, tmp_path, unchecked):
    texts, labels = reviews
    model, tokenizer = sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model))
    clf = sn.SpinClassifier(str(tiny_model), baseline=False, head="refit", etas=(0.8,))

    def refused(features, match, clf=clf, **how):
        with pytest.raises(sn.InputError, match=match):
            clf.fit(texts, labels, features=features, **how)

    refused(sn.extract(model, tokenizer, texts, depth=2), r"hold no activation\.mean\.2, which this fit reads")
    refused(sn.extract(model, tokenizer, texts), r"hold no hidden\.mean\.0", sn.SpinClassifier(str(tiny_model), head="refit"))
    refused(
        sn.extract(model, tokenizer, texts[:-1]),
        r"training rows: text 79 is not among the texts of these",
    )
    refused(sn.extract(model, tokenizer, texts, dtype="float16"), "dtype is float16, this fit needs float32")
    wide = sn.load_model(str(tiny_model), dtype=torch.float64)
    refused(sn.extract(wide, tokenizer, texts), "model_dtype is float64, this fit needs float32")
    refused(sn.extract(model, tokenizer, texts, edit=Ablation({})), "they do not say which model")
    refused(sn.extract(model, tokenizer, texts, poolings=("tokens",)), "they do not say which model")
    refused({}, "features is what extract returns, or an ActivationStore; got a dict")
    refused(sn.extract(model, tokenizer, texts), "got store, too", store=tmp_path / "s")
    torch.manual_seed(5)
    transformers.BertModel(transformers.BertConfig.from_pretrained(tiny_model)).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "vocab.txt").write_bytes((tiny_model / "vocab.txt").read_bytes())
    refused(sn.extract(sn.load_model(str(tmp_path / "other")), tokenizer, texts), "model_fingerprint is .*, this fit needs")


def test_features_can_be_pickled_with_what_they_were_made_from(tiny_model):
    features = sn.extract(sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model)), TEXTS)
    copy = pickle.loads(pickle.dumps(features))
    assert copy.spec == features.spec
    assert np.array_equal(copy["activation", "max", 1], features["activation", "max", 1])
