"""Skill neurons: what perturbing them costs, how alike tasks are, and how long measuring takes.

    python benchmarks/skill_neurons.py perturb [MODEL] [--tasks sst2 tweet_emotion edos] [--seeds 5] [--rows 1500 500 500]
    python benchmarks/skill_neurons.py transfer [MODEL] [--rows 700 700 1] [--picture matrix.svg]
    python benchmarks/skill_neurons.py prompts [MODEL] [--seeds 5]
    python benchmarks/skill_neurons.py cost

perturb: an encoder (a folder; default: the demo's MiniLM) without prompts. Each seed draws its own training, dev and test rows
and fits its own L2 probe on the mean of the final hidden state. Training rows give the neurons' baselines, dev rows their
balanced predictivity, test rows the accuracy while the top 1, 5 and 10 % of every layer are changed: by Gaussian noise (of
standard deviation --noise; 0.1 in the paper), to zero, or to their mean. The same number of least predictive and of random
neurons is changed beside them. Means over the seeds with 95 % intervals (Student); "worse" is how far the accuracy lies below
that with random neurons of the same seed.
transfer: Spearman's correlation between six tasks of ../shared/data, the second measurement of each on other rows.
prompts: soft prompts on a trained GPT-2 (default: the one of president's tweets in ../shared/models): short tweets or sentences
of sst2, answered with two words of its vocabulary.
cost: predictivity of 12 x 3072 neurons over 10,000 rows of a store, with 2,500 dev rows of another one.
The last line is JSON.
"""

import tempfile
import warnings
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from inputs import SHARED, demo_weights, read
from machine import environment, parser, print_json

import spin_native as sn

# The package's internals, so that `cost` can write a store of random features of any size.
from spin_native.analyses.perturbation import Perturbation
from spin_native.features.store import ActivationStore, FeatureKey, FeatureSpec

GPT2 = SHARED / "models" / "gpt2-4l128-presidenttweets" / "safetensors"
SHARES = (0.01, 0.05, 0.1)
# Name -> folder, label column, and what makes a class of a label.
TASKS: dict[str, tuple[str, str, Any]] = {
    "sst2": ("sst2", "label", str),
    "tweet_emotion": ("tweet_emotion", "label", str),
    "edos": ("edos", "label", str),
    "imdb_small": ("imdb_small", "label", str),
    "tweet_valence": ("tweet_valence", "label", lambda value: "high" if float(value) > 0.5 else "low"),
    "edos_category": ("edos", "label_category", str),
}
Rows = tuple[list[str], list[str]]


def rows_of(task: str) -> Rows:
    """Labelled rows of the training and test parts, each text once, without what follows its 400th letter."""
    folder, column, class_of = TASKS[task]
    known: dict[str, str] = {}
    for part in ("train", "test"):
        for text, label in zip(*read(folder, part, column), strict=True):
            known.setdefault(str(text)[:400], class_of(label))
    if task == "edos_category":  # the kind of sexism, of sexist posts
        known = {text: label for text, label in known.items() if label != "none"}
    return list(known), list(known.values())


def drawn(rows: Rows, sizes: list[int], seed: int) -> list[Rows]:
    """Disjoint random parts of these sizes; smaller ones in proportion if there are too few rows."""
    texts, labels = rows
    scale = min(1.0, len(texts) / sum(sizes))
    order = np.random.default_rng(seed).permutation(len(texts))
    parts = np.split(order, np.cumsum([int(size * scale) for size in sizes]))[: len(sizes)]
    return [([texts[row] for row in part], [labels[row] for row in part]) for part in parts]


def show(title: str, curves: list[Perturbation]) -> dict[str, Any]:
    """Print means and intervals over the curves, one curve per seed."""
    joined = Perturbation(
        {**curves[0].axes, "seed": np.arange(len(curves))},
        {"score": np.concatenate([curve["score"] for curve in curves], axis=-1)},
        {},
        float(np.mean([curve.clean for curve in curves])),
    )
    print(f"{title}: accuracy {joined.clean:.3f} as it is (mean of {len(curves)} seeds)", flush=True)
    result: dict[str, Any] = {"clean": joined.clean, "rows": []}
    for row in joined.intervals().to_table().to_pylist():
        result["rows"].append(row)
        below = f"{row['worse']:+.3f} [{row['worse_low']:+.3f}, {row['worse_high']:+.3f}]"
        print(
            f"  {row['how']:5} layers {row['layers']:4} {row['share']:4.0%} {row['which']:6} accuracy {row['score']:.3f} "
            f"[{row['score_low']:.3f}, {row['score_high']:.3f}]"
            + (f"  below random by {below}" if row["which"] != "random" else ""),
            flush=True,
        )
    return result


def perturb(folder: str, tasks: list[str], n_seeds: int, sizes: list[int], hows: list[Any], noise: float) -> dict[str, Any]:
    model, tokenizer = sn.load_model(folder), sn.load_tokenizer(folder)
    results = {}
    for task in tasks:
        started, rows = perf_counter(), rows_of(task)
        curves: list[Perturbation] = []
        for seed in range(n_seeds):
            train, dev, test = drawn(rows, sizes, seed)
            skill = sn.analyses.text_skill_neurons(model, tokenizer, train, dev, balanced=True, progress=False)
            probe = sn.analyses.FinalProbe.fit(model, tokenizer, train, dev)
            score = partial(probe.score, *test)
            curves.append(
                sn.analyses.perturbation_curve(
                    score, skill, hows=hows, shares=SHARES, seeds=[seed], noise=noise, progress=False
                )
            )
            best = [f"{skill['predictivity'][0, :, layer].max():.2f}" for layer in skill.layers]
            print(f"{task}, seed {seed}: best predictivity by layer {' '.join(best)}", flush=True)
        results[task] = show(f"{task}, noise {noise:g}", curves)
        print(f"{task}: {perf_counter() - started:.0f} s", flush=True)
    return results


