"""Load mutated files, one after another, in a process of its own: `python mutated_files.py FOLDER FIRST LAST`.

Each number is a seed: it chooses a target, the mutation, and whether the checksum is forged to fit. What loading may do: give
an object that works, or raise InputError; within SECONDS, in no more memory than the file's size and MIB, and without running
anything. Where a checksum or a fingerprint covers the file, an object that works gives what the original gives. The first seed
that breaks this is named, with what happened, and the process exits with 1.
"""

import faulthandler
import hashlib
import json
import os
import resource
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import mutations
import numpy as np
import torch

import spin_native as sn
from spin_native.checkpoints import Checkpoint, Location
from spin_native.classifier.estimators import load_pretrained
from spin_native.text.batch import TokenBatch

SECONDS, MIB, ALLOCATION = 20, 64, 4 * 2**30
TEXTS = ["good film", "", "bad naïve 你好 [MASK] </s> 😀", "the " * 40]


class Target(NamedTuple):
    """A file in a folder of originals: how it is mutated and loaded, and whether a checksum or fingerprint covers it."""

    folder: str
    file: str
    mutate: Callable[[Random, bytes], bytes]
    load: Callable[[Path], object]
    covered: bool = False


# What uses the files. Each returns numbers or token ids.


def model_of(folder: Path) -> object:
    model = sn.load_model(folder, allow_pickle=True)
    with torch.inference_mode():
        return [layer.hidden.tolist() for layer in model.layers(TokenBatch.from_rows([[2, 5, 3]]))]


def tokenizer_of(folder: Path) -> object:
    tokenizer = Checkpoint(Location(folder)).tokenizer
    ids = tokenizer.encode(TEXTS).ids
    return ids, [tokenizer.token_strings(row) for row in ids]


def classifier_of(folder: Path) -> object:
    clf = load_pretrained(folder / "classifier")
    outputs, _ = clf._outputs(TEXTS, False, f"fixed:{clf.depth_}")
    str(clf.exit_), str(clf.promise_), str(clf.depth_curve_), str(clf.controls_), clf.get_params(), clf.metric_
    clf.task_.answers(outputs), clf.task_.columns(outputs)
    return outputs.tolist()


def store_of(folder: Path) -> object:
    store = sn.ActivationStore(folder)
    store.verify()
    assert store.texts_digests is not None
    return [store.array(**feature._asdict()).tolist() for feature in store.widths]


# Mutations.


def text(random: Random, content: bytes) -> bytes:
    return random.choice((mutations.bytes_changed, mutations.bytes_changed, mutations.encoded_otherwise))(random, content)


def json_file(random: Random, content: bytes) -> bytes:
    return random.choice((mutations.json_changed,) * 4 + (text,))(random, content)


def tensors(random: Random, content: bytes) -> bytes:
    some = (mutations.safetensors_changed, mutations.tensors_changed, mutations.bytes_changed)
    return random.choice(some)(random, content)


def legacy(random: Random, content: bytes) -> bytes:
    changed = mutations.pickle_forged(random, content, Path("canary")) if random.random() < 0.6 else content
    return changed if random.random() < 0.4 and changed != content else mutations.bytes_changed(random, changed)


