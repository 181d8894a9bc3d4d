"""Speed of the forward pass against the machine's limit and against its peers, in the same run.

    python benchmarks/forward.py [fp32 bf16 depths scores xl latency predict] [--rounds 3]

Needs `pip install '.[bench]'` (onnxruntime, openvino, transformers) and, beside the repository, ../shared/configs and, for
`predict`, ../shared/data. Weights are random: speed does not depend on them. Contenders take turns, round by round; figures are
medians over the rounds, ratios are medians of each round's ratio. "useful" counts the arithmetic of the real tokens only:
products, and attention's two. The limit is the best rate of one layer's four products (no bias, no activation function, inputs
at hand) by reordered weights over several batch sizes, measured in the same turns. The last line is JSON.
"""

import argparse
import csv
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch
from machine import environment
from torch import Tensor, nn

import spin_native as sn
from spin_native.features import pooling
from spin_native.features.extract import token_budget
from spin_native.models import FAMILIES, ModelConfig, Transformer
from spin_native.text.packing import pack

SHARED = Path(__file__).parents[2] / "shared"
Rows = list[list[int]]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# rows, median, sigma, shortest, longest
WORKLOADS = {"tweets": (256, 22, 0.55, 4, 128), "reviews": (24, 245, 0.55, 20, 512)}


def workload(name: str, n_vocab: int) -> Rows:
    """Rows of random ids with lognormal lengths, in arrival order."""
    n_rows, median, sigma, low, high = WORKLOADS[name]
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(median), sigma, n_rows).round(), low, high).astype(int)
    return [generator.integers(10, n_vocab - 10, n).tolist() for n in lengths]


def useful_flops(config: ModelConfig, rows: Rows) -> float:
    """Arithmetic of the real tokens in all layers."""
    d, f = config.d_model, config.d_ffn
    per_layer = sum(len(row) * 2 * (4 * d * d + 2 * d * f) + 4 * len(row) ** 2 * d for row in rows)
    return float(config.n_layers * per_layer)


def shapes(name: str) -> dict[str, Any]:
    return json.loads((SHARED / "configs" / f"{name}.config.json").read_text())


