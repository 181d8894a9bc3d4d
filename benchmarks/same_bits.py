"""Same text, same bits: 1,000 random partitions of a data set's texts, and one sha256 over what they gave.

    python benchmarks/same_bits.py [TABLE.csv] [--partitions 1000] [--threads 1 2] [--models NAME ...]

TABLE.csv has a column `text` (default: SST-2's test rows in ../shared/data). Needs ../shared/data/sst2 (to fit classifiers),
../shared/configs and ../shared/tokenizers beside the repository. A partition takes some of the texts (one to all) in random
order, some of them twice, and computes them in one of several ways: as a list, as a stream, through a store, through a store
that was interrupted and resumed, or by classifiers with fixed, confidence and patience exits; the token budget and the block
size are random, too. Models: the demo's MiniLM, MiniLM under heads of every kind, random models of odd widths, and two layers
of RoBERTa-base's size; each in float32 and bfloat16. Every number of threads has a process of its own, which loads the same
classifiers. Fails if a text had other bits in one partition than in another. The last line is JSON.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from inputs import DATA, copy_tokenizer, demo_weights, random_weights, raw_config, read
from machine import environment, parser, print_json

import spin_native as sn
from spin_native.features import extract as extract_module
from spin_native.features.extract import Site, token_budget
from spin_native.features.pooling import POOLINGS
from spin_native.tables import open_source

SITES: tuple[Site, ...] = ("activation", "hidden")
DTYPES = ("float32", "bfloat16")
TAKE_ALL, MANY_ROWS = 3, 40  # so many partitions take every text; the others take 1 to MANY_ROWS
SOME_TEXTS = 200  # texts for the classifiers, of which there are many
MANY_BATCHES = (
    40  # at most about so many of them, and of blocks, in a partition: a batch of one row costs as much as one of ten
)
EXITS = ("fixed", "fixed:1", "fixed:2", "confidence:0.6", "confidence:0.8", "confidence:0.95", "patience:1", "patience:2")
BERT = {"vocab_size": 30522, "max_position_embeddings": 512, "hidden_act": "gelu"}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "hidden_act": "gelu", "pad_token_id": 1, "type_vocab_size": 1}


def sizes(layers: int, heads: int, d_head: int, d_ffn: int) -> dict[str, int]:
    """BERT's names for a model's sizes."""
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": heads * d_head,
        "intermediate_size": d_ffn,
    }


# Random models: the tokenizer, and config.json. Widths that are no multiple of what vector registers hold; one head or several.
RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta, 3 heads of 8": ("roberta-base", {"model_type": "roberta", **ROBERTA, **sizes(3, 3, 8, 50)}),
    "bert, 2 heads of 33": ("bert-base-uncased", {"model_type": "bert", **BERT, **sizes(3, 2, 33, 101)}),
    "bert, 12 heads of 26": ("bert-base-uncased", {"model_type": "bert", **BERT, **sizes(2, 12, 26, 1200)}),
    "mpnet, 3 heads of 12": ("roberta-base", {"model_type": "mpnet", **ROBERTA, **sizes(3, 3, 12, 129)}),
    "distilbert, 1 head of 12, ReLU": (
        "bert-base-uncased",
        {
            "model_type": "distilbert",
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "activation": "relu",
            "n_layers": 3,
            "n_heads": 1,
            "dim": 12,
            "hidden_dim": 37,
        },
    ),
    "gpt2, 2 heads of 20": (
        "gpt2",
        {
            "model_type": "gpt2",
            "vocab_size": 50257,
            "n_positions": 1024,
            "n_layer": 3,
            "n_head": 2,
            "n_embd": 40,
            "n_inner": 77,
        },
    ),
    "roberta-base, 2 layers": ("roberta-base", {}),
}
MINILM, HEADS = "MiniLM", "MiniLM, heads"


class Interrupted(Exception):
    """What stops a stream of texts."""


@dataclass
class Case:
    """Everything that one model gave: each text's digest, by what was asked, and how often it was another one.

    asked: such as "features" or "refit confidence:0.8".
    """

    digests: dict[str, dict[int, bytes]] = field(default_factory=dict)
    n_computed: int = 0
    n_differing: int = 0

    def add(self, asked: str, rows: Sequence[int], values: Sequence[np.ndarray]) -> None:
        """values: arrays [row, ...], side by side what was given for each of the rows."""
        known = self.digests.setdefault(asked, {})
        for place, row in enumerate(rows):
            digest = hashlib.sha256()
            for array in values:
                digest.update(np.ascontiguousarray(array[place]).tobytes())
            self.n_computed += 1
            self.n_differing += known.setdefault(row, digest.digest()) != digest.digest()

    @property
    def sha256(self) -> str:
        """Over the first digest of every text, for everything that was asked."""
        whole = hashlib.sha256()
        for asked in sorted(self.digests):
            whole.update(asked.encode())
            for row in sorted(self.digests[asked]):
                whole.update(self.digests[asked][row])
        return whole.hexdigest()


def some_rows(random: np.random.Generator, n_texts: int, *, all_in_order: bool, all_shuffled: bool) -> list[int]:
    """Which texts a partition takes, in which order."""
    if all_in_order:
        return list(range(n_texts))
    n_rows = n_texts if all_shuffled else int(np.exp(random.uniform(0, np.log(min(MANY_ROWS, n_texts)))))
    rows = random.permutation(n_texts)[:n_rows]
    copies = random.choice(rows, size=int(random.integers(0, 4)))
    return random.permutation(np.concatenate([rows, copies])).tolist()


def log_uniform(random: np.random.Generator, low: float, high: float) -> int:
    return int(np.exp(random.uniform(np.log(low), np.log(high))))


def random_sizes(random: np.random.Generator, texts: Sequence[str], model: Any) -> tuple[int, int]:
    """Tokens per batch, and texts per block."""
    n_words = sum(len(text.split()) for text in texts)
    max_tokens = log_uniform(random, max(4, n_words // MANY_BATCHES), 4 * token_budget(model))
    return max_tokens, log_uniform(random, max(1, len(texts) // MANY_BATCHES), 8192)


def interrupted(texts: Sequence[str], n_texts: int) -> Iterator[str]:
    """The first texts, then an error."""
    yield from texts[:n_texts]
    raise Interrupted


def extracted(
    model: Any, tokenizer: Any, texts: Sequence[str], random: np.random.Generator, max_tokens: int | None
) -> list[np.ndarray]:
    """Every feature of every layer of the texts, computed in a random way."""
    how: dict[str, Any] = {"sites": SITES, "poolings": tuple(POOLINGS), "max_tokens": max_tokens}
    way = random.choice(["list", "stream", "store", "resumed"])
    with tempfile.TemporaryDirectory() as temporary:
        if way in ("store", "resumed"):
            how["store"] = Path(temporary) / "store"
        if way == "resumed":
            with suppress(Interrupted):
                sn.extract(model, tokenizer, interrupted(texts, int(random.integers(0, len(texts)))), **how)
        features = sn.extract(model, tokenizer, iter(texts) if way == "stream" else texts, progress=False, **how)
        return [np.array(features.array(**feature._asdict())) for feature in features.widths]


def run_features(
    case: Case, folder: Path, dtype: str, n_partitions: int, random: np.random.Generator, texts: Sequence[str]
) -> None:
    """Features of a model in so many partitions."""
    model, tokenizer = sn.load_model(str(folder), dtype=getattr(torch, dtype)), sn.load_tokenizer(str(folder))
    for partition in range(n_partitions):
        all_shuffled = partition % max(1, n_partitions // TAKE_ALL) == 0
        rows = some_rows(random, len(texts), all_in_order=partition == 0, all_shuffled=all_shuffled)
        given = [texts[row] for row in rows]
        max_tokens, window = random_sizes(random, given, model)
        extract_module.WINDOW = 8192 if partition == 0 else window
        values = extracted(model, tokenizer, given, random, None if partition == 0 else max_tokens)
        case.add("features", rows, values)
    extract_module.WINDOW = 8192


def run_heads(
    case: Case, folder: Path, dtype: str, n_partitions: int, random: np.random.Generator, texts: Sequence[str]
) -> None:
    """Outputs and exit depths of saved classifiers in so many partitions."""
    classifiers = {}
    for saved in sorted(folder.iterdir()):
        kind = sn.SpinRegressor if saved.name.startswith("values") else sn.SpinClassifier
        classifiers[saved.name] = kind.from_pretrained(saved, dtype=dtype)
    for partition in range(n_partitions):
        name = sorted(classifiers)[partition % len(classifiers)]
        clf = classifiers[name]
        exits = [exit_ for exit_ in EXITS if exit_ == "fixed" or (name.startswith("classes") and len(clf.heads_) > 1)]
        exit_ = exits[partition // len(classifiers) % len(exits)]
        asked = f"{name} {exit_}"
        rows = some_rows(random, len(texts), all_in_order=asked not in case.digests, all_shuffled=False)
        given, extractor = [texts[row] for row in rows], clf._deployed.extractor
        extractor.max_tokens, extract_module.WINDOW = random_sizes(random, given, extractor.model)
        blocks = list(clf.output_blocks(iter(given) if random.integers(2) else given, False, exit_))
        case.add(asked, rows, [np.concatenate(parts) for parts in zip(*blocks, strict=True)])
    extract_module.WINDOW = 8192


def fit_classifiers(folder: Path, base: str) -> None:
    """Save a classifier of every kind of head, for two and three classes and for values, and one that reads no neuron."""
    texts, labels = (part[:400] for part in read("sst2", "train"))
    lengths = [len(text.split()) for text in texts]
    targets: dict[str, list[Any]] = {
        "classes 2": labels,
        "classes 3": ["long" if n > 25 else str(label) for n, label in zip(lengths, labels, strict=True)],
        "values": [float(n) for n in lengths],
    }
    for head in ("refit", "frozen", "weighted"):
        for name, target in targets.items():
            kind = sn.SpinRegressor if name == "values" else sn.SpinClassifier
            exits = None if name == "values" else "all"
            how: dict[str, Any] = {
                "sites": SITES,
                "head": head,
                "depth": 4,
                "mixing": "together",
                "exits": exits,
                "baseline": False,
            }
            kind(base, etas=(0.9,), **how).fit(texts, target, progress=False).save_pretrained(folder / f"{name} {head}")
    constant = sn.SpinClassifier(base, head="refit", Cs=(1e-12,), baseline=False, depth=1)
    constant.fit(texts, labels, progress=False).save_pretrained(folder / "classes 2 constant")


def write_models(folder: Path, *, with_classifiers: bool) -> None:
    """Every model on disk, so that all processes read the same weights."""
    for index, (tokenizer, content) in enumerate(RANDOM.values()):
        target = copy_tokenizer(tokenizer, folder / f"random-{index}")
        (target / "tokenizer_config.json").unlink(missing_ok=True)
        if content:
            random_weights(content, target, spread=0.2)
        else:
            random_weights({**raw_config("roberta-base"), "num_hidden_layers": 2}, target)
    if with_classifiers:
        fit_classifiers(folder / "classifiers", str(demo_weights()))


def worker(given: argparse.Namespace) -> None:
    """Every model and dtype with one number of threads; a JSON line for each, on stdout."""
    torch.set_num_threads(given.threads[0])
    folder = Path(given.worker)
    texts = [text for block in open_source(given.table).blocks(["text"]) for text in block.values("text")]
    texts = list(dict.fromkeys(texts))
    for name in given.models:
        for dtype in DTYPES:
            case, random, started = Case(), np.random.default_rng(0), perf_counter()
            if name == HEADS:
                run_heads(case, folder / "classifiers", dtype, given.partitions, random, texts[:SOME_TEXTS])
            else:
                base = demo_weights() if name == MINILM else folder / f"random-{list(RANDOM).index(name)}"
                run_features(case, base, dtype, given.partitions, random, texts)
            result = {
                "model": name,
                "dtype": dtype,
                "threads": given.threads[0],
                "texts_computed": case.n_computed,
                "of_other_bits": case.n_differing,
                "sha256": case.sha256,
                "seconds": round(perf_counter() - started),
            }
            print(json.dumps(result), flush=True)


def measure(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """What the processes, one for each number of threads, gave."""
    results = []
    for threads in given.threads:
        command = [sys.executable, __file__, str(given.table), "--worker", str(folder), "--threads", str(threads)]
        command += ["--partitions", str(given.partitions), "--models", *given.models]
        # Passive: where other processes have the cores, threads that spin while they wait cost minutes.
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                results.append(result := json.loads(line))
                print(", ".join(f"{key} {value}" for key, value in result.items()), flush=True)
        if process.returncode:
            raise SystemExit(f"the process with {threads} threads ended with exit code {process.returncode}")
    return results


def main() -> None:
    arguments = parser(__doc__)
    names = [MINILM, HEADS, *RANDOM]
    arguments.add_argument("table", nargs="?", type=Path, default=DATA / "sst2" / "test.csv")
    arguments.add_argument("--partitions", type=int, default=1000)
    arguments.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    arguments.add_argument("--models", nargs="+", choices=names, default=names)
    arguments.add_argument("--worker", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    warnings.simplefilter("ignore")  # the constant head warns that it reads no neuron
    if given.worker:
        worker(given)
        return
    where = environment()
    with tempfile.TemporaryDirectory() as temporary:
        torch.set_num_threads(1)
        write_models(Path(temporary), with_classifiers=HEADS in given.models)
        results = measure(given, Path(temporary))
    hashes: dict[int, str] = {}
    for threads in given.threads:
        parts = [f"{r['model']} {r['dtype']} {r['sha256']}" for r in results if r["threads"] == threads]
        hashes[threads] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        print(f"{threads} threads: {hashes[threads]}")
    n_differing = sum(result["of_other_bits"] for result in results)
    same = len(set(hashes.values())) == 1
    print(f"{n_differing} texts had other bits; the hashes of all numbers of threads are {'equal' if same else 'NOT equal'}")
    print_json(where, {"sha256": hashes, "equal_across_threads": same, "of_other_bits": n_differing, "cases": results})
    if n_differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