TARGETS = (
    Target("bert", "config.json", json_file, model_of),
    Target("bert", "model.safetensors", tensors, model_of),
    Target("sharded", "model.safetensors.index.json", json_file, model_of),
    Target("sharded", "a.safetensors", tensors, model_of),
    Target("legacy", "pytorch_model.bin", legacy, model_of),
    Target("gpt2", "config.json", json_file, model_of),
    Target("bert", "vocab.txt", text, tokenizer_of),
    Target("bert", "tokenizer_config.json", json_file, tokenizer_of),
    Target("bert", "special_tokens_map.json", json_file, tokenizer_of),
    Target("bert", "added_tokens.json", json_file, tokenizer_of),
    Target("gpt2", "vocab.json", json_file, tokenizer_of),
    Target("gpt2", "merges.txt", text, tokenizer_of),
    Target("fast", "tokenizer.json", json_file, tokenizer_of),
    Target("fast", "tokenizer_config.json", json_file, tokenizer_of),
    Target("store", "manifest.json", json_file, store_of),
    Target("store", "rows-0000000000.safetensors", tensors, store_of, covered=True),
    Target("refit", "classifier/spin_classifier.json", json_file, classifier_of),
    Target("refit", "classifier/head.safetensors", tensors, classifier_of, covered=True),
    Target("refit", "base/model.safetensors", tensors, classifier_of, covered=True),
    Target("refit", "base/config.json", json_file, classifier_of, covered=True),
    Target("refit", "base/vocab.txt", text, classifier_of, covered=True),
    Target("weighted", "classifier/spin_classifier.json", json_file, classifier_of),
    Target("weighted", "classifier/head.safetensors", tensors, classifier_of, covered=True),
)
# The file that holds another's sha256, and its key.
CHECKSUMS = {"store": ("manifest.json", "sha256"), "refit": ("spin_classifier.json", "head_sha256")}
CHECKSUMS["weighted"] = CHECKSUMS["refit"]


def main(originals: Path, seeds: range) -> None:
    """Try every seed, in a copy of the originals that is mended after each."""
    work = originals.with_name(f"{originals.name}-{seeds[0]}")
    shutil.copytree(originals, work)
    for description in work.glob("*/classifier/spin_classifier.json"):  # they name their base models by their folders
        description.write_text(description.read_text().replace(str(originals), str(work)))
    expected = {target.folder + target.load.__name__: target.load(work / target.folder) for target in TARGETS}
    os.chdir(work)
    before = len(list(work.rglob("*")))
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + ALLOCATION, resource.RLIM_INFINITY))
    n_loaded = 0
    for seed in seeds:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        (work / "seed").write_text(str(seed))
        try:
            n_loaded += _try(seed, work, expected)
            if (work / "canary").exists() or len(list(work.rglob("*"))) != before + 1:
                raise AssertionError("something was run, or written")
        except BaseException:
            traceback.print_exc()
            sys.exit(f"seed {seed}")
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"files": len(seeds), "loaded": n_loaded, "refused": len(seeds) - n_loaded}))


def _try(seed: int, work: Path, expected: dict[str, object]) -> bool:
    """Mutate one file and load it; whether that gave an object. AssertionError for a broken promise."""
    random = Random(seed)
    target = random.choice(TARGETS)
    folder, path = work / target.folder, work / target.folder / target.file
    content = path.read_bytes()
    changed = target.mutate(random, content)
    forged = target.covered and random.random() < 0.5 and _forge(folder, target, path, content, changed)
    path.write_bytes(changed)
    try:
        before = _start_measuring()
        try:
            result = target.load(folder)
        except sn.InputError as error:
            if "\n" in str(error):
                raise AssertionError("more than one line") from error
            return False
        finally:
            grown = _memory("VmHWM") - before
            assert grown <= len(changed) + MIB * 2**20, f"{grown / 2**20:.0f} MiB more memory"
        if target.covered and not forged:
            assert _same(result, expected[target.folder + target.load.__name__]), f"{target.file}: other numbers, and no error"
        return True
    finally:
        path.write_bytes(content)
        if forged:
            _forge(folder, target, path, changed, content)


def _same(one: object, other: object) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other)) if not isinstance(one, tuple) else one == other


def _forge(folder: Path, target: Target, path: Path, content: bytes, changed: bytes) -> bool:
    """Write the changed file's sha256 where the old one's is; whether there is such a place."""
    if target.folder not in CHECKSUMS or "base/" in target.file:
        return False
    listed = path.parent / CHECKSUMS[target.folder][0]
    old, new = (hashlib.sha256(some).hexdigest() for some in (content, changed))
    text = listed.read_text()
    listed.write_text(text.replace(old, new))
    return old in text


def _start_measuring() -> int:
    """Forget the process's peak memory; what it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])))