def random_checkpoint(raw: dict[str, Any], folder: Path) -> Path:
    """A checkpoint of random float32 weights in the stored layout of its family: no download, no transformers."""
    from safetensors.torch import save_file

    config = ModelConfig.from_huggingface(raw, "config.json")
    with torch.device("meta"):
        model = FAMILIES[config.family](config)
    tensors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        rule = model.weights.rule(name)
        if rule.stored not in tensors:
            shape = rule.stored_shape(tuple(parameter.shape))
            is_gain = "norm" in name and name.endswith("weight")
            tensors[rule.stored] = torch.empty(shape).normal_(float(is_gain), 0.02, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def random_model(name: str, folder: Path, tokenizer: str | None = None) -> Path:
    """A checkpoint of random weights with a tokenizer, its own or another one's."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (SHARED / "tokenizers" / (tokenizer or name)).iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    return random_checkpoint(shapes(name), folder)


def rounds(contenders: dict[str, Callable[[], Any]], n: int) -> dict[str, list[float]]:
    """Seconds of each contender, round by round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(n + 1):
        for name, run in contenders.items():
            started = perf_counter()
            run()
            if round_:
                seconds[name].append(perf_counter() - started)
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    return statistics.median(s / f for s, f in zip(slower, faster, strict=True))


class Limit:
    """One layer's products by reordered weights, at several batch sizes; `run` measures them once."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        d, f = config.d_model, config.d_ffn
        reorder = torch.ops.mkldnn._reorder_linear_weight
        # Several layers' weights in turn: a model's weights do not wait in the cache either.
        self.weights = [
            [reorder(torch.randn(out, into).to(dtype)) for out, into in ((3 * d, d), (d, d), (f, d), (d, f))] for _ in range(4)
        ]
        self.inputs = {n: (torch.randn(n, d).to(dtype), torch.randn(n, f).to(dtype)) for n in (256, 512, 1024, 2048, 4096)}
        self.flops_per_token = 2 * (4 * d * d + 2 * d * f)
        self.rates: dict[int, list[float]] = {n: [] for n in self.inputs}

    @torch.inference_mode()
    def run(self) -> None:
        multiply = torch.ops.mkldnn._linear_pointwise
        for n, (narrow, wide) in self.inputs.items():
            started = perf_counter()
            for layer in self.weights:
                for weight in layer:
                    multiply(narrow if weight.shape[1] == narrow.shape[1] else wide, weight, None, "none", [], "")
            self.rates[n].append(4 * n * self.flops_per_token / (perf_counter() - started))

    @property
    def flops(self) -> float:
        """The best batch size's median rate; the first round is not counted."""
        return max(statistics.median(rates[1:]) for rates in self.rates.values())


def ours(model: Transformer, rows: Rows, depth: int | None = None) -> Callable[[], Any]:
    """Mean and max of the activation of every layer below `depth`, the rows sorted and batched as `extract` does."""
    batches = [[rows[row] for row in batch] for batch in pack([len(row) for row in rows], token_budget(model))]
    last = (depth or model.depth) - 1

    @torch.inference_mode()
    def run() -> list[tuple[Tensor, Tensor]]:
        found = []
        for chosen in batches:
            batch = sn.TokenBatch.from_rows(chosen, model.device)
            for layer in model.layers(batch):
                if layer.activation is not None:
                    found.append((pooling.mean(layer.activation, batch), pooling.max(layer.activation, batch)))
                if layer.index == last and depth is not None:
                    break
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return found

    return run


class Hooked(nn.Module):
    """A transformers model that returns mean and max over the real tokens of every FFN activation, by hooks."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        from spin_native.parity import activation_functions

        self.base = base
        self.seen: list[Tensor] = []
        for function in activation_functions(base):
            function.register_forward_hook(lambda _module, _given, out: self.seen.append(out))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.clear()
        self.base(input_ids=input_ids, attention_mask=attention_mask)
        real = attention_mask[:, :, None].bool()
        n_tokens = real.sum(1)
        means = torch.stack([(a * real).sum(1) / n_tokens for a in self.seen])
        return means, torch.stack([a.masked_fill(~real, -1e30).amax(1) for a in self.seen])


def padded(rows: Rows) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.ones(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = torch.tensor(row), 1
    return ids, mask


def batches_of(rows: Rows, max_tokens: int | None) -> list[tuple[Tensor, Tensor]]:
    """Padded batches: of 32 in arrival order (None), or sorted by length, at most `max_tokens` real tokens in each."""
    if max_tokens is None:
        return [padded(rows[start : start + 32]) for start in range(0, len(rows), 32)]
    return [padded([rows[row] for row in batch]) for batch in pack([len(row) for row in rows], max_tokens)]


def peers(raw: dict[str, Any], folder: Path, rows: Rows, dtype: torch.dtype, max_tokens: int) -> dict[str, Callable[[], Any]]:
    """transformers with hooks in float32; ONNX Runtime (float32) and OpenVINO on the same graph and in batches as large."""
    import openvino
    from transformers import AutoModel

    base = Hooked(AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval())
    sample = padded([row[:20] for row in rows[:3]])
    names = ("input_ids", "attention_mask")
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    graph = openvino.convert_model(base, example_input=dict(zip(names, sample, strict=True)))
    compiled = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    arrival, sorted_ = batches_of(rows, None), batches_of(rows, max_tokens)

    @torch.inference_mode()
    def hooked(batches: list[tuple[Tensor, Tensor]]) -> list[Any]:
        return [base(*batch) for batch in batches]

    found: dict[str, Callable[[], Any]] = {
        "transformers fp32, hooks, arrival order": lambda: hooked(arrival),
        f"OpenVINO {precision}, sorted": lambda: [
            compiled(dict(zip(names, (t.numpy() for t in batch), strict=True))) for batch in sorted_
        ],
    }
    checked = {f"OpenVINO {precision}": compiled(dict(zip(names, (t.numpy() for t in sorted_[-1]), strict=True)))[0]}
    if dtype == torch.float32:
        session = onnx_session(base, sample, folder / "pooled.onnx")
        found["transformers fp32, hooks, sorted"] = lambda: hooked(sorted_)
        found["ONNX Runtime, sorted"] = lambda: [
            session.run(None, dict(zip(names, (t.numpy() for t in batch), strict=True))) for batch in sorted_
        ]
        checked["ONNX Runtime"] = session.run(None, dict(zip(names, (t.numpy() for t in sorted_[-1]), strict=True)))[0]
    expected = hooked(sorted_[-1:])[0][0].numpy()
    for name, values in checked.items():  # a peer that computes something else is no peer
        error = float(np.linalg.norm(values - expected) / np.linalg.norm(expected))
        assert error < (5e-2 if precision == "bf16" else 1e-4), (name, error)
    return found


def onnx_session(module: nn.Module, sample: tuple[Tensor, Tensor], path: Path) -> Any:
    import onnxruntime

    sizes = {0: torch.export.Dim("row"), 1: torch.export.Dim("position")}
    torch.onnx.export(
        module,
        sample,
        path,
        input_names=["input_ids", "attention_mask"],
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        dynamo=True,
        verbose=False,
    )
    return onnxruntime.InferenceSession(path)


def measure_throughput(dtype_name: str, n_rounds: int) -> dict[str, Any]:
    """Demands 1, 2, 3: all layers pooled, against the limit and the peers, for short and for long texts."""
    dtype, results = DTYPES[dtype_name], {}
    for model_name in ("roberta-base", "distilbert-base-uncased", "gpt2"):
        raw = shapes(model_name)
        with tempfile.TemporaryDirectory() as temporary:
            folder = random_checkpoint(raw, Path(temporary))
            model = sn.load_model(str(folder), dtype=dtype)
            for kind in WORKLOADS:
                rows = workload(kind, model.config.n_vocab)
                limit = Limit(model.config, dtype)
                contenders = {"limit": limit.run, "ours": ours(model, rows)}
                if model_name == "roberta-base":
                    contenders |= peers(raw, folder, rows, dtype, token_budget(model))
                seconds = rounds(contenders, n_rounds)
                rate = useful_flops(model.config, rows) / statistics.median(seconds["ours"])
                row: dict[str, Any] = {"gflops": rate / 1e9, "limit": limit.flops / 1e9, "of_limit": rate / limit.flops}
                row |= {f"x {name}": ratio(s, seconds["ours"]) for name, s in seconds.items() if name not in ("limit", "ours")}
                results[f"{model_name} {kind} {dtype_name}"] = row
                shown = ", ".join(f"{name} {value:.2f}" for name, value in row.items())
                print(f"{model_name} {kind} {dtype_name}: {shown}", flush=True)
                del limit, contenders
                gc.collect()
    return results


def measure_depths(n_rounds: int) -> dict[str, Any]:
    """Demand 4: what depth k costs, as a share of all layers; and a deployed classifier that reads 5 % of each layer."""
    from spin_native.checkpoints import Checkpoint, Location

    with tempfile.TemporaryDirectory() as temporary:
        folder = random_checkpoint(shapes("roberta-base"), Path(temporary))
        source = Checkpoint(Location(str(folder)))
        whole = source.load(None, torch.float32, "cpu")
        rows, n_layers = workload("tweets", whole.config.n_vocab)[:80], whole.config.n_layers
        contenders = {f"depth {depth}": ours(whole, rows, depth) for depth in range(1, n_layers + 1)}
        kept = np.arange(0, whole.config.d_ffn, 20)
        for depth in (2, 6):
            deployed = source.load(depth, torch.float32, "cpu", last_neurons=kept)
            contenders[f"deployed {depth}"] = ours(deployed, rows, depth)
        seconds = rounds(contenders, 3 * n_rounds)
    shares = {d: ratio(seconds[f"depth {d}"], seconds[f"depth {n_layers}"]) for d in range(1, n_layers + 1)}
    over = {depth: 100 * (share - depth / n_layers) for depth, share in shares.items()}
    deployed_cost = {depth: ratio(seconds[f"deployed {depth}"], seconds[f"depth {depth}"]) for depth in (2, 6)}
    print("share of the full time over k/L, in points:", {d: round(points, 1) for d, points in over.items()})
    print(
        "deployed against extraction at the same depth:", {d: round(cost, 3) for d, cost in deployed_cost.items()}, flush=True
    )
    return {"points_over": over, "deployed": deployed_cost}


XL_MEMORY = """
import json, re, sys, time
import torch, spin_native as sn
def peak_mb():  # of this process alone: getrusage would count what its parent held before it
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
folder, depth, dtype = sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3])
imports = peak_mb()
started = time.perf_counter()
model = sn.load_model(folder, depth, dtype=dtype)
seconds = time.perf_counter() - started
after_load = peak_mb()
with torch.inference_mode():
    for _ in range(4):
        batch = sn.TokenBatch.from_rows([[7 * n % 50000 for n in range(25)] for _ in range(20)])
        for layer in model.layers(batch):
            sn.pooling.mean(layer.activation, batch), sn.pooling.max(layer.activation, batch)
