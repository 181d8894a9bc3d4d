"""One short text at a time: milliseconds for all layers of RoBERTa-base, pooled, against peers and the machine's limit.

    python benchmarks/latency.py [--rounds 3]

Needs `pip install '.[bench]'` (transformers, onnxruntime, openvino) and ../shared/configs beside the repository. 16 tokens,
float32, random weights. The limit is the rate of a layer's bare matrix products on 16 tokens. Each contender runs on its own
after a pause, because the idle threads of a runtime spin for a while and would slow the next one. The last line is JSON.
"""

import statistics
import tempfile
import warnings
from pathlib import Path
from time import sleep
from typing import Any

import torch
from contenders import ours, peers
from inputs import random_checkpoint, random_rows
from machine import Limit, alternate, environment, parser, print_json, useful_flops

import spin_native as sn
from spin_native.features.extract import token_budget

N_TOKENS = 16
CALLS, WARM_UP_CALLS = 15, 5


def measure(n_rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_checkpoint("roberta-base", Path(temporary))
        model = sn.load_model(str(folder))
        text = [random_rows("tweets", model.config.n_vocab)[0][:N_TOKENS]]
        contenders = {"ours": ours(model, text), **peers(folder, text, torch.float32, token_budget(model))}
        limit = Limit(model.config, torch.float32, n_tokens=(N_TOKENS,))
        contenders["limit"] = limit.run
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(n_rounds):
            for name, run in contenders.items():
                sleep(0.5)
                seconds[name] += alternate({name: run}, CALLS)[name][WARM_UP_CALLS:]
    medians = {name: statistics.median(s) for name, s in seconds.items() if name != "limit"}
    rate = useful_flops(model.config, [N_TOKENS]) / medians["ours"]
    results: dict[str, Any] = {
        "milliseconds": {name: s * 1e3 for name, s in medians.items()},
        "times_as_fast_as": {name: s / medians["ours"] for name, s in medians.items() if name != "ours"},
        "of_limit": rate / limit.flops,
    }
    print(f"one text of {N_TOKENS} tokens, ms:", ", ".join(f"{name} {s * 1e3:.2f}" for name, s in medians.items()))
    print(
        f"ours: {results['of_limit']:.2f} of the limit; times as fast as: "
        + ", ".join(f"{name} {ratio:.2f}" for name, ratio in results["times_as_fast_as"].items()),
        flush=True,
    )
    return results


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    warnings.simplefilter("ignore")  # the exporters of the peers warn a lot
    where = environment()
    print_json(where, measure(given.rounds))


if __name__ == "__main__":
    main()
