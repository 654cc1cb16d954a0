"""The same seconds of training for every method, in place of the same steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L
from torch.optim.lr_scheduler import LambdaLR

from datamodules.contract.findings import Findings


class TimeBudget(L.Callback):
    """Ends the training when it has taken its seconds; validation, test and preparation are not counted.

    The learning rate's schedule follows the share of the seconds that is spent, in place of the share of the steps, so
    that it ends where the training does. `trainer.max_steps` must be out of reach. A run that is continued goes on with
    the seconds it had spent.

    Args:
        seconds: of training.
    """

    def __init__(self, seconds: float) -> None:
        if not 0 < seconds < float("inf"):
            raise ValueError(f"seconds is {seconds}, must be a number above 0")
        self.seconds = seconds
        self._spent = 0.0
        self._began: float | None = None
        self._share = 0.0  # as all processes have it

    @property
    def spent(self) -> float:
        """Seconds of training so far."""
        return self._spent + (0.0 if self._began is None else time.perf_counter() - self._began)

    @property
    def findings(self) -> Findings:
        """The seconds given, those spent, and whether they ended the training; nothing where there was none."""
        if not self._spent:
            return {}
        spent = round(self._spent, 3)
        return {"time_budget_seconds": self.seconds, "time_budget_spent": spent, "ended_by_time": spent >= self.seconds}

    def state_dict(self) -> dict[str, Any]:
        """The seconds spent so far."""
        return {"spent": self.spent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting from there."""
        self._spent = float(state_dict["spent"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock, and lays the schedule over the seconds."""
        self._share = min(1.0, self._spent / self.seconds)
        steps = float(trainer.estimated_stepping_batches)
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, LambdaLR):
                config.scheduler.lr_lambdas = [self._by_time(factor, steps) for factor in config.scheduler.lr_lambdas]
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the training, on all processes at the same step."""
        spent = float(trainer.strategy.broadcast(self.spent))
        self._share = min(1.0, spent / self.seconds)
        if spent >= self.seconds:
            trainer.should_stop = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock."""
        self._pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock again."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._began = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock."""
        self._pause()

    def _pause(self) -> None:
        self._spent, self._began = self.spent, None

    def _by_time(self, factor: Callable[[int], float], steps: float) -> Callable[[int], float]:
        return lambda _: factor(int(self._share * steps))
