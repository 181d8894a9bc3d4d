"""Checkpoints: every layout in the wild is read, every tensor accounted for, and whatever is wrong is named."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import (
    SHARED,
    checkpoint,
    edit_config,
    largest_error,
    our_values,
    reference_model,
    reference_values,
    rows_of_every_length,
    values,
)

import spin_native as sn
from spin_native.checkpoints import files
from spin_native.checkpoints.accounting import account
from spin_native.models import new_model, read_config
from spin_native.text.batch import TokenBatch

ROWS = rows_of_every_length()
PREFIX = {
    "roberta": "roberta.",
    "bert": "bert.",
    "distilbert": "distilbert.",
    "gpt2": "transformer.",
    "mpnet": "mpnet.",
    "xlm-roberta": "roberta.",
}
MODULES = {family: family.replace("-", "_") for family in PREFIX}
NAMES = {
    "roberta": "encoder.layer.1.intermediate.dense.weight",
    "bert": "encoder.layer.1.intermediate.dense.weight",
    "distilbert": "transformer.layer.1.ffn.lin1.weight",
    "gpt2": "h.1.mlp.c_fc.weight",
    "mpnet": "encoder.layer.1.intermediate.dense.weight",
    "xlm-roberta": "encoder.layer.1.intermediate.dense.weight",
}
EXTRA = {
    "roberta": [
        "lm_head.dense.weight",
        "lm_head.bias",
        "classifier.out_proj.weight",
        "qa_outputs.bias",
        "roberta.pooler.dense.bias",
    ],
    "bert": ["cls.predictions.bias", "classifier.weight", "qa_outputs.weight", "bert.embeddings.position_ids"],
    "distilbert": [
        "vocab_transform.weight",
        "vocab_layer_norm.bias",
        "pre_classifier.weight",
        "classifier.bias",
        "qa_outputs.bias",
    ],
    "gpt2": ["lm_head.weight", "score.weight", "transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
    "mpnet": [
        "lm_head.decoder.weight",
        "classifier.dense.weight",
        "mpnet.pooler.dense.weight",
        "mpnet.embeddings.position_ids",
    ],
    "xlm-roberta": ["lm_head.layer_norm.weight", "classifier.dense.bias", "roberta.embeddings.position_ids"],
}


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def store(folder, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_names_with_and_without_prefix_heads_and_buffers_all_load_the_same(family, folder):
    plain, tensors = values(folder), tensors_of(folder)
    bare = {name.removeprefix(PREFIX[family]): tensor for name, tensor in tensors.items()}
    store(folder, bare)
    assert same(values(folder), plain)
    store(folder, {PREFIX[family] + name: t for name, t in bare.items()} | {name: torch.zeros(3) for name in EXTRA[family]})
    assert same(values(folder), plain)


@pytest.mark.parametrize("family", ["bert", "roberta"], indirect=True)
def test_gamma_and_beta_are_gain_and_bias_of_a_layer_norm(family, folder):
    plain = values(folder)
    legacy = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors_of(folder).items()
    }
    assert any(name.endswith("gamma") for name in legacy)
    store(folder, legacy)
    assert same(values(folder), plain)


def classes_with_heads():
    """Every model of the families that transformers has, heads and all."""
    return [
        (family, name)
        for family, module in MODULES.items()
        for name in importlib.import_module(f"transformers.models.{module}.modeling_{module}").__all__
        if not name.endswith(("PreTrainedModel", "Layer"))
    ]


@pytest.mark.parametrize(("family", "kind"), classes_with_heads())
def test_what_transformers_saves_of_models_with_heads_loads(family, kind, tmp_path):
    config = reference_model(family).config
    config.pad_token_id = config.pad_token_id or 0
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    assert sn.load_model(str(tmp_path)).depth == 3


def test_a_checkpoint_with_two_heads_computes_what_transformers_does(tmp_path):
    model = transformers.GPT2DoubleHeadsModel(reference_model("gpt2").config).double().eval()
    model.save_pretrained(tmp_path)
    ours = our_values(sn.load_model(tmp_path, dtype=torch.float64), TokenBatch.from_rows(ROWS))
    assert largest_error(ours, reference_values(model.transformer, ROWS)) <= 1e-12


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "mpnet"], indirect=True)
def test_a_config_without_a_model_type_is_recognised_by_the_tensors_names(family, folder):
    plain, tensors = values(folder), tensors_of(folder)
    edit_config(folder, model_type=None)
    store(folder, {PREFIX[family] + name.removeprefix(PREFIX[family]): tensor for name, tensor in tensors.items()})
    assert same(values(folder), plain)


@pytest.mark.parametrize("family", ["roberta", "bert", "xlm-roberta"], indirect=True)
def test_a_config_without_a_model_type_is_refused_where_names_fit_several_families(family, folder):
    edit_config(folder, model_type=None)  # and no prefix: RoBERTa and BERT have the same names
    lines = '"model_type": "roberta" or "model_type": "bert" or "model_type": "xlm-roberta"'
    with pytest.raises(sn.InputError, match=f"fit roberta, bert, xlm-roberta; add the line of its family to it: {lines}"):
        values(folder)
    store(folder, {"mystery.weight": torch.zeros(2)})
    with pytest.raises(sn.InputError, match=r'fit no family; add the line of its family to it: "model_type": "roberta" or'):
        values(folder)


def test_the_names_of_roberta_are_those_of_xlm_roberta_too(tmp_path):
    """Their vocabularies differ, so a guess could read other ids without a word."""
    reference_model("xlm-roberta").save_pretrained(tmp_path)
    store(tmp_path, {f"roberta.{name}": tensor for name, tensor in tensors_of(tmp_path).items()})
    edit_config(tmp_path, model_type=None)
    with pytest.raises(sn.InputError, match="fit roberta, xlm-roberta; add the line of its family"):
        values(tmp_path)


def shard(folder, tensors, layers):
    """One file per layer, and one for the rest; the index names them."""
    shard_of = {
        name: next((f"layer{n}.safetensors" for n in range(layers) if f".{n}." in name), "rest.safetensors") for name in tensors
    }
    for file in set(shard_of.values()):
        save_file({name: tensors[name].contiguous() for name in tensors if shard_of[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    (folder / "model.safetensors").unlink()


def test_a_sharded_checkpoint_is_read_and_only_the_shards_of_the_depth_are_opened(family, folder):
    plain = values(folder)
    shard(folder, tensors_of(folder), 3)
    assert same(values(folder), plain)
    (folder / "layer2.safetensors").unlink()
    shallow = values(folder, depth=2)
    assert all(torch.equal(shallow[key], plain[key]) for key in shallow)
    with pytest.raises(sn.InputError, match=r"holds no layer2\.safetensors"):
        values(folder)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_tensor_past_the_depth_is_read(family, folder, depth, monkeypatch):
    read = []
    true = files._SafetensorsFile.read
    monkeypatch.setattr(files._SafetensorsFile, "read", lambda self, name: read.append(name) or true(self, name))
    sn.load_model(str(folder), depth)
    last_down = {"gpt2": "mlp.c_proj", "distilbert": "ffn.lin2"}.get(family, f"{depth - 1}.output.dense")
    assert read
    for name in read:
        assert not any(f".{later}." in name for later in range(depth, 3)), name
        assert depth == 3 or not (f".{depth - 1}." in name and last_down in name), name
    assert depth == 3 or not any("ln_f" in name for name in read)


def test_a_legacy_bin_is_read_only_when_asked_and_holds_the_same(family, folder):
    plain, fingerprint = values(folder), sn.load_model(str(folder)).source.fingerprint(2)
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(sn.InputError, match=r"legacy pytorch_model\.bin, which is a pickle.*allow_pickle=True"):
        values(folder)
    assert same(values(folder, allow_pickle=True), plain)
    assert sn.load_model(str(folder), allow_pickle=True).source.fingerprint(2) == fingerprint
    torch.save(torch.load(folder / "pytorch_model.bin"), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same(values(folder, allow_pickle=True), plain)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t, name: t.pop(name), "holds no {name}, which its config.json implies"),
        (
            lambda t, name: t.update({"h.7.surprise": torch.zeros(2)}),
            "holds h.7.surprise, which its config.json does not",
        ),
        (
            lambda t, name: t.update({name: t[name][:-1]}),
            "{name} is .*, config.json implies .*: these files belong",
        ),
        (lambda t, name: t[name].view(-1)[3].fill_(float("nan")), "{name} holds NaN or infinity"),
        (lambda t, name: t[name].view(-1)[3].fill_(float("-inf")), "{name} holds NaN or infinity"),
        (lambda t, name: t.update({name: t[name].to(torch.int8)}), "{name} is stored as torch.int8; expected floating point"),
    ],
)
def test_a_wrong_tensor_is_named(family, folder, damage, message):
    tensors = tensors_of(folder)
    damage(tensors, NAMES[family])
    store(folder, tensors)
    with pytest.raises(sn.InputError, match=message.format(name=NAMES[family])):
        values(folder)


@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_the_same_tensor_under_two_names_is_refused(family, folder):
    tensors = tensors_of(folder)
    store(folder, tensors | {f"bert.{NAMES['bert']}": tensors[NAMES["bert"]].clone()})
    with pytest.raises(sn.InputError, match="are the same tensor"):
        values(folder)


@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_a_file_that_is_no_whole_safetensors_file_is_refused(family, folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-4], whole[:100], b"", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(sn.InputError, match=r"damaged or cut short at \d+ bytes, not a whole safetensors file"):
            values(folder)
    path.write_bytes((9 * 2**20).to_bytes(8, "little") + b" " * 9 * 2**20)
    with pytest.raises(sn.InputError, match="its header has 9437184 bytes, expected at most"):
        values(folder)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(sn.InputError, match="a git-lfs pointer, not the file itself; run `git lfs pull`"):
        values(folder)


@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_a_hostile_index_is_refused(family, folder):
    tensors = tensors_of(folder)
    shard(folder, tensors, 3)
    index = folder / "model.safetensors.index.json"
    shard_of = json.loads(index.read_text())["weight_map"]
    name = NAMES["bert"]
    for lie, message in (
        ({**shard_of, name: "../evil.safetensors"}, "is no plain file name"),
        ({**shard_of, name: "/etc/passwd"}, "is no plain file name"),
        ({**shard_of, name: ".."}, "is no plain file name"),
        ({**shard_of, name: ""}, "is no plain file name"),
        ({**shard_of, name: "layer0.safetensors"}, "which model.safetensors.index.json places there"),
        ([1], "expected a weight_map"),
        ({**shard_of, name: 3}, "expected a weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": lie}))
        with pytest.raises(sn.InputError, match=message):
            values(folder)
    index.write_text(json.dumps({"weight_map": shard_of})[:-2] + f', "{name}": "layer1.safetensors"}}}}')
    with pytest.raises(sn.InputError, match=rf"index\.json: .*has the key '{name}' twice"):
        values(folder)


def test_the_fingerprint_sees_every_weight_of_the_depth_and_none_past_it(family, folder):
    before = sn.load_model(str(folder)).source
    prints = {depth: before.fingerprint(depth) for depth in (1, 2, 3)}
    assert len(set(prints.values())) == 3
    tensors = tensors_of(folder)
    tensors[NAMES[family]].view(-1)[5] += 1e-3  # layer 1's up-projection
    store(folder, tensors)
    after = sn.load_model(str(folder)).source
    assert after.fingerprint(1) == prints[1]
    assert after.fingerprint(2) != prints[2]
    assert after.fingerprint(3) != prints[3]


def test_dtypes_and_folders_that_are_none_are_refused(tmp_path, unchecked):
    with pytest.raises(sn.InputError, match=r"dtype is torch\.int8"):
        sn.load_model(checkpoint("bert")[0], dtype=torch.int8)
    for none in (str(tmp_path / "none"), tmp_path / "none", Path("none"), "none/", "~nobody/none"):
        with pytest.raises(sn.InputError, match="no such folder"):
            sn.load_model(none)
    with pytest.raises(sn.InputError, match="a file, not a folder"):
        sn.load_model(f"{checkpoint('bert')[0]}/config.json")
    for nothing in ("", None):
        with pytest.raises(sn.InputError, match="no name; expected a folder with"):
            sn.load_model(nothing)
    with pytest.raises(sn.InputError, match=r"holds no config\.json"):
        sn.load_model(str(tmp_path))


def test_a_folder_may_be_a_path_or_end_with_a_slash_or_start_at_home(monkeypatch):
    folder = Path(checkpoint("bert")[0])
    monkeypatch.setenv("HOME", str(folder.parent))
    for name in (folder, f"{folder}/", f"~/{folder.name}"):
        assert sn.load_model(name, 1).depth == 1


def test_parameters_need_no_gradient_and_are_in_eval_mode(family):
    model = sn.load_model(checkpoint(family)[0])
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


BERT_BASE = {
    "model_type": "bert",
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}


@pytest.mark.skipif(not SHARED.exists(), reason="the names of published checkpoints lie in ../shared, which is not here")
@pytest.mark.parametrize(
    ("names", "config"),
    [
        ("gpt2", "gpt2.config.json"),
        ("gpt2-xl", "gpt2-xl.config.json"),
        ("roberta-base", "roberta-base.config.json"),
        ("distilroberta-base", "distilroberta-base.config.derived.json"),
        ("distilbert-base-uncased", "distilbert-base-uncased.config.json"),
        ("distilbert-base-uncased-finetuned-sst-2-english", "distilbert-base-uncased.config.json"),
        ("bert-base-uncased", None),
    ],
)
def test_every_tensor_of_the_published_checkpoints_is_accounted_for(names, config):
    stored = json.loads((SHARED / "configs" / "state_dicts" / f"{names}.json").read_text())["tensors"]
    settings = json.loads((SHARED / "configs" / config).read_text()) if config else BERT_BASE
    with torch.device("meta"):
        model = new_model(read_config(settings, names))
    stored_as = account(stored, dict(model.named_parameters()), model.weights, names)
    for parameter, tensor in model.named_parameters():
        rule = model.weights.rule(parameter)
        entry = stored[stored_as[rule.stored]]
        shape = entry["shape"] if isinstance(entry, dict) else entry[-1] if isinstance(entry[-1], list) else entry
        assert tuple(shape) == rule.stored_shape(tuple(tensor.shape)), parameter


@pytest.mark.skipif(not SHARED.exists(), reason="the small real checkpoints lie in ../shared, which is not here")
@pytest.mark.parametrize(
    ("legacy", "safe"),
    [
        ("gpt2-4l128-shakespeare", "gpt2-4l128-shakespeare/safetensors"),
        ("gpt2-4l128-presidenttweets", "gpt2-4l128-presidenttweets/safetensors"),
        ("hf-tiny-random-distilbert", "hf-tiny-random-distilbert"),
    ],
)
def test_real_bin_and_safetensors_files_hold_the_same_model(legacy, safe, tmp_path):
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(SHARED / "models" / legacy / name, tmp_path)
    old = sn.load_model(str(tmp_path), allow_pickle=True)
    new = sn.load_model(str(SHARED / "models" / safe))
    assert all(torch.equal(one, other) for one, other in zip(old.parameters(), new.parameters(), strict=True))
