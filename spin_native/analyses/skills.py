"""Skill neurons (Wang et al. 2022): neurons whose activation predicts the label of the text.

A neuron is read from pooled activations (`skill_neurons`), or at the vectors of a soft prompt, as in the paper
(`prompted_skills.prompted_skill_neurons`). It is compared with its baseline, the mean over training rows; its accuracy is how
often "above the baseline" is the label of other rows. The definition is in `probes.importance`, and a ranker uses it, too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from spin_native.analyses.labels import Labels, encoded_labels
from spin_native.analyses.prompts import check_model
from spin_native.analyses.results import Result, provenance, versions
from spin_native.errors import InputError
from spin_native.features.extract import Extractor, check_choices, features_of
from spin_native.features.pooling import Pooling
from spin_native.features.store import FeatureKey, Features
from spin_native.given import checked_texts, is_whole
from spin_native.models import Transformer
from spin_native.probes.controls import random_neurons
from spin_native.probes.importance import Cut, count_above, subtask_accuracy
from spin_native.probes.probes import checked_targets
from spin_native.text.tokenizer import Tokenizer

Array = np.ndarray
Over = Literal["mean", "min"]
Which = Literal["most", "least", "random"]


@dataclass(frozen=True, eq=False)
class SkillNeurons(Result):
    """How well each neuron predicts the label.

    Axes: trial (a soft prompt; one without prompts), subtask (the class that is told from the other one of two, or from the
    rest), layer, neuron. Arrays:
    predictivity: max(accuracy, 1 - accuracy) of "above its baseline" on the dev rows; .5 is chance.
    sign: 1 if the neuron is more active for the class, -1 if it is less active, 0 at chance.
    token: the prompt token, or the pooling, with the largest predictivity; predictivity and sign are those at this one.
    baseline: the mean activation over the training rows; of several prompt tokens their average; of several poolings that of
        "mean", or the first one.
    """

    @classmethod
    def of(
        cls,
        accuracy: Float[Array, "trial subtask token layer neuron"],
        baseline: Float[Array, "trial layer neuron"],
        *,
        subtasks: Sequence[Any],
        layers: Sequence[int],
        tokens: Sequence[Any],
        metadata: Mapping[str, Any],
    ) -> "SkillNeurons":
        """From the accuracy of every neuron at every token: the token where it is farthest from 1/2 counts."""
        best = np.abs(accuracy - 0.5).argmax(2, keepdims=True)
        of_best = np.take_along_axis(accuracy, best, 2)[:, :, 0]
        axes = {
            "trial": np.arange(len(of_best)),
            "subtask": np.array(subtasks),
            "layer": np.array(layers),
            "neuron": np.arange(of_best.shape[-1]),
        }
        arrays = {
            "predictivity": 0.5 + np.abs(of_best - 0.5),
            "sign": np.sign(of_best - 0.5).astype(np.int8),
            "token": np.array(tokens)[best[:, :, 0]],
            "baseline": np.broadcast_to(baseline[:, None], of_best.shape),
        }
        return cls(axes, arrays, metadata)

    @property
    def layers(self) -> list[int]:
        return self.axes["layer"].tolist()

    def over_trials(self, over: Over = "mean") -> Float[Array, "subtask layer neuron"]:
        """One predictivity per subtask and neuron: the mean over the trials, or the least ("min")."""
        if over not in get_args(Over):
            raise InputError(f"over is {over!r}; expected 'mean' or 'min'")
        return self["predictivity"].mean(0) if over == "mean" else self["predictivity"].min(0)

    def salient(self, share: float, over: Over = "mean") -> dict[int, Int[Array, "_"]]:
        """Layer -> the `share` of its neurons with the largest predictivity, ascending; the subtasks take turns."""
        return self._in_layers(lambda by_subtask, n, _: _in_turn(-by_subtask, n), share, over)

    def chosen(
        self, which: Which, share: float, *, seed: int = 0, layers: Sequence[int] | None = None
    ) -> dict[int, Int[Array, "_"]]:
        """As many neurons of each layer as `salient` has: those ("most"), the "least" predictive ones, or "random" ones.

        layers: only these (None: all). Raises InputError for a layer that was not measured.
        """
        choose: dict[str, Callable[[Array, int, int], Array]] = {
            "most": lambda by_subtask, n, _: _in_turn(-by_subtask, n),
            "least": lambda by_subtask, n, _: np.sort(np.argsort(by_subtask.max(0), kind="stable")[:n]),
            "random": lambda by_subtask, n, layer: random_neurons(by_subtask.shape[-1], n, [seed, layer]),
        }
        if which not in choose:
            raise InputError(f"which is {which!r}; expected one of {', '.join(choose)}")
        chosen = self._in_layers(choose[which], share, "mean")
        return {layer: chosen[layer] for layer in self.checked_layers(layers)}

    def checked_layers(self, layers: Sequence[int] | None) -> list[int]:
        """The layers themselves (None: all); InputError for one that was not measured."""
        for layer in self.layers if layers is None else layers:
            if not is_whole(layer) or layer not in self.layers:
                raise InputError(
                    f"no predictivity of layer {layer!r}; the measured layers are {', '.join(map(str, self.layers))}"
                )
        return self.layers if layers is None else [int(layer) for layer in layers]

    def baselines(self, chosen: Mapping[int, Int[Array, "_"]]) -> dict[int, Float[Array, "_"]]:
        """Layer -> the baseline of its chosen neurons, averaged over the trials."""
        mean = self["baseline"][:, 0].mean(0)
        return {layer: mean[self.layers.index(layer)][neurons] for layer, neurons in chosen.items()}

    def _in_layers(self, choose: Callable[[Array, int, int], Array], share: float, over: Over) -> dict[int, Array]:
        by_subtask = self.over_trials(over)
        n = len(Cut("top_share", share)(np.ones(by_subtask.shape[-1])))
        return {layer: choose(by_subtask[:, place], n, layer) for place, layer in enumerate(self.layers)}


def skill_neurons(
    features: Features,
    labels: Labels,
    dev: tuple[Features, Labels] | None = None,
    *,
    poolings: Sequence[Pooling] | None = None,
    layers: Sequence[int] | None = None,
    balanced: bool = False,
    progress: bool | None = None,
) -> SkillNeurons:
    """The predictivity of every FFN neuron, without a prompt: read from pooled activations (Wang et al. 2022, section 3.2).

    features, labels: training rows, over which a neuron's baseline is taken: `extract(...)`, in memory or in a store. One layer
        and one block of rows are read at a time.
    dev: (features, labels) of other rows, on which the accuracy of [activation > baseline] as the label is measured.
    poolings, layers: which to read (None: all that the features have). Of several poolings a neuron's best one counts.
    balanced: of two classes, too, take balanced accuracy: each class then counts the same. More classes always do.

    Raises InputError for labels of one class, for dev rows that are missing or lack a class, and for a feature that was not
    extracted.
    """
    for what, given in (("features", features), ("dev features", checked_pair(dev)[0])):
        if not isinstance(given, Features):
            raise InputError(f"{what}: got a {type(given).__name__}; expected the Features that sn.extract returns")
    dev_features, dev_labels = checked_pair(dev)
    classes, dev_classes = _classes(labels, features.n_rows, dev_labels, dev_features.n_rows)
    wanted = _wanted(features, poolings, layers)
    check_one_width(features.widths[feature] for feature in wanted)
    if differing := [feature for feature in wanted if dev_features.widths.get(feature) != features.widths[feature]]:
        raise InputError(
            f"dev features: {dev_features.widths.get(differing[0], 'no')} neurons of layer {differing[0].layer}, pooling "
            f"{differing[0].pooling!r}; the training features have {features.widths[differing[0]]}: extract both alike"
        )
    with tqdm(total=2 * len(wanted), unit=" arrays", disable=None if progress is None else not progress) as bar:

        def blocks(of: Features) -> Iterator[tuple[FeatureKey, Array]]:
            for feature in wanted:
                yield from ((feature, block) for block in of.blocks(**feature._asdict()))
                bar.update()

        baselines = _baselines(blocks(features))
        n_above = _counts(blocks(dev_features), baselines, dev_classes, len(classes))
    n_rows = {"n_training": features.n_rows, "n_dev": dev_features.n_rows}
    metadata = {**versions(), **_source(features), "analysis": "skill_neurons", **n_rows}
    return _prompt_free(n_above, baselines, classes, np.bincount(dev_classes), balanced, metadata)


def text_skill_neurons(
    model: Transformer,
    tokenizer: Tokenizer,
    training: tuple[Sequence[str], Labels],
    dev: tuple[Sequence[str], Labels],
    *,
    poolings: Sequence[Pooling] = ("mean",),
    depth: int | None = None,
    balanced: bool = False,
    max_tokens: int | None = None,
    progress: bool | None = None,
) -> SkillNeurons:
    """`skill_neurons` from (texts, labels): each text runs once, and no feature is kept, so memory is flat in the rows.

    depth: layers to run (None: all that the model holds). max_tokens: as of `extract`.

    Raises InputError as `skill_neurons` and `extract` do.
    """
    texts, dev_texts = checked_texts(training[0], "training rows"), checked_texts(checked_pair(dev)[0], "dev rows")
    classes, dev_classes = _classes(training[1], len(texts), dev[1], len(dev_texts))
    check_model(model)
    check_choices(poolings, get_args(Pooling), "poolings")
    wanted = features_of(model, ("activation",), poolings, depth)
    extractor = Extractor(model, tokenizer, dict.fromkeys(wanted), max_tokens=max_tokens)
    check_one_width(extractor.widths.values())

    def blocks(of: Sequence[str]) -> Iterator[tuple[FeatureKey, Array]]:
        return (pair for block in extractor.blocks(of, progress) for pair in block.items())

    baselines = _baselines(blocks(texts))
    n_above = _counts(blocks(dev_texts), baselines, dev_classes, len(classes))
    metadata = provenance(model, tokenizer, analysis="skill_neurons", n_training=len(texts), n_dev=len(dev_texts))
    return _prompt_free(n_above, baselines, classes, np.bincount(dev_classes), balanced, metadata)


def checked_pair(dev: Any) -> tuple[Any, Any]:
    """Rows and their labels; InputError if they are not given as a pair."""
    if not isinstance(dev, (tuple, list)) or len(dev) != 2:
        got = "none" if dev is None else f"a {type(dev).__name__}"
        raise InputError(f"dev rows: got {got}; expected a pair, the rows and their labels, that are not training rows")
    return dev[0], dev[1]


def check_one_width(widths: Iterable[int]) -> None:
    """InputError unless the layers have equally many neurons: the result is one array over layers and neurons."""
    given = sorted(set(widths))
    if len(given) > 1:
        raise InputError(
            f"skill neurons: the layers have from {given[0]} to {given[-1]} neurons; expected one width: extract features, and "
            "call skill_neurons(features, ..., layers=[...]) with layers of one width"
        )


def _classes(labels: Labels, n_rows: int, dev_labels: Labels, n_dev: int) -> tuple[list[Any], Int[Array, "dev_row"]]:
    """The classes of the training labels, and each dev row's place among them."""
    classes = np.unique(np.asarray(checked_targets(labels, "skill neurons"))).tolist()
    encoded_labels(labels, classes, n_rows, "training rows")
    if len(classes) < 2:
        raise InputError(f"training rows: all have the label {classes[0]!r}; expected two classes or more")
    dev_classes = encoded_labels(dev_labels, classes, n_dev, "dev rows")
    rows_per_class(dev_classes, classes)
    return classes, dev_classes


