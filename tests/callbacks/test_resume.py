"""The parts of a resumable state, without a run; whole runs are killed and continued in tests/faults."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.cost_meter import CostMeter
from callbacks.interruption import Interrupted, StopRequest, interruptible
from callbacks.resume import Resume, checkpoints_in
from callbacks.resume_state import random_state, restore_counters, set_random_state
from datamodules.contract.checkpoints import write_checkpoint
from datamodules.contract.errors import CheckpointError


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.randn(()))]  # noqa: NPY002


def test_random_state_comes_back_through_a_file(tmp_path: Path) -> None:
    draw()  # a gaussian generator keeps half a pair back
    path = tmp_path / "a.ckpt"
    write_checkpoint({"state_dict": {}, "random": random_state()}, path)
    expected = [draw(), draw()]
    from datamodules.contract.checkpoints import read_checkpoint

    set_random_state(read_checkpoint(path)["random"])
    assert [draw(), draw()] == expected


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"keep": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Resume(**wrong)


def trainer(**changed: Any) -> Any:
    loop = SimpleNamespace(_batches_that_stepped=0)
    fit_loop = SimpleNamespace(epoch_loop=loop, state_dict=lambda: {"epoch_progress": {"ready": 2}, "state_dict": {}})
    base = {"world_size": 1, "checkpoint_callbacks": [], "loggers": [], "is_global_zero": True, "ckpt_path": "a.ckpt"}
    return SimpleNamespace(**base | {"fit_loop": fit_loop} | changed)


def test_a_loop_that_restarts_elsewhere_is_noticed() -> None:
    saved = {"stepped": 4, "there": {"epoch_progress": {"ready": 2}}}
    made = trainer()
    assert restore_counters(made, saved) == ""
    assert made.fit_loop.epoch_loop._batches_that_stepped == 4
    assert restore_counters(made, {"stepped": 4, "there": {"epoch_progress": {"ready": 3}}}) == (
        "epoch_progress is {'ready': 2}, was {'ready': 3}"
    )


def test_weights_alone_cannot_be_continued() -> None:
    with pytest.raises(CheckpointError, match=r"a.ckpt: expected a checkpoint of resume/, found weights only"):
        Resume().on_load_checkpoint(trainer(), None, {"callbacks": {}})  # type: ignore[arg-type]


def test_another_number_of_processes_is_refused() -> None:
    state = {"resume": {"random": [{}, {}], "logs": {}}, "callbacks": {}}
    with pytest.raises(CheckpointError, match="expected a run of 2 processes, found 1"):
        Resume().on_load_checkpoint(trainer(), None, state)  # type: ignore[arg-type]


def test_the_best_checkpoint_follows_a_folder_that_moves_and_is_what_it_was(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_checkpoint({"state_dict": {"w": torch.ones(1)}}, new / "resume" / "step-00000003.best")
    write_checkpoint({"state_dict": {"w": torch.zeros(1)}}, new / "checkpoints" / "best.ckpt")  # of a lost future
    best = ModelCheckpoint(dirpath=new / "checkpoints", monitor="x")
    path = str(old / "checkpoints" / "best.ckpt")
    state = {
        "dirpath": str(old / "checkpoints"),
        "best_model_path": path,
        "kth_best_model_path": path,
        "last_model_path": "",
        "best_k_models": {path: torch.ones(())},
    }
    checkpoint = {"resume": {"random": [{}], "logs": {}}, "callbacks": {best.state_key: state}}
    made = trainer(checkpoint_callbacks=[best], ckpt_path=str(new / "resume" / "step-00000003.ckpt"))
    Resume().on_load_checkpoint(made, None, checkpoint)  # type: ignore[arg-type]
    moved = str(new / "checkpoints" / "best.ckpt")
    assert state["best_model_path"] == state["kth_best_model_path"] == moved
    assert list(state["best_k_models"]) == [moved]
    assert torch.load(moved, weights_only=True)["state_dict"]["w"].item() == 1


def test_the_newest_checkpoint_comes_first(tmp_path: Path) -> None:
    for name in ("step-00000009.ckpt", "step-00000010.ckpt", "step-00000010.best", ".step-00000011.ckpt.a.tmp", "x"):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-00000010.ckpt", "step-00000009.ckpt"]


def test_costs_go_on_from_where_they_were() -> None:
    meter, batch = CostMeter(), SimpleNamespace(tokens=7, tokens_unshared=9, targets=3)
    logged: list[float] = []
    module = SimpleNamespace(log=lambda name, value, **options: logged.append(value))
    meter.on_train_start(None, None)  # type: ignore[arg-type]
    meter.on_train_batch_end(None, module, None, batch, 0)  # type: ignore[arg-type]
    state = meter.state_dict()
    assert state["seconds"]["train"] > 0
    again = CostMeter()
    again.load_state_dict(state)
    again.on_train_start(None, None)  # type: ignore[arg-type]
    again.on_train_batch_end(None, module, None, batch, 1)  # type: ignore[arg-type]
    again.on_train_end(None, None)  # type: ignore[arg-type]
    costs = again.costs()
    assert (costs["train_steps"], costs["train_tokens"], costs["train_tokens_unshared"]) == (2, 14, 18)
    assert (costs["train_targets"], logged) == (6, [3.0, 6.0])
    assert costs["train_seconds"] >= round(state["seconds"]["train"], 3)


def test_a_second_signal_ends_at_once() -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with interruptible():
        stop = StopRequest()
        stop.listen()
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        with pytest.raises(Interrupted) as end:
            signal.raise_signal(signal.SIGINT)
        assert end.value.exit_code == 130
        stop.leave()
        with pytest.raises(Interrupted, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
