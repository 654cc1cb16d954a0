"""Costs: what is waiting for data and what is not, and prompts that lost history."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from callbacks.cost_meter import CostMeter
from datamodules.batching.loaders import Keys, TimedLoader

# Warnings of Lightning about few workers and missing steps are not what is tested here.
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
WAIT, ELSEWHERE = 0.03, 0.05


@dataclass
class Case:
    """A batch of one case."""

    case: Tensor
    truncated: int
    tokens: int = 10


class SlowData(L.LightningDataModule):
    """Each batch takes a while to make; validation and test batches have lost history."""

    def __init__(self, wait: float = WAIT) -> None:
        super().__init__()
        self.waited: dict[str, float] = {}
        self.wait = wait

    def loader(self, stage: str, truncated: int) -> TimedLoader:
        def collate(keys: Sequence[int]) -> Case:
            time.sleep(self.wait)
            return Case(torch.tensor(keys), truncated)

        return TimedLoader(waited=self.waited, stage=stage, dataset=Keys(range(6)), collate_fn=collate, batch_size=1)

    def train_dataloader(self) -> TimedLoader:
        return self.loader("train", 1)

    def val_dataloader(self) -> TimedLoader:
        return self.loader("validation", 10)

    def test_dataloader(self) -> TimedLoader:
        return self.loader("test", 100)


class SlowModel(L.LightningModule):
    """Takes a while for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Case, batch_idx: int) -> Tensor:
        time.sleep(ELSEWHERE)
        return self.weight.sum()

    def validation_step(self, batch: Case, batch_idx: int) -> None:
        time.sleep(0.001)

    def test_step(self, batch: Case, batch_idx: int) -> None:
        time.sleep(ELSEWHERE)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SlowCallback(L.Callback):
    """Takes a while between batches."""

    def on_train_batch_end(self, *given: Any) -> None:
        time.sleep(ELSEWHERE)

    def on_train_batch_start(self, *given: Any) -> None:
        time.sleep(ELSEWHERE)


def measured(folder: Path, data: L.LightningDataModule, *, sanity: int = 0) -> tuple[CostMeter, dict[str, Any]]:
    meter = CostMeter()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=6,
        val_check_interval=3,
        num_sanity_val_steps=sanity,
        callbacks=[meter, SlowCallback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    model = SlowModel()
    trainer.fit(model, datamodule=data)
    next(iter(data.test_dataloader()))  # a look at a batch beside the test is no waiting of the test
    trainer.test(model, datamodule=data, verbose=False)
    return meter, meter.costs()


def test_waiting_for_data_is_told_from_steps_and_callbacks(tmp_path: Path) -> None:
    _, costs = measured(tmp_path, SlowData())

    # Six batches each; validation between them and callbacks are not waiting. Sleeps are never shorter than asked for.
    for stage in ("train", "test"):
        assert 6 * WAIT <= costs[f"{stage}_data_wait_seconds"] < 6 * WAIT + 3 * ELSEWHERE
        share = costs[f"{stage}_data_wait_seconds"] / costs[f"{stage}_seconds"]
        assert costs[f"{stage}_data_wait_fraction"] == pytest.approx(share, abs=2e-3)
    assert costs["train_data_wait_fraction"] < 0.35 < WAIT / (WAIT + ELSEWHERE)


def test_data_that_is_quick_is_not_waited_for(tmp_path: Path) -> None:
    _, costs = measured(tmp_path, SlowData(wait=0.0))

    assert 0 <= costs["train_data_wait_fraction"] < 0.1


def test_without_measuring_loaders_nothing_is_claimed(tmp_path: Path) -> None:
    data = SlowData(wait=0.0)
    del data.waited
    data.loader = lambda stage, truncated: torch.utils.data.DataLoader(  # type: ignore[method-assign]
        Keys(range(6)), collate_fn=lambda keys: Case(torch.tensor(keys), truncated)
    )

    meter, costs = measured(tmp_path, data)

    assert not [name for name in costs if "wait" in name]
    assert meter.truncated == 6 * 1 + 2 * 6 * 10 + 6 * 100


@pytest.mark.parametrize("sanity", [0, 2])
def test_shortened_prompts_are_summed_over_training_validation_and_test(tmp_path: Path, sanity: int) -> None:
    meter, _ = measured(tmp_path, SlowData(wait=0.0), sanity=sanity)

    assert meter.truncated == 6 * 1 + 2 * 6 * 10 + 6 * 100
