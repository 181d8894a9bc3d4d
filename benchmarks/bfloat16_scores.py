"""Test scores of the same classifiers with the base model in float32 and in bfloat16, and their speed.

    python benchmarks/bfloat16_scores.py [sst2 edos]

Needs ../shared/data beside the repository. all-MiniLM-L6-v2, depth 4; each classifier is fitted once in float32, saved, and
loaded in either dtype. The share of the machine's limit is of the same run. The last line is JSON.
"""

import tempfile
import warnings
from time import perf_counter
from typing import Any

import torch
from inputs import demo_weights, read
from machine import environment, has_bfloat16_kernels, parser, print_json, share_of_limit

import spin_native as sn

METRICS: dict[str, Any] = {"sst2": "accuracy", "edos": "macro_f1"}
DEPTH = 4


def measure(name: str) -> dict[str, Any]:
    """One data set: scores and texts per second in both dtypes."""
    weights = str(demo_weights())
    train, (texts, labels) = read(name, "train"), read(name, "test")
    classifier = sn.SpinClassifier(
        weights, head="refit", depth=DEPTH, metric=METRICS[name], etas=(0.9,), poolings=("mean",), baseline=False
    ).fit(*train)
    config = sn.load_model(weights, depth=1).config
    lengths = list(map(len, sn.load_tokenizer(weights).encode(texts).ids))
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        classifier.save_pretrained(folder)
        for dtype in (torch.float32, torch.bfloat16):
            dtype_name = str(dtype).removeprefix("torch.")
            loaded = sn.SpinClassifier.from_pretrained(folder, dtype=dtype_name)
            started = perf_counter()
            row[dtype_name] = loaded.score(texts, labels)
            seconds = perf_counter() - started
            row[f"{dtype_name} texts/s"] = len(texts) / seconds
            if dtype == torch.float32 or has_bfloat16_kernels():
                row[f"{dtype_name} of the limit"] = share_of_limit(config, lengths, seconds, dtype, DEPTH)
    row["bfloat16 minus float32, points"] = 100 * (row["bfloat16"] - row["float32"])
    row["bfloat16 times as fast"] = row["bfloat16 texts/s"] / row["float32 texts/s"]
    print(f"{name}, {METRICS[name]}:", ", ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
    return row


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("data", nargs="*", choices=[*METRICS, []], help="default: both")
    given = arguments.parse_args()
    warnings.simplefilter("ignore")  # some texts are in two parts of these data sets
    where = environment()
    print_json(where, {name: measure(name) for name in given.data or METRICS})


if __name__ == "__main__":
    main()
