"""Pure helpers of training: learning-rate schedules, tables of branches, checksums of parameters.

# U cases, B branches, C candidates
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Schedule = Literal["constant", "linear", "cosine"]
OWN_CONFIG = "use its run's own config.yaml"
"""What helps where a checkpoint does not fit."""


def learning_rate_factor(schedule: Schedule, warmup: float, steps: int) -> Callable[[int], float]:
    """Factor on the learning rate by step.

    Args:
        schedule: shape after the warm-up: `constant`, or `linear` or `cosine` to zero.
        warmup: share of the steps over which the rate rises linearly.
        steps: of the whole training.

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


def pad_branches(value: Tensor, branch_case: Tensor, cases: int, fill: float) -> tuple[Tensor, Tensor]:
    """Lays flat branches out as a table.

    Args:
        value: `[B]`.
        branch_case: `[B]` case of each branch, sorted.
        cases: number of cases U.
        fill: value of cells without a branch.

    Returns:
        `[U, C]` values and `[U, C]` mask of real cells, C being the longest list.

    Example:
        >>> pad_branches(torch.tensor([1.0, 2, 3]), torch.tensor([0, 0, 1]), 2, 0.0)[0].tolist()
        [[1.0, 2.0], [3.0, 0.0]]
    """
    counts = torch.bincount(branch_case, minlength=cases)
    start = counts.cumsum(0) - counts
    column = torch.arange(len(value), device=value.device) - start[branch_case]
    table = value.new_full((cases, int(counts.max())), fill)
    mask = torch.zeros_like(table, dtype=torch.bool)
    table[branch_case, column] = value
    mask[branch_case, column] = True
    return table, mask


def checksum_parameters(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names and values of tensors, whatever their device: the identity of a backbone.

    Example:
        >>> checksum_parameters([("w", torch.zeros(2))])[:8]
        'e5868624'
    """
    digest = hashlib.sha256()
    for name, value in sorted(parameters, key=lambda pair: pair[0]):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def grouped_optimizer(
    make: Callable[[Any], torch.optim.Optimizer], trained: Mapping[str, nn.Parameter], rates: Mapping[str, float]
) -> torch.optim.Optimizer:
    """An optimiser with one group of parameters for each learning rate.

    Args:
        make: the optimiser of parameters or groups, with the learning rate of those that have none of their own.
        trained: parameters by name.
        rates: learning rates of some of them, as multiples of that one.

    Example:
        >>> made = grouped_optimizer(
        ...     lambda groups: torch.optim.SGD(groups, lr=0.5),
        ...     {"A": nn.Parameter(torch.zeros(1)), "B": nn.Parameter(torch.zeros(1))},
        ...     {"B": 16.0},
        ... )
        >>> [group["lr"] for group in made.param_groups]
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
