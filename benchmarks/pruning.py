"""A base-size model with 2 % of the FFN neurons in layers 3 to 11: how much faster, and how much worse on SST-2.

    python benchmarks/pruning.py FOLDER [--share 0.02] [--layers 3-11] [--rounds 8]
        [--train 800] [--dev 300] [--test 700] [--only speed|accuracy]

FOLDER: a trained base-size encoder with its tokenizer (all-mpnet-base-v2). Needs ../shared/data and ../shared/configs beside
the repository.

Speed: 256 rows as long as tweets through the whole model, before and after, float32. A round is a quarter of the rows through
both; the median of the rounds' ratios. Beside it what the arithmetic predicts: the multiply-adds of all matrix products and of
attention, before over after. Also for RoBERTa-base's sizes with random weights.

Accuracy: the mean of the final hidden state over a text's tokens, standardised; an L2 logistic regression on the training rows,
its C chosen on dev, accuracy on test. The probe is trained anew on each pruned model. Importance and means come from the
training rows. "activation": mean absolute activation. "predictivity": of the label. "random": one draw. "zero": as
"activation", but dropped neurons are replaced by 0 instead of their mean. The last line is JSON.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inputs import Rows, random_checkpoint, random_rows, read
from machine import alternate, environment, median_ratio, parser, print_json

import spin_native as sn
from spin_native.features.extract import Extractor, token_budget
from spin_native.features.store import FeatureKey
from spin_native.models import ModelConfig, Transformer
from spin_native.probes.importance import predictivity
from spin_native.text.packing import pack
from spin_native.text.tokenizer import Tokenizer

CS = tuple(float(C) for C in np.logspace(-4, 0, 9))


def multiply_adds(config: ModelConfig, lengths: Sequence[int]) -> int:
    """Of all layers over rows of these lengths: q, k, v and attention's output, W1 and W2, scores and their weighted sums."""
    d, n_tokens, n_pairs = config.d_model, sum(lengths), sum(n**2 for n in lengths)
    return sum(n_tokens * (4 * d**2 + 2 * d * config.ffn_width(i)) + 2 * n_pairs * d for i in range(config.n_layers))


def speed(before: Transformer, after: Transformer, rows: Rows, n_rounds: int) -> dict[str, float]:
    """How much faster the pruned model runs, and how much the arithmetic predicts."""
    quarters = [rows[start::4] for start in range(4)]
    budget = token_budget(before)
    batches = [
        [sn.TokenBatch.from_rows([quarter[row] for row in batch]) for batch in pack(list(map(len, quarter)), budget)]
        for quarter in quarters
    ]

    def runs(model: Transformer) -> Callable[[], None]:
        of_round = cycle(batches)

        @torch.inference_mode()
        def run() -> None:
            for batch in next(of_round):
                for layer in model.layers(batch):
                    del layer

        return run

    seconds = alternate({"before": runs(before), "after": runs(after)}, n_rounds)
    lengths = [len(row) for row in rows]
    whole, pruned = multiply_adds(before.config, lengths), multiply_adds(after.config, lengths)
    return {
        "texts_per_second_before": len(rows) / 4 / float(np.median(seconds["before"])),
        "texts_per_second_after": len(rows) / 4 / float(np.median(seconds["after"])),
        "speed_up": median_ratio(seconds["before"], seconds["after"]),
        "predicted": whole / pruned,
        "multiply_adds_removed": 1 - pruned / whole,
    }


Part = tuple[list[str], list[Any]]


def parts_of(given: argparse.Namespace, seed: int = 0) -> dict[str, Part]:
    """A random part of each of SST-2's parts."""
    parts = {}
    for name in ("train", "dev", "test"):
        texts, labels = read("sst2", name)
        chosen = np.random.default_rng(seed).permutation(len(texts))[: getattr(given, name)]
        parts[name] = [texts[row] for row in chosen], [labels[row] for row in chosen]
    return parts


