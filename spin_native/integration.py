"""One small head over the salient neurons of several layers: SPIN's Sparsify and Integrate (METHOD: arXiv 2311.15983).

Labels are encoded as 0, 1, ...; whatever is chosen is chosen by the validation rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from sklearn.metrics import accuracy_score, f1_score
from tqdm.auto import tqdm

from spin_native.errors import InputError
from spin_native.probes import LogisticProbe
from spin_native.selection import importance, salient
from spin_native.store import Features

Array = np.ndarray
Scaling = Literal["standard", "none"]
Metric = Literal["accuracy", "macro_f1"]

METRICS: dict[Metric, Callable[[Array, Array], float]] = {
    "accuracy": accuracy_score,
    "macro_f1": partial(f1_score, average="macro", zero_division=0),
}


# Where the caller gives no Cs. For the L1 probes, multiples of the smallest C that leaves a weight (glmnet's path): the same
# grid then suits 50 rows and 50,000. For the L2 heads, over the number of features, so that the prior variance of a logit
# does not grow with it. The baseline gets the widest grid.
PROBE_C_TIMES = (3.0, 10.0, 30.0, 100.0)
HEAD_C_TIMES = (1.0, 3.0, 10.0, 30.0)
BASELINE_C_TIMES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


@dataclass(frozen=True)
class Rows:
    """Features and labels of the same rows."""

    features: Float32[Array, "row feature"]
    labels: Int[Array, "row"]


@dataclass(frozen=True)
class Standardizer:
    """Shift and scale of every feature, taken from training rows."""

    mean: Float32[Array, "feature"]
    scale: Float32[Array, "feature"]

    @classmethod
    def of(cls, features: Float32[Array, "row feature"], scaling: Scaling) -> "Standardizer":
        """Mean 0 and variance 1 ("standard"; a constant feature is only shifted), or as they are ("none")."""
        if scaling == "none":
            width = features.shape[1]
            return cls(np.zeros(width, np.float32), np.ones(width, np.float32))
        scale = features.std(axis=0, dtype=np.float64)
        mean = features.mean(axis=0, dtype=np.float64)
        # Rounding leaves a constant feature a spread of some ulps of its value.
        constant = scale <= 1e-6 * np.abs(mean) + np.finfo(np.float32).tiny
        return cls(mean.astype(np.float32), np.where(constant, 1, scale).astype(np.float32))

    def __call__(self, features: Float32[Array, "row feature"]) -> Float32[Array, "row feature"]:
        return (features - self.mean) / self.scale

    def rows(self, rows: Rows) -> Rows:
        return Rows(self(rows.features), rows.labels)

    def take(self, columns: Int[Array, "column"]) -> "Standardizer":
        return Standardizer(self.mean[columns], self.scale[columns])

    @staticmethod
    def join(parts: Sequence["Standardizer"]) -> "Standardizer":
        return Standardizer(np.concatenate([p.mean for p in parts]), np.concatenate([p.scale for p in parts]))


@dataclass(frozen=True)
class Part:
    """The pooled features and labels of some rows: the training, the validation or the test part."""

    features: Features
    labels: Int[Array, "row"]

    def rows(self, site: str, pooling: str, layer: int) -> Rows:
        return Rows(self.features.array(site=site, pooling=pooling, layer=layer), self.labels)


@dataclass(frozen=True)
class Settings:
    """What a sweep tries, and how it compares. See SpinClassifier for each."""

    site: str
    poolings: tuple[str, ...]
    etas: tuple[float, ...]
    Cs: tuple[float, ...] | None
    head_Cs: tuple[float, ...] | None
    scaling: Scaling
    metric: Metric
    seed: int

    def score(self, probe: LogisticProbe, rows: Rows) -> float:
        return float(METRICS[self.metric](rows.labels, probe.predict(rows.features)))

    def best_probe(self, train: Rows, validation: Rows, Cs: Sequence[float], l1_ratio: float) -> tuple[LogisticProbe, float]:
        """The probe whose C does best on the validation rows (of equals, the smallest C), and its score there."""
        probes = [
            LogisticProbe(C=C, l1_ratio=l1_ratio, random_state=self.seed).fit(train.features, train.labels) for C in sorted(Cs)
        ]
        scores = [self.score(probe, validation) for probe in probes]
        best = int(np.argmax(scores))  # the first of equals
        return probes[best], scores[best]


class CurveRow(NamedTuple):
    """One depth of the depth curve, or the baseline.

    depth: layers run. validation, test: scores (test None if no test rows were given). n_neurons: features the head reads.
    pooling, eta, C: chosen by validation (the baseline selects nothing: eta None). site: what the head reads.
    """

    depth: int
    validation: float
    test: float | None
    n_neurons: int
    pooling: str
    eta: float | None
    C: float
    site: str


@dataclass(frozen=True)
class Head:
    """A classifier over the salient neurons of the first layers, laid side by side in the order of `neurons`."""

    pooling: str
    eta: float
    neurons: dict[int, Int[Array, "_"]]
    standardizer: Standardizer
    probe: LogisticProbe

    @property
    def n_neurons(self) -> int:
        return sum(map(len, self.neurons.values()))

    @property
    def places(self) -> list[tuple[int, int]]:
        """(layer, neuron) of each feature the head reads."""
        return [(layer, int(neuron)) for layer, neurons in self.neurons.items() for neuron in neurons]

    def predict_proba(self, features: Float32[Array, "row salient"]) -> Float[Array, "row class"]:
        """Probability of each class from the raw (not standardised) features of the salient neurons."""
        return self.probe.predict_proba(self.standardizer(features))


@dataclass(frozen=True)
class LayerData:
    """One layer under one pooling: standardised rows, and how important its probe found each neuron."""

    train: Rows
    validation: Rows
    standardizer: Standardizer
    importance: Float[Array, "neuron"]


def sweep(
    train: Part, validation: Part, test: Part | None, max_depth: int, settings: Settings, progress: bool | None
) -> tuple[dict[int, Head], dict[int, CurveRow]]:
    """A head and a line of the curve for every depth from 1 to `max_depth` at which some neuron is salient.

    Raises InputError if none is at `max_depth`.
    """
    layers: dict[str, list[LayerData]] = {pooling: [] for pooling in settings.poolings}
    heads: dict[int, Head] = {}
    curve: dict[int, CurveRow] = {}
    hidden_bar = None if progress is None else not progress
    for depth in tqdm(range(1, max_depth + 1), unit=" depths", desc="probe and refit", disable=hidden_bar):
        for pooling, data in layers.items():
            data.append(sparsify(train, validation, pooling, depth - 1, settings))
        if found := integrate(layers, depth, settings):
            heads[depth], score = found
            curve[depth] = curve_row(heads[depth], depth, score, test, settings)
    if max_depth not in heads:
        raise InputError("no neuron of any layer is salient: the probes' C is too small for these rows; give larger Cs")
    return heads, curve


def sparsify(train: Part, validation: Part, pooling: str, layer: int, settings: Settings) -> LayerData:
    """Fit one layer's L1 probe, C by validation, and keep the importance of every neuron in it."""
    raw = train.rows(settings.site, pooling, layer)
    standardizer = Standardizer.of(raw.features, settings.scaling)
    fitted = standardizer.rows(raw)
    held_out = standardizer.rows(validation.rows(settings.site, pooling, layer))
    smallest = smallest_useful_C(fitted)
    probe, _ = settings.best_probe(fitted, held_out, settings.Cs or [smallest * times for times in PROBE_C_TIMES], 1.0)
    return LayerData(fitted, held_out, standardizer, importance(probe.coef_))


