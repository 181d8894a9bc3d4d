"""The machine of a benchmark: what it is, how fast it multiplies, and how contenders are timed on it."""

import argparse
import json
import platform
import resource
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import spin_native as sn

# CPU features that decide how fast torch multiplies.
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")


def environment() -> dict[str, Any]:
    """Versions and hardware; also printed, as the first line of a benchmark."""
    name, features = cpu()
    described = {
        "spin_native": sn.__version__,
        "torch": torch.__version__,
        "cpu": name,
        "cpu_features": features,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_kernels": has_bfloat16_kernels(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
    print(", ".join(f"{key}: {value}" for key, value in described.items()), flush=True)
    return described


def cpu() -> tuple[str, str]:
    """The CPU's name, and which of CPU_FEATURES it has (empty where the system has no /proc/cpuinfo)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ""
    # The first processor's lines: the others are the same.
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines)) if value}
    present = set(values.get("flags", values.get("Features", "")).split())
    name = values.get("model name", platform.machine())
    return name, " ".join(feature for feature in CPU_FEATURES if feature in present)


def has_bfloat16_kernels() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows the benchmark's docstring as its help."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def print_json(where: dict[str, Any], results: dict[str, Any]) -> None:
    """The last line of a benchmark: one JSON object with the environment, the peak memory in MB and the results."""
    where = where | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    print(json.dumps({"environment": where, "results": results}), flush=True)


def alternate(contenders: dict[str, Callable[[], Any]], n_rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round. In a round every contender runs once; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_index in range(n_rounds + 1):
        for name, run in contenders.items():
            started = perf_counter()
            run()
            if round_index > 0:
                seconds[name].append(perf_counter() - started)
    return seconds


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """The median over the rounds of each round's ratio: a slow minute of the machine then slows both sides."""
    return statistics.median(s / f for s, f in zip(slower, faster, strict=True))


def layer_flops(config: Any) -> int:
    """Arithmetic of one token in the four matrix products of one layer: q k v together, attention output, W1, W2."""
    return 2 * (4 * config.d_model**2 + 2 * config.d_model * config.d_ffn)


def useful_flops(config: Any, lengths: Sequence[int], depth: int | None = None) -> float:
    """Arithmetic of the real tokens in all layers, or in the first `depth`: matrix products, and attention's two.

    lengths: tokens of each row. A pass that stops at `depth` leaves out the last layer's W2.
    """
    per_layer = sum(n * layer_flops(config) + 4 * n**2 * config.d_model for n in lengths)
    if depth is None:
        return float(config.n_layers * per_layer)
    return float(depth * per_layer - 2 * sum(lengths) * config.d_model * config.d_ffn)


class Limit:
    """How fast this machine runs the four matrix products of a layer, with nothing around them; `run` measures once.

    The weights are reordered for oneDNN and the inputs are ready; no bias, no activation function. n_tokens: the batch sizes
    to try. torch's reordered products exist for float32 and bfloat16 on a CPU.
    """

    def __init__(self, config: Any, dtype: torch.dtype, n_tokens: Sequence[int] = (256, 512, 1024, 2048, 4096)) -> None:
        d, f = config.d_model, config.d_ffn
        reorder = torch.ops.mkldnn._reorder_linear_weight
        # Four layers in turn: a whole model's weights do not stay in the cache either.
        self.weights = [
            [reorder(torch.randn(out, into).to(dtype)) for out, into in ((3 * d, d), (d, d), (f, d), (d, f))] for _ in range(4)
        ]
        self.inputs = {n: (torch.randn(n, d).to(dtype), torch.randn(n, f).to(dtype)) for n in n_tokens}
        self.flops_per_token = layer_flops(config)
        self.rates: dict[int, list[float]] = {n: [] for n in self.inputs}

    @torch.inference_mode()
    def run(self) -> None:
        multiply = torch.ops.mkldnn._linear_pointwise
        for n, (narrow, wide) in self.inputs.items():
            started = perf_counter()
            for layer in self.weights:
                for weight in layer:
                    multiply(narrow if weight.shape[1] == narrow.shape[1] else wide, weight, None, "none", [], "")
            self.rates[n].append(len(self.weights) * n * self.flops_per_token / (perf_counter() - started))

    @property
    def flops(self) -> float:
        """Operations per second: the best batch size's median; the first run is not counted."""
        return max(statistics.median(rates[1:]) for rates in self.rates.values())


def share_of_limit(config: Any, lengths: Sequence[int], seconds: float, dtype: torch.dtype, depth: int | None = None) -> float:
    """Useful arithmetic per second as a share of the limit, which is measured now (three runs)."""
    limit = Limit(config, dtype)
    for _ in range(4):
        limit.run()
    return useful_flops(config, lengths, depth) / seconds / limit.flops
