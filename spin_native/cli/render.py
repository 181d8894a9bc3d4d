"""Results as text for a terminal."""

from collections.abc import Sequence

from spin_native.classifier.curves import CurveRow
from spin_native.classifier.estimators import SpinClassifier, SpinRegressor
from spin_native.models import ModelConfig


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns side by side; numbers to the right, words to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [all(not isinstance(row[i], str) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        )
        for line in [list(header), *cells]
    ]
    return "\n".join(line.rstrip() for line in lines)


def curve(clf: SpinClassifier | SpinRegressor) -> str:
    """The depth curve under its baseline, the chosen depth marked."""
    rows = [_curve_line(row, "<- chosen" if row.depth == clf.depth_ else "") for row in clf.depth_curve_]
    if clf.baseline_:
        rows = [_curve_line(clf.baseline_, "baseline: final hidden state"), *rows]
    header = ("depth", f"validation {clf.metric_}", "test", "neurons", "pooling", "eta", "C", "")
    return table(header, rows)


def layers(clf: SpinClassifier | SpinRegressor) -> str:
    """The layer curve: how well each single layer does alone."""
    rows = [
        (row.depth - 1, row.site, row.pooling, row.validation, row.test, row.n_neurons, f"{row.C:.2g}")
        for row in clf.layer_curve_
    ]
    return table(("layer", "site", "pooling", f"validation {clf.metric_}", "test", "neurons with a weight", "C"), rows)


def share_of_work(config: ModelConfig, depth: int) -> float:
    """The share of a whole pass's matrix products (per token, attention scores left out) that stopping at `depth` costs."""
    attention, half_ffn = 4 * config.d_model**2, config.d_model * config.d_ffn
    whole = config.n_layers * (attention + 2 * half_ffn)
    return (depth * (attention + half_ffn) + (depth - 1) * half_ffn) / whole


def _curve_line(row: CurveRow, note: str) -> tuple[object, ...]:
    return (
        row.depth,
        row.validation,
        row.test,
        row.n_neurons,
        row.pooling,
        row.eta,
        None if row.C is None else f"{row.C:.2g}",
        note,
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
