"""NeurGrad against the ground truth of interventions, beside the plain gradient and integrated gradients; its cost and memory.

    python benchmarks/neuron_gradients.py agreement [MODEL] [--prompts 12] [--neurons 1000] [--picture range.svg]
    python benchmarks/neuron_gradients.py encoder [MODEL] [--prompts 12] [--neurons 1000] [--points 5] [--longest TOKENS]
    python benchmarks/neuron_gradients.py cost [--rounds 3]
    python benchmarks/neuron_gradients.py memory [--rows 64,1024,8192,65536]

agreement: a trained GPT-2 (a folder with its tokenizer; default: the one of Shakespeare in ../shared/models), beginnings of
Shakespeare's lines as prompts, the model's own most probable next token as the target,
float64. Ground-truth slopes of random neurons of all
layers, each over a grid of shifts of at most 0.1 and of at most 2; Pearson's r with them of each method's estimate; seconds of
all gradients, and of the interventions on the sample, one run of the model per shift and all runs as rows of batches.
encoder: the same for an encoder without a language-model head (default: the demo's MiniLM): the output is the score of a probe
fitted on the final hidden state of the first token, for the sentiment of ../shared/data/sst2; one grid of --points shifts
within 0.1. A model of base size takes about a minute per prompt of 8 tokens and 2 points: --longest leaves longer prompts out.
cost: RoBERTa-base's sizes, random weights, rows of tweet length, one label: all gradients over one forward pass of the same
model, and of the default model with reordered weights. memory: the peak memory of --reduce mean over more and more rows.
The last line is JSON.
"""

import resource
import statistics
import tempfile
import warnings
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from inputs import SHARED, demo_weights, random_checkpoint, random_rows, read
from machine import alternate, environment, median_ratio, parser, print_json

import spin_native as sn
from spin_native.analyses.prompts import default_max_tokens
from spin_native.models import Transformer
from spin_native.models.transformer import Layer
from spin_native.text.packing import pack

SMALL, LINEAR = 0.1, 2.0  # the largest shift of each grid


LINES = (
    "To be, or not to be, that is the",
    "All the world's a stage, and all the men and women merely",
    "Now is the winter of our discontent made glorious summer by this sun of",
    "O Romeo, Romeo! wherefore art thou",
    "Friends, Romans, countrymen, lend me your",
    "The quality of mercy is not strained; it droppeth as the gentle rain from",
    "If music be the food of love, play",
    "A horse! a horse! my kingdom for a",
    "KING RICHARD: Go, gentleman, every man unto his",
    "What's in a name? that which we call a rose by any other name would smell as",
    "My lord, I will not speak of it to the",
    "Good night, good night! parting is such sweet",
)


def favourites(model: Transformer, rows: list[list[int]]) -> list[int]:
    """The model's most probable next token of each row."""
    batch = sn.TokenBatch.from_rows(rows)
    with torch.inference_mode():
        *_, last = model.layers(batch)
        tokens = batch.starts + torch.tensor(batch.lengths) - 1
        return model.logits(last.hidden[tokens]).argmax(1).tolist()


def one_by_one(model: Transformer, row: list[int], target: int, neurons: list[tuple[int, int]], delta: float) -> None:
    """One run of the whole model per neuron: an intervention without batches."""
    batch = sn.TokenBatch.from_rows([row])
    for at, neuron in neurons:

        def edit(layer: Layer, at: int = at, neuron: int = neuron) -> torch.Tensor:
            assert layer.activation is not None
            if layer.index == at:
                layer.activation[-1, neuron] += delta
            return layer.activation

        with torch.inference_mode():
            *_, last = model.layers(batch, edit=edit)
            model.logits(last.hidden[-1:]).softmax(-1)[0, target]


def agreement(folder: Path, n_prompts: int, n_neurons: int, picture: Path | None) -> dict[str, Any]:
    model = sn.load_model(str(folder), dtype=torch.float64, head=True, prepack="kernels")
    rows = sn.load_tokenizer(str(folder)).encode(LINES[:n_prompts]).ids
    asked: dict[str, Any] = {"targets": favourites(model, rows)}
    neurons = random_neurons(model, n_neurons)
    grids = {radius: np.linspace(-radius, radius, 11) for radius in (SMALL, LINEAR)}
    result = compare(model, rows, asked, neurons, grids)
    sample, row, target = neurons[:50], rows[0], asked["targets"][0]
    started = perf_counter()
    one_by_one(model, row, target, sample, 0.1)
    per_run = (perf_counter() - started) / len(sample)
    n_runs = model.depth * model.config.d_ffn * len(grids[SMALL])
    result["seconds_of_one_run"] = per_run
    result["times_as_fast_as_one_by_one"] = n_runs * per_run / result["seconds_per_prompt"]["all gradients"]
    show(result)
    if picture is not None:
        draw(model, rows[:4], asked["targets"][:4], neurons[:300], picture)
    return result


