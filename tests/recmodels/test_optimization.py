"""Learning rates rise, hold or fall as the schedule says, and go to the groups they are for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from recmodels.optimization import Schedule, grouped_optimizer, learning_rate_factor


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0.0]),
    ],
)
def test_factors_by_step(schedule: Schedule, expected: list[float]) -> None:
    factor = learning_rate_factor(schedule, 0.2, 10)
    assert [factor(step) for step in (0, 1, 2, 4, 6, 8, 10)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_stays_at_zero_behind_the_end_and_falls_at_once_without_a_warm_up(schedule: Schedule) -> None:
    factor = learning_rate_factor(schedule, 0.0, 8)
    values = [factor(step) for step in range(9)]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert factor(8) == factor(11) == 0.0
    assert learning_rate_factor(schedule, 0.0, 0)(0) == 0.0  # nothing is trained, and nothing divided by zero


def test_every_parameter_is_in_the_group_of_its_rate() -> None:
    values = {name: nn.Parameter(torch.zeros(1)) for name in "abc"}
    optimizer = grouped_optimizer(lambda groups: torch.optim.AdamW(groups, lr=0.1), values, {"b": 16.0})
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    assert [rates[id(values[name])] for name in "abc"] == pytest.approx([0.1, 1.6, 0.1])
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize("choice", [{"fused": False}, {"foreach": True}])
def test_a_chosen_implementation_is_left_alone(choice: dict[str, bool]) -> None:
    value = {"a": nn.Parameter(torch.zeros(1))}
    (group,) = grouped_optimizer(lambda groups: torch.optim.AdamW(groups, **choice), value, {}).param_groups
    assert not group["fused"]
