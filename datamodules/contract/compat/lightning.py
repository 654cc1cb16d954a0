"""What this project uses of Lightning beyond its public interface (2.6)."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import WandbLogger

from datamodules.contract.errors import InputError


def batches_that_stepped(trainer: L.Trainer) -> int:
    """The step that loggers count: `fit_loop.epoch_loop._batches_that_stepped`; no public counter keeps it."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_batches_that_stepped(trainer: L.Trainer, count: int) -> None:
    """Puts that step back, which a restart inside an epoch leaves one off."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = count


def accumulates(trainer: L.Trainer) -> bool:
    """Whether gradients wait for more batches: `fit_loop._should_accumulate`, the rule by which the loop itself steps."""
    return trainer.fit_loop._should_accumulate()


def leave_anonymous_unset(logger: WandbLogger) -> None:
    """Takes `anonymous` out of `WandbLogger._wandb_init`: it is always passed on, and W&B warns of it in every run."""
    logger._wandb_init.pop("anonymous", None)


class BuildingCLI(LightningCLI):
    """A `LightningCLI` whose constructor only builds; `run` then runs the command.

    Lightning's constructor calls `_run_subcommand` last, so whoever must record a failure has no object to ask.
    """

    def run(self) -> None:
        """Runs the command with what was built (`LightningCLI._run_subcommand`)."""
        if self.subcommand is not None:
            super()._run_subcommand(self.subcommand)

    def _run_subcommand(self, subcommand: str) -> None:
        """Does nothing: called at the end of the constructor."""

    def _set_seed(self) -> None:
        """Tells a seed that Lightning refuses as the user's input (`LightningCLI._set_seed`)."""
        try:
            super()._set_seed()
        except ValueError as error:
            raise InputError(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Does nothing where Lightning takes settings from a checkpoint: the config says which model is evaluated."""
