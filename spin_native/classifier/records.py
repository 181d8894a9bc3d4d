"""The fields of `spin_classifier.json`, each with its type, and what must hold between them."""

from typing import Annotated, Literal, get_type_hints

import msgspec
from msgspec import Meta

from spin_native.classifier.curve_rows import Controls, CurveRow
from spin_native.classifier.settings import HeadName
from spin_native.classifier.tasks import Metric, TaskName
from spin_native.disk import Count
from spin_native.features.pooling import Pooling
from spin_native.features.spec import Site
from spin_native.probes.importance import Cut

Depth = Annotated[int, Meta(ge=1, le=10_000)]
Share = Annotated[float, Meta(gt=0, lt=1)]
Label = str | int | bool
LabelWithThreshold = tuple[str | int, Annotated[float, Meta(ge=0, le=1)]]  # of several labels per row
Setting = str | int | float | bool | None

# The rows of the curves as objects; a score that is no finite number is null in JSON.
CurveRecord = msgspec.defstruct("CurveRecord", list((get_type_hints(CurveRow) | {"validation": float | None}).items()))
ControlsRecord = msgspec.defstruct("ControlsRecord", [(name, float | None) for name in Controls._fields])


class FormatRecord(msgspec.Struct):
    """What every format has."""

    format: Setting = None


class TensorsRecord(msgspec.Struct):
    """Which tensors belong to the description: the sha256 of their file."""

    head_sha256: str


class BaseModelRecord(msgspec.Struct):
    """The base model, the number of its layers that are run, and the sha256 of their weights and of the tokenizer."""

    name: str
    revision: str | None
    depth: Depth
    fingerprint: str
    tokenizer_fingerprint: str


class ReadRecord(msgspec.Struct):
    """A feature that a head reads, and how many of its neurons."""

    site: Site
    pooling: Pooling
    layer: Annotated[int, Meta(ge=0, le=10_000)]
    salient_neurons: Count


class HeadRecord(msgspec.Struct):
    """One head. Its numbers are in the tensors."""

    kind: HeadName
    reads: Annotated[list[ReadRecord], Meta(min_length=1)]
    cut: Cut
    C: Annotated[float, Meta(gt=0)] | None
    model: Literal["linear", "perceptron"]


class ComparisonRecord(msgspec.Struct):
    """A head against a baseline; see comparisons.Comparison."""

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None


class BaselineRecord(msgspec.Struct):
    """A baseline; see baselines.Baseline."""

    row: CurveRecord  # type: ignore[valid-type]
    held_out: ComparisonRecord | None
    test: ComparisonRecord | None


class PromiseRecord(msgspec.Struct):
    """The result of a calibration; see exits.Promise."""

    exit: str
    max_accuracy_drop: Share
    confidence: Share
    n_rows: Count
    n_harmed: Count
    mean_depth: Annotated[float, Meta(ge=0)]
    n_texts: Count | None = None
    dtype: str | None = None


class ErrorPromiseRecord(msgspec.Struct):
    """The result of a calibration with max_error; see risk.ErrorPromise."""

    exit: str
    max_error: Share
    confidence: Share
    n_rows: Count
    n_texts: Count
    n_answered: Count
    n_wrong: Count
    mean_depth: Annotated[float, Meta(ge=0)]
    dtype: str | None = None


class HiddenClassRecord(msgspec.Struct):
    """A class that accuracy hides; see tasks.classes.hidden_classes."""

    label: Label
    rows: Count
    recognised: Count


class BesideAccuracyRecord(msgspec.Struct):
    """What accuracy does not say; see Task.beside_accuracy."""

    majority_share: float
    macro_f1: float
    hidden_classes: list[HiddenClassRecord]


class ScoresRecord(msgspec.Struct):
    """What the fit measured."""

    metric: Metric
    depth_curve: list[CurveRecord]  # type: ignore[valid-type]
    layer_curve: list[CurveRecord]  # type: ignore[valid-type]
    controls: ControlsRecord | None  # type: ignore[valid-type]
    unconverged: list[str]
    baseline: CurveRecord | None = None  # type: ignore[valid-type]  # where there are no baselines: of earlier versions
    baselines: dict[str, BaselineRecord] | None = None
    suspicious_rows: list[Count] | None = None
    beside_accuracy: BesideAccuracyRecord | None = None  # of a regression, and in earlier versions, none


class NeuronExamplesRecord(msgspec.Struct):
    """One neuron, and the training rows in which its feature is largest and smallest."""

    site: Site
    pooling: Pooling
    layer: Annotated[int, Meta(ge=0, le=10_000)]
    neuron: Count
    highest: list[Count]
    lowest: list[Count]


class ExamplesRecord(msgspec.Struct):
    """Training rows that excite neurons; see examples.Examples."""

    neurons: list[NeuronExamplesRecord]
    texts: dict[int, str] | None


class Description(msgspec.Struct):
    """The whole file."""

    head_sha256: str
    task: TaskName
    base_model: BaseModelRecord
    labels: list[Label | LabelWithThreshold]
    heads: Annotated[dict[str, HeadRecord], Meta(min_length=1)]
    exit: str
    promise: PromiseRecord | None
    settings: dict[str, Setting | list[Setting]]
    scores: ScoresRecord
    error_promise: ErrorPromiseRecord | None = None
    class_priorities: list[Annotated[float, Meta(gt=0)]] | None = None  # factors of the probabilities in a decision
    pairs: bool = False  # whether it was fitted on pairs of texts
    examples: ExamplesRecord | None = None  # earlier versions kept none