def rows_per_class(dev_classes: Int[Array, "dev_row"], classes: Sequence[Any]) -> Int[Array, "class"]:
    """How many dev rows each class has; InputError, naming it, for a class without rows. dev_classes: places in `classes`."""
    n_rows = np.bincount(dev_classes, minlength=len(classes))
    if not n_rows.all():
        raise InputError(f"dev rows: none has the label {classes[int(np.argmin(n_rows))]!r}; expected some rows of every label")
    return n_rows


def subtasks(classes: Sequence[Any]) -> list[Any]:
    """The classes that are told from the others: of two classes the second one, of more every one (see `subtask_accuracy`)."""
    return list(classes[1:] if len(classes) == 2 else classes)


def _wanted(features: Features, poolings: Sequence[str] | None, layers: Sequence[int] | None) -> list[FeatureKey]:
    """The arrays to read, layer by layer; InputError, listing the choices, for one that was not extracted."""
    there = [feature for feature in features.widths if feature.site == "activation"]
    if not there:
        raise InputError("features: no activations; use extract(..., sites=('activation',))")
    for name, given in (("poolings", poolings), ("layers", layers)):
        if given is not None and (isinstance(given, str) or not isinstance(given, (Sequence, np.ndarray))):
            raise InputError(f"{name} is {given!r:.40}; expected a list of them, or None for all")
    chosen_poolings = list(dict.fromkeys(feature.pooling for feature in there)) if poolings is None else list(poolings)
    chosen_layers = sorted({feature.layer for feature in there}) if layers is None else list(layers)
    wanted = [FeatureKey("activation", pooling, layer) for layer in chosen_layers for pooling in chosen_poolings]
    if not wanted:
        raise InputError(f"poolings is {poolings!r} and layers {layers!r}; expected one or more of each")
    for feature in wanted:
        if feature not in features.widths:
            features.blocks(**feature._asdict())  # refuses it, and lists the choices
    return wanted