print(json.dumps({"load_s": seconds, "imports_mb": imports, "after_load_mb": after_load, "peak_mb": peak_mb()}))
"""


def measure_xl(n_rounds: int) -> dict[str, Any]:
    """Demand 5: GPT2-XL shapes; tokens per second at several depths beside transformers, memory and load time at depth 12."""
    from transformers import AutoModel

    raw = shapes("gpt2-xl")
    results: dict[str, Any] = {}
    config = ModelConfig.from_huggingface(raw, "config.json")
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_checkpoint(raw, Path(temporary))
        d, f = config.d_model, config.d_ffn
        n_embedding = (config.n_vocab + config.n_positions) * d
        per_layer = 4 * d * d + 2 * d * f + 9 * d + f
        needed = n_embedding + 12 * per_layer - d * f - d
        for dtype_name, size in (("float32", 4), ("bfloat16", 2)):
            got = [
                json.loads(subprocess.check_output([sys.executable, "-c", XL_MEMORY, str(folder), "12", dtype_name]))
                for _ in range(max(2, n_rounds))
            ]
            read = [read_seconds(folder / "model.safetensors", needed * 4) for _ in range(max(2, n_rounds))]
            row = {key: statistics.median(one[key] for one in got) for key in got[0]}
            row |= {"needed_mb": needed * size / 2**20, "read_s": statistics.median(read)}
            row |= {"over_needed_mb": row["peak_mb"] - row["needed_mb"], "load_over_read": row["load_s"] / row["read_s"]}
            results[f"depth 12 {dtype_name}"] = row
            print(f"GPT2-XL depth 12 {dtype_name}:", ", ".join(f"{k} {v:.2f}" for k, v in row.items()), flush=True)
        rows = workload("tweets", config.n_vocab)[:40]
        n_tokens = sum(map(len, rows))
        base = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        hooked, batches = Hooked(base), batches_of(rows, None)
        with torch.inference_mode():
            seconds = rounds({"transformers": lambda: [hooked(*batch) for batch in batches]}, 1)
        results["transformers, 48 layers, tokens/s"] = n_tokens / statistics.median(seconds["transformers"])
        del base, hooked
        for dtype_name in DTYPES:
            gc.collect()
            model = sn.load_model(str(folder), dtype=DTYPES[dtype_name])
            seconds = rounds({f"depth {k}": ours(model, rows, k) for k in (6, 12, 24, 48)}, n_rounds)
            speeds = {k: n_tokens / statistics.median(s) for k, s in seconds.items()}
            results[f"ours {dtype_name}, tokens/s"] = speeds
            del model
            print(f"GPT2-XL {dtype_name} tokens/s:", {k: round(v) for k, v in speeds.items()}, flush=True)
        print(f"transformers fp32, 48 layers: {results['transformers, 48 layers, tokens/s']:.0f} tokens/s", flush=True)
    return results


def read_seconds(path: Path, n_bytes: int) -> float:
    """Time to read that many bytes of a file (in the page cache, as for the load) into memory of their size."""
    started = perf_counter()
    np.fromfile(path, dtype=np.uint8, count=n_bytes)
    return perf_counter() - started


def measure_latency(n_rounds: int) -> dict[str, Any]:
    """Demand 6: one short text at a time, RoBERTa-base, all layers pooled, against ONNX Runtime and OpenVINO."""
    raw = shapes("roberta-base")
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_checkpoint(raw, Path(temporary))
        model = sn.load_model(str(folder))
        text = [workload("tweets", model.config.n_vocab)[0][:16]]
        contenders = {"ours": ours(model, text), **peers(raw, folder, text, torch.float32, token_budget(model))}
        # A runtime's idle threads spin for a while and would slow whoever comes next: each gets a pause and calls of its own.
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(n_rounds):
            for name, run in contenders.items():
                sleep(0.5)
                seconds[name] += rounds({name: run}, 15)[name][5:]
    row = {name: statistics.median(s) * 1e3 for name, s in seconds.items()}
    print("one text of 16 tokens, ms:", {name: round(ms, 2) for name, ms in row.items()}, flush=True)
    return row


PIPELINE = """
import csv, sys, transformers
classify = transformers.pipeline("text-classification", model=sys.argv[1], device="cpu")
rows = list(csv.DictReader(open(sys.argv[2], encoding="utf-8")))
with open(sys.argv[3], "w", newline="", encoding="utf-8") as out:
    writer = csv.DictWriter(out, ["text", "label"])
    writer.writeheader()
    for row, found in zip(rows, classify([row["text"] for row in rows], truncation=True)):
        writer.writerow({"text": row["text"], "label": found["label"]})
