"""Extraction in memory and on disk: equal to a plain loop, in input order, and safe against whatever happens."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import spin_native as sn
from spin_native.features import store as store_module
from spin_native.features.extract import Extractor, features_of, texts_digest
from spin_native.features.pooling import POOLINGS
from spin_native.features.store import FeatureKey
from spin_native.text.batch import TokenBatch

WORDS = ["good", "bad", "nice", "awful", "fine", "the", "a", "was", "film", "food"]
TEXTS = [" ".join(WORDS[(row + i) % len(WORDS)] for i in range(row % 13)) for row in range(40)]


@pytest.fixture
def parts(tiny_model):
    return sn.load_model(str(tiny_model), dtype=torch.float64), sn.load_tokenizer(str(tiny_model))


@pytest.fixture
def small_shards(monkeypatch):
    """Ten rows a shard."""
    monkeypatch.setattr(Extractor, "rows_per_block", 10)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_features_equal_each_text_run_by_itself_in_input_order(parts):
    model, tokenizer = parts
    features = sn.extract(model, tokenizer, TEXTS, sites=("activation", "hidden"), poolings=tuple(POOLINGS), max_tokens=37)
    assert features.n_rows == len(TEXTS)
    with torch.inference_mode():
        for row, ids in enumerate(tokenizer.encode(TEXTS).ids):
            batch = TokenBatch.from_rows([ids])
            for layer in model.layers(batch):
                for site, value in (("activation", layer.activation), ("hidden", layer.hidden)):
                    if value is not None:
                        for pooling, pool in POOLINGS.items():
                            got = features.array(site=site, pooling=pooling, layer=layer.index)[row]
                            np.testing.assert_allclose(got, pool(value, batch)[0].numpy(), rtol=1e-6, atol=1e-6)


def test_depth_k_offers_k_layers_and_only_a_whole_model_the_final_hidden_state(parts, unchecked):
    model, _ = parts
    assert features_of(model, ("hidden",), ("max",), 2) == [FeatureKey("hidden", "max", 0), FeatureKey("hidden", "max", 1)]
    assert features_of(model, ("activation", "hidden"), ("max",), None)[-1] == FeatureKey("hidden", "max", 3)
    with pytest.raises(sn.InputError, match="expected 1 to 3"):
        features_of(model, ("hidden",), ("max",), 4)
    with pytest.raises(sn.InputError, match="expected a sequence of one or more of mean, max, first, last"):
        features_of(model, ("hidden",), "max", 1)


def test_a_neuron_choice_gives_those_columns(parts):
    model, tokenizer = parts
    whole = sn.extract(model, tokenizer, TEXTS)
    chosen = np.array([5, 2, 31])
    few = Extractor(model, tokenizer, {FeatureKey("activation", "max", 1): chosen}).run(TEXTS)
    expected = whole.array(site="activation", pooling="max", layer=1)[:, chosen]
    assert np.array_equal(few.array(site="activation", pooling="max", layer=1), expected)


def test_asking_for_what_was_not_extracted_lists_what_there_is(parts):
    features = sn.extract(*parts, TEXTS, depth=1)
    with pytest.raises(sn.InputError, match=r"there are sites activation; poolings mean, max; layers 0"):
        features.array(site="hidden", pooling="mean", layer=0)


def test_a_store_holds_what_memory_holds_and_names_what_it_was_made_from(parts, tmp_path, small_shards):
    model, tokenizer = parts
    memory, disk = sn.extract(model, tokenizer, TEXTS), sn.extract(model, tokenizer, iter(TEXTS), store=tmp_path / "s")
    opened = sn.ActivationStore(tmp_path / "s")
    assert opened.is_complete
    assert opened.n_rows == disk.n_rows == len(TEXTS)
    for feature in memory.widths:
        assert np.array_equal(opened.array(**feature._asdict()), memory.array(**feature._asdict()))
    assert opened.spec.model == model.source.name
    assert opened.spec.model_fingerprint == model.source.fingerprint(3)
    assert opened.spec.model_dtype == "float64"
    assert (opened.spec.depth, opened.spec.dtype) == (3, "float32")


def test_float16_features_are_the_rounded_float32_ones(parts, tmp_path):
    full, half = sn.extract(*parts, TEXTS), sn.extract(*parts, TEXTS, store=tmp_path / "s", dtype="float16")
    for feature in full.widths:
        expected = full.array(**feature._asdict()).astype(np.float16).astype(np.float32)
        np.testing.assert_array_max_ulp(half.array(**feature._asdict()).astype(np.float16), expected.astype(np.float16), 1)


def test_a_value_too_large_for_float16_is_refused_and_named(parts):
    model, tokenizer = parts
    model.blocks[0].feed_forward.up.bias.data[3] = 1e6
    with pytest.raises(sn.InputError, match=r"text 0: activation 3 of layer 0 is not a finite float16; use dtype='float32'"):
        sn.extract(model, tokenizer, TEXTS, dtype="float16")


def test_the_same_extraction_gives_the_same_bytes(parts, tmp_path, small_shards):
    for name in "ab":
        sn.extract(*parts, TEXTS, store=tmp_path / name)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


@pytest.mark.parametrize("call", ["save_file", "replace", "fsync"])
def test_a_failure_at_any_write_loses_nothing_and_the_next_run_goes_on(
    parts, tmp_path, small_shards, monkeypatch, call, unchecked
):
    sn.extract(*parts, TEXTS, store=tmp_path / "whole")
    expected = bytes_of(tmp_path / "whole")
    owner = store_module if call == "save_file" else os
    true, failed_at = getattr(owner, call), 0
    while True:
        folder, count = tmp_path / f"{call}{failed_at}", iter(range(10**6))

        def failing(*given, _count=count, _k=failed_at):
            if next(_count) == _k:
                raise OSError(28, "No space left on device")
            return true(*given)

        with monkeypatch.context() as patch:
            patch.setattr(owner, call, failing)
            try:
                sn.extract(*parts, TEXTS, store=folder)
            except (sn.InputError, OSError):
                pass
            else:
                break
        sn.extract(*parts, TEXTS, store=folder)
        assert bytes_of(folder) == expected
        failed_at += 1
    assert failed_at >= 4  # every one of the writes was made to fail


def test_a_full_disk_is_one_sentence(parts, tmp_path, monkeypatch):
    def full(*_given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "save_file", full)
    with pytest.raises(sn.InputError, match=r"rows 0 to 39 could not be written .*No space left.*make room and run the same"):
        sn.extract(*parts, TEXTS, store=tmp_path / "s")


def test_finished_shards_are_not_computed_again(parts, tmp_path, small_shards, monkeypatch):
    model, tokenizer = parts
    sn.extract(model, tokenizer, TEXTS[:20], store=tmp_path / "s")
    seen = []
    true = type(model).layers
    monkeypatch.setattr(type(model), "layers", lambda self, batch, **how: seen.append(batch.n_rows) or true(self, batch, **how))
    assert sn.extract(model, tokenizer, TEXTS, store=tmp_path / "s").n_rows == 40
    assert sum(seen) == 20


def test_other_texts_other_settings_and_other_folders_are_refused(parts, tmp_path, small_shards):
    model, tokenizer = parts
    sn.extract(model, tokenizer, TEXTS, store=tmp_path / "s")
    with pytest.raises(sn.InputError, match="rows 10 to 19 were extracted from other texts"):
        sn.extract(model, tokenizer, [*TEXTS[:15], "other", *TEXTS[16:]], store=tmp_path / "s")
    with pytest.raises(sn.InputError, match=r"holds features of another extraction \(dtype is float32, now float16\)"):
        sn.extract(model, tokenizer, TEXTS, store=tmp_path / "s", dtype="float16")
    some, others = (
        Extractor(model, tokenizer, {FeatureKey("activation", "mean", 0): np.array(neurons)}) for neurons in ([0, 1], [0, 2])
    )
    some.run(TEXTS, tmp_path / "some")
    with pytest.raises(sn.InputError, match=r"another extraction \(columns is"):
        others.run(TEXTS, tmp_path / "some")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(sn.InputError, match="not empty and no activation store"):
        sn.extract(model, tokenizer, TEXTS, store=tmp_path / "mine")
    with pytest.raises(sn.InputError, match="no activation store"):
        sn.ActivationStore(tmp_path / "mine")


def test_a_damaged_shard_or_manifest_is_named(parts, tmp_path, small_shards):
    sn.extract(*parts, TEXTS, store=tmp_path / "s")
    shard = tmp_path / "s" / "rows-0000000010.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(sn.InputError, match=r"rows-0000000010\.safetensors: this shard is gone or damaged"):
        sn.ActivationStore(tmp_path / "s").array(site="activation", pooling="mean", layer=0)
    (tmp_path / "s" / "manifest.json").write_text("{}")
    with pytest.raises(sn.InputError, match="not a manifest"):
        sn.ActivationStore(tmp_path / "s")


def listed_shards(folder):
    return json.loads((folder / "manifest.json").read_text())["shards"]


def edit_manifest(folder, edit):
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_shard_that_was_changed_is_noticed_before_it_is_used(parts, tmp_path, small_shards):
    """Other numbers of the same shape: only the checksum shows it."""
    sn.extract(*parts, TEXTS, store=tmp_path / "s")
    shard = tmp_path / "s" / "rows-0000000010.safetensors"
    assert listed_shards(tmp_path / "s")[1]["sha256"] == hashlib.sha256(shard.read_bytes()).hexdigest()
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    opened = sn.ActivationStore(tmp_path / "s")  # reading the manifest alone is quick
    for use in (opened.verify, lambda: sn.extract(*parts, TEXTS, store=tmp_path / "s")):
        with pytest.raises(sn.InputError, match=r"rows-0000000010\.safetensors: this shard was changed or damaged"):
            use()


def test_a_store_without_checksums_opens_and_resumes(parts, tmp_path, small_shards):
    """As version 0.1 wrote it."""
    sn.extract(*parts, TEXTS[:20], store=tmp_path / "s")
    edit_manifest(tmp_path / "s", lambda manifest: [shard.pop("sha256") for shard in manifest["shards"]])
    store = sn.extract(*parts, TEXTS, store=tmp_path / "s")
    assert store.n_rows == 40
    assert ["sha256" in shard for shard in listed_shards(tmp_path / "s")] == [False, False, True, True]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["shards"][0].update(file="../other/rows-0000000000.safetensors"), "the shard of row 0 is '../other/rows"),
        (lambda m: m["shards"][1].update(file=m["shards"][0]["file"]), "expected 'rows-0000000010.safetensors'"),
        (lambda m: m["shards"][0].update(rows=9), "the shard of row 9 is"),
        (lambda m: m["shards"][0].update(rows=-1), r"Expected `int` >= 0 - at `\$\.shards\[0\]\.rows`"),
        (lambda m: m["shards"][0].update(rows=2**70), r"shards\[0\]\.rows"),
        (lambda m: m["widths"].append(m["widths"][0]), "widths names a feature twice"),
        (lambda m: m["widths"][0].update(layer=3), "widths names activation.mean.3, but the depth is 3"),
        (lambda m: m["widths"][0].update(site="attention"), r"Invalid enum value 'attention' - at `\$\.widths\[0\]\.site`"),
        (lambda m: m["widths"][0].update(width="32"), r"Expected `int`, got `str` - at `\$\.widths\[0\]\.width`"),
        (lambda m: m.update(dtype="int8"), "Invalid enum value 'int8'"),
        (lambda m: m.update(format=2), "format 2; this version of spin_native reads format 1"),
        (lambda m: m.pop("complete"), "missing required field `complete`"),
    ],
)
def test_a_forged_manifest_is_refused_by_the_field(parts, tmp_path, small_shards, edit, message):
    sn.extract(*parts, TEXTS, store=tmp_path / "s")
    edit_manifest(tmp_path / "s", edit)
    with pytest.raises(sn.InputError, match=rf"manifest\.json: .*{message}"):
        sn.ActivationStore(tmp_path / "s")


def test_shards_of_another_shape_or_elsewhere_are_refused(parts, tmp_path, small_shards):
    sn.extract(*parts, TEXTS, store=tmp_path / "s")
    edit_manifest(tmp_path / "s", lambda m: [shard.pop("sha256") for shard in m["shards"]] and m["widths"][0].update(width=31))
    with pytest.raises(sn.InputError, match=r"activation\.mean\.0 is float32 \[10, 32\]; expected float32 \[10, 31\]"):
        sn.ActivationStore(tmp_path / "s").verify()
    edit_manifest(tmp_path / "s", lambda m: m["widths"][0].update(width=32) or m.update(dtype="float16"))
    with pytest.raises(sn.InputError, match=r"is float32 \[10, 32\]; expected float16"):
        sn.ActivationStore(tmp_path / "s").array(site="activation", pooling="mean", layer=0)
    shard = tmp_path / "s" / "rows-0000000000.safetensors"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(sn.InputError, match="a link out of the folder"):
        sn.ActivationStore(tmp_path / "s").array(site="activation", pooling="mean", layer=0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_pipe_in_place_of_a_shard_is_refused_instead_of_waited_for(parts, tmp_path, small_shards):
    sn.extract(*parts, TEXTS, store=tmp_path)
    shard = tmp_path / "rows-0000000000.safetensors"
    shard.unlink()
    os.mkfifo(shard)
    store = sn.ActivationStore(tmp_path)
    for use in (store.verify, lambda: store.array(site="activation", pooling="mean", layer=0)):
        with pytest.raises(sn.InputError, match="no ordinary file; expected a shard"):
            use()


def test_a_store_is_not_made_where_a_file_is(parts, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(sn.InputError, match="no folder can be made there"):
        sn.extract(*parts, TEXTS, store=tmp_path / "file")


WRITER = """
import sys, time
import spin_native as sn
from spin_native.features.extract import Extractor
Extractor.rows_per_block = 10
folder, store = sys.argv[1:]
def texts():
    for row in range(40):
        if row == 30:
            print("thirty", flush=True)
            time.sleep(60)
        yield "good bad " * (row % 5)
