"""Pictures of results as SVG, written without a drawing library."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float

from spin_native.disk import own_file
from spin_native.errors import InputError, as_input_error

CELL, CHARACTER, FONT = 52, 6.6, "sans-serif"  # a cell's side, a letter's width at 11 px
LOW, MIDDLE, HIGH = (192, 86, 33), (255, 255, 255), (31, 111, 139)  # colours of -1, 0 and 1


def write_matrix(
    path: Path,
    matrix: Float[np.ndarray, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    overwrite: bool = False,
) -> None:
    """A matrix of correlations, -1 to 1, as coloured cells with their numbers.

    Raises InputError if the file exists (unless `overwrite`), is not named .svg, or cannot be written.
    """
    if path.suffix.lower() != ".svg":
        raise InputError(f"{path}: a picture is written as SVG; give the file a name that ends in .svg")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: already exists; choose another name, or overwrite=True")
    content = matrix_svg(matrix, rows, columns, title)
    with as_input_error(path, "could not be written", "choose another folder or make room"), own_file(path, overwrite) as file:
        file.write_text(content, encoding="utf-8")


def matrix_svg(matrix: Float[np.ndarray, "row column"], rows: Sequence[str], columns: Sequence[str], title: str) -> str:
    """The picture of `write_matrix` as SVG text."""
    slanted = round(0.75 * CHARACTER * max(map(len, columns)))  # how far a column's name reaches up and to the right
    left, top = 16 + round(CHARACTER * max(map(len, rows))), 44 + slanted
    width = max(left + CELL * len(columns) + slanted, round(1.2 * CHARACTER * len(title)) + 16)
    height = top + CELL * len(rows) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="{FONT}" font-size="11">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="18" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]
    for column, name in enumerate(columns):
        x, y = left + CELL * column + CELL // 2, top - 6
        parts.append(f'<text x="{x}" y="{y}" transform="rotate(-45 {x} {y})">{escape(name)}</text>')
    for row, name in enumerate(rows):
        y = top + CELL * row
        parts.append(f'<text x="{left - 6}" y="{y + CELL // 2 + 4}" text-anchor="end">{escape(name)}</text>')
        for column in range(len(columns)):
            x, middle, value = left + CELL * column, left + CELL * column + CELL // 2, float(matrix[row, column])
            ink = "#ffffff" if abs(value) > 0.6 else "#000000"
            parts.append(f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{_colour(value)}"/>')
            parts.append(f'<text x="{middle}" y="{y + CELL // 2 + 4}" text-anchor="middle" fill="{ink}">{value:.2f}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _colour(value: float) -> str:
    """White at 0, full colour at -1 and 1."""
    end, share = (HIGH if value >= 0 else LOW), min(abs(value), 1.0)
    return "#" + "".join(f"{round(middle + share * (of_end - middle)):02x}" for middle, of_end in zip(MIDDLE, end, strict=True))
