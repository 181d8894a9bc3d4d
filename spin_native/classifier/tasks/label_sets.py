"""Multilabel classification: any number of labels per row, each decided by itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import expit, logit
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.neural_network import MLPClassifier

from spin_native.classifier.tasks.base import Array, Indices, Metric, NetworkTargets, Ranker, Task, check_share
from spin_native.classifier.tasks.classes import label_array
from spin_native.classifier.tasks.given_labels import given_label_sets
from spin_native.classifier.tasks.iterative_split import iterative_split
from spin_native.classifier.tasks.thresholds import best_thresholds
from spin_native.errors import InputError
from spin_native.given import is_number
from spin_native.probes.probes import MultilabelProbe
from spin_native.probes.solver import Logistic, Loss

SEPARATOR = "|"  # between the labels of one row, in files and on the terminal
SPLIT_ATTEMPTS = 10


def f1_per_label(truth: Shaped[Array, "row label"], predicted: Shaped[Array, "row label"]) -> Float[Array, "label"]:
    """2 TP / (2 TP + FP + FN) of each label, from 0/1 or bool; 0 for a label that no row has and none is given."""
    n_both, n_either = (truth * predicted).sum(0), truth.sum(0) + predicted.sum(0)
    return 2 * n_both / np.maximum(n_either, 1)


def micro_f1(truth: Shaped[Array, "row label"], predicted: Shaped[Array, "row label"]) -> float:
    """F1 over all pairs of a row and a label; 0 where no row has or is given any label."""
    return float(2 * (truth * predicted).sum() / max(1, truth.sum() + predicted.sum()))


def macro_f1(truth: Shaped[Array, "row label"], predicted: Shaped[Array, "row label"]) -> float:
    """The mean of the labels' F1."""
    return float(f1_per_label(truth, predicted).mean())


def subset_accuracy(truth: Shaped[Array, "row label"], predicted: Shaped[Array, "row label"]) -> float:
    """The share of the rows whose whole set of labels is right."""
    return float((truth == predicted).all(1).mean())


