"""The average of the weights of many steps, in place of the last ones."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from datamodules.contract.errors import InputError


class WeightAverage(L.Callback):
    """Keeps the average of what trains; it is validated, saved as the best checkpoint, tested, and left after training.

    Lightning's own averages copy the whole backbone, and leave other weights in a checkpoint than those validated.

    Args:
        decay: share of the average that a step leaves (exponential, Polyak and Juditsky 1992, doi:10.1137/0330046), less
            at first: at most (1 + n) / (10 + n) after n steps; null weighs all steps alike (SWA, Izmailov et al. 2018,
            arXiv 1803.05407).
        start: share of the steps before the first that counts.
    """

    def __init__(self, decay: float | None = 0.999, start: float = 0.0) -> None:
        if decay is not None and not 0 < decay < 1:
            raise InputError(f"WeightAverage.decay is {decay}, must be above 0 and below 1, or null")
        if not 0 <= start < 1:
            raise InputError(f"WeightAverage.start is {start}, must be 0 to below 1")
        self.decay, self.start = decay, start
        self._other: dict[str, Tensor] = {}  # the average, or while it is in the model the weights that train
        self._inside = False
        self._steps = self._seen = 0

    def state_dict(self) -> dict[str, Any]:
        """The weights that are not in the model, and how they came about."""
        return {"other": self._other, "inside": self._inside, "steps": self._steps, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self._other, self._inside = dict(state_dict["other"]), bool(state_dict["inside"])
        self._steps, self._seen = int(state_dict["steps"]), int(state_dict["seen"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Goes on with the weights that train."""
        if self._inside:
            self._swap(pl_module)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the weights in after each step of the optimiser."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        if self._seen <= int(self.start * float(trainer.estimated_stepping_batches)):
            return
        self._steps += 1
        share = 1 / self._steps if self.decay is None else 1 - min(self.decay, self._steps / (9 + self._steps))
        for name, value in _trained(pl_module).items():
            if name not in self._other:
                self._other[name] = value.detach().clone()
            else:
                self._other[name] = self._other[name].to(value.device).lerp_(value, share)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the average in, until the next batch: the best checkpoint is saved in between."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not self._inside:
            self._swap(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the average."""
        if not self._inside:
            self._swap(pl_module)
        self._other, self._inside = {}, False

    def _swap(self, pl_module: L.LightningModule) -> None:
        if not self._other:
            return
        for name, value in _trained(pl_module).items():
            value.data, self._other[name] = self._other[name].to(value.device), value.data
        self._inside = not self._inside


def _trained(model: L.LightningModule) -> dict[str, nn.Parameter]:
    trained: dict[str, nn.Parameter] = cast(Any, model).trained()
    return trained