def transfer(folder: str, sizes: list[int], picture: Path | None) -> dict[str, Any]:
    model, tokenizer = sn.load_model(folder), sn.load_tokenizer(folder)
    measured: list[dict[str, Any]] = [{}, {}]
    for task in TASKS:
        parts = drawn(rows_of(task), [*sizes[:2], *sizes[:2]], 0)
        for place, (train, dev) in enumerate((parts[:2], parts[2:])):
            measured[place][task] = sn.analyses.text_skill_neurons(model, tokenizer, train, dev, balanced=True, progress=False)
        print(f"{task}: {len(train[0])} + {len(dev[0])} rows, twice", flush=True)
    result = sn.analyses.transferability(*measured)
    print("rows: first measurement; columns: second measurement, on other rows")
    for name, values in zip(result.axes["task"], result["spearman"], strict=True):
        print(f"  {name:14} {' '.join(f'{value:6.2f}' for value in values)}", flush=True)
    print("a task is nearest to itself:", dict(zip(TASKS, result.is_itself_first.tolist(), strict=True)), flush=True)
    if picture is not None:
        result.picture(picture, overwrite=True)
    return {"tasks": list(TASKS), "spearman": result["spearman"].tolist(), "is_itself_first": result.is_itself_first.tolist()}


def prompts(folder: str, n_seeds: int, hows: list[Any], noise: float) -> dict[str, Any]:
    model, tokenizer = sn.load_model(folder, head=True, prepack=False), sn.load_tokenizer(folder)
    words = {"0": "bad", "1": "great"}
    texts, labels = rows_of("sst2")
    short = [row for row, text in enumerate(texts) if len(text) < 80]
    rows = [texts[row] for row in short], [labels[row] for row in short]
    curves, validation = [], []
    for seed in range(n_seeds):
        train, dev, test = drawn(rows, [400, 300, 300], seed)
        prompt = sn.analyses.tune_prompt(
            model, tokenizer, *train, words=words, validation=dev, n_prompts=8, n_epochs=8, learning_rate=0.02, seed=seed,
            progress=False,
        )  # fmt: skip
        validation.append(prompt.validation)
        skill = sn.analyses.prompted_skill_neurons(model, tokenizer, [prompt], train[0], dev, balanced=True, progress=False)
        score = partial(prompt.score, model, tokenizer, *test)
        curves.append(
            sn.analyses.perturbation_curve(score, skill, hows=hows, shares=SHARES, seeds=[seed], noise=noise, progress=False)
        )
    print(f"validation accuracy of the prompts: {', '.join(f'{value:.3f}' for value in validation)}", flush=True)
    return {"validation": validation, "curves": show(f"sst2, soft prompts, noise {noise:g}", curves)}


def random_store(folder: Path, n_rows: int) -> ActivationStore:
    """A finished store of random features of RoBERTa-base's sizes, in shards as `extract` writes them."""
    widths = {FeatureKey("activation", "mean", layer): 3072 for layer in range(12)}
    rows_per_shard = 1820
    spec = FeatureSpec("random", None, "", "float32", "", 12, "float32", rows_per_shard, 1, widths)
    store, generator = ActivationStore.create(folder, spec), np.random.default_rng(0)
    for first in range(0, n_rows, rows_per_shard):
        n = min(rows_per_shard, n_rows - first)
        store.append({feature: generator.standard_normal((n, 3072), np.float32) for feature in widths})
    store.finish()
    return store


def cost() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        train, dev = random_store(Path(temporary) / "train", 10_000), random_store(Path(temporary) / "dev", 2_500)
        generator = np.random.default_rng(1)
        labels, dev_labels = generator.integers(2, size=10_000), generator.integers(2, size=2_500)
        seconds = {}
        for name, rows in {"2,500 dev rows": (dev, dev_labels), "10,000 dev rows": (train, labels)}.items():
            started = perf_counter()
            sn.analyses.skill_neurons(train, labels, rows, progress=False)
            seconds[name] = perf_counter() - started
            print(f"12 x 3072 neurons, 10,000 training rows, {name}: {seconds[name]:.1f} s", flush=True)
    return {"seconds": seconds}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("what", choices=["perturb", "transfer", "prompts", "cost"])
    arguments.add_argument("model", nargs="?", type=Path)
    arguments.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["sst2", "tweet_emotion", "edos"])
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--rows", type=int, nargs=3, default=[1500, 500, 500], help="training, dev and test rows")
    arguments.add_argument("--hows", nargs="+", choices=["noise", "zero", "mean"], default=["noise", "zero", "mean"])
    arguments.add_argument("--noise", type=float, default=0.1)
    arguments.add_argument("--picture", type=Path)
    given = arguments.parse_args()
    warnings.simplefilter("ignore")
    where = environment()
    if given.what == "cost":
        results = cost()
    elif given.what == "prompts":
        results = prompts(str(given.model or GPT2), given.seeds, given.hows, given.noise)
    elif given.what == "transfer":
        results = transfer(str(given.model or demo_weights()), given.rows, given.picture)
    else:
        results = perturb(str(given.model or demo_weights()), given.tasks, given.seeds, given.rows, given.hows, given.noise)
    print_json(where, results)


if __name__ == "__main__":
    main()