"""


def measure_predict(n_rounds: int) -> dict[str, Any]:
    """Demand 7: whole commands, file in, file out: `predict` at half depth in bfloat16 against transformers.pipeline."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    with (SHARED / "data" / "edos" / "train.csv").open(encoding="utf-8") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)][:5000]
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_model("roberta-base", Path(temporary))
        classifier = sn.SpinClassifier(str(folder), depth=6, baseline=False, poolings=("mean",), etas=(0.2,), dtype="bfloat16")
        texts, labels = zip(*rows[:300], strict=True)
        classifier.fit(list(texts), list(labels)).save_pretrained(folder / "classifier")
        peer = folder / "pipeline"
        peer.mkdir()
        for path in folder.iterdir():
            if path.is_file():
                os.link(path, peer / path.name)
        with_head = AutoModelForSequenceClassification.from_pretrained(folder)  # a random head on the same base model
        (peer / "model.safetensors").unlink()
        save_file(
            {**load_file(folder / "model.safetensors"), **head_of(with_head)}, peer / "model.safetensors", {"format": "pt"}
        )
        source = folder / "tweets.csv"
        with source.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text"])
            writer.writerows([text] for text, _ in rows)
        command = [str(Path(sys.executable).with_name("spin-native")), "predict", str(folder / "classifier")]
        command += ["--in", str(source), "--out", str(folder / "out.csv"), "--overwrite"]
        other = [sys.executable, "-c", PIPELINE, str(peer), str(source), str(folder / "peer.csv")]
        found: dict[str, list[float]] = {name: [] for name in ("ours", "pipeline")}
        for _ in range(n_rounds):
            for name, line in (("ours", command), ("pipeline", other)):
                started = perf_counter()
                subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
                found[name].append(perf_counter() - started)
    row = {name: len(rows) / statistics.median(s) for name, s in found.items()} | {"x": ratio(found["pipeline"], found["ours"])}
    print(f"predict: ours {row['ours']:.0f} rows/s, pipeline {row['pipeline']:.0f} rows/s, ratio {row['x']:.1f}", flush=True)
    return row


