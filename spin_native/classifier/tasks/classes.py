"""Classification: one class of several per row."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from spin_native.classifier.tasks.base import Array, Indices, NetworkTargets, Task, check_share
from spin_native.errors import InputError
from spin_native.given import is_missing, is_unicode, plain, rows_of
from spin_native.probes.probes import LogisticProbe, probabilities

Label = str | int | bool


class Classes(Task):
    """One class of several per row. Encoded: the class's place in `classes`, which are sorted.

    Two classes share one score, which speaks for the second; outputs are probabilities.
    """

    name = "classification"
    metrics = {"accuracy": accuracy_score, "macro_f1": partial(f1_score, average="macro", zero_division=0)}
    probe_type, network_type = LogisticProbe, MLPClassifier

    def __init__(self, classes: Shaped[Array, "class"]) -> None:
        self.classes = classes

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

    def check_split(self, labels: Shaped[Array, "row"], share: float) -> None:
        check_share(share)
        counts = Counter(labels.tolist())
        rarest = min(counts, key=lambda place: counts[place])
        n_validation = int(np.ceil(share * len(labels)))
        if counts[rarest] < 2:
            raise InputError(
                f"class {self.name_of(rarest)!r} has a single row: it cannot be in both training and validation; add "
                "rows, drop the class, or give validation rows of your own"
            )
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

    def constant(self, labels: Shaped[Array, "row"]) -> LogisticProbe:
        """The share of every class."""
        shares = np.bincount(labels, minlength=len(self.classes)) / len(labels)
        scores = np.log(shares[1:] / shares[:1]) if len(shares) == 2 else np.log(np.maximum(shares, 1e-300))
        return LogisticProbe.from_weights(np.zeros((len(scores), 0)), scores)

    @property
    def output_names(self) -> list[str]:
        """The second class of two, or every class."""
        return [str(label) for label in (self.classes[1:] if len(self.classes) == 2 else self.classes)]

    def outputs(self, scores: Float[Array, "row score"]) -> Float[Array, "row class"]:
        return probabilities(scores)

    def decide(self, outputs: Float[Array, "row class"]) -> Int[Array, "row"]:
        return outputs.argmax(1)

    def answers(self, outputs: Float[Array, "row class"]) -> Shaped[Array, "row"]:
        return self.classes[outputs.argmax(1)]

    def explained(self, output: Float[Array, "class"]) -> tuple[int, int]:
        winner = int(output.argmax())
        return (0, 1 if winner else -1) if len(self.classes) == 2 else (winner, 1)

    def columns(self, outputs: Float[Array, "row class"]) -> dict[str, Array]:
        shares = {f"probability_{label}": outputs[:, place] for place, label in enumerate(self.classes)}
        return {"predicted_label": self.answers(outputs), **shares}

    def described(self, output: Float[Array, "class"]) -> dict[str, Any]:
        shares = dict(zip(map(str, self.classes), output.tolist(), strict=True))
        return {"label": self.name_of(int(output.argmax())), "probabilities": shares}

    def shown(self, output: Float[Array, "class"]) -> str:
        return f"{self.classes[output.argmax()]}\t{output.max():.4f}"

    def _details(self, truth: Shaped[Array, "row"], predicted: Shaped[Array, "row"]) -> dict[str, Any]:
        confusion = confusion_matrix(truth, predicted, labels=range(len(self.classes)))
        return {"confusion": confusion.tolist(), "labels": self.classes.tolist()}


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
