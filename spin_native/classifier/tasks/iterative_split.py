"""Iterative stratification: split rows with several labels each so that every label has its share in both parts."""

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

Array = np.ndarray


def iterative_split(labels: Shaped[Array, "row label"], share: float, random: np.random.Generator) -> Bool[Array, "row"]:
    """Which rows to hold out: about `share` of the rows, and of the rows of each label.

    The rows of the label with the fewest rows left are assigned first, each to the part that still lacks most rows of this
    label; rows without labels come last, and fill the parts up. A label with two rows or more should have one in each part; a
    rarer label of the same rows can prevent it, so callers check. From Sechidis, Tsoumakas & Vlahavas 2011, "On the
    stratification of multi-label data" (there for k equal parts).
    """
    labels = labels.astype(bool)
    n_rows, counts = len(labels), labels.sum(0)
    n_held_out = int(np.ceil(share * n_rows))
    missing_rows = np.array([n_rows - n_held_out, n_held_out], dtype=np.float64)
    held_out = np.clip(share * counts, np.minimum(1, counts), np.maximum(counts - 1, 0))
    missing = np.stack([counts - held_out, held_out])  # [part, label]
    part_of: Int[Array, "row"] = np.full(n_rows, -1)
    order = random.permutation(n_rows)
    while (left := labels[part_of < 0].sum(0)).any():
        rarest = int(np.where(left > 0, left, n_rows + 1).argmin())
        for row in order[(part_of[order] < 0) & labels[order, rarest]]:
            part_of[row] = part = _neediest(missing[:, rarest], missing_rows)
            missing[part] -= labels[row]
            missing_rows[part] -= 1
    rest = order[part_of[order] < 0]
    part_of[rest] = 0
    part_of[rest[: max(0, round(missing_rows[1]))]] = 1
    return part_of == 1


def _neediest(missing: Float[Array, "2"], missing_rows: Float[Array, "2"]) -> int:
    """The part that lacks most rows of a label; of equals, the one that lacks the larger number of rows."""
    if abs(missing[0] - missing[1]) > 1e-9:
        return int(missing.argmax())
    return int(missing_rows.argmax())
