"""An inspection as text for a terminal and as HTML for a notebook."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from spin_native.inspection.inspected import Inspection, LogitLens
    from spin_native.inspection.standout import NeuronScore

MAX_TOKENS = 64  # of a longer text only the first ones are printed; methods and arrays have all
MAX_TEXT = 80
MAX_WORD = 12  # characters of a word in a table of words
RED, BLUE = "214, 68, 48", "48, 98, 214"
CELL = "padding: 0 .5em; text-align: left"


# Text.


def text(inspection: "Inspection", n: int, layer: int | None = None) -> str:
    """A line per token, with the `n` neurons that stand out, over all layers or in one."""
    if layer is not None:
        inspection.checked_layer(layer)
    lines = [_title(inspection)]
    shown = range(min(len(inspection.tokens), MAX_TOKENS))
    header, rows = ["", "token", "characters"], [_place(inspection, position) for position in shown]
    if inspection.is_comparable:
        lines.append("layer.neuron, activation and score: how far the activation is from the other tokens' mean, in their std")
        header += ["neuron", "activation", "score"] * n
        for row, top in zip(rows, inspection.tops(shown, n, layer=layer), strict=True):
            row += [cell for one in top for cell in _score_cells(one)]
            row += [""] * (len(header) - len(row))
    else:
        lines.append("too few tokens to say which neurons stand out")
    lines.append(_table(header, rows))
    return "\n".join([*lines, *_rest(inspection)])


def scores(top: Sequence["NeuronScore"]) -> str:
    """A line per neuron that stands out."""
    rows = [[f"{s.layer}.{s.neuron}", f"{s.activation:+.3f}", f"{s.mean:+.3f}", f"{s.std:.3f}", f"{s.score:+.1f}"] for s in top]
    return _table(["neuron", "activation", "mean elsewhere", "std elsewhere", "score"], rows)


def neurons(inspection: "Inspection", chosen: Sequence[tuple[int, int]]) -> str:
    """A line per token, with the activation of each chosen neuron (layer, index)."""
    values = [inspection.neuron(layer, index) for layer, index in chosen]
    shown = range(min(len(inspection.tokens), MAX_TOKENS))
    rows = [[*_place(inspection, position), *(f"{value[position]:+.3f}" for value in values)] for position in shown]
    header = ["", "token", "characters", *(f"{layer}.{index}" for layer, index in chosen)]
    return "\n".join([_title(inspection), _table(header, rows), *_rest(inspection)])


def lens(logit_lens: "LogitLens") -> str:
    """A line per token with the most probable word at every layer, and its probability at the last."""
    n_layers = len(logit_lens.words) - 1
    header = ["", "token", *(f"layer {layer}" for layer in range(n_layers)), "final", "probability"]
    rows = []
    for position, token in enumerate(logit_lens.tokens[:MAX_TOKENS]):
        words = [_short(of_layer[position][0], MAX_WORD) for of_layer in logit_lens.words]
        rows.append([str(position), token, *words, f"{logit_lens.probabilities[-1, position, 0]:.3f}"])
    return _table(header, rows)


def _title(inspection: "Inspection") -> str:
    name = inspection.model_name.replace("\\", "/").rstrip("/").split("/")[-1]
    shown = _short(repr(inspection.text), MAX_TEXT)
    return f"{shown}  ({name}: {len(inspection.layers)} layers, {len(inspection.tokens)} tokens)"


def _place(inspection: "Inspection", position: int) -> list[str]:
    """Number, spelling and place in the text of one token."""
    place = inspection.offsets[position]
    return [str(position), inspection.tokens[position], "-" if place is None else f"{place[0]}-{place[1]}"]


def _rest(inspection: "Inspection") -> list[str]:
    n_hidden = len(inspection.tokens) - MAX_TOKENS
    return [f"and {n_hidden} more tokens: .top(token=position) has their neurons"] if n_hidden > 0 else []


def _score_cells(score: "NeuronScore") -> list[str]:
    return [f"{score.layer}.{score.neuron}", f"{score.activation:+.3f}", f"{score.score:+.1f}"]


def _short(value: str, width: int) -> str:
    return value if len(value) <= width else value[: width - 3] + "..."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; those that hold numbers only, to the right. layer.neuron is an address and no number."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    is_number = [name != "neuron" and all(_is_number(row[i]) for row in rows) for i, name in enumerate(header)]
    aligned = (
        [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, is_number, strict=True)]
        for line in (header, *rows)
    )
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def _is_number(cell: str) -> bool:
    return cell.lstrip("+-").replace(".", "").isdecimal()


# HTML. Every string that comes from the text, the vocabulary or a path is escaped.


def html(
    inspection: "Inspection",
    n: int,
    layer: int | None,
    neuron: tuple[int, int] | None,
    attention: tuple[int, int] | None,
) -> str:
    """The text coloured by one neuron, the neurons that stand out at each token, and, if wanted, a head's attention."""
    shown = range(min(len(inspection.tokens), MAX_TOKENS))
    tops = inspection.tops(shown, n, layer=layer) if inspection.is_comparable else [[] for _ in shown]
    if neuron is None:
        standing_out = [score for top, place in zip(tops, inspection.offsets, strict=False) if place for score in top]
        best = max(standing_out, key=lambda score: abs(score.score), default=None)
        neuron = (layer or 0, 0) if best is None else (best.layer, best.neuron)
    parts = [f"<p><b>{escape(_title(inspection))}</b></p>", _coloured(inspection, neuron)]
    if inspection.is_comparable:
        parts.append(_rows_html(inspection, tops, n))
    if attention is not None:
        parts.append(_attention_html(inspection, attention))
    parts += [f"<p>{escape(line)}</p>" for line in _rest(inspection)]
    return '<div style="font-family: sans-serif">' + "\n".join(parts) + "</div>"


