"""Temporary, until classifier/tasks.py exists: then `clf.task_` replaces `task_of(clf)`, and this file is deleted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.metrics import confusion_matrix

from spin_native.classifier.estimators import SpinClassifier, SpinRegressor
from spin_native.classifier.integration import METRICS, Task
from spin_native.classifier.labels import checked_labels, checked_values, encoded

Outputs = Float[np.ndarray, "row output"]
Output = Float[np.ndarray, "output"]


class _Classes:
    name = "classification"

    def __init__(self, clf: SpinClassifier) -> None:
        self._classes = clf.classes_
        self.output_names = clf.output_names()

    def columns(self, outputs: Outputs) -> dict[str, np.ndarray]:
        probabilities = {f"probability_{label}": outputs[:, index] for index, label in enumerate(self._classes)}
        return {"predicted_label": self._classes[outputs.argmax(1)], **probabilities}

    def described(self, output: Output) -> dict[str, Any]:
        label = self._classes[output.argmax()].item()
        return {"label": label, "probabilities": dict(zip(map(str, self._classes), output.tolist(), strict=True))}

    def shown(self, output: Output) -> str:
        return f"{self._classes[output.argmax()].item()}\t{output.max():.4f}"

    def evaluate(self, outputs: Outputs, labels: Sequence[Any], what: str) -> dict[str, Any]:
        classes = self._classes.tolist()
        truth = encoded(checked_labels(labels, len(outputs), what), classes, what)
        predicted = outputs.argmax(1)
        return {
            **_scores("classification", truth, predicted),
            "confusion": confusion_matrix(truth, predicted, labels=range(len(classes))).tolist(),
            "labels": classes,
            "rows": len(outputs),
        }


class _Values:
    name = "regression"
    output_names = ["value"]

    def columns(self, outputs: Outputs) -> dict[str, np.ndarray]:
        return {"predicted_value": outputs[:, 0]}

    def described(self, output: Output) -> dict[str, Any]:
        return {"value": float(output[0])}

    def shown(self, output: Output) -> str:
        return f"{output[0]:.4f}"

    def evaluate(self, outputs: Outputs, labels: Sequence[Any], what: str) -> dict[str, Any]:
        values = checked_values(labels, len(outputs), what)
        return {**_scores("regression", values, outputs[:, 0]), "rows": len(outputs)}


def _scores(task: Task, truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    return {name: float(metric(truth, predicted)) for name, metric in METRICS[task].items()}


def task_of(clf: SpinClassifier | SpinRegressor) -> _Classes | _Values:
    """What a fitted classifier's labels mean."""
    return _Values() if isinstance(clf, SpinRegressor) else _Classes(clf)