def final_means(model: Transformer, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Each text's mean final hidden state."""
    feature = FeatureKey("hidden", "mean", model.config.n_layers)
    return Extractor(model, tokenizer, {feature: None}).run(texts).array(**feature._asdict())


def accuracy(model: Transformer, tokenizer: Tokenizer, parts: Mapping[str, Part]) -> float:
    """Of an L2 probe on the mean final hidden state: its C is chosen on dev, the score is that on test."""
    features = {name: final_means(model, tokenizer, texts) for name, (texts, _) in parts.items()}
    mean, scale = features["train"].mean(0), features["train"].std(0) + 1e-8
    features = {name: (values - mean) / scale for name, values in features.items()}
    labels = {name: np.array(of_part) for name, (_, of_part) in parts.items()}
    probes = [sn.LogisticProbe(C=C, l1_ratio=0.0, max_iter=200).fit(features["train"], labels["train"]) for C in CS]
    best = max(probes, key=lambda probe: probe.score(features["dev"], labels["dev"]))
    return float(best.score(features["test"], labels["test"]))


def compare_accuracy(
    model: Transformer, tokenizer: Tokenizer, layers: Sequence[int], given: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """Accuracy of the model, and of the models pruned by each importance; these are left in `folder`."""
    parts = parts_of(given)
    texts, labels = parts["train"]
    means = sn.analyses.activation_means(model, tokenizer, texts, layers=layers)
    pooled = sn.extract(model, tokenizer, texts, poolings=("mean",), depth=max(layers) + 1)
    arrays = {layer: pooled.array(site="activation", pooling="mean", layer=layer) for layer in layers}
    generator = np.random.default_rng(0)
    zeros = {layer: np.zeros_like(values) for layer, values in means.mean.items()}
    variants = {
        "activation": (means.absolute, means.mean),
        "predictivity": ({layer: predictivity(array, np.array(labels)) for layer, array in arrays.items()}, means.mean),
        "random": ({layer: generator.random(model.width("activation", layer)) for layer in layers}, means.mean),
        "zero": (means.absolute, zeros),
    }
    scores = {"before": accuracy(model, tokenizer, parts)}
    print(f"accuracy before: {scores['before']:.4f}", flush=True)
    for name, (importance, mean) in variants.items():
        sn.analyses.prune(model, importance=importance, share=given.share, mean=mean, out=folder / name)
        scores[name] = accuracy(sn.load_model(folder / name), tokenizer, parts)
        print(f"accuracy pruned by {name}: {scores[name]:.4f}", flush=True)
    return scores


def compare_speed(
    trained: Transformer, layers: Sequence[int], given: argparse.Namespace, folder: Path
) -> dict[str, dict[str, float]]:
    """The speed of both models. Which neurons are kept does not matter."""
    (folder / "roberta").mkdir()
    roberta = sn.load_model(random_checkpoint("roberta-base", folder / "roberta"))
    speeds = {}
    for name, before in (("roberta-base, random weights", roberta), (Path(given.folder).name, trained)):
        widths = {layer: before.width("activation", layer) for layer in layers}
        importance = {layer: np.arange(width) for layer, width in widths.items()}
        means = {layer: np.zeros(width) for layer, width in widths.items()}
        pruned = sn.analyses.prune(before, importance=importance, share=given.share, mean=means, out=folder / f"{name}-pruned")
        rows = random_rows("tweets", before.config.n_vocab)
        speeds[name] = speed(before, sn.load_model(pruned.folder), rows, given.rounds)
        print(f"{name}: " + ", ".join(f"{what} {value:.3f}" for what, value in speeds[name].items()), flush=True)
    return speeds


def measure(given: argparse.Namespace) -> dict[str, Any]:
    first, last = map(int, given.layers.split("-"))
    layers = list(range(first, last + 1))
    model, tokenizer = sn.load_model(given.folder), sn.load_tokenizer(given.folder)
    results: dict[str, Any] = {"share": given.share, "layers": layers}
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "accuracy":
            results["speed"] = compare_speed(model, layers, given, Path(folder))
        if given.only != "speed":
            results["n_test"] = given.test
            results["accuracy"] = compare_accuracy(model, tokenizer, layers, given, Path(folder))
    return results


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("folder")
    arguments.add_argument("--share", type=float, default=0.02)
    arguments.add_argument("--layers", default="3-11")
    arguments.add_argument("--train", type=int, default=800)
    arguments.add_argument("--dev", type=int, default=300)
    arguments.add_argument("--test", type=int, default=700)
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument("--only", choices=("speed", "accuracy"))
    given = arguments.parse_args()
    where = environment()
    print_json(where, measure(given))


if __name__ == "__main__":
    main()
