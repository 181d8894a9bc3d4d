"""How alike the skill neurons of different tasks are (Wang et al. 2022, section 4.3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from spin_native.analyses.pictures import write_matrix
from spin_native.analyses.results import Result, versions
from spin_native.analyses.skills import SkillNeurons
from spin_native.errors import InputError

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Transferability(Result):
    """Axes: task, other. Array: spearman, the rank correlation of their predictivities over all neurons."""

    @property
    def is_itself_first(self) -> Array:
        """For each task: is its correlation with itself, on other rows, the largest of its row?"""
        matrix = self["spearman"]
        return matrix.diagonal() >= matrix.max(1)

    def picture(self, path: str | Path, *, overwrite: bool = False) -> None:
        """The matrix as an SVG picture; InputError if the file exists (unless `overwrite`) or cannot be written."""
        title = "Spearman correlation of the predictivities of all neurons"
        rows, columns = (list(map(str, names)) for names in self.axes.values())
        write_matrix(Path(path), self["spearman"], rows, columns, title, overwrite)


def transferability(tasks: Mapping[str, SkillNeurons], again: Mapping[str, SkillNeurons] | None = None) -> Transferability:
    """Spearman's correlation between the tasks' predictivities, over all neurons of all layers, in the order of `tasks`.

    Of several subtasks a neuron's best one counts. again: the same tasks, measured on other rows. The columns are then theirs,
    and the diagonal says how well a task agrees with itself; without it the diagonal is 1.

    Raises InputError for fewer than two tasks, and for tasks of different models or layers.
    """
    if len(tasks) < 2:
        raise InputError(f"transferability compares tasks; got {len(tasks)}, expected two or more")
    if again is not None and set(again) != set(tasks):
        raise InputError(f"again has the tasks {', '.join(again)}; expected those of tasks: {', '.join(tasks)}")
    names = list(tasks)
    measured = [tasks[name] for name in names] + ([] if again is None else [again[name] for name in names])
    shapes = {(tuple(skill.layers), len(skill.axes["neuron"])) for skill in measured}
    fingerprints = {skill.metadata.get("model_fingerprint") for skill in measured} - {None}
    if len(shapes) > 1 or len(fingerprints) > 1:
        raise InputError("transferability: the tasks were measured on different models or layers; use one model for all")
    ranks = np.stack([_standardised_ranks(skill, name) for skill, name in zip(measured, [*names, *names], strict=False)])
    columns = ranks if again is None else ranks[len(names) :]
    axes = {"task": np.array(names), "other": np.array(names)}
    return Transferability(axes, {"spearman": ranks[: len(names)] @ columns.T}, {**versions(), "other_rows": again is not None})


def _standardised_ranks(skill: SkillNeurons, name: str) -> Float[Array, "place"]:
    """The ranks of all neurons, with mean 0 and length 1: the product of two such vectors is Spearman's correlation."""
    ranks = rankdata(skill.over_trials().max(0).ravel())
    centred = ranks - ranks.mean()
    if not centred.any():
        raise InputError(f"transferability: all neurons have the same predictivity for {name!r}; give it more dev rows")
    return centred / np.linalg.norm(centred)
