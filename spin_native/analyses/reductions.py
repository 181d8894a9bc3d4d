"""Gradients of many rows, reduced block by block: only a reduction's own arrays stay in memory."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Shaped

Array = np.ndarray
Reduce = Literal["none", "top", "mean", "histogram"]
Axes = dict[str, Shaped[Array, "_"]]
Arrays = dict[str, Shaped[Array, "..."]]

# One bin per decade on either side of 0, and one for everything between -1e-10 and 1e-10.
DECADES = 10.0 ** np.arange(-10, 3)
EDGES = np.concatenate([[-np.inf], -DECADES[::-1], DECADES, [np.inf]])


class Reduction:
    """Takes gradients block by block. settings: what a result's metadata says of it."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def add(self, gradient: Float[Array, "row label layer neuron"], activation: Float[Array, "row layer neuron"]) -> None:
        """Take the next rows."""
        raise NotImplementedError

    def result(self, layers: Sequence[int]) -> tuple[Axes, Arrays]:
        """The axes and arrays of a Result."""
        raise NotImplementedError


class Everything(Reduction):
    """All gradients, and the activations beside them."""

    def __init__(self) -> None:
        super().__init__()
        self._gradients: list[Array] = []
        self._activations: list[Array] = []

    def add(self, gradient: Float[Array, "row label layer neuron"], activation: Float[Array, "row layer neuron"]) -> None:
        self._gradients.append(gradient)
        self._activations.append(activation)

    def result(self, layers: Sequence[int]) -> tuple[Axes, Arrays]:
        gradient, activation = np.concatenate(self._gradients), np.concatenate(self._activations)
        n_rows, n_labels, _, n_neurons = gradient.shape
        axes = {
            "row": np.arange(n_rows),
            "label": np.arange(n_labels),
            "layer": np.array(layers),
            "neuron": np.arange(n_neurons),
        }
        return axes, {"gradient": gradient, "activation": np.broadcast_to(activation[:, None], gradient.shape)}


class Top(Reduction):
    """The largest gradients in absolute value of every row, label and layer, largest first; ties go to the lower index."""

    def __init__(self, n: int = 10) -> None:
        self.n = n
        super().__init__()
        self.settings["top"] = n
        self._neurons: list[Array] = []
        self._gradients: list[Array] = []

    def add(self, gradient: Float[Array, "row label layer neuron"], activation: Float[Array, "row layer neuron"]) -> None:
        chosen = np.argsort(-np.abs(gradient), axis=-1, kind="stable")[..., : self.n]
        self._neurons.append(chosen.astype(np.int32))
        self._gradients.append(np.take_along_axis(gradient, chosen, -1))

    def result(self, layers: Sequence[int]) -> tuple[Axes, Arrays]:
        neuron, gradient = np.concatenate(self._neurons), np.concatenate(self._gradients)
        n_rows, n_labels, _, n_ranks = gradient.shape
        axes = {
            "row": np.arange(n_rows),
            "label": np.arange(n_labels),
            "layer": np.array(layers),
            "rank": np.arange(n_ranks),
        }
        return axes, {"neuron": neuron, "gradient": gradient}


class Mean(Reduction):
    """Over rows: the mean gradient, the mean of its absolute value, how often it is positive, and the rank by the second.

    Rank 0 is the neuron with the largest mean absolute gradient of all layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._n_rows = 0
        self._sum: Any = 0.0
        self._absolute: Any = 0.0
        self._n_positive: Any = 0

    def add(self, gradient: Float[Array, "row label layer neuron"], activation: Float[Array, "row layer neuron"]) -> None:
        self._n_rows += len(gradient)
        self._sum = self._sum + gradient.sum(0, dtype=np.float64)
        self._absolute = self._absolute + np.abs(gradient).sum(0, dtype=np.float64)
        self._n_positive = self._n_positive + (gradient > 0).sum(0)

    def result(self, layers: Sequence[int]) -> tuple[Axes, Arrays]:
        mean_absolute = self._absolute / self._n_rows
        flat = mean_absolute.reshape(len(mean_absolute), -1)
        rank = np.argsort(np.argsort(-flat, axis=1, kind="stable"), axis=1).reshape(mean_absolute.shape)
        axes = {
            "label": np.arange(len(mean_absolute)),
            "layer": np.array(layers),
            "neuron": np.arange(mean_absolute.shape[-1]),
        }
        return axes, {
            "mean": self._sum / self._n_rows,
            "mean_absolute": mean_absolute,
            "positive_share": self._n_positive / self._n_rows,
            "rank": rank,
        }


class Histogram(Reduction):
    """How many gradients fall between two neighbouring EDGES (low <= gradient < high), over rows and neurons."""

    edges: ClassVar[Array] = EDGES

    def __init__(self) -> None:
        super().__init__()
        self._count: Any = 0

    def add(self, gradient: Float[Array, "row label layer neuron"], activation: Float[Array, "row layer neuron"]) -> None:
        n_bins = len(self.edges) - 1
        _, n_labels, n_layers, _ = gradient.shape
        bins = np.searchsorted(self.edges[1:-1], gradient, side="right")
        group = np.arange(n_labels * n_layers).reshape(n_labels, n_layers, 1)
        counted = np.bincount((group * n_bins + bins).ravel(), minlength=n_labels * n_layers * n_bins)
        self._count = self._count + counted.reshape(n_labels, n_layers, n_bins)

    def result(self, layers: Sequence[int]) -> tuple[Axes, Arrays]:
        n_labels, _, n_bins = self._count.shape
        axes = {"label": np.arange(n_labels), "layer": np.array(layers), "bin": np.arange(n_bins)}
        low, high = (np.broadcast_to(edges, self._count.shape) for edges in (self.edges[:-1], self.edges[1:]))
        return axes, {"low": low, "high": high, "count": self._count}


REDUCTIONS: dict[str, type[Reduction]] = {"none": Everything, "top": Top, "mean": Mean, "histogram": Histogram}
