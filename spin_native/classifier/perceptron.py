"""A small perceptron over the salient neurons: SIREN's head. Fitted by scikit-learn, kept as plain arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.neural_network import MLPClassifier, MLPRegressor

from spin_native.probes.probes import probabilities

Array = np.ndarray
HIDDEN = (64, 32)
MAX_EPOCHS, PATIENCE = 60, 6
# Weights of the L2 penalty, validation chooses: thousands of neurons over thousands of rows are learnt by heart otherwise.
ALPHAS = (3.0, 30.0)


@dataclass(frozen=True)
class Perceptron:
    """Layers of W [from, to] and b [to], with max(x, 0) between them. One output for two classes or a value.

    classes: how many; 0 for a regression.
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, "_"], ...]
    n_classes: int

    @classmethod
    def fit(
        cls,
        features: Float[Array, "row feature"],
        labels: Shaped[Array, "row"],
        score: Callable[["Perceptron"], float],
        seed: int,
    ) -> tuple["Perceptron", float]:
        """Adam, an epoch at a time, until `score` (more is better) has not risen for PATIENCE epochs; the best is kept."""
        is_regression = labels.dtype.kind == "f"
        n_classes = 0 if is_regression else int(labels.max()) + 1
        shift, spread = (labels.mean(), labels.std() or 1.0) if is_regression else (0, 1)
        targets = (labels - shift) / spread if is_regression else labels
        given = {} if is_regression else {"classes": np.arange(n_classes)}
        best: tuple[Perceptron, float] | None = None
        for alpha in ALPHAS:
            random = np.random.RandomState(seed)  # a number would shuffle every epoch alike
            model = (MLPRegressor if is_regression else MLPClassifier)(
                hidden_layer_sizes=HIDDEN, alpha=alpha, batch_size=min(128, len(features)), random_state=random
            )
            highest, stale = -np.inf, 0
            for _ in range(MAX_EPOCHS):
                model.partial_fit(features, targets, **given)
                weights = (*(array.copy() for array in model.coefs_[:-1]), model.coefs_[-1] * spread)
                biases = (*(array.copy() for array in model.intercepts_[:-1]), model.intercepts_[-1] * spread + shift)
                now = cls(weights, biases, n_classes)
                worth = score(now)
                if best is None or worth > best[1]:
                    best = now, worth
                highest, stale = (worth, 0) if worth > highest else (highest, stale + 1)
                if stale == PATIENCE:
                    break
        assert best is not None
        return best

    def scaled(self, factors: Float[Array, "feature"]) -> "Perceptron":
        """The same function of features that are yet to be multiplied by `factors`."""
        return Perceptron((self.weights[0] * factors[:, None], *self.weights[1:]), self.biases, self.n_classes)

    def scores(self, features: Float[Array, "row feature"]) -> Float[Array, "row output"]:
        """What the last layer gives."""
        x = features
        for index, (weights, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (np.maximum(x, 0) if index else x) @ weights + bias
        return x

    def slopes(self, features: Float[Array, "feature"], output: int) -> Float[Array, "feature"]:
        """How much one output rises with each feature of a row."""
        inputs: Sequence[Array] = [features]
        for weights, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            inputs = [*inputs, np.maximum(inputs[-1] @ weights + bias, 0)]
        slopes = self.weights[-1][:, output]
        for weights, after in zip(self.weights[-2::-1], inputs[:0:-1], strict=True):
            slopes = weights @ (slopes * (after > 0))
        return slopes

    def predict_proba(self, features: Float[Array, "row feature"]) -> Float[Array, "row class"]:
        """Probability of each class."""
        return probabilities(self.scores(features))

    def predict(self, features: Float[Array, "row feature"]) -> Shaped[Array, "row"]:
        """The most probable class of each row, or its value."""
        return self.predict_proba(features).argmax(1) if self.n_classes else self.scores(features)[:, 0]