def encoder(folder: Path, n_prompts: int, n_neurons: int, n_points: int, longest: int | None) -> dict[str, Any]:
    """The agreement for a probe's score instead of a word's probability. longest: tokens of a prompt."""
    model = sn.load_model(str(folder), dtype=torch.float64, prepack="kernels")
    tokenizer = sn.load_tokenizer(str(folder))
    texts, labels = read("sst2", "train")
    fast = sn.load_model(str(folder))
    features = sn.extract(fast, tokenizer, texts[:1500], sites=("hidden",), poolings=("first",), progress=False)
    last = features.array(site="hidden", pooling="first", layer=model.depth)
    probe = sn.LogisticProbe(C=0.1, l1_ratio=0).fit(last, labels[:1500])
    rows = [row for row in tokenizer.encode(texts[2000:]).ids if longest is None or len(row) <= longest][:n_prompts]
    grids = {SMALL: np.linspace(-SMALL, SMALL, n_points)}
    result = compare(model, rows, {"of": probe, "position": "first"}, random_neurons(model, n_neurons), grids)
    show(result)
    return result


def random_neurons(model: Transformer, n_neurons: int) -> list[tuple[int, int]]:
    total = model.depth * model.config.d_ffn
    chosen = np.random.default_rng(0).choice(total, min(n_neurons, total), replace=False)
    return [(int(place // model.config.d_ffn), int(place % model.config.d_ffn)) for place in chosen]


def compare(
    model: Transformer, rows: list[list[int]], asked: dict[str, Any], neurons: list[tuple[int, int]], grids: dict[float, Any]
) -> dict[str, Any]:
    """Pearson's r, prompt by prompt, of every method's estimates with the slopes over each grid; and the times."""
    seconds = {}

    def timed(name: str, run: Any) -> Any:
        started = perf_counter()
        got = run(model, None, rows, **asked)
        seconds[name] = (perf_counter() - started) / len(rows)
        return got

    timed("warm-up", sn.analyses.neuron_gradients)
    gradients = timed("all gradients", sn.analyses.neuron_gradients)
    plain = timed("plain", partial(sn.analyses.neuron_gradients, convention="additive"))
    integrated = timed("all integrated gradients", sn.analyses.integrated_gradients)
    layers, indices = np.array(neurons).T
    estimates = {
        "neurgrad": gradients.of(neurons),
        "plain gradient": plain.of(neurons),
        "integrated gradients": integrated["attribution"][:, :, layers, indices],
    }
    result: dict[str, Any] = {"prompts": len(rows), "neurons": len(neurons), "seconds_per_prompt": seconds}
    curves_of = partial(sn.analyses.intervention_curves, neurons=neurons)
    for radius, grid in grids.items():
        curves = timed(f"curves of {len(neurons)} neurons within {radius}", partial(curves_of, grid=grid))
        slope = curves.slope()
        of_rows = {name: sn.analyses.correlation(estimate, slope)[:, 0] for name, estimate in estimates.items()}
        result[f"r_within_{radius}"] = {name: float(np.mean(values)) for name, values in of_rows.items()}
        result[f"smallest_r_within_{radius}"] = {name: float(np.min(values)) for name, values in of_rows.items()}
        result[f"shares_within_{radius}"] = curves.shares()
    sets = [neurons[start : start + 10] for start in range(0, len(neurons) // 10 * 10, 10)]
    joint = timed("sets", partial(sn.analyses.intervention_curves, neurons=sets, grid=grids[SMALL]))
    result["r_of_sums_for_10_neurons_at_once"] = float(sn.analyses.correlation(gradients.of(sets), joint.slope()).mean())
    return result


def show(result: dict[str, Any]) -> None:
    for name, value in result.items():
        print(f"{name}: {value}", flush=True)


def draw(model: Transformer, rows: Any, targets: Any, neurons: Any, picture: Path) -> None:
    """The linear range: the share of linear neurons, and NeurGrad's r, as the largest shift grows."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "spin_native", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot

    radii = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    grid = sorted({round(sign * radius * part, 4) for radius in radii for part in (0.5, 1) for sign in (-1, 1)})
    curves = sn.analyses.intervention_curves(model, None, rows, targets, neurons=neurons, grid=grid)
    estimate = sn.analyses.neuron_gradients(model, None, rows, targets).of(neurons)
    shares = [curves.shares(radius)["linear"] for radius in radii]
    r = [float(sn.analyses.correlation(estimate, curves.slope(radius)).mean()) for radius in radii]
    print("largest shift -> share of linear neurons, r:", dict(zip(radii, zip(shares, r, strict=True), strict=True)))
    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot(radii, shares, "o-", color="#1f6f8b", label="share of neurons with |r| > 0.95 over the shifts")
    axes.plot(radii, r, "s--", color="#c05621", label="r of NeurGrad with the measured slopes")
    axes.set(xscale="log", xlabel="largest shift of an activation", ylim=(0, 1.05), xticks=radii, xticklabels=map(str, radii))
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(picture, metadata={"Date": None})


def with_head(model: Transformer) -> Transformer:
    """The model with a random language-model head, whose words are the embedding's."""
    model.head = type(model).new_head(model.config).requires_grad_(False)
    for name, parameter in model.head.named_parameters():
        parameter.normal_(float(name == "norm.weight"), 0.02)
    model.head.words.weight = model.embedding.word.weight  # type: ignore[union-attr]
    return model


def cost(n_rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_checkpoint("roberta-base", Path(temporary))
        plain, kernels, reordered = (
            with_head(sn.load_model(str(folder), prepack=prepack)) for prepack in (False, "kernels", "auto")
        )
        rows = random_rows("tweets", plain.config.n_vocab)[:48]
        targets = [100] * len(rows)

        def forward(model: Transformer) -> None:
            for chosen in pack(list(map(len, rows)), default_max_tokens(model)):
                batch = sn.TokenBatch.from_rows([rows[row] for row in chosen])
                with torch.inference_mode():
                    *_, last = model.layers(batch)
                    tokens = batch.starts + torch.tensor(batch.lengths) - 1
                    model.logits(last.hidden[tokens]).softmax(-1)

        def gradients(model: Transformer) -> None:
            sn.analyses.neuron_gradients(model, None, rows, targets, position="last", reduce="mean", progress=False)

        seconds = alternate(
            {
                "forward, plain": lambda: forward(plain),
                "gradients, plain": lambda: gradients(plain),
                "forward, kernels": lambda: forward(kernels),
                "gradients, kernels": lambda: gradients(kernels),
                "forward, reordered": lambda: forward(reordered),
            },
            n_rounds,
        )
    result = {
        "milliseconds_per_row": {name: 1e3 * statistics.median(s) / len(rows) for name, s in seconds.items()},
        "times_a_forward_pass": {
            f"{ours} over {theirs}": median_ratio(seconds[ours], seconds[theirs])
            for ours, theirs in (
                ("gradients, plain", "forward, plain"),
                ("gradients, kernels", "forward, kernels"),
                ("gradients, plain", "forward, reordered"),
                ("gradients, kernels", "forward, reordered"),
            )
        },
    }
    show(result)
    return result


def memory(n_rows: list[int]) -> dict[str, Any]:
    """Peak memory in MB after a run over that many rows, of the same GPT-2; ascending, because a peak never falls."""
    model = sn.load_model(str(GPT2), head=True, prepack="kernels")
    generator = np.random.default_rng(0)
    peaks = {}
    for n in n_rows:
        rows = generator.integers(10, 900, (n, 24)).tolist()
        sn.analyses.neuron_gradients(model, None, rows, [5] * n, reduce="mean", progress=False)
        peaks[n] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{n} rows: peak {peaks[n]:.0f} MB", flush=True)
    return {"peak_mb_by_rows": peaks}


GPT2 = SHARED / "models" / "gpt2-4l128-shakespeare" / "safetensors"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("what", choices=["agreement", "encoder", "cost", "memory"])
    arguments.add_argument("model", nargs="?", type=Path)
    arguments.add_argument("--prompts", type=int, default=12)
    arguments.add_argument("--neurons", type=int, default=1000)
    arguments.add_argument("--points", type=int, default=5)
    arguments.add_argument("--longest", type=int)
    arguments.add_argument("--picture", type=Path)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--rows", type=lambda value: [int(n) for n in value.split(",")], default=[64, 1024, 8192, 65536])
    given = arguments.parse_args()
    warnings.simplefilter("ignore")
    where = environment()
    if given.what == "agreement":
        results = agreement(given.model or GPT2, given.prompts, given.neurons, given.picture)
    elif given.what == "encoder":
        results = encoder(given.model or demo_weights(), given.prompts, given.neurons, given.points, given.longest)
    else:
        results = cost(given.rounds) if given.what == "cost" else memory(given.rows)
    print_json(where, results)


if __name__ == "__main__":
    main()