class LabelSets(Task):
    """Any number of labels per row, also none. Encoded: bool [row, label]; one score and one output per label.

    Each label has a logistic score of its own; outputs are the labels' probabilities, which do not sum to 1. A row is given the
    labels whose probability is above their threshold.

    labels: sorted. thresholds: of each label, 0 to 1; None: 1/2 for each.
    """

    name = "multilabel"
    metrics = {"micro_f1": micro_f1, "macro_f1": macro_f1, "subset_accuracy": subset_accuracy}
    probe_type, network_type = MultilabelProbe, MLPClassifier

    def __init__(self, labels: Shaped[Array, "label"], thresholds: Float[Array, "label"] | None = None) -> None:
        self.labels = labels
        self.thresholds = np.full(len(labels), 0.5) if thresholds is None else thresholds

    @classmethod
    def learn(cls, labels: Any, n_texts: int, what: str) -> "LabelSets":
        given = given_label_sets(labels, n_texts, what)
        task = cls(label_array(given.labels, what))
        encoded = given.encoded(given.labels, what)
        if not len(given.labels):
            raise InputError(f"{what}: no row has any label; expected rows with labels")
        for label, n_rows in zip(given.labels, encoded.sum(0).tolist(), strict=True):
            if n_rows in (0, n_texts):
                got = "no row has" if n_rows == 0 else "every row has"
                raise InputError(f"{what}: {got} the label {label!r}, so it cannot be learnt; leave it out, or add rows")
        return task

    def encode(self, labels: Any, n_texts: int, what: str) -> Bool[Array, "row label"]:
        return given_label_sets(labels, n_texts, what).encoded(self.labels.tolist(), what)

    def to_json(self) -> list[Any]:
        """(label, threshold) pairs."""
        return list(zip(self.labels.tolist(), self.thresholds.tolist(), strict=True))

    @classmethod
    def from_json(cls, labels: Sequence[Any]) -> "LabelSets":
        if not labels or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in labels):
            raise ValueError(f"its labels are {labels}; expected pairs of a label and its threshold")
        names, thresholds = zip(*labels, strict=True)
        if len({type(label) for label in names}) > 1 or len(set(names)) < len(names) or isinstance(names[0], bool):
            raise ValueError(f"its labels are {list(names)}; expected different ones, all text or all whole numbers")
        return cls(label_array(names, "labels")).with_thresholds(thresholds)

    def with_thresholds(self, thresholds: Sequence[float] | Float[Array, "label"]) -> "LabelSets":
        """The same labels with other thresholds, one per label, 0 to 1, in the order of `labels`."""
        values = list(thresholds)
        if len(values) != len(self.labels) or not all(is_number(value) and 0 <= value <= 1 for value in values):
            raise InputError(f"thresholds are {values}; expected {len(self.labels)} numbers from 0 to 1, one per label")
        return LabelSets(self.labels, np.array(values, dtype=np.float64))

    @property
    def label_type(self) -> type:
        return type(self.labels.tolist()[0])

    @property
    def written_type(self) -> type:
        return str

    # Rows.

    def strata(self, labels: Shaped[Array, "row *label"]) -> Int[Array, "row"]:
        """Each row's rarest label; the number of labels for rows without any."""
        counts = np.where(labels, labels.sum(0), len(labels) + 1)
        return np.where(labels.any(1), counts.argmin(1), labels.shape[1])

    def stratum_name(self, stratum: int) -> str:
        return "rows without labels have" if stratum == len(self.labels) else f"label {self.labels.tolist()[stratum]!r} has"

    def check_split(self, labels: Shaped[Array, "row *label"], share: float) -> None:
        check_share(share)
        for label, n_rows in zip(self.labels.tolist(), labels.sum(0).tolist(), strict=True):
            for n, has in ((n_rows, "has"), (len(labels) - n_rows, "lacks")):
                if n < 2:
                    raise InputError(
                        f"{n} of the rows {has} the label {label!r}; expected two or more, so that it can be in both training "
                        "and validation: add rows, drop the label, or give validation rows of your own"
                    )

    def split(self, labels: Shaped[Array, "row *label"], share: float, seed: int) -> tuple[Indices, Indices]:
        """By iterative stratification: every label has about its share in both parts, and is in both."""
        self.check_split(labels, share)
        random = np.random.default_rng(seed)
        for _ in range(SPLIT_ATTEMPTS):
            is_held_out = iterative_split(labels, float(share), random)
            parts = labels[~is_held_out], labels[is_held_out]
            if parts[0].any(0).all() and not parts[0].all(0).any() and parts[1].any(0).all():
                break
        self.check_training(parts[0])
        self.check_validation(parts[1])
        return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)

    def _sampling_order(self, labels: Shaped[Array, "row *label"], order: Indices) -> Indices:
        """Every rarest label with its share, and one row of each label first."""
        shares, strata = np.empty(len(labels)), self.strata(labels)
        for stratum in np.unique(strata):
            rows = order[strata[order] == stratum]
            shares[rows] = np.arange(len(rows)) / len(rows)
        first: list[int] = []
        for label in np.argsort(labels.sum(0), kind="stable"):
            if labels[:, label].any() and not labels[first, label].any():
                first.append(int(order[labels[order, label]][0]))
        shares[first] = -1
        return order[np.argsort(shares[order], kind="stable")]

    def check_part(self, labels: Shaped[Array, "_ *label"], what: str) -> None:
        for label, n_rows in zip(self.labels.tolist(), labels.sum(0).tolist(), strict=True):
            if n_rows in (0, len(labels)):
                got = "none has" if n_rows == 0 else "all have"
                raise InputError(
                    f"{what}: of {len(labels)} rows {got} the label {label!r}; take more rows, or add rows with this label and "
                    "rows without it"
                )

    def check_validation(self, labels: Shaped[Array, "_ *label"]) -> None:
        for label, n_rows in zip(self.labels.tolist(), labels.sum(0).tolist(), strict=True):
            if n_rows == 0:
                raise InputError(
                    f"validation rows after the split: of {len(labels)} rows none has the label {label!r}; add rows with it, "
                    "drop the label, or give validation rows of your own"
                )

    # Fitting and comparing.

    @property
    def n_scores(self) -> int:
        return len(self.labels)

    @property
    def n_outputs(self) -> int:
        return len(self.labels)

    def one_against_rest(self, labels: Shaped[Array, "row *label"]) -> list[Shaped[Array, "row"]]:
        return list(labels.T)

    def ranked(
        self, ranker: Ranker, features: Float[Array, "row neuron"], labels: Shaped[Array, "row *label"]
    ) -> Float[Array, "neuron"]:
        """The mean over the labels, each as two classes: rows without it and rows with it."""
        return np.mean([ranker(features, column.astype(np.int64)) for column in labels.T], axis=0)

    def network_targets(self, labels: Shaped[Array, "row *label"]) -> NetworkTargets:
        targets = labels.astype(np.int64)
        if len(self.labels) == 1:  # for scikit-learn one column is a binary problem
            return NetworkTargets(targets[:, 0], 0, 1, {"classes": np.arange(2)})
        return NetworkTargets(targets, 0, 1, {"classes": np.arange(len(self.labels))})

    def loss(self, labels: Shaped[Array, "row *label"]) -> tuple[Loss, Float[Array, "score"]]:
        return Logistic(torch.from_numpy(labels.astype(np.float64))), np.zeros(len(self.labels))

    def fit_of(self, outputs: Float[Array, "row label"], labels: Shaped[Array, "row *label"]) -> Float[Array, "row"]:
        """The mean over the labels of the probability that the row has it, or has it not, as given."""
        return np.where(labels, outputs, 1 - outputs).mean(1)

    def contradicts(self, outputs: Float[Array, "row label"], labels: Shaped[Array, "row *label"]) -> Bool[Array, "row"]:
        return (self.decide(outputs) != labels).any(1)

    def tuned(self, metric: Metric, outputs: Float[Array, "row label"], labels: Shaped[Array, "row *label"]) -> "LabelSets":
        """The same labels with the best thresholds for these rows (see best_thresholds), if they raise the metric there."""
        tuned = self.with_thresholds(best_thresholds(labels, outputs))
        is_better = self.score(metric, labels, tuned.decide(outputs)) > self.score(metric, labels, self.decide(outputs))
        return tuned if is_better else self

    def n_of_rarest(self, labels: Shaped[Array, "row *label"]) -> float:
        """Of each label the rows that have it, or the rows that lack it if they are fewer: the mean over the labels.

        One choice serves all labels, by the sum of their losses, so a single rare label does not prevent it.
        """
        n_having = labels.sum(0)
        return float(np.minimum(n_having, len(labels) - n_having).mean())

    def constant(self, labels: Shaped[Array, "row *label"], weights: Float[Array, "row"] | None = None) -> MultilabelProbe:
        """The share of every label."""
        shares = np.clip(np.average(labels, axis=0, weights=weights), 1e-9, 1 - 1e-9)
        return MultilabelProbe.from_weights(np.zeros((len(shares), 0)), logit(shares))

    # Answers.

    @property
    def output_names(self) -> list[str]:
        """The labels."""
        return [str(label) for label in self.labels]

    def outputs(self, scores: Float[Array, "row score"]) -> Float[Array, "row label"]:
        return expit(scores)

    def decide(self, outputs: Float[Array, "row label"]) -> Bool[Array, "row label"]:
        """Whether each probability is above the label's threshold."""
        return outputs > self.thresholds

    def confidence(self, outputs: Float[Array, "row label"]) -> Float[Array, "row"]:
        """That of the least certain label: the smallest max(p, 1 - p) of the row. Thresholds do not enter."""
        return np.maximum(outputs, 1 - outputs).min(1)

    def answers(self, outputs: Float[Array, "row label"]) -> Shaped[Array, "row"]:
        """A tuple of labels per row, sorted, in an array of objects."""
        names = self.labels.tolist()
        sets = np.empty(len(outputs), dtype=object)
        for row, decided in enumerate(self.decide(outputs)):
            sets[row] = tuple(names[place] for place in np.flatnonzero(decided))
        return sets

    def written(self, outputs: Float[Array, "row label"], separator: str = SEPARATOR) -> Shaped[Array, "row"]:
        """The labels of each row in one text, with the separator between them; "" for none.

        InputError where a label itself holds the separator.
        """
        for label in map(str, self.labels):
            if separator in label:
                raise InputError(f"the label {label!r} holds the separator {separator!r}; choose another one, with --separator")
        texts = np.empty(len(outputs), dtype=object)
        texts[:] = [separator.join(map(str, labels)) for labels in self.answers(outputs)]
        return texts

    def explained(self, output: Float[Array, "label"]) -> tuple[int, int]:
        """The most probable one of the labels that the row is given; without any, the most probable label, and -1."""
        is_given = self.decide(output[None])[0]
        return (int(np.where(is_given, output, -1.0).argmax()), 1) if is_given.any() else (int(output.argmax()), -1)

    def columns(self, outputs: Float[Array, "row label"], separator: str = SEPARATOR) -> dict[str, Array]:
        shares = {f"probability_{label}": outputs[:, place] for place, label in enumerate(self.labels)}
        return {"predicted_label": self.written(outputs, separator), **shares}

    def described(self, output: Float[Array, "label"]) -> dict[str, Any]:
        shares = dict(zip(map(str, self.labels), output.tolist(), strict=True))
        return {"labels": list(self.answers(output[None])[0]), "probabilities": shares}

    def shown(self, output: Float[Array, "label"]) -> str:
        """The labels, and each one's probability in the same order; without any label the largest probability."""
        decided = np.flatnonzero(self.decide(output[None])[0])
        labels = SEPARATOR.join(str(self.labels[place]) for place in decided)
        shown = output[decided] if len(decided) else [output.max()]
        return f"{labels}\t{SEPARATOR.join(f'{probability:.4f}' for probability in shown)}"

    def _details(self, truth: Shaped[Array, "row *label"], outputs: Float[Array, "row label"]) -> dict[str, Any]:
        """ "label_ranking", the label ranking average precision of the probabilities; and "per_label".

        label_ranking: the mean over the rows' labels of the share of true labels among those that are at least as probable
        (1 for a row without labels, or with all of them).
        """
        predicted = self.decide(outputs)
        n_both, n_predicted, n_true = (truth * predicted).sum(0), predicted.sum(0), truth.sum(0)
        details = {
            "label": self.labels,
            "precision": n_both / np.maximum(n_predicted, 1),
            "recall": n_both / np.maximum(n_true, 1),
            "f1": f1_per_label(truth, predicted),
            "threshold": self.thresholds,
            "rows": n_true,
        }
        columns = [column.tolist() for column in details.values()]
        return {
            "label_ranking": float(label_ranking_average_precision_score(truth, outputs)),
            "per_label": [dict(zip(details, values, strict=True)) for values in zip(*columns, strict=True)],
        }
