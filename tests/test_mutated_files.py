"""Files of strangers: damaged and forged ones give an object that works, or one InputError."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from conftest import VOCAB
from safetensors.torch import load_file, save_file
from tokenizers import models, normalizers, pre_tokenizers, processors

import spin_native as sn

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux does")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, reviews: tuple[list[str], list[str]]) -> Path:
    """A folder with every kind of file that the package reads, as small as they get."""
    folder = tmp_path_factory.mktemp("originals")
    bert = folder / "bert"
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=len(VOCAB) + 1, max_position_embeddings=12, initializer_range=0.5, **sizes)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(bert)
    (bert / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    (bert / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "do_lower_case": True,
                "strip_accents": None,
                "tokenize_chinese_chars": True,
                "added_tokens_decoder": {str(len(VOCAB)): {"content": "<new>", "lstrip": False, "special": True}},
            }
        )
    )
    (bert / "special_tokens_map.json").write_text(json.dumps({"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}}))
    (bert / "added_tokens.json").write_text(json.dumps({"<new>": len(VOCAB)}))
    _other_layouts(folder, bert)
    _gpt2(folder / "gpt2")
    texts, labels = reviews[0][:40], reviews[1][:40]
    sn.extract(sn.load_model(bert), sn.load_tokenizer(bert), texts[:5], store=folder / "store")
    (folder / "store" / ".lock").unlink(missing_ok=True)
    for head, how in (("refit", {"exits": "all"}), ("weighted", {})):
        shutil.copytree(bert, folder / head / "base")
        for name in ("special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"):
            (folder / head / "base" / name).unlink()
        clf = sn.SpinClassifier(str(folder / head / "base"), head=head, depth=2, poolings=("mean",), etas=(0.8,), **how)
        clf.fit(texts, labels)
        if head == "refit":
            clf.calibrate([f"{text} and the" for text in texts], labels, max_accuracy_drop=0.3, confidence=0.8)
        clf.save_pretrained(folder / head / "classifier")
    return folder


def _other_layouts(folder: Path, bert: Path) -> None:
    """The same model in shards, as a pickle, and with a tokenizer.json."""
    tensors = load_file(bert / "model.safetensors")
    for name in ("sharded", "legacy", "fast"):
        (folder / name).mkdir()
        shutil.copy(bert / "config.json", folder / name)
    shard_of = {name: "a.safetensors" if "layer.0" in name else "b.safetensors" for name in tensors}
    for shard in ("a.safetensors", "b.safetensors"):
        save_file({name: tensors[name] for name in tensors if shard_of[name] == shard}, folder / "sharded" / shard)
    (folder / "sharded" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    torch.save(tensors, folder / "legacy" / "pytorch_model.bin")
    backend = tokenizers.Tokenizer(models.WordPiece({word: place for place, word in enumerate(VOCAB)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    backend.save(str(folder / "fast" / "tokenizer.json"))
    shutil.copy(bert / "tokenizer_config.json", folder / "fast")


def _gpt2(folder: Path) -> None:
    config = transformers.GPT2Config(vocab_size=270, n_embd=8, n_layer=1, n_head=2, n_positions=12)
    transformers.GPT2Model(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("o", "o"), ("g", "oo"), ("goo", "d"), ("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]
    words = [*alphabet, *(one + other for one, other in merges), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n")


def load_mutated(originals: Path, seeds: range) -> dict[str, int]:
    """Load a mutated file for each seed in a process of its own; how many files were loaded and refused."""
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{tests.parent}:{tests}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tests / "mutated_files.py"), str(originals), str(seeds.start), str(seeds.stop)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    work = originals.with_name(f"{originals.name}-{seeds.start}")
    last = (work / "seed").read_text() if (work / "seed").exists() else "none"
    shutil.rmtree(work, ignore_errors=True)
    assert done.returncode == 0, f"exit code {done.returncode}, last seed {last}:\n{done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def test_two_thousand_mutated_files_load_or_are_refused_in_one_sentence(originals):
    counts = load_mutated(originals, range(2000))
    assert counts["files"] == 2000
    assert min(counts["loaded"], counts["refused"]) > 100  # some damage is harmless, some is not


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(10))
def test_a_hundred_thousand_mutated_files_load_or_are_refused_in_one_sentence(originals, part):
    assert load_mutated(originals, range(part * 10_000, (part + 1) * 10_000))["files"] == 10_000
