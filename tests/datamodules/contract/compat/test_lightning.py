"""Lightning still has what this project uses of it beyond its public interface."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import WandbLogger

from datamodules.contract.compat.lightning import (
    accumulates,
    batches_that_stepped,
    leave_anonymous_unset,
    set_batches_that_stepped,
)

MOVED = "Lightning has moved {}; mend datamodules/contract/compat/lightning.py, or lower the bound in pyproject.toml"


class Watcher(L.Callback):
    """Reads both private values at every batch, beside what can be counted in public."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bool]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        self.seen.append((batches_that_stepped(trainer), accumulates(trainer)))


@pytest.mark.filterwarnings("ignore")
def test_the_loops_counters_are_where_they_were() -> None:
    watcher = Watcher()
    trainer = L.Trainer(
        max_steps=3,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[watcher],
    )
    torch.manual_seed(0)
    try:
        trainer.fit(BoringModel())
        stepped = batches_that_stepped(trainer)
        set_batches_that_stepped(trainer, 7)
    except AttributeError as error:
        pytest.fail(MOVED.format(error.name))
    assert stepped == 3, MOVED.format("the meaning of _batches_that_stepped")
    assert batches_that_stepped(trainer) == 7
    expected = [(0, True), (0, False), (1, True), (1, False), (2, True), (2, False)]
    assert [step for step, _ in watcher.seen] == [step for step, _ in expected]
    assert [waits for _, waits in watcher.seen] == [waits for _, waits in expected], MOVED.format("_should_accumulate")


def test_wandb_is_given_nothing_that_it_no_longer_takes() -> None:
    logger = WandbLogger(offline=True)
    assert "anonymous" in logger._wandb_init, MOVED.format("WandbLogger._wandb_init['anonymous']")
    leave_anonymous_unset(logger)
    assert "anonymous" not in logger._wandb_init


@pytest.mark.parametrize("name", ["_run_subcommand", "_set_seed", "_parse_ckpt_path"])
def test_the_command_line_calls_what_is_overridden(name: str) -> None:
    assert callable(getattr(LightningCLI, name, None)), MOVED.format(f"LightningCLI.{name}")
    assert name in LightningCLI.__init__.__code__.co_names, MOVED.format(f"the call of LightningCLI.{name}")
