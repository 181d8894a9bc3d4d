"""What every kind of head offers; and what the linear kinds share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped

from spin_native.classifier.fitting import Rows, Standardizer
from spin_native.classifier.parts import Neurons, Part
from spin_native.classifier.settings import Settings
from spin_native.classifier.sparsify import ProbedLayers, Selection
from spin_native.classifier.tasks import Probe, Task
from spin_native.errors import InputError
from spin_native.features.store import FeatureKey
from spin_native.probes.importance import Cut

Array = np.ndarray
Tensors = Mapping[str, Array]
AnyHead = TypeVar("AnyHead", bound="Head")

# Options of the estimator that only some kinds of head use, and the values that ask for nothing.
OPTIONS: dict[str, tuple[str | float | None, ...]] = {
    "head_Cs": (None,),
    "final_rows": (None, "training"),
    "phase_two": ("seen",),
    "mixing": (None,),
    "ranker": ("squared",),
    "etas": (None,),
    "top_k": (None,),
    "top_share": (None,),
    "Cs": (None,),
    "validation_share": (0.2,),
}
OF_SELECTION = ("mixing", "ranker", "etas", "top_k", "top_share", "Cs", "validation_share")  # of all heads on salient neurons


@dataclass(frozen=True)
class Head(ABC):
    """A small model over the salient neurons of the first layers, side by side in the order of `neurons`.

    kind: its name in settings. label: its name in tables. options: those of OPTIONS that it uses.
    """

    kind: ClassVar[str]
    label: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    saved_kind: ClassVar[str]  # on disk
    saved_model: ClassVar[str]

    task: Task
    cut: Cut
    neurons: Neurons
    standardizer: Standardizer

    @property
    def converged(self) -> bool:
        """Whether its solver reached the tolerance."""
        return True

    @property
    def C(self) -> float | None:
        """The inverse strength of its penalty, which validation chose."""
        return None

    # What it reads.

    @property
    def n_neurons(self) -> int:
        """How many neurons it reads."""
        return sum(map(len, self.neurons.values()))

    @property
    def places(self) -> list[tuple[FeatureKey, int]]:
        """(feature, neuron) of each column it reads."""
        return [(feature, int(neuron)) for feature, neurons in self.neurons.items() for neuron in neurons]

    def names(self, of: str) -> str:
        """The sites or the poolings it reads."""
        return "+".join(dict.fromkeys(getattr(feature, of) for feature in self.neurons))

    def read(self, part: Part) -> Float32[Array, "row salient"]:
        """The raw features that it reads."""
        return part.side_by_side(self.neurons)

    def read_columns(self, part: Part, columns: Int[Array, "column"]) -> Float32[Array, "row column"]:
        """Some of the raw features that it reads; columns: ascending places among all of them."""
        starts = np.cumsum([0, *map(len, self.neurons.values())])
        return part.side_by_side(
            {
                feature: neurons[columns[(columns >= start) & (columns < start + len(neurons))] - start]
                for (feature, neurons), start in zip(self.neurons.items(), starts, strict=False)
            }
        )

    # What it gives.

    @property
    def has_weights(self) -> bool:
        """Whether `weights` exist: not in a perceptron."""
        return False

    def output(self, features: Float32[Array, "row salient"]) -> Float[Array, "row output"]:
        """What users see of each row, from raw features; a row has the same bits whatever the other rows are."""
        # C order: sums along a row are taken in another order in another layout.
        return self.task.outputs(self.scores(np.ascontiguousarray(self.standardizer(features))))

    def predict(self, features: Float32[Array, "row salient"]) -> Shaped[Array, "row *label"]:
        """Encoded predictions from raw features."""
        return self.task.decide(self.output(features))

    @abstractmethod
    def scores(self, standardised: Float32[Array, "row salient"]) -> Float[Array, "row score"]:
        """The scores of standardised features, each row computed by itself."""

    @abstractmethod
    def contributions(self, features: Float32[Array, "1 salient"], score: int) -> Float[Array, "salient"]:
        """How much each neuron added to one score of one row."""

    @property
    @abstractmethod
    def weights(self) -> Float[Array, "score salient"]:
        """Each neuron's weight for each score, on the standardised feature; InputError if it has no such weights."""

    # On disk.

    @abstractmethod
    def model_tensors(self) -> dict[str, Array]:
        """The model's numbers."""

    @classmethod
    @abstractmethod
    def from_tensors(
        cls: type[AnyHead],
        task: Task,
        cut: Cut,
        neurons: Neurons,
        standardizer: Standardizer,
        C: float | None,
        tensors: Tensors,
    ) -> AnyHead:
        """A head from its numbers; KeyError or ValueError if they do not fit together."""


