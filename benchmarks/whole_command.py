"""A whole command, from a file to a file: `spin-native predict` against transformers.pipeline on the same base model.

    python benchmarks/whole_command.py [--rounds 3] [--rows 5000]

Needs `pip install '.[bench]'` (transformers) and ../shared (data, configs, tokenizers) beside the repository. RoBERTa-base's
sizes, random weights. Ours is a classifier of depth 6 of 12 in bfloat16; the pipeline runs all layers in float32 under a random
head. Start-up, tokenization and files count on both sides. The share of the machine's limit is measured in the same run: the
useful arithmetic of depth 6 over the seconds of the whole command. The last line is JSON.
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from inputs import random_model, read
from machine import environment, has_bfloat16_kernels, median_ratio, parser, print_json, share_of_limit

import spin_native as sn

DEPTH = 6
N_TRAINING = 300

PIPELINE = """
import csv, sys, transformers
classify = transformers.pipeline("text-classification", model=sys.argv[1], device="cpu")
rows = list(csv.DictReader(open(sys.argv[2], encoding="utf-8")))
with open(sys.argv[3], "w", newline="", encoding="utf-8") as out:
    writer = csv.DictWriter(out, ["text", "label"])
    writer.writeheader()
    for row, answer in zip(rows, classify([row["text"] for row in rows], truncation=True)):
        writer.writerow({"text": row["text"], "label": answer["label"]})
"""


def with_random_head(base: Path, folder: Path) -> Path:
    """A copy of a base model in `folder`, with a random classification head for transformers."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    folder.mkdir()
    for path in base.iterdir():
        if path.is_file() and path.name != "model.safetensors":
            os.link(path, folder / path.name)
    state = AutoModelForSequenceClassification.from_pretrained(base).state_dict()
    head = {name: tensor for name, tensor in state.items() if name.startswith("classifier.")}
    save_file({**load_file(base / "model.safetensors"), **head}, folder / "model.safetensors", {"format": "pt"})
    return folder


def measure(n_rounds: int, n_rows: int) -> dict[str, Any]:
    texts, labels = (column[:n_rows] for column in read("edos", "train"))
    with tempfile.TemporaryDirectory() as temporary:
        base = random_model("roberta-base", Path(temporary) / "base")
        classifier = sn.SpinClassifier(
            str(base), head="refit", depth=DEPTH, baseline=False, poolings=("mean",), etas=(0.2,), dtype="bfloat16"
        )
        classifier.fit(texts[:N_TRAINING], labels[:N_TRAINING]).save_pretrained(Path(temporary) / "classifier")
        peer = with_random_head(base, Path(temporary) / "pipeline")
        source = Path(temporary) / "texts.csv"
        with source.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text"])
            writer.writerows([text] for text in texts)
        commands = {
            "ours": [str(Path(sys.executable).with_name("spin-native")), "predict", str(Path(temporary) / "classifier")]
            + ["--in", str(source), "--out", str(Path(temporary) / "ours.csv"), "--overwrite"],
            "pipeline": [sys.executable, "-c", PIPELINE, str(peer), str(source), str(Path(temporary) / "peer.csv")],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(n_rounds):
            for name, command in commands.items():
                started = perf_counter()
                subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
                seconds[name].append(perf_counter() - started)
        config = sn.load_model(str(base), depth=1).config
        lengths = list(map(len, sn.load_tokenizer(str(base)).encode(texts).ids))
    dtype = torch.bfloat16 if has_bfloat16_kernels() else torch.float32
    results: dict[str, Any] = {
        "rows_per_s": {name: len(texts) / statistics.median(s) for name, s in seconds.items()},
        "times_as_fast_as_pipeline": median_ratio(seconds["pipeline"], seconds["ours"]),
        "of_limit": share_of_limit(config, lengths, statistics.median(seconds["ours"]), dtype, DEPTH),
    }
    print(
        f"predict: {results['rows_per_s']['ours']:.0f} rows/s, {results['times_as_fast_as_pipeline']:.1f} times as fast as "
        f"transformers.pipeline ({results['rows_per_s']['pipeline']:.0f} rows/s), {results['of_limit']:.2f} of the limit",
        flush=True,
    )
    return results


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--rows", type=int, default=5000)
    given = arguments.parse_args()
    warnings.simplefilter("ignore")  # transformers warns of the new head
    where = environment()
    print_json(where, measure(given.rounds, given.rows))


if __name__ == "__main__":
    main()
