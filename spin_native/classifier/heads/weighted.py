"""SIREN's head: a small perceptron over neurons that are weighted by their layers' validation scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Shaped

from spin_native.classifier.fitting import Rows, Standardizer
from spin_native.classifier.heads.base import OF_SELECTION, SelectedHead, Tensors, checked, no_weights
from spin_native.classifier.parts import Neurons
from spin_native.classifier.settings import Settings
from spin_native.classifier.sparsify import ProbedLayers, Selection
from spin_native.classifier.tasks import Task
from spin_native.probes.importance import Cut

Array = np.ndarray
HIDDEN = (64, 32)
MAX_EPOCHS, PATIENCE = 60, 6
# Weights of the L2 penalty; validation chooses. Thousands of neurons and thousands of rows overfit without one.
ALPHAS = (3.0, 30.0)


@dataclass(frozen=True)
class Perceptron:
    """Layers of W [from, to] and b [to], with max(x, 0) between them. Fitted by scikit-learn, kept as plain arrays."""

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, "_"], ...]

    @classmethod
    def fit(
        cls,
        features: Float[Array, "row feature"],
        labels: Shaped[Array, "row *label"],
        worth: Callable[["Perceptron"], float],
        task: Task,
        seed: int,
        sample_weight: Float[Array, "row"] | None = None,
    ) -> tuple["Perceptron", float]:
        """Adam, epoch by epoch, until `worth` (more is better) has not risen for PATIENCE epochs; the best one, its worth.

        sample_weight: how many times each row counts; None means once.
        """
        targets, shift, spread, arguments = task.network_targets(labels)
        if sample_weight is not None:
            arguments = {**arguments, "sample_weight": sample_weight}
        best: tuple[Perceptron, float] | None = None
        for alpha in ALPHAS:
            random = np.random.RandomState(seed)  # a number would shuffle every epoch alike
            network = task.network_type(
                hidden_layer_sizes=HIDDEN, alpha=alpha, batch_size=min(128, len(features)), random_state=random
            )
            highest, stale = -np.inf, 0
            for _ in range(MAX_EPOCHS):
                network.partial_fit(features, targets, **arguments)
                weights = (*(array.copy() for array in network.coefs_[:-1]), network.coefs_[-1] * spread)
                biases = (*(array.copy() for array in network.intercepts_[:-1]), network.intercepts_[-1] * spread + shift)
                now = cls(weights, biases)
                worth_now = worth(now)
                if best is None or worth_now > best[1]:
                    best = now, worth_now
                highest, stale = (worth_now, 0) if worth_now > highest else (highest, stale + 1)
                if stale == PATIENCE:
                    break
        assert best is not None
        return best

    def scaled(self, factors: Float[Array, "feature"]) -> "Perceptron":
        """The same function of features that are not yet multiplied by `factors`."""
        return Perceptron((self.weights[0] * factors[:, None], *self.weights[1:]), self.biases)

    def scores(self, features: Float[Array, "row feature"]) -> Float[Array, "row score"]:
        """The last layer's output."""
        x = features
        for index, (weights, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (np.maximum(x, 0) if index else x) @ weights + bias
        return x

    def slopes(self, features: Float[Array, "feature"], score: int) -> Float[Array, "feature"]:
        """The derivative of one score by each feature of a row."""
        inputs: Sequence[Array] = [features]
        for weights, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            inputs = [*inputs, np.maximum(inputs[-1] @ weights + bias, 0)]
        slopes = self.weights[-1][:, score]
        for weights, after in zip(self.weights[-2::-1], inputs[:0:-1], strict=True):
            slopes = weights @ (slopes * (after > 0))
        return slopes


@dataclass(frozen=True)
class WeightedHead(SelectedHead):
    """A perceptron over the salient neurons, each layer's weighted by its validation score over the layers' mean."""

    kind = saved_kind = "weighted"
    label = "weighted (SIREN)"
    saved_model = "perceptron"
    options = OF_SELECTION

    model: Perceptron

    @classmethod
    def fit(cls, selection: Selection, train: Rows, validation: Rows, settings: Settings) -> tuple["WeightedHead", float]:
        weights, task = layer_weights(selection, settings), settings.task
        held_out = validation.features * weights

        def worth(model: Perceptron) -> float:
            return settings.worth(settings.score(validation.labels, task.decide(task.outputs(model.scores(held_out)))))

        counts = settings.row_weights(train.labels, train.weights)
        model, best = Perceptron.fit(train.features * weights, train.labels, worth, task, settings.seed, counts)
        head = cls(task, selection.cut, selection.neurons, selection.standardizer, model.scaled(weights))
        return head, settings.worth(best)

    def fit_again(self, layers: ProbedLayers, rows: Rows, settings: Settings) -> "WeightedHead":
        """Itself: the validation rows decide when its training stops, so it cannot learn from them."""
        return self

    def scores(self, standardised: Float32[Array, "row salient"]) -> Float[Array, "row score"]:
        rows = [self.model.scores(row[None]) for row in standardised]
        return np.concatenate([*rows, np.empty((0, len(self.model.biases[-1])))])

    def contributions(self, features: Float32[Array, "1 salient"], score: int) -> Float[Array, "salient"]:
        """Slope times standardised feature."""
        standardised = self.standardizer(features)[0]
        return self.model.slopes(standardised, score) * standardised

    @property
    def weights(self) -> Float[Array, "score salient"]:
        raise no_weights(self.kind)

    def model_tensors(self) -> dict[str, Array]:
        """weights.{i} [from, to] and biases.{i} [to]."""
        tensors = {f"weights.{i}": array for i, array in enumerate(self.model.weights)}
        return tensors | {f"biases.{i}": array for i, array in enumerate(self.model.biases)}

    @classmethod
    def from_tensors(
        cls, task: Task, cut: Cut, neurons: Neurons, standardizer: Standardizer, C: float | None, tensors: Tensors
    ) -> "WeightedHead":
        n_layers = sum(name.startswith("biases.") for name in tensors)
        if any(tensors[f"biases.{i}"].ndim != 1 for i in range(n_layers)):
            raise ValueError("a bias is no list of numbers")
        sizes = [len(standardizer.mean), *(len(tensors[f"biases.{i}"]) for i in range(n_layers))]
        if n_layers < 1 or sizes[-1] != task.n_scores:
            raise ValueError(f"the last of {n_layers} layers has {sizes[-1]} outputs, expected {task.n_scores}")
        weights = tuple(checked(tensors, f"weights.{i}", *sizes[i : i + 2]) for i in range(n_layers))
        biases = tuple(checked(tensors, f"biases.{i}", sizes[i + 1]) for i in range(n_layers))
        return cls(task, cut, neurons, standardizer, Perceptron(weights, biases))


def layer_weights(selection: Selection, settings: Settings) -> Float32[Array, "salient"]:
    """The weight of each selected neuron: its layer's validation score over the mean of the layers.

    1 where the metric is an error, which has no share in a sum of errors, and where no layer scores above 0.
    """
    scores = np.array([max(settings.worth(selection.layers[feature].score), 0.0) for feature in selection.neurons])
    if not scores.any():
        scores = np.ones(len(scores))
    return np.repeat(scores / scores.mean(), [len(chosen) for chosen in selection.neurons.values()]).astype(np.float32)
