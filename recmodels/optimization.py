"""Learning-rate schedules, and optimisers with several learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(schedule: Schedule, warmup: float, steps: int) -> Callable[[int], float]:
    """Returns the factor on the learning rate by step; the arguments are those of `Recommender`, and all steps.

    Example:
        >>> factor = learning_rate_factor("linear", 0.2, 10)
        >>> [factor(step) for step in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = int(warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        left = max(0.0, (steps - step) / max(1, steps - rising))
        if schedule == "linear":
            return left
        if schedule == "cosine":
            return 0.5 - 0.5 * math.cos(math.pi * left)
        return 1.0

    return factor


def grouped_optimizer(
    make: Callable[[Any], torch.optim.Optimizer], trained: Mapping[str, nn.Parameter], rates: Mapping[str, float]
) -> torch.optim.Optimizer:
    """Returns an optimiser with one group of parameters for each learning rate.

    Args:
        make: the optimiser of parameters or groups, with the learning rate of those that have none of their own.
        trained: parameters by name.
        rates: learning rates of some of them, as multiples of that one.

    Example:
        >>> optimizer = grouped_optimizer(
        ...     lambda groups: torch.optim.SGD(groups, lr=0.5),
        ...     {"A": nn.Parameter(torch.zeros(1)), "B": nn.Parameter(torch.zeros(1))},
        ...     {"B": 16.0},
        ... )
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.5, 8.0]
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, value in trained.items():
        groups.setdefault(rates.get(name, 1.0), []).append(value)
    optimizer = make([{"params": values} for values in groups.values()])
    for rate, group in zip(groups, optimizer.param_groups, strict=True):
        group["lr"] = group["lr"] * rate
        # One pass over weights and moments, where torch has one and nobody chose. Set here and not in the constructor,
        # which would also tell Lightning that the optimiser unscales, so that it refuses to clip.
        usable = all(value.device.type in ("cpu", "cuda") for value in group["params"])
        if usable and group.get("fused", False) is None and group.get("foreach") is None:
            group["fused"] = True
    return optimizer
