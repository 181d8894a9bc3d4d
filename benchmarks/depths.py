"""What the first k layers cost as a share of all L, and what a deployed classifier costs that reads 5 % of its last layer.

    python benchmarks/depths.py [--rounds 3] [--rows 80]

Needs `pip install '.[bench]'` (transformers) and ../shared/configs beside the repository. RoBERTa-base's sizes, random weights,
rows of tweet length, float32. A deployed classifier multiplies only the rows of its last layer's W1 that belong to salient
neurons. All contenders run once per round, in turn, in three times as many rounds as --rounds says; the machine's limit and
transformers with hooks run beside them. The last line is JSON.
"""

import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import hooked_transformers, ours, padded_batches, run_batches
from inputs import random_checkpoint, random_rows
from machine import Limit, alternate, environment, median_ratio, parser, print_json, useful_flops

# The package's internals: only a deployed classifier loads some of a layer's neurons.
from spin_native.checkpoints import Checkpoint, Location

DEPLOYED_DEPTHS = (2, 6)


def measure(n_rounds: int, n_rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_checkpoint("roberta-base", Path(temporary))
        checkpoint = Checkpoint(Location(str(folder)))
        model = checkpoint.load(None, torch.float32, "cpu")
        rows, n_layers = random_rows("tweets", model.config.n_vocab)[:n_rows], model.config.n_layers
        contenders = {f"depth {depth}": ours(model, rows, depth) for depth in range(1, n_layers + 1)}
        salient_neurons = np.arange(0, model.config.d_ffn, 20)
        for depth in DEPLOYED_DEPTHS:
            deployed = checkpoint.load(depth, torch.float32, "cpu", last_neurons=salient_neurons)
            contenders[f"deployed {depth}"] = ours(deployed, rows, depth)
        limit = Limit(model.config, torch.float32)
        hooked = hooked_transformers(folder, add_pooling_layer=False)
        contenders |= {"limit": limit.run, "transformers": run_batches(hooked, padded_batches(rows, None))}
        seconds = alternate(contenders, 3 * n_rounds)
    deepest = seconds[f"depth {n_layers}"]
    shares = {d: median_ratio(seconds[f"depth {d}"], deepest) for d in range(1, n_layers + 1)}
    points = {depth: 100 * (share - depth / n_layers) for depth, share in shares.items()}
    deployed_cost = {d: median_ratio(seconds[f"deployed {d}"], seconds[f"depth {d}"]) for d in DEPLOYED_DEPTHS}
    flops = useful_flops(model.config, list(map(len, rows)), n_layers)
    results = {
        "share_of_all_layers": shares,
        "points_above_k_of_L": points,
        "deployed_over_extraction": deployed_cost,
        "of_limit": flops / statistics.median(deepest) / limit.flops,
        "times_as_fast_as_transformers": median_ratio(seconds["transformers"], deepest),
    }
    print("time of depth k, minus k/L of the time of all layers, in % points of the latter:", rounded(points, 1))
    print("time of a deployed classifier over that of the extraction at its depth:", rounded(deployed_cost, 3))
    print(
        f"all layers: {results['of_limit']:.2f} of the limit, {results['times_as_fast_as_transformers']:.2f} times as fast as "
        "transformers fp32 with hooks, unsorted",
        flush=True,
    )
    return results


def rounded(values: dict[int, float], n_digits: int) -> dict[int, float]:
    return {key: round(value, n_digits) for key, value in values.items()}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--rows", type=int, default=80)
    given = arguments.parse_args()
    warnings.simplefilter("ignore")  # transformers warns of weights it does not use
    where = environment()
    print_json(where, measure(given.rounds, given.rows))


if __name__ == "__main__":
    main()
