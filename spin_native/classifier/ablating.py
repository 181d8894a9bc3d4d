"""Ablation of a fitted estimator: what its answers lose when neurons of its base model are changed."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.utils.validation import check_is_fitted

from spin_native.analyses.ablation import Ablation, How, Neurons, ablation_values, chosen_neurons
from spin_native.analyses.ablation_effects import AblationEffects, Reading, measure, text_rows
from spin_native.analyses.ablation_runs import Importance, Plan, check_importance
from spin_native.analyses.results import provenance
from spin_native.classifier import explain, options
from spin_native.classifier.exits import Exit
from spin_native.classifier.learnt import Learnt
from spin_native.classifier.rows import evaluation_rows
from spin_native.classifier.tasks import TASKS
from spin_native.errors import InputError
from spin_native.given import is_whole, rows_of
from spin_native.text.pairs import GivenText, Text, checked_rows

Array = np.ndarray


class Ablating(Learnt):
    """The part of an estimator that changes neurons and compares answers."""

    def ablate(
        self,
        texts: Iterable[GivenText],
        labels: Iterable[Any] | None = None,
        *,
        neurons: Neurons | int | None = None,
        how: How = "zero",
        values_from: Iterable[GivenText] | None = None,
        importance: Importance | None = None,
        noise: float = 0.1,
        n_draws: int = 20,
        seed: int = 0,
        exit: str | Exit | None = None,
        progress: bool | None = False,
    ) -> AblationEffects:
        """Change FFN neurons at every token, and compare the answers with those before; beside random and unimportant neurons.

        neurons: {layer: indices}; or n, a number: the n most important neurons that the head reads; None: all that it reads.
        how: "zero"; "mean", the mean over all tokens of `values_from`; "noise", Gaussian noise of standard deviation `noise` is
            added; "resample", the activations of a random token of `values_from`, never one of the same text.
        values_from: other texts, for "mean" and "resample". labels: of the texts; the score is then metric_.
        importance: {layer: [neuron]}, for n and for the least important neurons. None: the largest absolute weight that the
            head gives to a neuron under any pooling, for any output; of a perceptron, which has no single weight, the mean
            absolute contribution to the answers for the first 64 texts. A neuron that the head does not read has 0.
        n_draws: sets of random neurons, and seeds of noise and resampling. seed: of all of them.
        exit: when a text exits, such as "fixed:2" or "confidence:0.9"; None: never before depth_, the full-depth answer. A
            changed text may exit at another depth than before.

        A changed neuron changes what the head reads of its layer and what the layer writes. In the last layer the head reads
        neurons and nothing is written: there a neuron that it does not read changes nothing.
        Outputs are probabilities (or values), "label_before" and "label_after" the answers. See `AblationEffects`.

        Raises InputError for neurons that the model does not have, for texts, labels or settings that cannot be used, and
        where the head reads no FFN neurons and none are given.
        """
        check_is_fitted(self, "heads_")
        deployed, task, metric = self._deployed, self.task_, options.metric_of(self.get_params(), TASKS[self.task])
        exit_ = deployed.checked(Exit("fixed", self.depth_) if exit is None else Exit.of(exit))
        if labels is None:
            listed, score = checked_rows(texts, "texts"), None
        else:
            rows = evaluation_rows(task, texts, labels, "texts")
            listed, score = rows.texts, lambda outputs: task.score(metric, rows.labels, task.decide(outputs))
        if importance is None:
            importance = self._importance(listed)
        chosen = self._chosen(neurons, importance)
        plan = Plan(chosen, deployed.widths, how, importance, noise, n_draws, seed)
        others = None if values_from is None else list(rows_of(values_from, "values_from"))
        drawn_from, text_of, types = text_rows(deployed.extractor, others)
        model = deployed.extractor.model
        values = ablation_values(model, drawn_from, how, seed=seed, text_of=text_of, token_types=types)
        runs = plan.runs(values, deployed.columns_of)
        blocks = list(deployed.extractor.encoded(listed, False))

        def outputs(edit: Ablation | None) -> Float[Array, "row output"]:
            return np.concatenate([deployed.run(block, exit_, edit)[0] for block in blocks])

        names = np.array(task.output_names if len(task.output_names) == task.n_outputs else task.to_json())
        metadata = provenance(
            deployed.extractor.model,
            deployed.extractor.tokenizer,
            analysis="ablate",
            task=self.task,
            exit=str(exit_),
            n_texts=len(listed),
            **plan.settings(others),
        )
        return measure(outputs, runs, Reading(names, task.written, score, metric), metadata, progress)

    def _chosen(self, neurons: Neurons | int | None, importance: Importance) -> dict[int, Array]:
        """The neurons to change."""
        widths = self._deployed.widths
        if neurons is not None and not is_whole(neurons):
            return chosen_neurons(neurons, widths)
        if all(feature.site != "activation" or not len(read) for feature, read in self.head_.neurons.items()):
            raise InputError("the head reads no FFN neurons: name the neurons to change, neurons={layer: indices}")
        salient = explain.salient_neurons(self.head_)
        if neurons is None:
            return salient
        places = [(layer, int(neuron)) for layer, read in salient.items() for neuron in read]
        if not 1 <= int(neurons) <= len(places):  # type: ignore[arg-type]
            raise InputError(f"neurons is {neurons}; expected 1 to {len(places)}, how many neurons the head reads")
        check_importance(importance, salient, widths)
        places.sort(key=lambda place: -importance[place[0]][place[1]])
        best: dict[int, list[int]] = {}
        for layer, neuron in places[: int(neurons)]:  # type: ignore[arg-type]
            best.setdefault(layer, []).append(neuron)
        return chosen_neurons(best, widths)

    def _importance(self, texts: list[Text]) -> dict[int, Float[Array, "neuron"]]:
        """Layer -> the importance of every neuron to the head at depth_."""
        deployed, head = self._deployed, self.head_
        importance = {layer: np.zeros(width) for layer, width in deployed.widths.items()}
        if head.has_weights:
            of_place = np.abs(head.weights).max(0)
        else:
            features = [deployed.salient_features(text, self.depth_) for text in texts[:64]]
            scores = [head.task.explained(head.output(row)[0])[0] for row in features]
            added = [np.abs(head.contributions(row, score)) for row, score in zip(features, scores, strict=True)]
            of_place = np.mean(added, 0)
        for (feature, neuron), value in zip(head.places, of_place, strict=True):
            if feature.site == "activation":
                importance[feature.layer][neuron] = max(importance[feature.layer][neuron], value)
        return importance
