"""Classification: one class of several per row."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from spin_native.classifier.probabilities import ece, fit_prior_shift, fit_temperature, log_loss, reliability
from spin_native.classifier.tasks.base import Array, Indices, Metric, NetworkTargets, Task, check_share
from spin_native.classifier.tasks.metrics import accuracy, macro_f1
from spin_native.classifier.tasks.priorities import best_priorities
from spin_native.errors import InputError
from spin_native.given import is_missing, is_unicode, plain, rows_of
from spin_native.probes.probes import LogisticProbe, probabilities
from spin_native.probes.solver import Logistic, Loss, Softmax

Label = str | int | bool
HIDDEN_MIN_ROWS, HIDDEN_RECALL = 10, 0.05  # see hidden_classes


class Classes(Task):
    """One class of several per row. Encoded: the class's place in `classes`, which are sorted.

    Two classes share one score, which speaks for the second; outputs are probabilities.
    """

    name = "classification"
    metrics = {"accuracy": accuracy, "macro_f1": macro_f1}
    probe_type, network_type = LogisticProbe, MLPClassifier

    def __init__(self, classes: Shaped[Array, "class"], priorities: Float[Array, "class"] | None = None) -> None:
        """priorities: factors of the probabilities in a decision (None: the most probable class is the answer)."""
        self.classes, self.priorities = classes, priorities

    @classmethod
    def learn(cls, labels: Iterable[Any], n_texts: int, what: str) -> "Classes":
        classes = sorted(set(_checked_labels(labels, n_texts, what)))
        if len(classes) < 2:
            got = f"every row has the label {classes[0]!r}" if classes else "no rows"
            raise InputError(f"{what}: {got}; expected at least two classes")
        return cls(label_array(classes, what))

    def encode(self, labels: Iterable[Any], n_texts: int, what: str) -> Int[Array, "row"]:
        checked, classes = _checked_labels(labels, n_texts, what), self.classes.tolist()
        place = {label: index for index, label in enumerate(classes)}
        for row, label in enumerate(checked):
            if label not in place or type(label) is not type(classes[0]):  # for Python, True is 1
                raise InputError(f"{what}: row {row} has the label {label!r}; known are {', '.join(map(repr, classes))}")
        return np.array([place[label] for label in checked], dtype=np.int64)

    def to_json(self) -> list[Label]:
        return self.classes.tolist()

    @classmethod
    def from_json(cls, labels: Sequence[Any]) -> "Classes":
        if len(labels) < 2:
            raise ValueError(f"{len(labels)} labels; expected two or more")
        return cls(label_array(labels, "labels"))

    @property
    def label_type(self) -> type:
        return type(self.classes.tolist()[0])

    def name_of(self, place: int) -> Label:
        """One class as a Python value."""
        return self.classes.tolist()[place]

    def strata(self, labels: Shaped[Array, "row"]) -> Int[Array, "row"]:
        return labels

    def stratum_name(self, stratum: int) -> str:
        return f"class {self.name_of(stratum)!r} has"

    def check_can_be_held_out(self, labels: Shaped[Array, "row"]) -> None:
        counts = Counter(labels.tolist())
        rarest = min(counts, key=lambda place: counts[place])
        if counts[rarest] < 2:
            raise InputError(
                f"class {self.name_of(rarest)!r} has a single row: it cannot be in both training and validation; add "
                "rows, drop the class, or give validation rows of your own"
            )

    def check_split(self, labels: Shaped[Array, "row"], share: float) -> None:
        check_share(share)
        self.check_can_be_held_out(labels)
        counts = Counter(labels.tolist())
        n_validation = int(np.ceil(share * len(labels)))
        if min(n_validation, len(labels) - n_validation) < len(counts):
            raise InputError(
                f"{len(labels)} rows are too few to split off {share:.0%} for validation with each of the {len(counts)} "
                "classes in both parts; add rows, or give validation rows of your own"
            )

    def split(self, labels: Shaped[Array, "row"], share: float, seed: int) -> tuple[Indices, Indices]:
        """By class: every class has its share in both parts."""
        self.check_split(labels, share)
        train, validation = train_test_split(np.arange(len(labels)), test_size=float(share), stratify=labels, random_state=seed)
        self.check_training(labels[train])
        return train, validation

    def _sampling_order(self, labels: Shaped[Array, "row"], order: Indices) -> Indices:
        """Every class with its share, and one row of each class first."""
        shares = np.empty(len(labels))
        for label in np.unique(labels):
            rows = order[labels[order] == label]
            shares[rows] = np.arange(len(rows)) / len(rows)
        return order[np.argsort(shares[order], kind="stable")]

    def check_part(self, labels: Shaped[Array, "_"], what: str) -> None:
        missing = np.setdiff1d(np.arange(len(self.classes)), labels)
        if len(missing):
            raise InputError(
                f"{what}: of {len(labels)} rows none is of class {self.name_of(int(missing[0]))!r}, which is rare; take more "
                "rows, or add some of this class"
            )

    @property
    def n_scores(self) -> int:
        return 1 if len(self.classes) == 2 else len(self.classes)

    @property
    def n_outputs(self) -> int:
        return len(self.classes)

    def one_against_rest(self, labels: Shaped[Array, "row"]) -> list[Bool[Array, "row"]]:
        return [labels == label for label in np.unique(labels)]

    def network_targets(self, labels: Shaped[Array, "row"]) -> NetworkTargets:
        return NetworkTargets(labels, 0, 1, {"classes": np.arange(len(self.classes))})

    def calibration(
        self, scores: Float[Array, "row score"], labels: Shaped[Array, "row"]
    ) -> tuple[float, Float[Array, "score"]]:
        temperature = fit_temperature(scores, labels)
        return temperature, fit_prior_shift(scores, labels, temperature)

    def tuned(self, metric: Metric, outputs: Float[Array, "row class"], labels: Shaped[Array, "row"]) -> "Classes":
        """For macro-F1 with the best priorities; for accuracy the most probable class is the best answer."""
        return Classes(self.classes, best_priorities(outputs, labels)) if metric == "macro_f1" else self

    def loss(self, labels: Shaped[Array, "row"]) -> tuple[Loss, Float[Array, "score"]]:
        targets = torch.from_numpy(labels)
        n_classes = len(self.classes)
        if n_classes == 2:
            return Logistic(targets[:, None].double()), np.zeros(1)
        return Softmax(torch.nn.functional.one_hot(targets, n_classes).double()), np.zeros(n_classes)

    def fit_of(self, outputs: Float[Array, "row class"], labels: Shaped[Array, "row"]) -> Float[Array, "row"]:
        return outputs[np.arange(len(labels)), labels]

    def contradicts(self, outputs: Float[Array, "row class"], labels: Shaped[Array, "row"]) -> Bool[Array, "row"]:
        return self.decide(outputs) != labels

    def constant(self, labels: Shaped[Array, "row"], weights: Float[Array, "row"] | None = None) -> LogisticProbe:
        """The share of every class."""
        counts = np.bincount(labels, weights=weights, minlength=len(self.classes))
        shares = counts / counts.sum()
        scores = np.log(shares[1:] / shares[:1]) if len(shares) == 2 else np.log(np.maximum(shares, 1e-300))
        return LogisticProbe.from_weights(np.zeros((len(scores), 0)), scores)

    @property
    def output_names(self) -> list[str]:
        """The second class of two, or every class."""
        return [str(label) for label in (self.classes[1:] if len(self.classes) == 2 else self.classes)]

    def outputs(self, scores: Float[Array, "row score"]) -> Float[Array, "row class"]:
        return probabilities(scores)

    def decide(self, outputs: Float[Array, "row class"]) -> Int[Array, "row"]:
        return (outputs if self.priorities is None else outputs * self.priorities).argmax(1)

    def answers(self, outputs: Float[Array, "row class"]) -> Shaped[Array, "row"]:
        return self.classes[self.decide(outputs)]

    def explained(self, output: Float[Array, "class"]) -> tuple[int, int]:
        winner = int(self.decide(output[None])[0])
        return (0, 1 if winner else -1) if len(self.classes) == 2 else (winner, 1)

    def columns(self, outputs: Float[Array, "row class"]) -> dict[str, Array]:
        shares = {f"probability_{label}": outputs[:, place] for place, label in enumerate(self.classes)}
        return {"predicted_label": self.answers(outputs), **shares}

    def described(self, output: Float[Array, "class"]) -> dict[str, Any]:
        shares = dict(zip(map(str, self.classes), output.tolist(), strict=True))
        return {"label": self.name_of(int(self.decide(output[None])[0])), "probabilities": shares}

    def shown(self, output: Float[Array, "class"]) -> str:
        winner = int(self.decide(output[None])[0])
        return f"{self.classes[winner]}\t{output[winner]:.4f}"

    def _details(self, truth: Shaped[Array, "row"], outputs: Float[Array, "row class"]) -> dict[str, Any]:
        """How far off the probabilities are (see classifier/probabilities.py), and the confusion matrix."""
        confusion = confusion_matrix(truth, self.decide(outputs), labels=range(len(self.classes)))
        return {
            "ece": ece(outputs, truth),
            "log_loss": log_loss(outputs, truth),
            "reliability": [row._asdict() for row in reliability(outputs, truth)],
            "confusion": confusion.tolist(),
            "labels": self.classes.tolist(),
        }

    def beside_accuracy(self, truth: Shaped[Array, "row"], predicted: Shaped[Array, "row"]) -> dict[str, Any]:
        hidden = hidden_classes(truth, predicted, len(self.classes))
        return {
            "majority_share": majority_share(truth),
            "macro_f1": self.score("macro_f1", truth, predicted),
            "hidden_classes": [
                {"label": self.name_of(one.place), "rows": one.n_rows, "recognised": one.n_found} for one in hidden
            ],
        }

    def hidden_class_warnings(self, truth: Shaped[Array, "row"], predicted: Shaped[Array, "row"], what: str) -> list[str]:
        accuracy, macro_f1 = (self.score(metric, truth, predicted) for metric in ("accuracy", "macro_f1"))
        return [
            f"class {self.name_of(one.place)!r} is recognised in {one.n_found} of its {one.n_rows} {what}, which the accuracy "
            f"of {accuracy:.4f} hides (always answering the most frequent class: {majority_share(truth):.4f}; macro-F1: "
            f"{macro_f1:.4f}); try class_weight='balanced' (--class-weight balanced) or metric='macro_f1' (--metric macro_f1)"
            for one in hidden_classes(truth, predicted, len(self.classes))
        ]


def balanced_weights(labels: Int[Array, "row"]) -> Float[Array, "class"]:
    """A weight for each class that gives all classes the same total: n rows / (n classes present * rows of the class)."""
    counts = np.bincount(labels)
    return len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))


class HiddenClass(NamedTuple):
    """A class that accuracy hides: there are many rows of it, and (nearly) none of them is recognised.

    place: the class's place among the classes. n_rows: how many rows are of it. n_found: how many of these are predicted so.
    """

    place: int
    n_rows: int
    n_found: int


def hidden_classes(truth: Int[Array, "row"], predicted: Int[Array, "row"], n_classes: int) -> list[HiddenClass]:
    """The classes with HIDDEN_MIN_ROWS rows or more of which at most HIDDEN_RECALL are predicted, in the order of the classes.

    truth, predicted: places of classes. A model that always answers the frequent class can have a high accuracy all the same.
    """
    n_rows = np.bincount(truth, minlength=n_classes)
    n_found = np.bincount(truth[truth == predicted], minlength=n_classes)
    is_hidden = (n_rows >= HIDDEN_MIN_ROWS) & (n_found <= HIDDEN_RECALL * n_rows)
    return [HiddenClass(int(place), int(n_rows[place]), int(n_found[place])) for place in np.flatnonzero(is_hidden)]


def majority_share(truth: Int[Array, "row"]) -> float:
    """The share of the most frequent class: the accuracy of always answering it."""
    return float(np.bincount(truth).max() / len(truth))


def label_array(classes: Sequence[Label], what: str) -> Shaped[Array, "class"]:
    """The classes as an array that gives every one of them back; InputError for whole numbers that no such array holds."""
    if any(isinstance(label, str) and label.endswith("\0") for label in classes):
        array = np.empty(len(classes), dtype=object)  # NumPy's own strings drop a NUL at the end
        array[:] = classes
        return array
    numbers = [label for label in classes if isinstance(label, int)]
    largest = 2**63 if min(numbers, default=0) < 0 else 2**64  # int64, or uint64
    if outside := [label for label in numbers if not -(2**63) <= label < largest]:
        raise InputError(f"{what}: the label {outside[0]} does not fit 64 bits beside the others; write the labels as text")
    is_large = any(label >= 2**63 for label in numbers)
    return np.array(classes, dtype=np.uint64 if is_large else None)  # without it a mix of large and small ones becomes float


def _checked_labels(labels: Iterable[Any], n_texts: int, what: str) -> list[Label]:
    """One str, int or bool per text, as plain Python values. Whole floats are ints: pandas writes a column of ints that way.

    Raises InputError for a missing label or one of another type (naming the row), mixed types, and a wrong number.
    """
    values = [plain(label) for label in rows_of(labels, f"labels of the {what}", "label")]
    if len(values) != n_texts:
        raise InputError(f"{what}: {n_texts} texts but {len(values)} labels; expected one label per text")
    for row, label in enumerate(values):
        if is_missing(label):
            raise InputError(f"{what}: the label of row {row} is missing (got {label!r}); drop the row, or label it")
        is_whole = isinstance(label, float) and label.is_integer() and abs(label) <= 2**53
        if is_whole or (isinstance(label, int) and not isinstance(label, bool)):
            values[row] = label = int(label)  # also of an IntEnum
        if not isinstance(label, (str, int)):
            raise InputError(
                f"{what}: the label of row {row} is {label!r} ({type(label).__name__}); expected text or a whole number"
            )
        if type(label) is not type(values[0]):
            raise InputError(
                f"{what}: labels are of two types, row 0 has {values[0]!r} and row {row} has {label!r}; expected one type"
            )
        if isinstance(label, str) and not is_unicode(label):
            raise InputError(
                f"{what}: the label of row {row} holds half a character (a lone surrogate): read the file as UTF-8"
            )
    return values