def _source(features: Features) -> dict[str, Any]:
    """What the features say of their model; nothing where that is not known."""
    spec = features.spec
    names = ("model", "model_revision", "model_fingerprint", "model_dtype", "tokenizer_fingerprint")
    return {} if spec is None else {name: getattr(spec, name) for name in names}


def _baselines(blocks: Iterable[tuple[FeatureKey, Array]]) -> dict[FeatureKey, Float[Array, "neuron"]]:
    """The mean of every neuron, from blocks of rows in any order."""
    totals: dict[FeatureKey, Array] = {}
    n_rows: dict[FeatureKey, int] = {}
    for feature, block in blocks:
        totals[feature] = totals.get(feature, 0) + block.sum(0, dtype=np.float64)
        n_rows[feature] = n_rows.get(feature, 0) + len(block)
    return {feature: total / n_rows[feature] for feature, total in totals.items()}


def _counts(
    blocks: Iterable[tuple[FeatureKey, Array]],
    baselines: Mapping[FeatureKey, Float[Array, "neuron"]],
    classes: Int[Array, "row"],
    n_classes: int,
) -> dict[FeatureKey, Int[Array, "class neuron"]]:
    """How many rows of each class are above the baseline; the blocks of a feature come in the order of the rows."""
    counts: dict[FeatureKey, Array] = {}
    n_seen = dict.fromkeys(baselines, 0)
    for feature, block in blocks:
        first = n_seen[feature]
        n_seen[feature] += len(block)
        of_block = count_above(block, baselines[feature], classes[first : n_seen[feature]], n_classes)
        counts[feature] = counts.get(feature, 0) + of_block
    return counts


