"""Proof that training trained what it should, and that the checkpoint gives the trained model back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from datamodules.contract.checkpoints import checksum_parameters, read_checkpoint
from datamodules.contract.findings import Findings


class GuardError(RuntimeError):
    """A guard found that a run cannot be trusted."""


class TrainingGuard(L.Callback):
    """After training: trained parameters have moved, frozen ones have not."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}
        self._continued = False
        self.findings = Findings()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remembers every parameter by its checksum; a continued run has them from its beginning."""
        if not self._continued:
            self._before = {name: checksum_parameters([("", value)]) for name, value in pl_module.named_parameters()}
        self._continued = False

    def state_dict(self) -> dict[str, Any]:
        """The parameters at the beginning of the run, by checksum."""
        return {"before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the beginning of the run that is continued."""
        self._before, self._continued = dict(state_dict["before"]), True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compares.

        Raises:
            GuardError: nothing that trains has moved, or something frozen has.
        """
        if trainer.global_step == 0 or not self._before:
            return
        trained = {name for name, value in pl_module.named_parameters() if value.requires_grad}
        moved = {
            name
            for name, value in pl_module.named_parameters()
            if checksum_parameters([("", value)]) != self._before[name]
        }
        self.findings["parameters_moved"] = round(len(moved & trained) / max(1, len(trained)), 4)
        self.findings["frozen_unchanged"] = not moved - trained
        if trained and not moved & trained:
            raise GuardError(f"after {trainer.global_step} steps none of the {len(trained)} trained tensors has moved")
        if moved - trained:
            raise GuardError(f"frozen parameters have changed, first {sorted(moved - trained)[0]}")


@torch.no_grad()
def verify_checkpoint(model: L.LightningModule, path: Path, batch: Any, precision: Any) -> float:
    """Loads a checkpoint into the live model after wiping what it should restore, and compares scores.

    Everything the checkpoint keeps is overwritten with NaN (whole numbers with 0) first, so that whatever the file does not
    bring back shows.

    Args:
        model: the live model; `path` was written from its present state.
        path: the checkpoint.
        batch: any batch to score.
        precision: a context manager factory for the forward (autocast), as the trainer's precision plugin has.

    Returns:
        Largest absolute difference of scores before and after; 0 when the checkpoint is exact.

    Raises:
        GuardError: a tensor was not restored, or the difference is not zero.
    """
    training = model.training
    model.eval()
    with precision():
        live: Tensor = model.score(batch)  # type: ignore[operator]
    state = model.state_dict()
    for name in model.checkpoint_keys():  # type: ignore[operator]
        state[name].fill_(float("nan") if state[name].is_floating_point() else 0)
    load_trained(model, path)
    state = model.state_dict()
    for name in sorted(model.checkpoint_keys()):  # type: ignore[operator]
        if not state[name].isfinite().all():
            raise GuardError(f"{path} does not give the trained model back: {name} was not restored")
    with precision():
        back: Tensor = model.score(batch)  # type: ignore[operator]
    model.train(training)
    difference = float((live - back).abs().max())
    if difference != 0:
        raise GuardError(f"{path} does not give the trained model back: scores differ by {difference:.3g}")
    return difference


def load_trained(model: L.LightningModule, path: Path) -> None:
    """Loads what a checkpoint keeps into a model that was built from its config; never runs code from the file.

    Raises:
        CheckpointError: the file is damaged.
    """
    checkpoint = read_checkpoint(path, mmap=True)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=False)
