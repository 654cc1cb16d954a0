"""A budget of trained parameters, turned into the size of a tuning method (rank, bottleneck, prefix length)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from datamodules.contract.errors import InputError
from datamodules.contract.findings import Findings
from recmodels.backbones.base import Backbone

LARGEST = 1 << 20
"""No size is looked for above this one."""


def parse_budget(budget: str) -> float:
    """Returns the share of the backbone's parameters that a text such as `0.1%` asks for.

    Raises:
        InputError: it is no percentage above 0 and up to 100.

    Example:
        >>> parse_budget("0.5%")
        0.005
    """
    number = str(budget).strip()
    try:
        share = float(number.removesuffix("%")) / 100 if number.endswith("%") else math.nan
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise InputError(f"model.budget is {budget!r}, must be above 0% and at most 100%, such as 0.1%")
    return share


def keep_to_budget(
    share: float, backbone: Backbone, resize: Callable[[int], None], tune: Callable[[Backbone], None]
) -> Findings:
    """Gives a method the size that trains nearest to a share of the backbone's parameters; returns what was found.

    Raises:
        InputError: the method does not fit the backbone.
    """
    meta = meta_copy(backbone)
    wanted = round(share * sum(value.numel() for value in meta.model.parameters()))  # four bits pack theirs

    def count(size: int) -> int:
        resize(size)
        return count_trained(tune, meta)

    chosen = nearest_size(count, wanted)
    return {"budget_parameters": wanted, "budget_size": chosen, "budget_trained": count(chosen)}


def nearest_size(count: Callable[[int], int], wanted: int) -> int:
    """Returns the size whose number of parameters is nearest to the wanted one; of two equally near, the smaller.

    Args:
        count: parameters at a size, growing with it; raises `InputError` above the largest possible size.
        wanted: number of parameters.

    Raises:
        InputError: not even size 1 is possible.

    Example:
        >>> nearest_size(lambda size: 100 * size + 20, 260), nearest_size(lambda size: 100 * size, 3)
        (2, 1)
    """
    low, at_low, high = 1, count(1), 2
    at_high = math.inf
    while at_low < wanted and high <= LARGEST:
        try:
            at_high = count(high)
        except InputError:
            at_high = math.inf
        if at_high >= wanted:
            break
        low, at_low, high = high, int(at_high), 2 * high
    while high - low > 1 and at_low < wanted:
        middle = (low + high) // 2
        try:
            at_middle: float = count(middle)
        except InputError:
            at_middle = math.inf
        if at_middle < wanted:
            low, at_low = middle, int(at_middle)
        else:
            high, at_high = middle, at_middle
    return high if at_low < wanted and at_high - wanted < wanted - at_low else low


def count_trained(tune: Callable[[Backbone], None], backbone: Backbone) -> int:
    """Returns how many parameters a method would train, without a weight being made: on a copy on the meta device.

    A method that looks at the weights to make its own gets a copy of zeros.

    Raises:
        InputError: the method does not fit the backbone at this size.
    """
    with torch.random.fork_rng(devices=()):
        try:
            with torch.device("meta"):
                return _count(tune, copy.deepcopy(backbone.model), backbone)
        except (InputError, NotImplementedError, RuntimeError):
            hollow = copy.deepcopy(backbone.model).to_empty(device="cpu")
            for value in (*hollow.parameters(), *hollow.buffers()):
                value.data.zero_()
            return _count(tune, hollow, backbone)


def _count(tune: Callable[[Backbone], None], model: Any, backbone: Backbone) -> int:
    tune(replace(backbone, model=model))
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def meta_copy(backbone: Backbone) -> Backbone:
    """Returns the backbone's architecture, frozen, without memory for its weights."""
    with torch.device("meta"):
        model: Any = type(backbone.model)(backbone.model.config)
    model.requires_grad_(False)
    return replace(backbone, model=model)
