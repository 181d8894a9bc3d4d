"""What a model's output loses when chosen neurons are changed, beside random neurons and the least important ones.

Three outputs are followed: the target words of a language model (`ablate_logits`), the predictions of a fitted probe
(`ablate_probe`), and the answers of a fitted classifier (its own `ablate`, which uses the same parts).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from sklearn.metrics import accuracy_score, r2_score
from tqdm.auto import tqdm

from spin_native.analyses.ablation import Ablation, How, Neurons, ablation_values, chosen_neurons, text_digest
from spin_native.analyses.ablation_runs import INTERVAL, Importance, Plan, Run, Which
from spin_native.analyses.gradients import as_numpy
from spin_native.analyses.prompts import (
    Of,
    Position,
    Prompts,
    Target,
    Text,
    read_output,
    read_prompts,
    token_rows,
)
from spin_native.analyses.results import Result, provenance
from spin_native.errors import InputError
from spin_native.features.extract import Extractor, features_of, token_budget
from spin_native.features.pooling import Pooling
from spin_native.features.spec import FeatureKey, Site
from spin_native.given import rows_of
from spin_native.models import Transformer
from spin_native.probes import LinearProbe, LogisticProbe
from spin_native.text.pairs import GivenText, checked_rows
from spin_native.text.tokenizer import Tokenizer

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class AblationEffects(Result):
    """The output of every text before and after, in every run; axes run, row, output.

    Arrays: "which" and "draw" of the run; "before" and "after"; where the output is a decision, "label_before" and
    "label_after" (one for all outputs of a row). `to_table` has one row for each run, row and output.

    runs: which neurons each run changed. measures: name -> [run], over the rows:
    "mean_change": of the output; of several that make a decision, of the one that was largest before.
    "mean_absolute_change": of all outputs.
    "changed": the share of rows whose decision is another one; where the output is a decision.
    "score", "score_change": where labels were given. metadata["score"] names the score, metadata["score_before"] is its value
    before.
    """

    runs: Sequence[Run]
    measures: Mapping[str, Float[Array, "run"]]

    def of(self, which: Which) -> dict[str, Float[Array, "draw"]]:
        """The measures of the chosen, the random or the least important neurons, one number per draw."""
        places = [index for index, run in enumerate(self.runs) if run.which == which]
        if not places:
            raise InputError(f"no run has {which!r} neurons; there are {', '.join(dict.fromkeys(r.which for r in self.runs))}")
        return {name: values[places] for name, values in self.measures.items()}

    def per_run(self) -> Result:
        """The measures of every run, axis run, with the run's "which", "draw" and "n_neurons"."""
        arrays = {
            "which": np.array([run.which for run in self.runs]),
            "draw": np.array([run.draw for run in self.runs]),
            "n_neurons": np.array([sum(map(len, run.neurons.values())) for run in self.runs]),
        }
        return Result({"run": np.arange(len(self.runs))}, arrays | dict(self.measures), self.metadata)

    def summary(self) -> Result:
        """Over the draws of each kind of neurons: arrays "mean", "low", "high" and "n_draws", axes which, measure.

        low and high are the 2.5th and the 97.5th percentile of the draws: where single draws lie, not how well their mean is
        known. A kind of neurons that has one draw has low = mean = high.
        """
        kinds = list(dict.fromkeys(run.which for run in self.runs))
        draws = [[self.of(which)[name] for name in self.measures] for which in kinds]
        low, high = (np.array([[np.percentile(x, q) for x in row] for row in draws]) for q in INTERVAL)
        arrays = {
            "mean": np.array([[x.mean() for x in row] for row in draws]),
            "low": low,
            "high": high,
            "n_draws": np.array([[len(x) for x in row] for row in draws]),
        }
        axes = {"which": np.array(kinds), "measure": np.array(list(self.measures))}
        return Result(axes, arrays, self.metadata)


@dataclass(frozen=True)
class Reading:
    """How outputs are read.

    names: of the outputs, for tables. decide: outputs -> each row's answer (None: they decide nothing).
    score: outputs -> a number (None: no labels were given); score_name: which.
    """

    names: Shaped[Array, "output"]
    decide: Callable[[Array], Shaped[Array, "row"]] | None = None
    score: Callable[[Array], float] | None = None
    score_name: str | None = None