def page(inspection: "Inspection", fragment: str) -> str:
    """A whole HTML file around a fragment."""
    title = escape(_title(inspection))
    return f'<!doctype html>\n<html><head><meta charset="utf-8"><title>{title}</title></head>\n<body>{fragment}</body></html>\n'


def _coloured(inspection: "Inspection", neuron: tuple[int, int]) -> str:
    layer, index = neuron
    values: list[float] = inspection.neuron(layer, index).tolist()
    largest = max(map(abs, values)) or 1.0
    spans = [
        f'<span title="{value:+.3f}" style="background: {_colour(value / largest)}; padding: .1em .2em">{escape(token)}</span>'
        for token, value in zip(inspection.tokens[:MAX_TOKENS], values, strict=False)
    ]
    legend = f"neuron {layer}.{index}, from {min(values):+.3f} to {max(values):+.3f}: red above 0, blue below"
    return f'<p style="line-height: 1.8">{" ".join(spans)}</p><p><small>{legend}</small></p>'


def _rows_html(inspection: "Inspection", tops: Sequence[Sequence["NeuronScore"]], n: int) -> str:
    header = ["", "token", "characters", *(["neuron", "activation", "score"] * n)]
    rows = [
        [*_place(inspection, position), *(cell for score in top for cell in _score_cells(score))]
        for position, top in enumerate(tops)
    ]
    note = "Neurons that stand out. Score: how far the activation is from the other tokens' mean, in their standard deviations."
    return f"<p><small>{escape(note)}</small></p>" + _table_html(header, [[(cell, "") for cell in row] for row in rows])


def _attention_html(inspection: "Inspection", attention: tuple[int, int]) -> str:
    weights: Float[np.ndarray, "query key"] = inspection.attention(*attention)[:MAX_TOKENS, :MAX_TOKENS]
    tokens = inspection.tokens[:MAX_TOKENS]
    rows = [
        [(token, ""), *((f"{weight:.2f}", f"background: {_colour(weight)}") for weight in row)]
        for token, row in zip(tokens, weights.tolist(), strict=True)
    ]
    note = f"Attention of layer {attention[0]}, head {attention[1]}: how much each row's token takes from each column's."
    return f"<p><small>{note}</small></p>" + _table_html(["", *tokens], rows)


def _table_html(header: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    """header: cells. rows: cells, each with its style."""
    head = "".join(f'<th style="{CELL}">{escape(cell)}</th>' for cell in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="{CELL}; {style}">{escape(cell)}</td>' for cell, style in row) + "</tr>" for row in rows
    )
    return f'<table style="border-collapse: collapse"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _colour(value: float) -> str:
    """-1 to 1 as a colour: blue, none, red."""
    return f"rgba({RED if value > 0 else BLUE}, {min(abs(value), 1):.2f})"
