"""Results as text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spin_native.classifier.baselines import Baseline
from spin_native.classifier.curve_rows import CurveRow
from spin_native.classifier.estimators import SpinClassifier, SpinRegressor
from spin_native.models import ModelConfig

METRIC_NAMES = {
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "subset_accuracy": "whole sets right",
    "label_ranking": "label ranking precision",
}  # where the printed name is not the one in JSON
BASELINE_NAMES = {
    "majority": "most frequent class, or mean value",
    "final_hidden": "final hidden state",
    "best_hidden": "best hidden state of one layer (before layer {depth})",
    "all_hidden": "hidden states of all layers",
    "all_activations": "activations of all layers",
}
PROBABILITY_NAMES = {"ece": "expected calibration error", "log_loss": "log-loss"}


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns, numbers to the right and words to the left; None is printed as "-"."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    align_right = [all(not isinstance(row[i], str) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, align_right, strict=True)
        )
        for line in [list(header), *cells]
    ]
    return "\n".join(line.rstrip() for line in lines)


def fitted(clf: SpinClassifier | SpinRegressor) -> str:
    """What a fit learnt: the depth curve, baselines, the layer curve, and the controls if they were computed."""
    parts = [curve(clf), *_class_scores(clf), *baselines(clf)]
    if clf.layer_curve_:
        parts.append("One probe for each single layer:\n" + layers(clf))
    if clf.controls_ is not None:
        scores_ = ", ".join(f"{name} {value:.4f}" for name, value in clf.controls_._asdict().items())
        parts.append(f"Controls at depth {clf.depth_}, validation {clf.metric_}: {scores_}")
    return "\n\n".join(parts)


def curve(clf: SpinClassifier | SpinRegressor) -> str:
    """The score at every depth, with the chosen depth marked."""
    rows = [_curve_line(row, "<- chosen" if row.depth == clf.depth_ else "") for row in clf.depth_curve_]
    header = ("depth", f"validation {clf.metric_}", "test", "neurons", "pooling", "eta", "C", "")
    return table(header, rows)


def baselines(clf: SpinClassifier | SpinRegressor) -> list[str]:
    """A table of the baselines on held-out rows, and one on test rows where some were given: the head's gain over each."""
    found = clf.baselines_ or {}
    tables = []
    for part in ("held_out", "test"):
        lines = [_baseline_line(name, one, part) for name, one in found.items()]
        if any(score is not None for _, score, *_ in lines):
            rows = "test" if part == "test" else "validation"
            header = ("baseline", f"{rows} {clf.metric_}", "gain of the head", "95 % interval", "p value", "")
            tables.append(f"Baselines on {rows} rows, and the head at depth {clf.depth_} against each:\n{table(header, lines)}")
    return tables


def layers(clf: SpinClassifier | SpinRegressor) -> str:
    """The score of a probe on each single layer."""
    rows = [
        (row.depth - 1, row.site, row.pooling, row.validation, row.test, row.n_neurons, f"{row.C:.2g}")
        for row in clf.layer_curve_
    ]
    return table(("layer", "site", "pooling", f"validation {clf.metric_}", "test", "neurons with a weight", "C"), rows)


def scores(result: Mapping[str, Any]) -> str:
    """The scores of an evaluation on one line; below it those of its probabilities and the confusion matrix, or those of each
    label, if it has them."""
    metrics = {name: value for name, value in result.items() if isinstance(value, float) and name not in PROBABILITY_NAMES}
    line = "  ".join(
        [f"rows {result['rows']}", *(f"{METRIC_NAMES.get(name, name)} {value:.4f}" for name, value in metrics.items())]
    )
    if "per_label" in result:
        return line + "\n\n" + table(list(result["per_label"][0]), [list(scores.values()) for scores in result["per_label"]])
    if "confusion" not in result:
        return line
    line += "\nprobabilities: " + "  ".join(f"{shown} {result[name]:.4f}" for name, shown in PROBABILITY_NAMES.items())
    rows = [[str(label), *counts] for label, counts in zip(result["labels"], result["confusion"], strict=True)]
    return line + "\n\n" + table(["true \\ predicted", *map(str, result["labels"])], rows)


def neurons(weights: Sequence[Mapping[str, Any]], output_names: Sequence[str], top: int) -> str:
    """The `top` neurons of each layer, by their largest absolute weight. weights: as of `neuron_weights`."""
    header = ["layer", "neuron", "site", "pooling", *(f"weight for {name}" for name in output_names)]
    parts = []
    for layer in sorted({weight["layer"] for weight in weights}):
        of_layer = [weight for weight in weights if weight["layer"] == layer]
        n_neurons = len({(weight["site"], weight["neuron"]) for weight in of_layer})  # two poolings may read the same neuron
        strongest = sorted(of_layer, key=lambda weight: -np.abs(weight["weights"]).max())[:top]
        lines = [[w["layer"], w["neuron"], w["site"], w["pooling"], *w["weights"]] for w in strongest]
        parts.append(f"layer {layer}: {n_neurons} salient neurons\n{table(header, lines)}\n")
    return "\n".join(parts)


def share_of_work(config: ModelConfig, depth: int) -> float:
    """The matrix products of the first `depth` layers as a share of all layers' (per token, without attention scores).

    The last of these layers stops at its activation: its down-projection is not computed.
    """
    attention = 4 * config.d_model**2
    half_ffns = [config.d_model * config.ffn_width(layer) for layer in range(config.n_layers)]
    whole = config.n_layers * attention + 2 * sum(half_ffns)
    return (depth * attention + sum(half_ffns[:depth]) + sum(half_ffns[: depth - 1])) / whole


def _baseline_line(name: str, one: Baseline, part: str) -> tuple[object, ...]:
    shown = BASELINE_NAMES[name].format(depth=one.row.depth)
    score, gain = (one.row.test, one.test) if part == "test" else (one.row.validation, one.held_out)
    if gain is None:  # saved by an earlier version
        return shown, score, None, "", None, ""
    verdict = "tie" if not gain.is_clear else "head is better" if gain.difference > 0 else "head is worse"
    return shown, score, gain.difference, f"{gain.low:+.4f} to {gain.high:+.4f}", gain.p_value, verdict


def _class_scores(clf: SpinClassifier | SpinRegressor) -> list[str]:
    """What accuracy does not say of the head at the chosen depth; nothing of a regressor."""
    beside = clf.beside_accuracy_
    if not beside:
        return []
    return [
        f"Validation rows: the most frequent class is {beside['majority_share']:.4f} of them; macro-F1 at depth {clf.depth_}: "
        f"{beside['macro_f1']:.4f}"
    ]


def _curve_line(row: CurveRow, note: str) -> tuple[object, ...]:
    C = None if row.C is None else f"{row.C:.2g}"
    return (row.depth, row.validation, row.test, row.n_neurons, row.pooling, row.eta, C, note)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
