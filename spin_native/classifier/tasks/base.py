"""What every task offers to the rooms that train, deploy, save and print."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from spin_native.classifier.exits import Exit
from spin_native.errors import InputError
from spin_native.given import is_number
from spin_native.probes.probes import LinearProbe, LogisticProbe
from spin_native.probes.solver import Loss

Array = np.ndarray
Probe = LogisticProbe | LinearProbe
TaskName = Literal["classification", "multilabel", "regression"]
Metric = Literal["accuracy", "macro_f1", "micro_f1", "subset_accuracy", "pearson", "spearman", "mse", "mae"]
Ranker = Callable[[Array, Array], Array]  # features [row, neuron] and labels [row] -> importance [neuron]
Indices = Int[Array, "_"]


class NetworkTargets(NamedTuple):
    """What a neural network is fitted to: (labels - shift) / spread, and further arguments of its fit."""

    targets: Shaped[Array, "row *label"]
    shift: float
    spread: float
    arguments: dict[str, Any]


class Task(ABC):
    """The labels of a data set, and all that depends on their kind.

    metrics: name -> function of (truth, prediction), both encoded; the first is the default. less_is_better: those of them that
    are errors. unfit_rankers: names of rankers that need other labels. probe_type, network_type: what is fitted to such labels.

    Encoded labels are arrays [row, ...]. Scores are what a linear model or network gives, [row, score]; outputs are what users
    see, [row, output].
    """

    name: ClassVar[TaskName]
    metrics: ClassVar[dict[Metric, Callable[[Array, Array], float]]]
    less_is_better: ClassVar[tuple[Metric, ...]] = ()
    unfit_rankers: ClassVar[tuple[str, ...]] = ()
    probe_type: ClassVar[type[Probe]]
    network_type: ClassVar[type]

    # Labels.

    @classmethod
    @abstractmethod
    def learn(cls, labels: Iterable[Any], n_texts: int, what: str) -> "Task":
        """The task that the training labels describe; InputError if nothing can be learnt from them."""

    @abstractmethod
    def encode(self, labels: Iterable[Any], n_texts: int, what: str) -> Shaped[Array, "row *label"]:
        """Labels as arrays; InputError, naming the row, for labels that are missing, unknown, or too few."""

    @abstractmethod
    def to_json(self) -> list[Any]:
        """What `from_json` needs to restore the task."""

    @classmethod
    @abstractmethod
    def from_json(cls, labels: Sequence[Any]) -> "Task":
        """The task that was saved; ValueError if this is not what `to_json` gave."""

    @property
    @abstractmethod
    def label_type(self) -> type:
        """The Python type of a label: str, int, bool or float. Labels that are text in a file are read as this type."""

    @property
    def written_type(self) -> type:
        """The Python type of a prediction in a file."""
        return self.label_type

    # Rows.

    @abstractmethod
    def check_split(self, labels: Shaped[Array, "row *label"], share: float) -> None:
        """InputError where `share` of the rows cannot be split off."""

    def check_can_be_held_out(self, labels: Shaped[Array, "row *label"]) -> None:  # noqa: B027  # most tasks ask for nothing
        """InputError where some class has too few rows to be both learnt from and held out."""

    def strata(self, labels: Shaped[Array, "row *label"]) -> Int[Array, "row"]:
        """Groups of rows that each part of the data should hold its share of: all rows are one."""
        return np.zeros(len(labels), dtype=np.int64)

    def stratum_name(self, stratum: int) -> str:
        """One of them as the subject of a sentence, with its verb."""
        return "the rows have"

    @abstractmethod
    def split(self, labels: Shaped[Array, "row *label"], share: float, seed: int) -> tuple[Indices, Indices]:
        """Which rows to train on, and which `share` of them to validate on; InputError where that cannot be done."""

    def sample(self, labels: Shaped[Array, "row *label"], n_rows: int, seed: int) -> tuple[Indices, Indices]:
        """`n_rows` random rows (or all), and the others, each in input order."""
        order = self._sampling_order(labels, np.random.default_rng(seed).permutation(len(labels)))
        return np.sort(order[:n_rows]), np.sort(order[n_rows:])

    def _sampling_order(self, labels: Shaped[Array, "row *label"], order: Indices) -> Indices:
        return order

    def check_part(self, labels: Shaped[Array, "_ *label"], what: str) -> None:  # noqa: B027 (most tasks need no check)
        """InputError if a part of the training rows can no longer be learnt from."""

    def check_training(self, labels: Shaped[Array, "_ *label"]) -> None:
        """InputError if the rows that a split leaves for training can no longer be learnt from."""
        self.check_part(labels, "training rows after the split")

    def check_validation(self, labels: Shaped[Array, "_ *label"]) -> None:  # noqa: B027
        """InputError if the rows that a split holds out cannot be scored."""

    # Fitting and comparing.

    @property
    @abstractmethod
    def n_scores(self) -> int:
        """How many scores a linear model gives."""

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """How many outputs users see."""

    @abstractmethod
    def one_against_rest(self, labels: Shaped[Array, "row *label"]) -> list[Shaped[Array, "row"]]:
        """The target of each score: of every class whether a row belongs to it, or the values."""

    def ranked(
        self, ranker: Ranker, features: Float[Array, "row neuron"], labels: Shaped[Array, "row *label"]
    ) -> Float[Array, "neuron"]:
        """Each neuron's importance by a ranker that needs no probe."""
        return ranker(features, labels)

    @abstractmethod
    def network_targets(self, labels: Shaped[Array, "row *label"]) -> NetworkTargets:
        """What a neural network is fitted to."""

    def calibration(
        self, scores: Float[Array, "row score"], labels: Shaped[Array, "row *label"]
    ) -> tuple[float, Float[Array, "score"]]:
        """(temperature, shift): outputs of scores / temperature + shift fit these held-out rows best. Here no change."""
        return 1.0, np.zeros(self.n_scores)

    def tuned(self, metric: Metric, outputs: Float[Array, "row output"], labels: Shaped[Array, "row *label"]) -> "Task":
        """The task that decides for the best metric on these held-out rows: itself where nothing can be tuned."""
        return self

    @abstractmethod
    def loss(self, labels: Shaped[Array, "row *label"]) -> tuple[Loss, Float[Array, "score"]]:
        """The loss of a linear model's scores, and what to add to these: the mean of values, which the loss subtracts."""

    @abstractmethod
    def fit_of(self, outputs: Float[Array, "row output"], labels: Shaped[Array, "row *label"]) -> Float[Array, "row"]:
        """How well each row's outputs agree with its label, larger for better: the label's probability, or minus the error."""

    @abstractmethod
    def contradicts(self, outputs: Float[Array, "row output"], labels: Shaped[Array, "row *label"]) -> Bool[Array, "row"]:
        """Which rows' outputs speak against their label: another class or set, or a value two standard errors away."""

    @abstractmethod
    def constant(self, labels: Shaped[Array, "row *label"], weights: Float[Array, "row"] | None = None) -> Probe:
        """A probe without features that gives the best constant answer. weights: how many times each row counts."""

    def n_of_rarest(self, labels: Shaped[Array, "row *label"]) -> float:
        """How many rows the rarest class has (of values: all rows), which limits what cross-validation can choose."""
        return float(np.unique(self.strata(labels), return_counts=True)[1].min())

    @classmethod
    def check_ranker(cls, ranker: str) -> None:
        """InputError for a ranker that such labels cannot be given to."""
        if ranker in cls.unfit_rankers:
            raise InputError(f"ranker {ranker!r} needs classes; choose another one for a {cls.name}")

    def check_exit(self, exit_: Exit) -> None:  # noqa: B027
        """InputError for an exit that these outputs cannot decide."""

    @classmethod
    def worth(cls, metric: Metric, score: float) -> float:
        """A score such that more is better."""
        return -score if metric in cls.less_is_better else score

    def score(self, metric: Metric, truth: Shaped[Array, "row *label"], predicted: Shaped[Array, "row *label"]) -> float:
        """One metric of encoded predictions."""
        return float(self.metrics[metric](truth, predicted))

    # Answers.

    @property
    @abstractmethod
    def output_names(self) -> list[str]:
        """What each score stands for."""

    @abstractmethod
    def outputs(self, scores: Float[Array, "row score"]) -> Float[Array, "row output"]:
        """Scores as users see them."""

    @abstractmethod
    def decide(self, outputs: Float[Array, "row output"]) -> Shaped[Array, "row *label"]:
        """Encoded predictions."""

    def confidence(self, outputs: Float[Array, "row output"]) -> Float[Array, "row"]:
        """How certain each row's answer is, 0 to 1, for an exit by confidence."""
        return outputs.max(1)

    @abstractmethod
    def answers(self, outputs: Float[Array, "row output"]) -> Shaped[Array, "row"]:
        """Predictions as users wrote their labels."""

    def written(self, outputs: Float[Array, "row output"]) -> Shaped[Array, "row"]:
        """Predictions as a file holds them."""
        return self.answers(outputs)

    @abstractmethod
    def explained(self, output: Float[Array, "output"]) -> tuple[int, int]:
        """Which score to explain for one row, and its sign: 1, or -1 where the score speaks against the answer."""

    @abstractmethod
    def columns(self, outputs: Float[Array, "row output"]) -> dict[str, Array]:
        """The columns that a prediction adds to a table."""

    @abstractmethod
    def described(self, output: Float[Array, "output"]) -> dict[str, Any]:
        """One row's prediction for JSON."""

    @abstractmethod
    def shown(self, output: Float[Array, "output"]) -> str:
        """One row's prediction for a terminal."""

    def evaluate(self, outputs: Float[Array, "row output"], labels: Iterable[Any], what: str) -> dict[str, Any]:
        """Every metric of the outputs of labelled rows, and "rows"; InputError for unusable labels of `what`."""
        truth, predicted = self.encode(labels, len(outputs), what), self.decide(outputs)
        scores: dict[str, Any] = {name: float(metric(truth, predicted)) for name, metric in self.metrics.items()}
        return {**scores, **self._details(truth, outputs), "rows": len(truth)}

    def _details(self, truth: Shaped[Array, "row *label"], outputs: Float[Array, "row output"]) -> dict[str, Any]:
        """What an evaluation shows beside the metrics."""
        return {}

    def beside_accuracy(self, truth: Shaped[Array, "row *label"], predicted: Shaped[Array, "row *label"]) -> dict[str, Any]:
        """What accuracy does not say of encoded predictions, for JSON; nothing for a task without classes.

        "majority_share": the accuracy of always answering the most frequent class of these rows; "macro_f1"; and
        "hidden_classes": {"label", "rows", "recognised"} of each class that accuracy hides (see classes.hidden_classes).
        """
        return {}

    def hidden_class_warnings(
        self, truth: Shaped[Array, "row *label"], predicted: Shaped[Array, "row *label"], what: str
    ) -> list[str]:
        """A sentence for each class that accuracy hides. what: the rows' name in it, such as "validation rows"."""
        return []


def check_share(share: float) -> None:
    if not is_number(share) or not 0 < share < 1:
        raise InputError(f"validation_share is {share!r}; expected a share between 0 and 1")