def integrate(layers: Mapping[str, Sequence[LayerData]], depth: int, settings: Settings) -> tuple[Head, float] | None:
    """Refit on the salient neurons of layers 0..depth-1; pooling, eta and C by validation (of equals, the fewest neurons).

    layers: pooling -> the layers in order. The head comes with its validation score; None if no layer has a salient neuron.
    """
    best: tuple[Head, float] | None = None
    for pooling, data in layers.items():
        for neurons, eta in _selections(data[:depth], settings.etas):
            chosen = [(data[layer], columns) for layer, columns in neurons.items()]
            train = _side_by_side([(layer.train, columns) for layer, columns in chosen])
            validation = _side_by_side([(layer.validation, columns) for layer, columns in chosen])
            Cs = settings.head_Cs or [times / train.features.shape[1] for times in HEAD_C_TIMES]
            probe, score = settings.best_probe(train, validation, Cs, 0.0)
            standardizer = Standardizer.join([layer.standardizer.take(columns) for layer, columns in chosen])
            head = Head(pooling, eta, neurons, standardizer, probe)
            if best is None or (score, -head.n_neurons) > (best[1], -best[0].n_neurons):
                best = head, score
    return best


def baseline(train: Part, validation: Part, test: Part | None, layer: int, settings: Settings) -> CurveRow:
    """What people do today: L2 logistic regression on the pooled final hidden state; pooling and C by validation.

    layer: how the final hidden state is numbered (n_layers).
    """
    best: CurveRow | None = None
    for pooling in settings.poolings:
        raw = train.rows("hidden", pooling, layer)
        standardizer = Standardizer.of(raw.features, settings.scaling)
        held_out = standardizer.rows(validation.rows("hidden", pooling, layer))
        width = raw.features.shape[1]
        probe, score = settings.best_probe(standardizer.rows(raw), held_out, [times / width for times in BASELINE_C_TIMES], 0.0)
        if best is None or score > best.validation:
            tested = None
            if test is not None:
                tested = settings.score(probe, standardizer.rows(test.rows("hidden", pooling, layer)))
            best = CurveRow(layer, score, tested, width, pooling, None, probe.C, "hidden")
    assert best is not None
    return best


