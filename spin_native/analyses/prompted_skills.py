"""Skill neurons at the vectors of soft prompts (Wang et al. 2022, section 3.2)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from spin_native.analyses.labels import Labels, encoded_labels
from spin_native.analyses.results import provenance
from spin_native.analyses.skills import SkillNeurons, check_one_width, checked_pair, rows_per_class, subtasks
from spin_native.analyses.soft_prompts import PromptLayout, SoftPrompt
from spin_native.errors import InputError
from spin_native.given import checked_texts
from spin_native.models import Transformer
from spin_native.probes.importance import count_above, subtask_accuracy
from spin_native.text.tokenizer import Tokenizer

Array = np.ndarray
MAX_TOKENS = 4096


def prompted_skill_neurons(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[SoftPrompt],
    training: Sequence[str],
    dev: tuple[Sequence[str], Labels],
    *,
    balanced: bool = False,
    progress: bool | None = None,
) -> SkillNeurons:
    """The predictivity of every FFN neuron for a task, read at the vectors of soft prompts (Wang et al. 2022, section 3.2).

    prompts: one per prompt-tuning trial (`tune_prompt` with several seeds), all for the same labels.
    training: texts over which a neuron's baseline activation is taken, at each prompt token: a_bsl(N, p).
    dev: (texts, labels) on which Acc(N, p), the accuracy of [a(N, p) > a_bsl(N, p)] as the label, is measured.
        Pred(N) = max over p of max(Acc, 1 - Acc). More than two classes: each against the rest, by balanced accuracy.
    balanced: as in `skill_neurons`.
    """
    if not prompts or len({(prompt.labels, len(prompt.vectors)) for prompt in prompts}) > 1:
        raise InputError("prompts: expected one or more soft prompts, all with as many vectors, trained for the same labels")
    check_one_width(model.width("activation", layer) for layer in range(model.depth))
    labels = prompts[0].labels
    training_texts, dev_texts = checked_texts(training, "training rows"), checked_texts(checked_pair(dev)[0], "dev rows")
    classes = encoded_labels(dev[1], labels, len(dev_texts), "dev rows")
    n_rows = rows_per_class(classes, labels)
    accuracies, baselines = [], []
    with tqdm(total=2 * len(prompts), unit=" passes", disable=None if progress is None else not progress) as bar:
        for prompt in prompts:
            layout = prompt.layout(model, tokenizer)
            baseline = _prompt_baseline(layout, prompt, layout.encode(training_texts))
            bar.update()
            n_above = _prompt_counts(layout, prompt, layout.encode(dev_texts), classes, len(labels), baseline)
            bar.update()
            accuracies.append(subtask_accuracy(n_above, n_rows, balanced))  # [subtask, prompt, layer, neuron]
            baselines.append(baseline.mean(0))
    of_prompts = [prompt.settings for prompt in prompts]
    n_texts = {"n_training": len(training_texts), "n_dev": len(dev_texts)}
    metadata = provenance(model, tokenizer, analysis="prompted_skill_neurons", prompts=of_prompts, **n_texts)
    return SkillNeurons.of(
        np.array(accuracies),
        np.array(baselines),
        subtasks=subtasks(labels),
        layers=range(model.config.n_layers),
        tokens=range(len(prompts[0].vectors)),
        metadata={**metadata, "balanced": balanced},
    )


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


def _prompt_baseline(
    layout: PromptLayout, prompt: SoftPrompt, ids: Sequence[Sequence[int]]
) -> Float[Array, "prompt layer neuron"]:
    """a_bsl(N, p): the mean activation at each prompt token."""
    config = layout.model.config
    total = np.zeros((layout.n_prompts, config.n_layers, config.d_ffn))

    def add(rows: list[int], layer: int, activation: Float[Array, "row prompt neuron"]) -> None:
        total[:, layer] += activation.sum(0)

    _visit(layout, prompt, ids, add)
    return total / len(ids)


def _prompt_counts(
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
        n_above[:, :, layer] += count_above(activation, baseline[:, layer], classes[rows], n_classes)

    _visit(layout, prompt, ids, count)
    return n_above
