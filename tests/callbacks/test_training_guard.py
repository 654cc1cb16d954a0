"""The guard notices training that did not happen, and training of what should stand still."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from callbacks.training_guard import GuardError, TrainingGuard, load_trained, verify_checkpoint
from datamodules.contract.checkpoints import write_checkpoint
from datamodules.contract.objectives import ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from recmodels import LoRATuning, Popularity
from recmodels.base import Recommender


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


def test_a_guard_that_has_seen_nothing_comes_back(model: nn.Module) -> None:
    guard = TrainingGuard()
    guard.load_state_dict(TrainingGuard().state_dict())
    guard.on_fit_start(SimpleNamespace(global_step=0), model)  # type: ignore[arg-type]
    guard.on_fit_end(SimpleNamespace(global_step=3), model)  # type: ignore[arg-type]
    assert guard.findings == {}


def test_only_the_first_fit_after_a_restart_is_the_continued_one(model: nn.Module) -> None:
    guard, trainer = TrainingGuard(), SimpleNamespace(global_step=3)
    guard.load_state_dict({"before": {name: "" for name, _ in model.named_parameters()}})  # everything has moved since
    guard.on_fit_start(trainer, model)  # type: ignore[arg-type]
    guard.on_fit_start(trainer, model)  # type: ignore[arg-type]
    with pytest.raises(GuardError, match="none of the 2 trained tensors has moved"):
        guard.on_fit_end(trainer, model)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "share"), [(1, 1.0), (3, 0.3333)])
def test_the_share_that_moved_is_of_what_trains(count: int, share: float) -> None:
    model = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(count))
    assert watch(model, lambda m: m[0].weight.add_(1)).findings["parameters_moved"] == share


def saved(model: Recommender, path: Path, change: Callable[[dict[str, Any]], object] = lambda state: None) -> Path:
    checkpoint = {"state_dict": {name: value.clone() for name, value in model.state_dict().items()}}
    model.on_save_checkpoint(checkpoint)
    change(checkpoint["state_dict"])
    write_checkpoint(checkpoint, path)
    return path


@pytest.fixture
def tuned(mini_data: Path, tiny_causal: Path) -> tuple[Recommender, Any]:
    """A model whose trained tensors all count for its scores, and a batch."""
    data = MovieLens100K(backbone=str(tiny_causal), protocol=Protocol(negatives=5))
    data.setup()
    model = LoRATuning(backbone=str(tiny_causal), r=2)
    model.configure_model()
    torch.manual_seed(0)
    for value in model.trained().values():
        nn.init.normal_(value, std=0.1)
    return model, next(iter(data.test_dataloader()))


def test_a_whole_checkpoint_gives_the_trained_model_back(tuned: tuple[Recommender, Any], tmp_path: Path) -> None:
    model, batch = tuned
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert verify_checkpoint(model, saved(model, tmp_path / "a.ckpt"), batch, contextlib.nullcontext) == 0
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("lost", ["all", "first", "last"])
def test_a_load_that_restores_nothing_fails(
    tuned: tuple[Recommender, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The live model still has what it was trained to: only what was wiped before can tell that nothing came back."""
    model, batch = tuned
    path, load = saved(model, tmp_path / "a.ckpt"), type(model).load_state_dict
    names = sorted(model.checkpoint_keys())
    gone = {"all": names, "first": names[:1], "last": names[-1:]}[lost]

    def forgetful(self: Recommender, state: dict[str, Any], strict: bool = True) -> Any:
        return load(self, {name: value for name, value in state.items() if name not in gone}, strict=strict)

    monkeypatch.setattr(type(model), "load_state_dict", forgetful)
    with pytest.raises(GuardError, match=f"a.ckpt does not give the trained model back: {gone[0]} was not restored"):
        verify_checkpoint(model, path, batch, contextlib.nullcontext)


def test_a_checkpoint_of_other_values_fails(tuned: tuple[Recommender, Any], tmp_path: Path) -> None:
    model, batch = tuned
    path = saved(model, tmp_path / "a.ckpt", lambda state: next(iter(state.values())).add_(0.1))
    with pytest.raises(GuardError, match="does not give the trained model back: scores differ by"):
        verify_checkpoint(model, path, batch, contextlib.nullcontext)


def test_whole_numbers_are_wiped_too(mini_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = MovieLens100K(protocol=Protocol(negatives=5), needs=ModelNeeds(batch_format="interactions"))
    data.setup()
    model = Popularity()
    for name, value in model.solve(next(iter(data.train_dataloader()))).items():
        setattr(model, name, value.long())
    batch, path = next(iter(data.test_dataloader())), saved(model, tmp_path / "a.ckpt")
    assert verify_checkpoint(model, path, batch, contextlib.nullcontext) == 0
    monkeypatch.setattr(Popularity, "load_state_dict", lambda *_, **__: None)
    monkeypatch.setattr(Popularity, "on_load_checkpoint", lambda *_: None)
    with pytest.raises(GuardError, match="scores differ by"):
        verify_checkpoint(model, path, batch, contextlib.nullcontext)


def test_loading_reads_the_file_and_leaves_the_rest(tuned: tuple[Recommender, Any], tmp_path: Path) -> None:
    model, _ = tuned
    path = saved(model, tmp_path / "a.ckpt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.trained().values():
            value.add_(1)
    load_trained(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
