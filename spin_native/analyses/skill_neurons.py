"""Skill neurons (Wang et al. 2022): neurons whose activation at a soft prompt predicts the label of the text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from spin_native.analyses.ablation import Ablation, How
from spin_native.analyses.soft_prompts import PromptLayout, SoftPrompt, encoded_labels
from spin_native.errors import InputError
from spin_native.given import checked_texts
from spin_native.models import Transformer
from spin_native.probes.importance import Cut, subtask_accuracy
from spin_native.text.tokenizer import Tokenizer

Array = np.ndarray
Over = Literal["mean", "min"]
Which = Literal["most", "least", "random"]
MAX_TOKENS = 4096


@dataclass(frozen=True)
class SkillNeurons:
    """How well each neuron predicts the label, by prompt-tuning trial and binary subtask.

    predictivity: max(accuracy, 1 - accuracy) of "above its baseline" on the dev rows, at the prompt token where that is
        largest; .5 is chance. baseline: each neuron's mean activation over the training rows, averaged over the prompt tokens.
    subtasks: the class that each subtask tells from the other (of two) or from the rest.
    provenance: versions, model and prompts, for the tables that are written.
    """

    predictivity: Float[Array, "trial subtask layer neuron"]
    baseline: Float[Array, "trial layer neuron"]
    subtasks: tuple[Any, ...]
    provenance: dict[str, Any]

    def over_trials(self, over: Over = "mean") -> Float[Array, "subtask layer neuron"]:
        """One predictivity per subtask and neuron: the mean over the trials, or the least ("min")."""
        if over not in ("mean", "min"):
            raise InputError(f"over is {over!r}; expected 'mean' or 'min'")
        return self.predictivity.mean(0) if over == "mean" else self.predictivity.min(0)

    def salient(self, share: float, over: Over = "mean") -> dict[int, Int[Array, "_"]]:
        """Layer -> the `share` of its neurons with the largest predictivity, ascending; the subtasks take turns."""
        by_subtask = self.over_trials(over)
        n_layers, width = by_subtask.shape[1:]
        n_chosen = len(Cut("top_share", share)(np.ones(width)))
        return {layer: _in_turn(-by_subtask[:, layer], n_chosen) for layer in range(n_layers)}

    def chosen(self, which: Which, share: float, *, seed: int = 0, layers: Sequence[int] | None = None) -> dict[int, Array]:
        """As many neurons of each layer as `salient` has: those, the least predictive ones, or random ones."""
        by_subtask = self.over_trials()
        salient = self.salient(share)
        generator = np.random.default_rng(seed)
        chosen = {}
        for layer, most in salient.items():
            drawn = np.sort(generator.permutation(by_subtask.shape[-1])[: len(most)])
            least = _in_turn(by_subtask[:, layer], len(most))
            chosen[layer] = {"most": most, "least": least, "random": drawn}[which]
        return {layer: chosen[layer] for layer in (chosen if layers is None else layers)}


def skill_neurons(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[SoftPrompt],
    training: Sequence[str],
    dev: tuple[Sequence[str], Sequence[Any]],
    *,
    progress: bool | None = None,
) -> SkillNeurons:
    """The predictivity of every FFN neuron for a task (Wang et al. 2022, section 3.2).

    prompts: one per prompt-tuning trial (`tune_prompt` with several seeds), all for the same labels.
    training: texts over which a neuron's baseline activation is taken, at each prompt token: a_bsl(N, p).
    dev: (texts, labels) on which Acc(N, p), the accuracy of [a(N, p) > a_bsl(N, p)] as the label, is measured.
        Pred(N) = max over p of max(Acc, 1 - Acc). More than two classes: each against the rest, by balanced accuracy.
    """
    if not prompts or len({prompt.labels for prompt in prompts}) > 1:
        raise InputError("prompts: expected one or more soft prompts, all trained for the same labels")
    labels = prompts[0].labels
    training_texts, dev_texts = checked_texts(training, "training rows"), checked_texts(dev[0], "dev rows")
    classes = encoded_labels(dev[1], labels, len(dev_texts))
    n_rows = np.bincount(classes, minlength=len(labels))
    if not n_rows.all():
        raise InputError(f"dev rows: none has the label {labels[int(np.argmin(n_rows))]!r}; expected some rows of every label")
    predictivity, baselines = [], []
    with tqdm(total=2 * len(prompts), unit=" passes", disable=None if progress is None else not progress) as bar:
        for prompt in prompts:
            layout = PromptLayout(model, tokenizer, len(prompt.vectors))
            baseline = _baseline(layout, prompt, layout.encode(training_texts))
            bar.update()
            n_above = _n_above(layout, prompt, layout.encode(dev_texts), classes, len(labels), baseline)
            bar.update()
            accuracy = subtask_accuracy(n_above, n_rows)  # [subtask, prompt, layer, neuron]
            predictivity.append(0.5 + np.abs(accuracy - 0.5).max(1))
            baselines.append(baseline.mean(0))
    provenance = {
        "model_fingerprint": prompts[0].model_fingerprint,
        "prompts": [prompt.settings for prompt in prompts],
        "n_training": len(training_texts),
        "n_dev": len(dev_texts),
    }
    subtasks = labels[1:] if len(labels) == 2 else labels
    return SkillNeurons(np.array(predictivity), np.array(baselines), tuple(subtasks), provenance)


@dataclass(frozen=True)
class PerturbationRow:
    """Accuracy of a prompted model while a share of each layer's neurons is changed. draw: of the random neurons."""

    how: How
    which: Which
    share: float
    draw: int
    accuracy: float