def measure(
    run_model: Callable[[Ablation | None], Float[Array, "row output"]],
    runs: Sequence[Run],
    reading: Reading,
    metadata: Mapping[str, Any],
    progress: bool | None,
) -> AblationEffects:
    """Run the model once unchanged and once per run, and compare. run_model: the outputs of every row under an edit."""
    before = run_model(None)
    after = np.stack(
        [run_model(run.edit) for run in tqdm(runs, unit=" runs", disable=None if progress is None else not progress)]
    )
    change = after - before
    arrays = {
        "which": np.array([run.which for run in runs])[:, None, None],
        "draw": np.array([run.draw for run in runs])[:, None, None],
        "before": before[None],
        "after": after,
    }
    signed = change.mean(2)
    if reading.decide is not None:
        signed = np.take_along_axis(change, before.argmax(1)[None, :, None], axis=2)[..., 0]
    measures = {"mean_change": signed.mean(1), "mean_absolute_change": np.abs(change).mean((1, 2))}
    if reading.decide is not None:
        label_before, label_after = reading.decide(before), np.stack([reading.decide(outputs) for outputs in after])
        arrays |= {"label_before": label_before[None, :, None], "label_after": label_after[:, :, None]}
        measures["changed"] = (label_after != label_before).mean(1)
    metadata = dict(metadata)
    if reading.score is not None:
        score_before = reading.score(before)
        measures["score"] = np.array([reading.score(outputs) for outputs in after])
        measures["score_change"] = measures["score"] - score_before
        metadata |= {"score": reading.score_name, "score_before": score_before}
    axes = {"run": np.arange(len(runs)), "row": np.arange(len(before)), "output": reading.names}
    return AblationEffects(axes, arrays, metadata, runs, measures)


def ablate_logits(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Sequence[Text],
    targets: Sequence[Target | Sequence[Target]] | None = None,
    *,
    neurons: Neurons,
    how: How = "zero",
    values_from: Sequence[Text] | None = None,
    importance: Importance | None = None,
    of: Of = "probability",
    position: Position | None = None,
    noise: float = 0.1,
    n_draws: int = 20,
    seed: int = 0,
    max_tokens: int | None = None,
    progress: bool | None = None,
) -> AblationEffects:
    """Change neurons at every token of each prompt, and compare the language model's output at the probed token.

    prompts, targets, of, position: as of `neuron_gradients`: the probability, logit or log-probability of target words, a
        function of the logits, or a probe on the final hidden state.
    neurons: {layer: indices}. how: "zero", "mean", "noise" or "resample" (see `Ablation`).
    values_from: other texts (or rows of token ids), whose activations "mean" and "resample" write. "resample" never gives a
        prompt the activations of the same prompt.
    importance: {layer: [neuron]} or [layer, neuron]: also change as many of the least important neurons of each layer.
    noise: standard deviation. n_draws: sets of random neurons, and seeds of noise and resampling. max_tokens: of a batch.

    Where prompts have several targets, "changed" is the share of prompts whose largest output is another one. A model with
    reordered weights works here, too.

    Raises InputError as `neuron_gradients` does, and for neurons that the model does not have.
    """
    read = read_prompts(model, tokenizer, prompts, targets, of, position)
    widths = _widths(model)
    plan = Plan(chosen_neurons(neurons, widths), widths, how, importance, noise, n_draws, seed)
    rows = None if values_from is None or not len(values_from) else token_rows(model, tokenizer, values_from)
    runs = plan.runs(ablation_values(model, rows, how, seed=seed))
    budget = max_tokens or token_budget(model)
    outputs = lambda edit: _prompt_outputs(model, read, of, edit, budget)
    n_outputs = read.targets.shape[1] or outputs(None).shape[1]
    names = np.array(read.labels if read.labels is not None else np.arange(n_outputs))
    reading = Reading(names, (lambda values: names[values.argmax(1)]) if n_outputs > 1 else None)
    metadata = provenance(
        model,
        tokenizer,
        analysis="ablate_logits",
        **read.settings(of),
        **plan.settings(values_from),
    )
    return measure(outputs, runs, reading, metadata, progress)


@torch.inference_mode()
def _prompt_outputs(
    model: Transformer, prompts: Prompts, of: Of, edit: Ablation | None, max_tokens: int
) -> Float[Array, "row output"]:
    """The followed output of every prompt."""
    parts, order = [], []
    for rows in prompts.batches(max_tokens, range(len(prompts.rows))):
        batch, token = prompts.batch(rows, model.device)
        for last in model.layers(batch, edit=edit):  # noqa: B007 (the final hidden state)
            pass
        targets = torch.as_tensor(prompts.targets[rows], device=model.device)
        parts.append(as_numpy(read_output(model, of, last.hidden[token], targets)))
        order += rows
    outputs = np.concatenate(parts).astype(np.float64)
    return outputs[np.argsort(order)]


