"""The table of speeds: all layers' activations pooled by mean and max, against the machine's limit and against peers.

    python benchmarks/throughput.py [fp32 bf16] [--models roberta-base distilbert-base-uncased gpt2] [--rounds 3] [--rows 20]

Needs `pip install '.[bench]'` (transformers, onnxruntime, openvino) and ../shared/configs beside the repository. Weights are
random: speed does not depend on them. RoBERTa-base runs beside its peers, the other models beside the limit only. All
contenders run once per round, in turn; speeds are medians over the rounds, ratios are medians of each round's ratio. Only the
arithmetic of real tokens counts (matrix products, and attention's two). The limit is the best rate of the four matrix products
of a layer on their own, over several batch sizes, measured in the same rounds. --rows takes the first rows of each workload,
for a quick try. The last line is JSON.
"""

import gc
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from contenders import ours, peers
from inputs import WORKLOADS, random_checkpoint, random_rows
from machine import Limit, alternate, environment, median_ratio, parser, print_json, useful_flops

import spin_native as sn
from spin_native.features.extract import token_budget

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODELS = ("roberta-base", "distilbert-base-uncased", "gpt2")


def measure(model_name: str, dtype_name: str, n_rounds: int, n_rows: int | None) -> dict[str, Any]:
    """One model in one dtype, on short and on long texts."""
    dtype, results = DTYPES[dtype_name], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_checkpoint(model_name, Path(temporary))
        model = sn.load_model(str(folder), dtype=dtype)
        for workload in WORKLOADS:
            rows = random_rows(workload, model.config.n_vocab)[:n_rows]
            limit = Limit(model.config, dtype)
            contenders = {"limit": limit.run, "ours": ours(model, rows)}
            if model_name == "roberta-base":
                contenders |= peers(folder, rows, dtype, token_budget(model))
            seconds = alternate(contenders, n_rounds)
            rate = useful_flops(model.config, list(map(len, rows))) / statistics.median(seconds["ours"])
            faster = {name: median_ratio(s, seconds["ours"]) for name, s in seconds.items() if name not in ("limit", "ours")}
            name = f"{model_name} {workload} {dtype_name}"
            results[name] = {
                "gflops": rate / 1e9,
                "limit_gflops": limit.flops / 1e9,
                "of_limit": rate / limit.flops,
                "times_as_fast_as": faster,
            }
            shown = f"{rate / 1e9:.1f} GFLOP/s, {rate / limit.flops:.2f} of the limit ({limit.flops / 1e9:.1f})"
            if faster:
                shown += "; times as fast as: " + ", ".join(f"{peer} {value:.2f}" for peer, value in faster.items())
            print(f"{name}: {shown}", flush=True)
            del limit, contenders
            gc.collect()
    return results


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("dtypes", nargs="*", choices=[*DTYPES, []], help="default: both")
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--rows", type=int, help="rows of each workload (default: all)")
    given = arguments.parse_args()
    warnings.simplefilter("ignore")  # the exporters of the peers warn a lot
    where = environment()
    results: dict[str, Any] = {}
    for dtype_name in given.dtypes or DTYPES:
        for model_name in given.models:
            results |= measure(model_name, dtype_name, given.rounds, given.rows)
    print_json(where, results)


if __name__ == "__main__":
    main()
