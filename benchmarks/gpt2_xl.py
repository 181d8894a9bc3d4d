"""A large model, GPT2-XL's sizes: tokens per second at several depths, and memory and loading time of its first quarter.

    python benchmarks/gpt2_xl.py [--rounds 3] [--rows 40] [--model gpt2-xl]

Needs `pip install '.[bench]'` (transformers), ../shared/configs beside the repository, 7 GB of disk and 14 GB of memory.
Weights are random, rows have the length of tweets. Each load runs in a process of its own, beside a bare read of as many bytes
as the loaded layers take in the file. Speed is compared with transformers with hooks (float32, all layers) and with the
machine's limit. --model names a smaller model for a quick try. The last line is JSON.
"""

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from contenders import hooked_transformers, ours, padded_batches, run_batches
from inputs import Rows, config_of, random_checkpoint, random_rows
from machine import Limit, alternate, environment, parser, print_json, useful_flops

import spin_native as sn

DTYPES = (torch.float32, torch.bfloat16)

LOAD = """
import json, re, sys, time
import torch, spin_native as sn
def peak_mb():  # of this process alone: getrusage would count the memory of the parent before it
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


def measure_load(folder: Path, config: Any, depth: int, n_rounds: int) -> dict[str, Any]:
    """Seconds and peak memory of loading and running the first `depth` layers, against what must be read and held."""
    d, f = config.d_model, config.d_ffn
    per_layer = 4 * d * d + 2 * d * f + 9 * d + f
    # The last layer's W2 and its bias are not loaded.
    n_parameters = (config.n_vocab + config.n_positions) * d + depth * per_layer - d * f - d
    results = {}
    for dtype in DTYPES:
        dtype_name = str(dtype).removeprefix("torch.")
        command = [sys.executable, "-c", LOAD, str(folder), str(depth), dtype_name]
        loads = [json.loads(subprocess.check_output(command)) for _ in range(max(2, n_rounds))]
        reads = [read_seconds(folder / "model.safetensors", n_parameters * 4) for _ in range(max(2, n_rounds))]
        row = {key: statistics.median(load[key] for load in loads) for key in loads[0]}
        row |= {"needed_mb": n_parameters * dtype.itemsize / 2**20, "read_s": statistics.median(reads)}
        row |= {"above_needed_mb": row["peak_mb"] - row["needed_mb"], "load_over_read": row["load_s"] / row["read_s"]}
        results[dtype_name] = row
        print(f"loading depth {depth}, {dtype_name}:", ", ".join(f"{k} {v:.2f}" for k, v in row.items()), flush=True)
    return results


def read_seconds(path: Path, n_bytes: int) -> float:
    """Time to copy that many bytes of a file from the page cache into fresh memory."""
    started = perf_counter()
    np.fromfile(path, dtype=np.uint8, count=n_bytes)
    return perf_counter() - started


def measure_speed(folder: Path, config: Any, rows: Rows, n_rounds: int) -> dict[str, Any]:
    """Tokens per second at an eighth, a quarter, half and all of the layers."""
    lengths = list(map(len, rows))
    hooked = hooked_transformers(folder)
    peer_seconds = alternate({"transformers": run_batches(hooked, padded_batches(rows, None))}, 1)["transformers"]
    peer = sum(lengths) / statistics.median(peer_seconds)
    del hooked
    results: dict[str, Any] = {"transformers fp32 with hooks, all layers": peer}
    print(f"transformers fp32 with hooks, all layers: {peer:.0f} tokens/s", flush=True)
    depths = sorted({max(1, config.n_layers // part) for part in (8, 4, 2, 1)})
    for dtype in DTYPES:
        gc.collect()
        model = sn.load_model(str(folder), dtype=dtype)
        limit = Limit(config, dtype)
        contenders = {f"depth {depth}": ours(model, rows, depth) for depth in depths}
        seconds = alternate({**contenders, "limit": limit.run}, n_rounds)
        dtype_name = str(dtype).removeprefix("torch.")
        results[dtype_name] = {}
        for depth in depths:
            median = statistics.median(seconds[f"depth {depth}"])
            speed, share = sum(lengths) / median, useful_flops(config, lengths, depth) / median / limit.flops
            results[dtype_name][depth] = {"tokens_per_s": speed, "of_limit": share}
            print(f"{dtype_name}, depth {depth}: {speed:.0f} tokens/s, {share:.2f} of the limit", flush=True)
        ratio = results[dtype_name][config.n_layers]["tokens_per_s"] / peer
        results[dtype_name]["times_as_fast_as_transformers"] = ratio
        print(f"{dtype_name}, all layers: {ratio:.2f} times as fast as transformers fp32 with hooks", flush=True)
        del model, limit, contenders
    return results


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--rows", type=int, default=40)
    arguments.add_argument("--model", choices=("gpt2-xl", "gpt2"), default="gpt2-xl", help="whose sizes to use")
    given = arguments.parse_args()
    warnings.simplefilter("ignore")  # transformers warns of weights it does not use
    where = environment()
    config = config_of(given.model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_checkpoint(given.model, Path(temporary))
        loading = measure_load(folder, config, config.n_layers // 4, given.rounds)
        rows = random_rows("tweets", config.n_vocab)[: given.rows]
        speed = measure_speed(folder, config, rows, given.rounds)
    print_json(where, {"loading": loading, "tokens_per_s": speed})


if __name__ == "__main__":
    main()
