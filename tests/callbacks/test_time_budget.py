"""Equal seconds of training: what is counted, where the schedule ends, and what a continued run has left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.time_budget import TimeBudget

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


class Clock:
    """Seconds that pass when a step says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("callbacks.time_budget.time.perf_counter", lambda: self.now)


class Model(L.LightningModule):
    """A step takes half a second, a validation batch ten; the rate falls linearly over the steps of the trainer."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.layer, self.clock, self.rates = torch.nn.Linear(1, 1), clock, list[float]()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock.now += 0.5
        self.rates.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.now += 10.0

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(folder: Path, clock: Clock, budget: TimeBudget, checkpoint: Path | None = None, **options: Any) -> Model:
    model, loader = Model(clock), DataLoader(torch.ones(6, 1))
    given = {"max_steps": 1000, "check_val_every_n_epoch": None, "val_check_interval": 3} | options
    trainer = L.Trainer(
        default_root_dir=folder,
        callbacks=[budget],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        **given,
    )
    trainer.fit(model, loader, loader, ckpt_path=checkpoint, weights_only=None)
    if checkpoint is None:
        trainer.save_checkpoint(folder / "kept.ckpt")
    return model


def test_training_alone_is_counted_and_the_schedule_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    budget = TimeBudget(4.0)
    model = fit(tmp_path, clock, budget)
    assert len(model.rates) == 8  # four seconds of half a second; the validations took minutes
    assert clock.now - 100.0 > 120
    assert model.rates == pytest.approx([1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25])
    assert budget.findings == {"time_budget_seconds": 4.0, "time_budget_spent": 4.0, "ended_by_time": True}


def test_a_continued_run_has_the_seconds_left_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    first = TimeBudget(4.0)
    assert len(fit(tmp_path, clock, first, max_steps=3).rates) == 3
    assert not first.findings["ended_by_time"]
    clock.now += 1000.0
    second = TimeBudget(4.0)
    model = fit(tmp_path, clock, second, tmp_path / "kept.ckpt")
    assert len(model.rates) == 5
    assert second.findings["time_budget_spent"] == 4.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_no_seconds_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be a number above 0"):
        TimeBudget(seconds)
