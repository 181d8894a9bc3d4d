"""The estimator's parameters: refused by name where they mean nothing, and turned into Settings."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, get_args

import numpy as np
import torch

from spin_native.checkpoints import Dtype
from spin_native.classifier.exits import shallowest_within
from spin_native.classifier.heads import HEADS, check_options
from spin_native.classifier.settings import ETAS, FinalRows, Mixing, PhaseTwo, Scaling, Settings
from spin_native.classifier.tasks import Metric, Task
from spin_native.errors import InputError
from spin_native.features.extract import Site, check_choices
from spin_native.features.pooling import Pooling
from spin_native.models import ModelConfig, checked_depth
from spin_native.probes.importance import RANKERS, WEIGHTINGS, Cut, CutBy

DTYPES: dict[str, Dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}
Options = Mapping[str, Any]


def check(options: Options, task: type[Task]) -> None:
    """InputError for a parameter, or two of them together, that mean nothing.

    options: SpinClassifier's parameters by name.
    """
    for name, choices in (
        ("metric", (*task.metrics, None)),
        ("scaling", get_args(Scaling)),
        ("final_rows", (*get_args(FinalRows), None)),
        ("dtype", tuple(DTYPES)),
        ("mixing", get_args(Mixing)),
        ("head", tuple(HEADS)),
        ("phase_two", get_args(PhaseTwo)),
        ("ranker", (*WEIGHTINGS, *RANKERS)),
    ):
        if options[name] not in choices:
            raise InputError(f"{name} is {options[name]!r}; expected one of {', '.join(map(str, choices))}")
    check_options(options["head"], options)
    task.check_ranker(options["ranker"])
    _check_numbers(options)
    check_choices(options["sites"], get_args(Site))
    check_choices(options["poolings"], get_args(Pooling))
    cuts_of(options)
    if options["phase_two"] != "seen" and options["sample"] is not None:
        raise InputError(f"phase_two={options['phase_two']!r} and sample={options['sample']} exclude each other: leave one out")
    if options["depth"] != "best" and options["tolerance"] != 0:
        raise InputError(
            f"tolerance={options['tolerance']} is for depth='best', which chooses a depth; the depth here is "
            f"{options['depth']!r}: leave the tolerance out"
        )


def _check_numbers(options: Options) -> None:
    seed, sample = options["seed"], options["sample"]
    if not isinstance(seed, Integral):
        raise InputError(f"seed is {seed!r}; expected a whole number")
    if sample is not None and sample < 2:
        raise InputError(f"sample is {sample}; expected a number of rows, or None for all")
    for name in ("Cs", "head_Cs"):
        grid = options[name]
        if grid is not None and (not len(grid) or not all(0 < value < np.inf for value in grid)):
            raise InputError(f"{name} is {grid!r}; expected positive numbers")
    shallowest_within({1: 0.0}, options["tolerance"])  # InputError for an unusable tolerance


def cuts_of(options: Options) -> tuple[Cut, ...]:
    """The cuts to try; InputError unless at most one of etas, top_k and top_share is given."""
    grids: dict[CutBy, Sequence[float] | None] = {
        "eta": options["etas"],
        "top_k": options["top_k"],
        "top_share": options["top_share"],
    }
    given = {by: grid for by, grid in grids.items() if grid is not None} or {"eta": ETAS}
    if len(given) > 1 or not all(map(len, given.values())):
        raise InputError("etas, top_k and top_share: expected one of them, with one value or more")
    return tuple(Cut(by, amount) for by, grid in given.items() for amount in np.asarray(grid).tolist())


def settings_of(options: Options, task: Task) -> Settings:
    """What a fit tries. final_rows=None means "training" here."""
    Cs, head_Cs = (None if options[name] is None else tuple(np.asarray(options[name]).tolist()) for name in ("Cs", "head_Cs"))
    return Settings(
        task=task,
        sites=tuple(options["sites"]),
        poolings=tuple(options["poolings"]),
        mixing=options["mixing"],
        head=options["head"],
        ranker=options["ranker"],
        cuts=cuts_of(options),
        Cs=Cs,
        head_Cs=head_Cs,
        scaling=options["scaling"],
        final_rows=options["final_rows"] or "training",
        metric=metric_of(options, task),
        seed=options["seed"],
    )


def metric_of(options: Options, task: Task | type[Task]) -> Metric:
    """The metric that is compared."""
    return next(iter(task.metrics)) if options["metric"] is None else options["metric"]


def check_model(options: Options, config: ModelConfig) -> tuple[int, list[int]]:
    """The deepest depth to try, and the depths below it that keep a head; InputError where the base model cannot give them."""
    is_fixed = options["depth"] != "best"
    max_depth = checked_depth(options["depth"] if is_fixed else None, config.n_layers)
    widths = {"activation": config.d_ffn, "hidden": config.d_model}
    for cut in cuts_of(options):
        cut.check_width(min(widths[site] for site in options["sites"]))
    exits = options["exits"]
    if exits is None:
        return max_depth, []
    if isinstance(exits, str) and exits == "all":
        return max_depth, list(range(1, max_depth))
    if isinstance(exits, str) or not all(isinstance(exit_, Integral) and int(exit_) >= 1 for exit_ in exits):
        raise InputError(f"exits is {exits!r}; expected depths of 1 or more, 'all' or None")
    if is_fixed and any(int(exit_) >= max_depth for exit_ in exits):
        raise InputError(f"exits is {exits!r}, but the depth is {max_depth}, where every row exits; expected depths below it")
    return max_depth, [int(exit_) for exit_ in exits]
