"""One small head over the salient neurons of several layers: Sparsify, then Integrate (SPIN, arXiv 2311.15983), and its kin.

Sparsify: a linear probe for every layer, and from it an importance for every neuron. Integrate: for every depth a head over the
salient neurons of the layers below it; what is tried (views, cuts, C) is decided by the validation rows. What was chosen may
be fitted once more, on training and validation rows together (final_rows); the test rows are read once, for the curve. Labels
are 0, 1, ... for a classification, values for a regression.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error
from tqdm.auto import tqdm

from spin_native.classifier.perceptron import Perceptron
from spin_native.features.store import Feature, Features
from spin_native.probes.controls import bottom, control_task, random_neurons
from spin_native.probes.importance import RANKERS, Cut, importance
from spin_native.probes.probes import LinearProbe, LogisticProbe, probabilities

Array = np.ndarray
Task = Literal["classification", "regression"]
Scaling = Literal["standard", "none"]
HeadKind = Literal["refit", "frozen", "weighted"]
Mixing = Literal["apart", "together", "best"]
PhaseTwo = Literal["seen", "unseen", "both"]
FinalRows = Literal["all", "training"]
Metric = Literal["accuracy", "macro_f1", "pearson", "spearman", "mse", "mae"]
Probe = LogisticProbe | LinearProbe


def _correlation(of: Callable[..., tuple[float, float]], truth: Array, predicted: Array) -> float:
    """0 for a constant prediction, which correlates with nothing."""
    return float(of(truth, predicted)[0]) if np.ptp(predicted) > 0 and np.ptp(truth) > 0 else 0.0


METRICS: dict[Task, dict[Metric, Callable[[Array, Array], float]]] = {
    "classification": {"accuracy": accuracy_score, "macro_f1": partial(f1_score, average="macro", zero_division=0)},
    "regression": {
        "pearson": partial(_correlation, pearsonr),
        "spearman": partial(_correlation, spearmanr),
        "mse": mean_squared_error,
        "mae": mean_absolute_error,
    },
}
LESS_IS_BETTER = ("mse", "mae")

# Where the caller gives no Cs. For the L1 probes, multiples of the smallest C that leaves a weight (glmnet's path): the same
# grid then suits 50 rows and 50,000. For the L2 heads, over the number of features, so that the prior variance of a logit
# does not grow with it. The baseline gets the widest grid.
PROBE_C_TIMES = (3.0, 10.0, 30.0, 100.0)
HEAD_C_TIMES = (0.3, 1.0, 3.0, 10.0)
BASELINE_C_TIMES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
TOL = 1e-4  # of the objective: a hundred times below what a validation score can see


@dataclass(frozen=True)
class Rows:
    """Features and labels of the same rows."""

    features: Float32[Array, "row feature"]
    labels: Shaped[Array, "row"]

    def joined(self, other: "Rows") -> "Rows":
        return Rows(np.concatenate([self.features, other.features]), np.concatenate([self.labels, other.labels]))


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

    def take(self, columns: Int[Array, "column"]) -> "Standardizer":
        return Standardizer(self.mean[columns], self.scale[columns])

    @staticmethod
    def join(parts: Sequence["Standardizer"]) -> "Standardizer":
        return Standardizer(np.concatenate([p.mean for p in parts]), np.concatenate([p.scale for p in parts]))


@dataclass(frozen=True)
class Part:
    """The pooled features and labels of some rows: the training, the validation or the test part.

    columns: which neurons of a feature were kept (sorted), where not all were. rows: which rows count; None: all.
    """

    features: Features
    labels: Shaped[Array, "_"]
    columns: Mapping[Feature, Int[Array, "_"]] | None = None
    rows: Int[Array, "_"] | None = None

    def take(self, feature: Feature, neurons: Int[Array, "neuron"] | None = None) -> Float32[Array, "row neuron"]:
        """Some neurons of a feature (None: all there are)."""
        if neurons is not None and not len(neurons):
            return np.empty((len(self.labels), 0), np.float32)  # of a feature that may not have been extracted at all
        array = self.features.array(**feature._asdict())
        if neurons is not None:
            if self.columns is not None and feature in self.columns:
                neurons = np.searchsorted(self.columns[feature], neurons)
            array = array.take(neurons, axis=1)  # array[:, neurons] would lie in memory column by column
        return array if self.rows is None else array[self.rows]

    def only(self, rows: Int[Array, "_"]) -> "Part":
        """Some of the rows."""
        return Part(self.features, self.labels[rows], self.columns, rows if self.rows is None else self.rows[rows])


@dataclass(frozen=True)
class Settings:
    """What a sweep tries, and how it compares. See SpinClassifier for each."""

    task: Task
    sites: tuple[str, ...]
    poolings: tuple[str, ...]
    mixing: Mixing
    head: HeadKind
    ranker: str
    cuts: tuple[Cut, ...]
    Cs: tuple[float, ...] | None
    head_Cs: tuple[float, ...] | None
    scaling: Scaling
    final_rows: FinalRows
    metric: Metric
    seed: int

    @property
    def sources(self) -> list[tuple[str, str]]:
        """Each (site, pooling)."""
        return [(site, pooling) for site in self.sites for pooling in self.poolings]

    @property
    def views(self) -> list[list[tuple[str, str]]]:
        """What one head may read of a layer: one source, or all of them."""
        apart = [[source] for source in self.sources]
        together = [self.sources] if len(self.sources) > 1 or self.mixing == "together" else []
        return {"apart": apart, "together": together, "best": apart + together}[self.mixing]

    def worth(self, score: float) -> float:
        """A score such that more is better."""
        return -score if self.metric in LESS_IS_BETTER else score

    def score(self, truth: Shaped[Array, "row"], predicted: Shaped[Array, "row"]) -> float:
        return float(METRICS[self.task][self.metric](truth, predicted))

    def best_probe(self, train: Rows, validation: Rows, Cs: Sequence[float], l1_ratio: float) -> tuple[Probe, float]:
        """The probe whose C does best on the validation rows (of equals, the smallest C), and its score there."""
        probe_type = LogisticProbe if self.task == "classification" else LinearProbe
        probes = probe_type(l1_ratio=l1_ratio, tol=TOL).fit_path(train.features, train.labels, sorted(Cs))
        scores = [self.score(validation.labels, probe.predict(validation.features)) for probe in probes]
        best = int(np.argmax([self.worth(score) for score in scores]))  # the first of equals
        return probes[best], scores[best]


class CurveRow(NamedTuple):
    """One depth of the depth curve, one layer of the layer curve, or the baseline.

    depth: layers run (in the layer curve: the layer's index + 1). validation: the score that chose, of a fit on training rows
    alone. test: the score of what is kept, after the last fit (see final_rows); None if no test rows were given. n_neurons:
    features that are read. pooling, eta, C: chosen by validation (eta: the share, or the number, of the cut; None where nothing
    is cut). site: what is read. Where several are read together, their names with a + between.
    """

    depth: int
    validation: float
    test: float | None
    n_neurons: int
    pooling: str
    eta: float | int | None
    C: float | None
    site: str


@dataclass(frozen=True)
class Head:
    """A classifier or regression over the salient neurons of the first layers, side by side in the order of `neurons`."""

    kind: HeadKind
    cut: Cut
    neurons: dict[Feature, Int[Array, "_"]]
    standardizer: Standardizer
    model: Probe | Perceptron

    @property
    def n_neurons(self) -> int:
        return sum(map(len, self.neurons.values()))

    @property
    def places(self) -> list[tuple[Feature, int]]:
        """(feature, neuron) of each column the head reads."""
        return [(feature, int(neuron)) for feature, neurons in self.neurons.items() for neuron in neurons]

    @property
    def C(self) -> float | None:
        return None if isinstance(self.model, Perceptron) else self.model.C

    def names(self, of: str) -> str:
        """The sites or the poolings that are read."""
        return "+".join(dict.fromkeys(getattr(feature, of) for feature in self.neurons))

    def predict(self, features: Float32[Array, "row salient"]) -> Shaped[Array, "row"]:
        """Labels, or values, from raw (not standardised) features of the salient neurons."""
        outputs = self.output(features)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs.argmax(1)

    def output(self, features: Float32[Array, "row salient"]) -> Float[Array, "row _"]:
        """Probabilities [row, class], or values [row, 1]; of a row the same bits, whatever other rows there are."""
        # In row order: the sums of a row of another order, or of a single row, are taken in another order, too.
        standardised = np.ascontiguousarray(self.standardizer(features))
        if not isinstance(self.model, Perceptron):
            scores = np.einsum("rf,of->ro", standardised, self.model.coef_) + self.model.intercept_
            return scores if isinstance(self.model, LinearProbe) else probabilities(scores)
        rows = [self.model.scores(row[None]) for row in standardised]
        scores = np.concatenate([*rows, np.empty((0, len(self.model.biases[-1])))])
        return probabilities(scores) if self.model.n_classes else scores

    def read(self, part: Part) -> Float32[Array, "row salient"]:
        """The raw features that the head reads."""
        return np.concatenate([part.take(feature, neurons) for feature, neurons in self.neurons.items()], axis=1)


@dataclass(frozen=True)
class LayerData:
    """One layer under one pooling: how it is standardised, its probe, and how important each neuron is."""

    feature: Feature
    standardizer: Standardizer
    probe: Probe
    score: float
    importance: Float[Array, "neuron"]

    @property
    def used(self) -> Int[Array, "used"]:
        """Every neuron with any weight or importance: all that will be asked for."""
        return np.flatnonzero((self.importance > 0) | (self.probe.coef_ != 0).any(0))


Layers = dict[Feature, LayerData]


def sparsify(train: Part, validation: Part, max_depth: int, settings: Settings, progress: bool | None) -> Layers:
    """Probe every layer, and rank its neurons."""
    wanted = [Feature(site, pooling, layer) for layer in range(max_depth) for site, pooling in settings.sources]
    hidden_bar = None if progress is None else not progress
    return {
        feature: _sparsify_layer(train, validation, feature, settings)
        for feature in tqdm(wanted, unit=" layers", desc="probe", disable=hidden_bar)
    }


def _sparsify_layer(train: Part, validation: Part, feature: Feature, settings: Settings) -> LayerData:
    """One layer's L1 probe, C by validation."""
    raw = train.take(feature)
    standardizer = Standardizer.of(raw, settings.scaling)
    fitted = Rows(standardizer(raw), train.labels)
    held_out = Rows(standardizer(validation.take(feature)), validation.labels)
    smallest = smallest_useful_C(fitted)
    probe, score = settings.best_probe(fitted, held_out, settings.Cs or [smallest * times for times in PROBE_C_TIMES], 1.0)
    if settings.ranker in RANKERS:
        found = RANKERS[settings.ranker](fitted.features, fitted.labels)
    else:
        found = importance(probe.coef_, settings.ranker)  # type: ignore[arg-type]
    return LayerData(feature, standardizer, probe, score, found)


def integrate(
    layers: Layers,
    train: Part,
    validation: Part,
    test: Part | None,
    max_depth: int,
    settings: Settings,
    progress: bool | None,
) -> tuple[dict[int, Head], dict[int, CurveRow]]:
    """A head and a line of the curve for every depth from 1 to `max_depth` at which some neuron is salient."""
    heads: dict[int, Head] = {}
    curve: dict[int, CurveRow] = {}
    hidden_bar = None if progress is None else not progress
    for depth in tqdm(range(1, max_depth + 1), unit=" depths", desc="integrate", disable=hidden_bar):
        if found := _best_head(layers, train, validation, depth, settings):
            head, score = found
            heads[depth] = head = _last_fit(head, layers, train, validation, settings)
            tested = None if test is None else settings.score(test.labels, head.predict(head.read(test)))
            curve[depth] = curve_row(depth, score, tested, head)
    return heads, curve


def _best_head(layers: Layers, train: Part, validation: Part, depth: int, settings: Settings) -> tuple[Head, float] | None:
    """The head at one depth; view, cut and C by validation (of equals, the fewest neurons). None if no neuron is salient."""
    best: tuple[Head, float] | None = None
    for view in settings.views:
        data = [layer for layer in layers.values() if layer.feature.layer < depth and layer.feature[:2] in view]
        selections = list(_selections(data, settings.cuts))
        if not selections:
            continue
        # Larger cuts hold what smaller ones do: gather and standardise once.
        widest: dict[Feature, Int[Array, "_"]] = {}
        for neurons, _ in selections:
            for feature, chosen in neurons.items():
                widest[feature] = np.union1d(widest.get(feature, chosen), chosen)
        widest = {layer.feature: widest[layer.feature] for layer in data if layer.feature in widest}
        standardizer = Standardizer.join([layers[feature].standardizer.take(chosen) for feature, chosen in widest.items()])
        wide = [
            standardizer(np.concatenate([part.take(feature, neurons) for feature, neurons in widest.items()], axis=1))
            for part in (train, validation)
        ]
        starts = dict(zip(widest, np.cumsum([0, *map(len, widest.values())]), strict=False))
        for neurons, cut in selections:
            columns = np.concatenate(
                [starts[feature] + np.searchsorted(widest[feature], chosen) for feature, chosen in neurons.items()]
            )
            rows = [
                Rows(features.take(columns, axis=1), part.labels)
                for features, part in zip(wide, (train, validation), strict=True)
            ]
            model, score = FITTERS[settings.head]([(layers[f], n) for f, n in neurons.items()], *rows, settings)
            head = Head(settings.head, cut, neurons, standardizer.take(columns), model)
            if best is None or _is_better(head, score, best, settings):
                best = head, score
    return best


def _last_fit(head: Head, layers: Layers, train: Part, validation: Part, settings: Settings) -> Head:
    """The chosen head, with its C, fitted on the validation rows as well, which have nothing left to choose.

    A perceptron stays: validation rows stop its training.
    """
    if settings.final_rows == "training" or isinstance(head.model, Perceptron):
        return head
    seen, held_out = (Rows(head.standardizer(head.read(part)), part.labels) for part in (train, validation))
    rows = seen.joined(held_out)
    chosen = [(layers[feature], neurons) for feature, neurons in head.neurons.items()]
    model, _ = FITTERS[head.kind](chosen, rows, rows, replace(settings, head_Cs=(head.model.C,)))
    return replace(head, model=model)


def _is_better(head: Head, score: float, than: tuple[Head, float], settings: Settings) -> bool:
    return (settings.worth(score), -head.n_neurons) > (settings.worth(than[1]), -than[0].n_neurons)


Chosen = Sequence[tuple[LayerData, Int[Array, "_"]]]


def _refit(_chosen: Chosen, train: Rows, validation: Rows, settings: Settings) -> tuple[Probe, float]:
    """SPIN: a new L2 regression on the neurons themselves."""
    width = train.features.shape[1]
    return settings.best_probe(train, validation, settings.head_Cs or [times / width for times in HEAD_C_TIMES], 0.0)


def _frozen(chosen: Chosen, train: Rows, validation: Rows, settings: Settings) -> tuple[Probe, float]:
    """Liu, phase 2: the layers' probes, pruned to their salient neurons, stay as they are; a dense layer joins their outputs.

    Both levels are linear, so that the head is told as the one linear map they make together.
    """
    n_outputs = len(chosen[0][0].probe.coef_)
    frozen = np.zeros((train.features.shape[1], len(chosen) * n_outputs))
    start = 0
    for index, (layer, neurons) in enumerate(chosen):
        frozen[start : start + len(neurons), index * n_outputs : (index + 1) * n_outputs] = layer.probe.coef_[:, neurons].T
        start += len(neurons)
    # Told in float32: a float64 factor would have all features copied to float64.
    frozen /= Standardizer.of(train.features @ frozen.astype(np.float32), "standard").scale
    below, held_out = (Rows(rows.features @ frozen.astype(np.float32), rows.labels) for rows in (train, validation))
    width = frozen.shape[1]
    probe, score = settings.best_probe(below, held_out, settings.head_Cs or [times / width for times in BASELINE_C_TIMES], 0.0)
    return probe.through(frozen.T), score


def _weighted(chosen: Chosen, train: Rows, validation: Rows, settings: Settings) -> tuple[Perceptron, float]:
    """SIREN: every layer's neurons weighted by its validation score over the layers' sum, then a small perceptron."""
    worth = np.array([max(settings.worth(layer.score), 0.0) for layer, _ in chosen])
    if settings.metric in LESS_IS_BETTER or not worth.any():  # an error has no share in a sum of errors
        worth = np.ones(len(chosen))
    weights = np.repeat(worth / worth.mean(), [len(neurons) for _, neurons in chosen]).astype(np.float32)
    held_out = validation.features * weights

    def worth_of(model: Perceptron) -> float:
        return settings.worth(settings.score(validation.labels, model.predict(held_out)))

    model, best = Perceptron.fit(train.features * weights, train.labels, worth_of, settings.seed)
    return model.scaled(weights), settings.worth(best)


FITTERS: dict[HeadKind, Callable[..., tuple[Probe | Perceptron, float]]] = {
    "refit": _refit,
    "frozen": _frozen,
    "weighted": _weighted,
}


def baseline(train: Part, validation: Part, test: Part | None, layer: int, settings: Settings) -> tuple[CurveRow, bool]:
    """What people do today: L2 regression on the pooled final hidden state; pooling and C by validation.

    layer: how the final hidden state is numbered (n_layers). With its line: whether the solver converged.
    """

    def rows_of(part: Part, feature: Feature) -> Rows:
        return Rows(standardizers[feature](part.take(feature)), part.labels)

    standardizers, found = {}, {}
    for pooling in settings.poolings:
        feature = Feature("hidden", pooling, layer)
        standardizers[feature] = Standardizer.of(train.take(feature), settings.scaling)
        fitted, held_out = rows_of(train, feature), rows_of(validation, feature)
        Cs = [times / fitted.features.shape[1] for times in BASELINE_C_TIMES]
        found[feature] = settings.best_probe(fitted, held_out, Cs, 0.0)
    feature = max(found, key=lambda feature: settings.worth(found[feature][1]))  # the first of equals
    probe, score = found[feature]
    if settings.final_rows == "all":
        rows = rows_of(train, feature).joined(rows_of(validation, feature))
        (probe,) = probe.fit_path(rows.features, rows.labels, [probe.C])
    tested = None
    if test is not None:
        tested = settings.score(test.labels, probe.predict(rows_of(test, feature).features))
    width = probe.coef_.shape[1]
    return CurveRow(layer, score, tested, width, feature.pooling, None, probe.C, "hidden"), probe.converged_


def layer_curve(layers: Layers, test: Part | None, settings: Settings) -> list[CurveRow]:
    """One probe on each single layer (Liu, figure 4); of several poolings the one that validation prefers."""
    best: dict[tuple[str, int], LayerData] = {}
    for data in layers.values():
        key = data.feature.site, data.feature.layer
        if key not in best or settings.worth(data.score) > settings.worth(best[key].score):
            best[key] = data
    rows = []
    for (site, layer), data in sorted(best.items()):
        tested = None
        if test is not None:
            used = data.used
            cut = settings.cuts[0]  # says nothing here
            head = Head("refit", cut, {data.feature: used}, data.standardizer.take(used), data.probe.only(used))
            tested = settings.score(test.labels, head.predict(head.read(test)))
        n_neurons = int((data.probe.coef_ != 0).any(0).sum())
        rows.append(CurveRow(layer + 1, data.score, tested, n_neurons, data.feature.pooling, None, data.probe.C, site))
    return rows


class Controls(NamedTuple):
    """What the salient neurons are worth: the validation score of a new L2 regression on them, on as many random neurons of
    each layer, on as many of the least important ones; and on the same neurons with shuffled labels. selectivity: the score
    minus that on shuffled labels.
    """

    salient: float
    random: float
    bottom: float
    shuffled: float
    selectivity: float


def controls(head: Head, layers: Layers, train: Part, validation: Part, settings: Settings) -> Controls:
    """Refit on the head's neurons and on their controls (needs the features of all neurons)."""

    def refit(neurons: Mapping[Feature, Array], shuffle: bool = False) -> float:
        standardizer = Standardizer.join([layers[f].standardizer.take(n) for f, n in neurons.items()])
        rows = []
        for part in (train, validation):
            features = np.concatenate([part.take(f, n) for f, n in neurons.items()], axis=1)
            labels = control_task(part.labels, settings.seed) if shuffle else part.labels
            rows.append(Rows(standardizer(features), labels))
        return _refit([], rows[0], rows[1], settings)[1]

    sizes = {f: (len(layers[f].importance), len(n)) for f, n in head.neurons.items()}
    drawn = {f: random_neurons(width, n, settings.seed + f.layer) for f, (width, n) in sizes.items()}
    least = {f: bottom(layers[f].importance, n) for f, (_, n) in sizes.items()}
    score, shuffled = refit(head.neurons), refit(head.neurons, shuffle=True)
    return Controls(score, refit(drawn), refit(least), shuffled, score - shuffled)


def constant_head(labels: Shaped[Array, "row"], feature: Feature, settings: Settings) -> Head:
    """The most frequent class, or the mean value, for everybody; `feature` is where it does not look."""
    coef = np.zeros((1, 0))
    if settings.task == "regression":
        model: Probe = LinearProbe.from_weights(coef, np.array([labels.mean()]))
    else:
        shares = np.bincount(labels) / len(labels)
        scores = np.log(shares[1:] / shares[:1]) if len(shares) == 2 else np.log(np.maximum(shares, 1e-300))
        model = LogisticProbe.from_weights(np.zeros((len(scores), 0)), scores)
    nothing = np.empty(0, dtype=np.int64)
    empty = np.empty(0, dtype=np.float32)
    return Head("refit", settings.cuts[0], {feature: nothing}, Standardizer(empty, empty), model)


def smallest_useful_C(rows: Rows) -> float:
    """The C below which an L1 probe has no weight at all: one over the largest slope of the summed loss at w = 0."""
    labels = rows.labels
    targets = [labels] if labels.dtype.kind == "f" else [labels == label for label in np.unique(labels)]
    slopes = [float(np.abs((target - target.mean()).astype(np.float32) @ rows.features).max()) for target in targets]
    return 1 / max(*slopes, float(np.finfo(np.float32).tiny))


def curve_row(depth: int, validation: float, tested: float | None, head: Head) -> CurveRow:
    pooling, site = head.names("pooling"), head.names("site")
    return CurveRow(depth, validation, tested, head.n_neurons, pooling, head.cut.amount, head.C, site)


def _selections(layers: Sequence[LayerData], cuts: Sequence[Cut]) -> Iterator[tuple[dict[Feature, Int[Array, "_"]], Cut]]:
    """The salient neurons of every layer that has any, for each cut; a selection that an earlier cut gave is left out."""
    seen = set()
    for cut in sorted(cuts, key=lambda cut: cut.amount):
        neurons = {layer.feature: cut(layer.importance) for layer in layers}
        neurons = {feature: chosen for feature, chosen in neurons.items() if len(chosen)}
        sizes = tuple((feature, len(chosen)) for feature, chosen in neurons.items())
        if neurons and sizes not in seen:  # selections of growing cuts are nested: equal sizes are equal sets
            seen.add(sizes)
            yield neurons, cut
