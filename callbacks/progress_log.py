"""Progress of a run: a file for whoever watches, and a line now and then for whoever reads."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import lightning as L

from datamodules.contract.files import write_atomic


class ProgressLog(L.Callback):
    """Writes `progress.json` into the run's folder every few seconds and prints a line every so often.

    Args:
        every: seconds between two writes of the file.
        print_every: seconds between two printed lines.
    """

    def __init__(self, every: float = 2.0, print_every: float = 20.0) -> None:
        self.every, self.print_every = every, print_every
        self._written = self._printed = self._began = 0.0
        self._first = 0
        self._phase = ""
        self._loss = float("nan")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One optimiser step more."""
        if isinstance(outputs, dict) and "loss" in outputs:
            self._loss = float(outputs["loss"])
        steps = trainer.estimated_stepping_batches
        self._report(trainer, "fit", trainer.global_step, int(steps) if steps != float("inf") else 0)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One validation batch more."""
        self._report(trainer, "validate", batch_idx + 1, int(sum(trainer.num_val_batches)))

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One test batch more."""
        self._report(trainer, "test", batch_idx + 1, int(sum(trainer.num_test_batches)))

    def _report(self, trainer: L.Trainer, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._began, self._first, self._written = phase, now, done, -math.inf
        if not trainer.is_global_zero or (now - self._written < self.every and done < total):
            return
        self._written = now
        elapsed = now - self._began
        # The first one of a phase has no duration yet, so it is left out of the rate.
        left = elapsed / (done - self._first) * (total - done) if done > self._first and total else None
        loss = f"loss {self._loss:.3f}" if phase == "fit" and self._loss == self._loss else ""
        state = {"phase": phase, "done": done, "total": total, "message": loss, "seconds_left": left}
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "progress.json", json.dumps(state), sync=False)
        if now - self._printed >= self.print_every or done == total:
            self._printed = now
            rest = "" if left is None else f" · {left:.0f} s left"
            print(f"{phase} {done}/{total}{' · ' + loss if loss else ''}{rest}", flush=True)