@dataclass(frozen=True)
class LinearHead(Head):
    """A head that is one linear map, stored as a probe."""

    saved_model = "linear"

    model: Probe

    @property
    def converged(self) -> bool:
        return bool(getattr(self.model, "converged_", True))  # a probe made of given weights has solved nothing

    @property
    def C(self) -> float | None:
        return self.model.C

    def scores(self, standardised: Float32[Array, "row salient"]) -> Float[Array, "row score"]:
        # In float64: NumPy sums a lone float32 row of more than 8192 numbers in another order than one of many rows.
        coef = self.model.coef_.astype(np.float64, copy=False)
        return np.einsum("rf,of->ro", standardised, coef) + self.model.intercept_

    @property
    def has_weights(self) -> bool:
        return True

    def contributions(self, features: Float32[Array, "1 salient"], score: int) -> Float[Array, "salient"]:
        """Weight times standardised feature."""
        return self.model.coef_[score] * self.standardizer(features)[0]

    @property
    def weights(self) -> Float[Array, "score salient"]:
        return self.model.coef_

    def model_tensors(self) -> dict[str, Array]:
        """coef [score, salient] and intercept [score]."""
        return {"coef": self.model.coef_, "intercept": self.model.intercept_}

    @classmethod
    def from_tensors(
        cls: type[AnyHead],
        task: Task,
        cut: Cut,
        neurons: Neurons,
        standardizer: Standardizer,
        C: float | None,
        tensors: Tensors,
    ) -> AnyHead:
        coef = checked(tensors, "coef", task.n_scores, len(standardizer.mean))
        model = task.probe_type.from_weights(coef, checked(tensors, "intercept", task.n_scores), C=C, l1_ratio=0.0)
        return cls(task, cut, neurons, standardizer, model)  # type: ignore[call-arg]


@dataclass(frozen=True)
class SelectedHead(Head):
    """A head on neurons that a selection chose."""

    @classmethod
    @abstractmethod
    def fit(
        cls: type[AnyHead], selection: Selection, train: Rows, validation: Rows, settings: Settings
    ) -> tuple[AnyHead, float]:
        """A head over standardised features of the selected neurons; validation chooses what is left to choose. Its score."""

    @abstractmethod
    def fit_again(self, layers: ProbedLayers, rows: Rows, settings: Settings) -> "SelectedHead":
        """The same head, with what validation chose, fitted on other rows."""


@dataclass(frozen=True)
class SelectedLinearHead(LinearHead, SelectedHead):
    """A linear map of selected neurons."""

    def fit_again(self, layers: ProbedLayers, rows: Rows, settings: Settings) -> "SelectedHead":
        selection = Selection(self.cut, self.neurons, layers)
        return self.fit(selection, rows, rows, replace(settings, head_Cs=(self.model.C,)))[0]


def checked(tensors: Tensors, name: str, *shape: int) -> Array:
    """A tensor of a known shape; ValueError for another shape, other than floats, and numbers that are not finite."""
    tensor = tensors[name]
    if tensor.shape != shape or tensor.dtype.kind != "f" or not np.isfinite(tensor).all():
        raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, expected {shape} finite floating point numbers")
    return tensor


def checked_neurons(tensors: Tensors, name: str, n_neurons: int) -> Int[Array, "neuron"]:
    """Indices of neurons; ValueError unless they are `n_neurons` ascending whole numbers from 0."""
    indices = tensors[name]
    if indices.shape != (n_neurons,) or indices.dtype != np.int64 or (indices < 0).any() or (np.diff(indices) <= 0).any():
        raise ValueError(f"{name} is {indices.dtype} {indices.shape}, expected {n_neurons} ascending int64 numbers from 0")
    return indices


def describe(head: Head) -> dict[str, Any]:
    """What a reader of the JSON file wants to know about a head; `head_tensors` has its numbers."""
    return {
        "kind": head.saved_kind,
        "reads": [{**feature._asdict(), "salient_neurons": len(neurons)} for feature, neurons in head.neurons.items()],
        "cut": {"by": head.cut.by, "amount": head.cut.amount},
        "C": head.C,
        "model": head.saved_model,
    }


def head_tensors(head: Head) -> dict[str, Array]:
    """neurons.{site}.{pooling}.{layer}: salient neurons' indices; mean and scale of their features; the model's numbers."""
    tensors: dict[str, Array] = {f"neurons.{f.site}.{f.pooling}.{f.layer}": indices for f, indices in head.neurons.items()}
    return {**tensors, "mean": head.standardizer.mean, "scale": head.standardizer.scale, **head.model_tensors()}


def no_weights(kind: str) -> InputError:
    """The error of a head whose neurons have no single weight."""
    return InputError(f"the head is a perceptron (head={kind!r}): its neurons have no single weight; see explain")


def no_neurons() -> Int[Array, "0"]:
    """No column of a feature."""
    return np.empty(0, dtype=np.int64)
