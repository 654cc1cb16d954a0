"""The guard notices training that did not happen, and training of what should stand still."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from callbacks.training_guard import GuardError, TrainingGuard


@pytest.fixture
def model() -> nn.Module:
    made = nn.ModuleDict({"frozen": nn.Linear(2, 2), "trained": nn.Linear(2, 2)})
    made["frozen"].requires_grad_(False)
    return made


def watch(model: nn.Module, change: Any, steps: int = 3) -> TrainingGuard:
    guard, trainer = TrainingGuard(), SimpleNamespace(global_step=steps)
    guard.on_fit_start(trainer, model)  # type: ignore[arg-type]
    with torch.no_grad():
        change(model)
    guard.on_fit_end(trainer, model)  # type: ignore[arg-type]
    return guard


def test_moved_parameters_pass(model: nn.Module) -> None:
    guard = watch(model, lambda m: m["trained"].weight.add_(1))
    assert guard.findings == {"parameters_moved": 0.5, "frozen_unchanged": True}  # the weight, not the bias


def test_nothing_moved_is_an_error(model: nn.Module) -> None:
    with pytest.raises(GuardError, match="after 3 steps none of the 2 trained tensors has moved"):
        watch(model, lambda m: None)


def test_a_moved_frozen_parameter_is_an_error(model: nn.Module) -> None:
    with pytest.raises(GuardError, match=r"frozen parameters have changed, first frozen\.bias"):
        watch(model, lambda m: (m["trained"].weight.add_(1), m["frozen"].bias.add_(1e-6)))


def test_no_step_proves_nothing(model: nn.Module) -> None:
    assert watch(model, lambda m: None, steps=0).findings == {}


def test_a_continued_run_is_held_against_its_beginning(model: nn.Module) -> None:
    before = TrainingGuard()
    before.on_fit_start(SimpleNamespace(global_step=0), model)  # type: ignore[arg-type]
    with torch.no_grad():
        model["trained"].weight.add_(1)  # type: ignore[index]
    after = TrainingGuard()
    after.load_state_dict(before.state_dict())
    after.on_fit_start(SimpleNamespace(global_step=3), model)  # type: ignore[arg-type]
    after.on_fit_end(SimpleNamespace(global_step=3), model)  # type: ignore[arg-type]
    assert after.findings["parameters_moved"] == 0.5
    with torch.no_grad():
        model["frozen"].bias.add_(1)  # type: ignore[index]
    with pytest.raises(GuardError, match="frozen parameters have changed"):
        after.on_fit_end(SimpleNamespace(global_step=3), model)  # type: ignore[arg-type]
