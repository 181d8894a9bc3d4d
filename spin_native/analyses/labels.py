"""Labels of texts as places among known labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from spin_native.errors import InputError

Labels = Sequence[Any] | Shaped[np.ndarray, "_"]


def encoded_labels(labels: Labels, known: Sequence[Any], n_texts: int, what: str) -> Int[np.ndarray, "row"]:
    """Each label's place among `known`; InputError, naming the row, for another one, or for a wrong number of them.

    what: which rows they are, for the error.
    """
    listed = [label.item() if isinstance(label, np.generic) else label for label in labels]
    if len(listed) != n_texts:
        raise InputError(f"{what}: {n_texts} rows but {len(listed)} labels; expected one label per row")
    place = {label: index for index, label in enumerate(known)}
    for row, label in enumerate(listed):
        if label not in place:
            raise InputError(f"{what}: row {row} has the label {label!r}; known are {', '.join(map(repr, known))}")
    return np.array([place[label] for label in listed])
