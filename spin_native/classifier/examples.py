"""The training rows that excite a classifier's most important neurons most and least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int

from spin_native.classifier.heads import Head
from spin_native.classifier.heads.weighted import WeightedHead
from spin_native.classifier.parts import Neurons, Part
from spin_native.classifier.rows import LabelledRows
from spin_native.classifier.splits import numbered_texts
from spin_native.features.spec import FeatureKey
from spin_native.text.pairs import parts

Array = np.ndarray
Keeps = Literal["rows", "texts"]  # of a training row: its number, or its text as well

N_NEURONS, N_ROWS = 64, 3
MAX_CHARACTERS = 300  # of a text that is kept


class NeuronExamples(NamedTuple):
    """{row: text}, strongest first: training rows with the largest and the smallest value of a neuron's pooled activation.

    row: its number among the training rows as the caller of fit gave them, from 0. text: its first MAX_CHARACTERS characters;
    None where only the numbers are kept. The two texts of a pair have " | " between them.
    """

    highest: Mapping[int, str | None]
    lowest: Mapping[int, str | None]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: lists of rows, each with its text where it is kept."""
        return {
            name: [{"row": row} | ({} if text is None else {"text": text}) for row, text in rows.items()]
            for name, rows in self._asdict().items()
        }


@dataclass(frozen=True)
class Examples:
    """Of some neurons, the training rows with the largest and the smallest values.

    neurons: (feature, neuron) of each. highest, lowest: of each its rows. texts: {row: text}, or None.
    """

    neurons: list[tuple[FeatureKey, int]]
    highest: list[list[int]]
    lowest: list[list[int]]
    texts: dict[int, str] | None

    def by_neuron(self) -> dict[tuple[FeatureKey, int], NeuronExamples]:
        rows = zip(self.neurons, self.highest, self.lowest, strict=True)
        return {neuron: NeuronExamples(self._named(highest), self._named(lowest)) for neuron, highest, lowest in rows}

    def _named(self, rows: Sequence[int]) -> dict[int, str | None]:
        return {row: None if self.texts is None else self.texts[row] for row in rows}

    # On disk.

    def to_json(self) -> dict[str, Any]:
        """As records.ExamplesRecord reads it."""
        rows = zip(self.neurons, self.highest, self.lowest, strict=True)
        neurons = [
            {**feature._asdict(), "neuron": neuron, "highest": highest, "lowest": lowest}
            for (feature, neuron), highest, lowest in rows
        ]
        texts = None if self.texts is None else {str(row): text for row, text in self.texts.items()}
        return {"neurons": neurons, "texts": texts}

    @classmethod
    def from_record(cls, record: Any) -> "Examples":
        """What a saved classifier holds; ValueError for a row without its text, and for a neuron that is there twice."""
        neurons = [(FeatureKey(of.site, of.pooling, of.layer), of.neuron) for of in record.neurons]
        if len(set(neurons)) < len(neurons):
            raise ValueError("examples names a neuron twice")
        highest, lowest = ([list(getattr(of, name)) for of in record.neurons] for name in ("highest", "lowest"))
        if record.texts is not None and (missing := {row for rows in highest + lowest for row in rows} - set(record.texts)):
            raise ValueError(f"examples has no text of row {min(missing)}")
        return cls(neurons, highest, lowest, record.texts)


def exciting_rows(
    features: Float32[Array, "row salient"], head: Head, n_neurons: int = N_NEURONS, n_rows: int = N_ROWS
) -> tuple[Int[Array, "neuron"], Int[Array, "neuron rank"], Int[Array, "neuron rank"]]:
    """The columns of the neurons with the largest weights, and the rows in which each has its largest and smallest values.

    features: as the head reads them, raw. Of equal values the first row counts first.
    """
    columns = strongest(head, n_neurons)
    return (columns, *_extremes(features[:, columns], n_rows))


def strongest(head: Head, n_neurons: int) -> Int[Array, "neuron"]:
    """The columns of a head's neurons with the largest absolute weights on standardised features, largest first.

    Of several scores the largest weight counts; of a perceptron, the length of the vector of weights that leave the neuron.
    """
    return np.argsort(-_importance(head), kind="stable")[:n_neurons]


def places_of(head: Head, columns: Int[Array, "column"]) -> list[tuple[FeatureKey, int]]:
    """(feature, neuron) of some of a head's columns; `head.places` of tens of thousands takes longer than the model."""
    features = list(head.neurons)
    starts = np.cumsum([0, *(len(neurons) for neurons in head.neurons.values())])
    at = np.searchsorted(starts, columns, side="right") - 1  # of equal starts the last one: the others have no neurons
    return [
        (features[i], int(head.neurons[features[i]][column - starts[i]]))
        for i, column in zip(at.tolist(), columns.tolist(), strict=True)
    ]


def _importance(head: Head) -> Float64[Array, "salient"]:
    if isinstance(head, WeightedHead):
        return np.linalg.norm(head.model.weights[0], axis=1).astype(np.float64)
    return np.abs(head.weights).max(axis=0).astype(np.float64)


def _extremes(
    features: Float32[Array, "row neuron"], n_rows: int
) -> tuple[Int[Array, "neuron rank"], Int[Array, "neuron rank"]]:
    """The rows with the largest and with the smallest values of each column."""
    highest, lowest = (np.argsort(sign * features, axis=0, kind="stable")[:n_rows].T for sign in (-1, 1))
    return highest, lowest


def examples_of(
    head: Head, part: Part, rows: LabelledRows, chosen: Int[Array, "_"] | None, keeps: Keeps | None
) -> Examples | None:
    """The examples that a fit keeps; None where it keeps none, or the head reads no neuron.

    part: the features that the head learnt from. rows: the training rows; chosen: those of them that `part` holds (None: all).
    Of equal texts the first counts.
    """
    if keeps is None or not head.n_neurons:
        return None
    columns = strongest(head, N_NEURONS)
    features, at = _read(head, part, columns)
    rows = rows if chosen is None else rows.take(chosen)
    distinct = np.unique(numbered_texts(rows.texts), return_index=True)[1]
    numbers = np.arange(len(rows.texts)) if rows.numbers is None else rows.numbers
    highest, lowest = (numbers[distinct[found]][at].tolist() for found in _extremes(features[distinct], N_ROWS))
    texts = None
    if keeps == "texts":
        text_of = dict(zip(numbers.tolist(), rows.texts, strict=True))
        kept = sorted({row for of in highest + lowest for row in of})
        texts = {row: " | ".join(parts(text_of[row]))[:MAX_CHARACTERS] for row in kept}
    return Examples(places_of(head, columns), highest, lowest, texts)


def _read(head: Head, part: Part, columns: Int[Array, "neuron"]) -> tuple[Float32[Array, "row neuron"], Int[Array, "neuron"]]:
    """The features of some of a head's columns only, and where each of these columns is among them."""
    kept: Neurons = {}
    order, start = [], 0
    for feature, neurons in head.neurons.items():
        inside = np.sort(columns[(columns >= start) & (columns < start + len(neurons))])
        if len(inside):
            kept[feature] = neurons[inside - start]
            order.append(inside)
        start += len(neurons)
    return part.side_by_side(kept), np.searchsorted(np.concatenate(order), columns)