def ablate_probe(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[GivenText],
    probe: LogisticProbe | LinearProbe,
    labels: Iterable[Any] | None = None,
    *,
    layer: int,
    site: Site = "activation",
    pooling: Pooling = "mean",
    neurons: Neurons,
    how: How = "zero",
    values_from: Iterable[GivenText] | None = None,
    importance: Importance | None = None,
    noise: float = 0.1,
    n_draws: int = 20,
    seed: int = 0,
    progress: bool | None = None,
) -> AblationEffects:
    """Change neurons at every token, and compare what a fitted linear probe predicts.

    probe: fitted on the whole feature (site, pooling, layer) of `extract`. The outputs are a LogisticProbe's probabilities or a
        LinearProbe's values; the decision is the class. labels: of the texts; the score is then the accuracy, or R^2.
    The probe sees the changed neurons of its own layer, and what changed neurons of lower layers do to it; those of higher
    layers do nothing. The other arguments are those of `ablate_logits`.

    Raises InputError for a probe of another width, and as `ablate_logits` does.
    """
    feature = FeatureKey(site, pooling, layer)
    if feature not in features_of(model, [site], [pooling], None):
        raise InputError(f"no {site} of layer {layer!r} in a model of depth {model.depth}")
    extractor = Extractor(model, tokenizer, {feature: None})
    width = extractor.widths[feature]
    if not hasattr(probe, "coef_") or probe.coef_.shape[1] != width:
        got = f"reads {probe.coef_.shape[1]} features" if hasattr(probe, "coef_") else "is not fitted"
        raise InputError(f"the probe {got}; expected a probe fitted on {width} features, those of {site} of layer {layer}")
    widths = _widths(model)
    plan = Plan(chosen_neurons(neurons, widths), widths, how, importance, noise, n_draws, seed)
    listed = checked_rows(texts, "texts")
    truth = None if labels is None else np.array(list(rows_of(labels, "labels", "label")))
    if truth is not None and len(truth) != len(listed):
        raise InputError(f"labels: got {len(truth)} labels for {len(listed)} texts; expected one for each text")
    others = None if values_from is None else list(rows_of(values_from, "values_from"))
    rows, text_of, types = text_rows(extractor, others)
    runs = plan.runs(ablation_values(model, rows, how, seed=seed, text_of=text_of, token_types=types))
    blocks = list(extractor.encoded(listed, False))

    def outputs(edit: Ablation | None) -> Float[Array, "row output"]:
        features = np.concatenate([extractor.features(block, edit)[feature] for block in blocks])
        values = probe.predict_proba(features) if isinstance(probe, LogisticProbe) else probe.predict(features)
        return values.reshape(len(features), -1)

    metadata = provenance(
        model, tokenizer, analysis="ablate_probe", feature=feature._asdict(), n_texts=len(listed), **plan.settings(others)
    )
    return measure(outputs, runs, _probe_reading(probe, truth), metadata, progress)


def text_rows(
    extractor: Extractor, texts: Sequence[GivenText] | None
) -> tuple[list[list[int]] | None, list[int] | None, list[list[int]] | None]:
    """The token ids of texts that values are taken from, in the rows that the model reads, and each row's `text_digest`.

    The third are the types of each row's tokens; None: all 0.
    """
    if not texts:
        return None, None, None
    rows, text_of, types = [], [], []
    for block in extractor.encoded(checked_rows(texts, "values_from"), False):
        for row in block.row_of.tolist():
            of_text = block.rows_of_model(row)
            rows += of_text
            text_of += [text_digest(block.ids[row])] * len(of_text)
            types += [[0] * len(ids) for ids in of_text] if block.token_types is None else [block.token_types[row]]
    return rows, text_of, types if any(map(any, types)) else None


def _probe_reading(probe: LogisticProbe | LinearProbe, truth: Shaped[Array, "row"] | None) -> Reading:
    if isinstance(probe, LinearProbe):
        score = None if truth is None else lambda outputs: float(r2_score(truth, outputs))
        return Reading(np.arange(len(probe.coef_)), None, score, "r2")
    if probe.multilabel_:
        raise InputError("the probe gives several labels per row, whose answer is no single class; expected a probe of classes")
    classes = probe.classes_
    decide = lambda outputs: classes[outputs.argmax(1)]
    accuracy = None if truth is None else lambda outputs: float(accuracy_score(truth, decide(outputs)))
    return Reading(classes, decide, accuracy, "accuracy")


def _widths(model: Transformer) -> dict[int, int]:
    """Layer -> number of its neurons."""
    return {layer: model.width("activation", layer) for layer in range(model.depth)}