def perturbation_curve(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: SoftPrompt,
    skill: SkillNeurons,
    texts: Sequence[str],
    labels: Sequence[Any],
    *,
    hows: Sequence[How] = ("noise",),
    shares: Sequence[float] = (0.01, 0.03, 0.05, 0.1),
    layers: Sequence[int] | None = None,
    n_draws: int = 5,
    noise: float = 0.1,
    progress: bool | None = None,
) -> list[PerturbationRow]:
    """Change the most predictive neurons, and as many least predictive and random ones (Wang et al. 2022, section 4.1).

    shares: of each layer's neurons. layers: which layers (None: all). n_draws: sets of random neurons, and seeds of noise.
    """
    cases: list[tuple[How, Which, float, int]] = [
        (how, which, share, draw)
        for how in hows
        for share in shares
        for which in ("most", "least", "random")
        for draw in range(n_draws if which == "random" or how == "noise" else 1)
    ]
    rows = []
    for how, which, share, draw in tqdm(cases, unit=" runs", disable=None if progress is None else not progress):
        chosen = skill.chosen(which, share, seed=draw, layers=layers)
        means = {layer: skill.baseline.mean(0)[layer][neurons] for layer, neurons in chosen.items()} if how == "mean" else {}
        edit = Ablation(chosen, how, means, noise, draw).check(model)
        rows.append(PerturbationRow(how, which, share, draw, prompt.score(model, tokenizer, texts, labels, edit=edit)))
    return rows


def transferability(tasks: Mapping[str, SkillNeurons]) -> Float[Array, "task task"]:
    """Spearman correlation of the tasks' predictivities over all neurons (Wang et al. 2022, section 4.3), in their order."""
    if len(tasks) < 2:
        raise InputError(f"transferability compares tasks; got {len(tasks)}, expected two or more")
    flat = [skill.over_trials().max(0).ravel() for skill in tasks.values()]
    if len({len(values) for values in flat}) > 1:
        raise InputError("transferability: the tasks were measured on models of different sizes; use one model for all")
    result = np.eye(len(flat))
    for row in range(len(flat)):
        for column in range(row):
            result[row, column] = result[column, row] = spearmanr(flat[row], flat[column]).statistic
    return result


def _in_turn(keys: Float[Array, "subtask neuron"], n: int) -> Int[Array, "chosen"]:
    """`n` neurons with the smallest keys: the best one of each subtask, then the second ones, and so on; ascending."""
    orders = np.argsort(keys, axis=1, kind="stable")
    chosen: dict[int, None] = {}
    for neuron in orders.T.ravel():
        chosen.setdefault(int(neuron))
        if len(chosen) == n:
            break
    return np.sort(np.fromiter(chosen, dtype=np.int64))


def _visit(
    layout: PromptLayout,
    prompt: SoftPrompt,
    ids: Sequence[Sequence[int]],
    take: Callable[[list[int], int, Float[Array, "row prompt neuron"]], None],
) -> None:
    """Call `take` for each batch and layer: which rows, the layer, and their activations at the prompt tokens."""
    vectors = prompt.vectors.to(layout.model.device)
    with torch.inference_mode():
        for chosen, rows in layout.batches(ids, MAX_TOKENS):
            embedded = layout.model.embed(rows.batch, layout.words(rows, vectors))
            for layer in layout.model.layers(rows.batch, embedded=embedded):
                if layer.activation is not None:
                    take(chosen, layer.index, layer.activation[rows.prompt_tokens].double().cpu().numpy())
                del layer


def _baseline(layout: PromptLayout, prompt: SoftPrompt, ids: Sequence[Sequence[int]]) -> Float[Array, "prompt layer neuron"]:
    """a_bsl(N, p): the mean activation at each prompt token."""
    config = layout.model.config
    total = np.zeros((layout.n_prompts, config.n_layers, config.d_ffn))

    def add(rows: list[int], layer: int, activation: Float[Array, "row prompt neuron"]) -> None:
        total[:, layer] += activation.sum(0)

    _visit(layout, prompt, ids, add)
    return total / len(ids)


def _n_above(
    layout: PromptLayout,
    prompt: SoftPrompt,
    ids: Sequence[Sequence[int]],
    classes: Int[Array, "row"],
    n_classes: int,
    baseline: Float[Array, "prompt layer neuron"],
) -> Int[Array, "class prompt layer neuron"]:
    """How many rows of each class are above the baseline."""
    n_above = np.zeros((n_classes, *baseline.shape), dtype=np.int64)

    def count(rows: list[int], layer: int, activation: Float[Array, "row prompt neuron"]) -> None:
        above = activation > baseline[:, layer]
        for label in range(n_classes):
            n_above[label, :, layer] += above[classes[rows] == label].sum(0)

    _visit(layout, prompt, ids, count)
    return n_above
