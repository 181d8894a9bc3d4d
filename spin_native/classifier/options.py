"""The estimator's parameters: refused by name where they mean nothing, and turned into Settings."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from huggingface_hub.utils import validate_repo_id

from spin_native.checkpoints import Dtype
from spin_native.checkpoints.load import check_device
from spin_native.classifier.examples import Keeps
from spin_native.classifier.exits import shallowest_within
from spin_native.classifier.heads import check_options, head_name
from spin_native.classifier.settings import (
    DENSE_SOURCES,
    ETAS,
    PUBLISHED,
    PUBLISHED_SOURCES,
    FinalRows,
    HeadName,
    Mixing,
    PhaseTwo,
    Scaling,
    Settings,
    Source,
    Tolerance,
    class_weights_of,
)
from spin_native.classifier.tasks import Metric, Task
from spin_native.classifier.tasks.base import check_share
from spin_native.errors import InputError
from spin_native.features.extract import Site, check_choices
from spin_native.features.pooling import Pooling
from spin_native.given import is_number, is_whole, numbers_of
from spin_native.models import ModelConfig, checked_depth
from spin_native.probes.importance import RANKERS, WEIGHTINGS, Cut, CutBy
from spin_native.text.documents import Windows

DTYPES: dict[str, Dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}
DEFAULT_SHARE = 0.2  # of the training rows, split off for validation
Options = Mapping[str, Any]


def check(options: Options, task: type[Task], has_validation: bool = False) -> None:
    """InputError for a parameter, or two of them together, that mean nothing.

    options: SpinClassifier's parameters by name. has_validation: whether validation rows are given.
    """
    for name, choices in (
        ("metric", (*task.metrics, None)),
        ("scaling", get_args(Scaling)),
        ("final_rows", (*get_args(FinalRows), None)),
        ("dtype", tuple(DTYPES)),
        ("mixing", (*get_args(Mixing), None)),
        ("head", (*get_args(HeadName), None)),
        ("phase_two", get_args(PhaseTwo)),
        ("examples", (*get_args(Keeps), None)),
        ("ranker", (*WEIGHTINGS, *RANKERS)),
    ):
        if not (options[name] is None or isinstance(options[name], str)) or options[name] not in choices:
            raise InputError(f"{name} is {options[name]!r}; expected one of {', '.join(map(str, choices))}")
    if not isinstance(options["baseline"], (bool, np.bool_)):
        raise InputError(f"baseline is {options['baseline']!r}; expected True or False")
    name_of(options["model"], "model")
    if not (options["revision"] is None or isinstance(options["revision"], str)):
        raise InputError(f"revision is {options['revision']!r}; expected the name of a branch, tag or commit, or None")
    check_place(options["dtype"], options["device"], options["allow_pickle"])
    check_options(head_name(options), options)
    _check_class_weight(options["class_weight"], task)
    task.check_ranker(options["ranker"])
    _check_numbers(options)
    for name, offered in (("sites", get_args(Site)), ("poolings", get_args(Pooling))):
        if options[name] is not None:
            check_choices(options[name], offered, name)
    Windows.of(options["windows"])
    cuts_of(options)
    if has_validation and options["validation_share"] != DEFAULT_SHARE:
        raise InputError(
            f"validation_share={options['validation_share']} is for a fit without validation rows, and some are given: leave "
            "one of them out"
        )
    if options["phase_two"] != "seen" and options["sample"] is not None:
        raise InputError(f"phase_two={options['phase_two']!r} and sample={options['sample']} exclude each other: leave one out")
    if not is_best(options["depth"]) and options["tolerance"] not in (None, 0):
        raise InputError(
            f"tolerance={options['tolerance']} is for depth='best', which chooses a depth; the depth here is "
            f"{options['depth']!r}: leave the tolerance out"
        )


def name_of(given: object, what: str) -> str:
    """A folder or a Hub name as a Location reads it; InputError for anything else. A Path is always a folder."""
    if isinstance(given, str):
        return given
    if not isinstance(given, os.PathLike) or not isinstance(name := os.fspath(given), str):
        raise InputError(f"{what} is {given!r}; expected a folder or a Hub name")
    return name if os.path.isdir(name) else os.path.abspath(name)


def check_hub_name(given: object, what: str) -> None:
    """InputError for a folder of this machine, and for what cannot be the name of a repository on the Hub."""
    try:
        validate_repo_id(given)  # type: ignore[arg-type]
        is_hub_name = not os.path.isdir(str(given))
    except ValueError:
        is_hub_name = False
    if not is_hub_name:
        raise InputError(f"{what} is {given!r}; expected a Hub name, such as 'owner/name', and no folder here")


def check_place(dtype: str | None, device: str, allow_pickle: bool) -> None:
    """InputError for a way to run the base model that does not exist. dtype: None for that of the fit."""
    if dtype is not None and not (isinstance(dtype, str) and dtype in DTYPES):
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if not isinstance(allow_pickle, (bool, np.bool_)):
        raise InputError(f"allow_pickle is {allow_pickle!r}; expected True or False")
    check_device(device)


def _check_numbers(options: Options) -> None:
    seed, sample = options["seed"], options["sample"]
    if not is_whole(seed) or not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed!r}; expected a whole number from 0 to {2**32 - 1}")
    if sample is not None and (not is_whole(sample) or sample < 2):
        raise InputError(f"sample is {sample!r}; expected a number of rows, 2 or more, or None for all")
    check_share(options["validation_share"])
    for name in ("Cs", "head_Cs"):
        grid = numbers_of(options[name])
        if options[name] is not None and (grid is None or not all(0 < value < np.inf for value in grid)):
            raise InputError(f"{name} is {options[name]!r}; expected positive numbers in a list, tuple or array")
    if (tolerance := options["tolerance"]) not in (None, "one-se"):
        shallowest_within({1: 0.0}, tolerance)  # InputError for an unusable tolerance


def cuts_of(options: Options) -> tuple[Cut, ...]:
    """The cuts to try; InputError unless at most one of etas, top_k and top_share is given."""
    grids: dict[CutBy, Sequence[float] | None] = {
        "eta": options["etas"],
        "top_k": options["top_k"],
        "top_share": options["top_share"],
    }
    given = {by: grid for by, grid in grids.items() if grid is not None} or {"eta": ETAS}
    if len(given) > 1:
        raise InputError("etas, top_k and top_share: expected one of them, with one value or more")
    ((by, grid),) = given.items()
    if numbers_of(grid) is None:
        raise InputError(f"{'etas' if by == 'eta' else by} is {grid!r}; expected one number or more in a list, tuple or array")
    return tuple(Cut(by, amount) for amount in np.asarray(grid).tolist())


def sources_of(options: Options) -> tuple[Source, ...]:
    """Each (site, pooling) that heads read."""
    usual = PUBLISHED_SOURCES if head_name(options) in PUBLISHED else DENSE_SOURCES
    sites, poolings = options["sites"], options["poolings"]
    if sites is None and poolings is None:
        return usual
    sites = tuple(dict.fromkeys(site for site, _ in usual)) if sites is None else sites
    if poolings is None:  # the usual ones of these sites
        return tuple(source for source in usual if source[0] in sites) or tuple((site, "mean") for site in sites)
    return tuple((site, pooling) for site in sites for pooling in poolings)


def tolerance_of(options: Options) -> Tolerance:
    """That of the choice of depth. None is 0, as published, for published heads; dense heads decide by the number of rows."""
    if options["tolerance"] is None and head_name(options) in PUBLISHED:
        return 0.0
    return options["tolerance"]


def settings_of(options: Options, task: Task) -> Settings:
    """What a fit tries. final_rows=None means "training" here."""
    Cs, head_Cs = (None if options[name] is None else tuple(np.asarray(options[name]).tolist()) for name in ("Cs", "head_Cs"))
    return Settings(
        task=task,
        sources=sources_of(options),
        mixing=options["mixing"] or "best",
        head=head_name(options),  # type: ignore[arg-type]
        ranker=options["ranker"],
        cuts=cuts_of(options),
        Cs=Cs,
        head_Cs=head_Cs,
        scaling=options["scaling"],
        final_rows=options["final_rows"] or "training",
        metric=metric_of(options, task),
        seed=int(options["seed"]),
        class_weight=class_weights_of(options["class_weight"], task),
    )


def _check_class_weight(given: Any, task: type[Task]) -> None:
    """InputError for what are no weights of classes, and for a task that has none."""
    if given is None:
        return
    if task.name != "classification":
        raise InputError(f"class_weight={given!r} is for classes; a {task.name} has none: leave it out, or use sample_weight")
    if isinstance(given, Mapping):
        for label, weight in given.items():
            if not is_number(weight) or not weight > 0:
                raise InputError(f"class_weight: the weight of class {label!r} is {weight!r}; expected a positive number")
    if not (isinstance(given, str) and given == "balanced") and not (isinstance(given, Mapping) and given):
        raise InputError(f"class_weight is {given!r}; expected None, 'balanced', or a weight for each label: {{label: weight}}")


def metric_of(options: Options, task: Task | type[Task]) -> Metric:
    """The metric that is compared."""
    return next(iter(task.metrics)) if options["metric"] is None else options["metric"]


def check_model(options: Options, config: ModelConfig) -> tuple[int, list[int]]:
    """The deepest depth to try, and the depths below it that keep a head; InputError where the base model cannot give them."""
    is_fixed = not is_best(options["depth"])
    max_depth = checked_depth(options["depth"] if is_fixed else None, config.n_layers)
    narrowest = min(config.ffn_width(layer) for layer in range(max_depth))
    widths = {"activation": narrowest, "hidden": config.d_model}
    for cut in cuts_of(options):
        cut.check_width(min(widths[site] for site, _ in sources_of(options)))
    exits = options["exits"]
    if exits is None:
        return max_depth, []
    if isinstance(exits, str) and exits == "all":
        return max_depth, list(range(1, max_depth))
    depths = [] if isinstance(exits, (Sequence, np.ndarray)) and not len(exits) else numbers_of(exits)
    if depths is None or not all(is_whole(exit_) and exit_ >= 1 for exit_ in depths):
        raise InputError(f"exits is {exits!r}; expected depths of 1 or more in a list, 'all' or None")
    if is_fixed and max(depths, default=0) >= max_depth:
        raise InputError(f"exits is {exits!r}, but the depth is {max_depth}, where every row exits; expected depths below it")
    return max_depth, depths


def is_best(depth: object) -> bool:
    """Whether the validation rows choose the depth."""
    return isinstance(depth, str) and depth == "best"
