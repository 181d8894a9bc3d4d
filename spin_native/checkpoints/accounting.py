"""Strict accounting: every tensor of a checkpoint is read, or known and not needed, or an error that names it."""

from collections.abc import Iterable

import torch
from jaxtyping import Shaped
from torch import Tensor

from spin_native.errors import InputError
from spin_native.models.weights import Rule, Shape, WeightTable

SHOWN = 5  # names listed in an error


def account(stored: Iterable[str], parameters: Iterable[str], table: WeightTable, where: str) -> dict[str, str]:
    """Match a checkpoint's tensor names with a whole model's parameters: canonical name -> stored name.

    Raises InputError for a parameter whose tensor is missing, and for a tensor that is neither read nor ignorable.
    """
    stored_as: dict[str, str] = {}
    for name in stored:
        canonical = table.canonical(name)
        if canonical in stored_as:
            raise InputError(f"{where}: {stored_as[canonical]} and {name} are the same tensor; expected one of them")
        stored_as[canonical] = name
    wanted = {table.rule(parameter).stored for parameter in parameters}
    if missing := wanted - stored_as.keys():
        raise InputError(
            f"{where}: holds no {_listed(missing)}, which its config.json implies: the file is incomplete or belongs to "
            "another model"
        )
    extra = {name for canonical, name in stored_as.items() if canonical not in wanted and not table.is_ignorable(canonical)}
    if extra:
        raise InputError(
            f"{where}: holds {_listed(extra)}, which its config.json does not imply: the file belongs to another model, or a "
            "kind of model that this forward pass does not compute"
        )
    return stored_as


def take(rule: Rule, tensor: Shaped[Tensor, "..."], shape: Shape, where: str) -> Shaped[Tensor, "..."]:
    """One parameter out of a stored tensor; InputError for a wrong shape, a number format we do not read, NaN or infinity."""
    expected = rule.stored_shape(shape)
    if tuple(tensor.shape) != expected:
        raise InputError(
            f"{where}: {rule.stored} is {list(tensor.shape)}, config.json implies {list(expected)}: "
            "these files belong to different models"
        )
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise InputError(f"{where}: {rule.stored} is stored as {tensor.dtype}; expected floating point (not quantised) weights")
    # One pass and no temporary: a sum is finite only if every number is. Numbers large enough to overflow it are no weights.
    if not torch.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))):
        raise InputError(f"{where}: {rule.stored} holds NaN or infinity: the file is damaged; fetch it again")
    return rule.take(tensor)


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more