def head_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith("classifier.")}


def measure_scores(_n_rounds: int) -> dict[str, Any]:
    """Demand 2: MiniLM's test scores with the base model in float32 and, the same classifier, in bfloat16; and its speed."""
    from spin_native.cli.demo import demo_weights
    from spin_native.tables import read_labelled

    found = {}
    for name, metric in (("sst2", "accuracy"), ("edos", "macro_f1")):
        train, test = (read_labelled(SHARED / "data" / name / f"{part}.csv", "text", "label") for part in ("train", "test"))
        classifier = sn.SpinClassifier(
            str(demo_weights()), depth=4, metric=metric, etas=(0.9,), poolings=("mean",), baseline=False
        )
        classifier.fit(*train)
        with tempfile.TemporaryDirectory() as folder:
            classifier.save_pretrained(folder)
            row = {}
            for dtype in ("float32", "bfloat16"):
                loaded = sn.SpinClassifier.from_pretrained(folder, dtype=dtype)
                started = perf_counter()
                row[dtype] = loaded.score(*test)
                row[f"{dtype} texts/s"] = len(test[0]) / (perf_counter() - started)
        found[name] = row | {"points": 100 * (row["bfloat16"] - row["float32"])}
        print(f"{name} {metric}:", {key: round(value, 4) for key, value in found[name].items()}, flush=True)
    return found


SECTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "fp32": lambda n: measure_throughput("fp32", n),
    "bf16": lambda n: measure_throughput("bf16", n),
    "depths": measure_depths,
    "scores": measure_scores,
    "xl": measure_xl,
    "latency": measure_latency,
    "predict": measure_predict,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all of them")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # the exporters' chatter
    where = environment()
    results = {section: SECTIONS[section](given.rounds) for section in given.sections or SECTIONS}
    where["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"environment": where, "results": results}))


if __name__ == "__main__":
    main()