def curve_row(head: Head, depth: int, validation: float, test: Part | None, settings: Settings) -> CurveRow:
    """A depth's line of the curve; the test rows are scored here and nowhere else."""
    tested = None
    if test is not None:
        blocks = [(test.rows(settings.site, head.pooling, layer), columns) for layer, columns in head.neurons.items()]
        tested = settings.score(head.probe, head.standardizer.rows(_side_by_side(blocks)))
    return CurveRow(depth, validation, tested, head.n_neurons, head.pooling, head.eta, head.probe.C, settings.site)


def smallest_useful_C(rows: Rows) -> float:
    """The C below which an L1 probe has no weight at all: one over the largest slope of the summed log-loss at w = 0."""
    slopes = []
    for label in np.unique(rows.labels):
        is_label = rows.labels == label
        slopes.append(float(np.abs((is_label - is_label.mean()).astype(np.float32) @ rows.features).max()))
    return 1 / max(*slopes, float(np.finfo(np.float32).tiny))


def _side_by_side(blocks: Sequence[tuple[Rows, Int[Array, "_"]]]) -> Rows:
    return Rows(np.concatenate([rows.features[:, columns] for rows, columns in blocks], axis=1), blocks[0][0].labels)


def _selections(layers: Sequence[LayerData], etas: Sequence[float]) -> Iterator[tuple[dict[int, Int[Array, "_"]], float]]:
    """The salient neurons of every layer that has any, for each eta; a selection that an earlier eta gave is left out."""
    seen = set()
    for eta in sorted(etas):
        neurons = {index: salient(layer.importance, eta) for index, layer in enumerate(layers)}
        neurons = {index: chosen for index, chosen in neurons.items() if len(chosen)}
        sizes = tuple((index, len(chosen)) for index, chosen in neurons.items())
        if neurons and sizes not in seen:  # selections of growing eta are nested: equal sizes are equal sets
            seen.add(sizes)
            yield neurons, eta