def _prompt_free(
    n_above: Mapping[FeatureKey, Int[Array, "class neuron"]],
    baselines: Mapping[FeatureKey, Float[Array, "neuron"]],
    classes: Sequence[Any],
    n_rows: Int[Array, "class"],
    balanced: bool,
    metadata: Mapping[str, Any],
) -> SkillNeurons:
    """The result of pooled activations: one trial, and the poolings in place of the prompt tokens."""
    layers = list(dict.fromkeys(feature.layer for feature in n_above))
    poolings = list(dict.fromkeys(feature.pooling for feature in n_above))

    def stacked(arrays: Mapping[FeatureKey, Array], pooling: str) -> Array:
        return np.stack([arrays[FeatureKey("activation", pooling, layer)] for layer in layers], axis=-2)

    # [class, token, layer, neuron], [layer, neuron]
    counts = np.stack([stacked(n_above, pooling) for pooling in poolings], axis=1)
    baseline = stacked(baselines, "mean" if "mean" in poolings else poolings[0])
    return SkillNeurons.of(
        subtask_accuracy(counts, n_rows, balanced)[None],
        baseline[None],
        subtasks=subtasks(classes),
        layers=layers,
        tokens=poolings,
        metadata={**metadata, "poolings": poolings, "balanced": balanced},
    )


def _in_turn(keys: Float[Array, "subtask neuron"], n: int) -> Int[Array, "chosen"]:
    """`n` neurons with the smallest keys: the best one of each subtask, then the second ones, and so on; ascending."""
    orders = np.argsort(keys, axis=1, kind="stable")
    chosen: dict[int, None] = {}
    for neuron in orders.T.ravel():
        chosen.setdefault(int(neuron))
        if len(chosen) == n:
            break
    return np.sort(np.fromiter(chosen, dtype=np.int64))