sn.extract(sn.load_model(folder), sn.load_tokenizer(folder), texts(), store=store)
"""


def test_a_second_writer_is_refused_and_a_killed_one_leaves_a_store_that_goes_on(tiny_model, tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tiny_model, tmp_path / "s"], stdout=subprocess.PIPE, text=True)
    model, tokenizer = sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model))
    texts = ["good bad " * (row % 5) for row in range(40)]
    try:
        assert writer.stdout.readline() == "thirty\n"
        with pytest.raises(sn.InputError, match="another process is writing here"):
            sn.extract(model, tokenizer, texts, store=tmp_path / "s")
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    assert sn.ActivationStore(tmp_path / "s").n_rows == 30
    time.sleep(0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extractor, "rows_per_block", 10)
        assert sn.extract(model, tokenizer, texts, store=tmp_path / "s").n_rows == 40


def test_texts_that_are_cut_elsewhere_are_other_texts(parts, tmp_path):
    """The same characters in another number per text."""
    assert texts_digest(["ab", "c"]) != texts_digest(["a", "bc"])
    sn.extract(*parts, ["good bad", "film"], store=tmp_path / "s")
    with pytest.raises(sn.InputError, match="rows 0 to 1 were extracted from other texts"):
        sn.extract(*parts, ["good ", "badfilm"], store=tmp_path / "s")
