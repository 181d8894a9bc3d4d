"""Regression: one number per row."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor

from spin_native.classifier.exits import Exit
from spin_native.classifier.tasks.base import Array, Indices, NetworkTargets, Task, check_share
from spin_native.errors import InputError
from spin_native.given import plain, rows_of
from spin_native.probes.probes import LinearProbe
from spin_native.probes.solver import Loss, Squared


def _correlation(of: Callable[..., tuple[float, float]], truth: Array, predicted: Array) -> float:
    """0 for a constant prediction, which correlates with nothing."""
    return float(of(truth, predicted)[0]) if np.ptp(predicted) > 0 and np.ptp(truth) > 0 else 0.0


class Values(Task):
    """One number per row. Encoded: float64; one score, one output."""

    name = "regression"
    metrics = {
        "pearson": partial(_correlation, pearsonr),
        "spearman": partial(_correlation, spearmanr),
        "mse": mean_squared_error,
        "mae": mean_absolute_error,
    }
    less_is_better = ("mse", "mae")
    unfit_rankers = ("class_mean_difference", "predictivity", "intersection_over_union", "average_precision", "gaussian")
    probe_type, network_type = LinearProbe, MLPRegressor
    n_scores = n_outputs = 1
    output_names = ["value"]

    @classmethod
    def learn(cls, labels: Iterable[Any], n_texts: int, what: str) -> "Values":
        values = cls().encode(labels, n_texts, what)
        if len(values) < 4 or np.ptp(values) == 0:
            raise InputError(
                f"{what}: {len(values)} rows with {len(set(values.tolist()))} values; expected 4 or more rows whose values "
                "differ"
            )
        return cls()

    def encode(self, labels: Iterable[Any], n_texts: int, what: str) -> Float64[Array, "row"]:
        values = list(rows_of(labels, f"values of the {what}", "value"))
        if len(values) != n_texts:
            raise InputError(f"{what}: {n_texts} texts but {len(values)} values; expected one value per text")
        numbers = np.empty(n_texts)
        for row, value in enumerate(values):
            try:
                numbers[row] = np.nan if isinstance(value, (bool, np.bool_, bytes)) else float(plain(value))
            except (TypeError, ValueError, OverflowError):
                numbers[row] = np.nan
            if not np.isfinite(numbers[row]):
                raise InputError(f"{what}: the value of row {row} is {value!r}; expected a finite number")
        return numbers

    def to_json(self) -> list[Any]:
        return []

    @classmethod
    def from_json(cls, labels: Sequence[Any]) -> "Values":
        return cls()

    @property
    def label_type(self) -> type:
        return float

    def check_split(self, labels: Shaped[Array, "row"], share: float) -> None:
        check_share(share)
        if int(np.ceil(share * len(labels))) > len(labels) - 2:
            raise InputError(
                f"{len(labels)} rows are too few to split off {share:.0%} for validation and keep two; add rows, or give "
                "validation rows of your own"
            )

    def split(self, labels: Shaped[Array, "row"], share: float, seed: int) -> tuple[Indices, Indices]:
        self.check_split(labels, share)
        train, validation = train_test_split(np.arange(len(labels)), test_size=float(share), random_state=seed)
        self.check_training(labels[train])
        return train, validation

    def check_training(self, labels: Shaped[Array, "_"]) -> None:
        if not len(labels) or np.ptp(labels) == 0:
            raise InputError("training rows: after the split all values are the same; add rows, or choose another seed")

    def one_against_rest(self, labels: Shaped[Array, "row"]) -> list[Shaped[Array, "row"]]:
        return [labels]

    def network_targets(self, labels: Shaped[Array, "row"]) -> NetworkTargets:
        shift, spread = labels.mean(), labels.std() or 1.0
        return NetworkTargets((labels - shift) / spread, shift, spread, {})

    def loss(self, labels: Shaped[Array, "row"]) -> tuple[Loss, Float[Array, "score"]]:
        mean = labels.mean()
        return Squared(torch.from_numpy(labels - mean)[:, None]), np.array([mean])

    def fit_of(self, outputs: Float[Array, "row 1"], labels: Shaped[Array, "row"]) -> Float[Array, "row"]:
        return -np.abs(outputs[:, 0] - labels)

    def contradicts(self, outputs: Float[Array, "row 1"], labels: Shaped[Array, "row"]) -> Bool[Array, "row"]:
        errors = outputs[:, 0] - labels
        return np.abs(errors) > 2 * np.sqrt(np.mean(errors**2))

    def constant(self, labels: Shaped[Array, "row"], weights: Float[Array, "row"] | None = None) -> LinearProbe:
        """The mean value."""
        mean = labels.mean() if weights is None else np.average(labels, weights=weights)
        return LinearProbe.from_weights(np.zeros((1, 0)), np.array([mean]))

    def check_exit(self, exit_: Exit) -> None:
        if exit_.by != "fixed":
            raise InputError(f"exit {str(exit_)!r} needs classes; a regression exits at a fixed depth")

    def outputs(self, scores: Float[Array, "row 1"]) -> Float[Array, "row 1"]:
        return scores

    def decide(self, outputs: Float[Array, "row 1"]) -> Float[Array, "row"]:
        return outputs[:, 0]

    def answers(self, outputs: Float[Array, "row 1"]) -> Float[Array, "row"]:
        return outputs[:, 0]

    def explained(self, output: Float[Array, "1"]) -> tuple[int, int]:
        return 0, 1

    def columns(self, outputs: Float[Array, "row 1"]) -> dict[str, Array]:
        return {"predicted_value": outputs[:, 0]}

    def described(self, output: Float[Array, "1"]) -> dict[str, Any]:
        return {"value": float(output[0])}

    def shown(self, output: Float[Array, "1"]) -> str:
        return f"{output[0]:.4f}"
