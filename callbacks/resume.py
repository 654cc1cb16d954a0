"""Saves a fit so that it continues exactly where it was, and ends it in order when a signal asks for it.

Every state is saved and put back at the same moment: just before a batch trains. Logging and validation of the step before
are done then, gradients are empty, and the iterator of the epoch exists, so neither the end of an epoch nor a
validation needs a rule of its own. Only a signal during a validation saves elsewhere: at its start.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.interruption import Interrupted, StopRequest
from callbacks.resume_state import (
    before_batch,
    before_validation,
    logs_so_far,
    put_back_logs,
    random_state,
    restore_counters,
    set_random_state,
)
from datamodules.contract.checkpoints import check_file, link_checkpoint, remove_checkpoint
from datamodules.contract.compat.lightning import accumulates
from datamodules.contract.errors import CheckpointError
from datamodules.contract.files import clear_drafts
from datamodules.contract.findings import Findings

KEY = "resume"
"""Where a checkpoint keeps what this callback needs."""


class Resume(L.Callback):
    """Writes `resume/step-NNNNNNNN.ckpt` into the run's folder; `fit --ckpt_path last` continues from the newest.

    The file holds trained weights, optimiser, schedule, progress, random state, position in the data, the state of
    all callbacks, and the log so far. SIGINT and SIGTERM finish the step, save, and raise `Interrupted`.

    Args:
        every_n_steps: optimiser steps between two saves; null saves after every validation.
        keep: checkpoints kept, newest first; the older ones are for a newest one that turns out damaged.
    """

    def __init__(self, every_n_steps: int | None = None, keep: int = 2) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}, must be at least 1")
        if keep < 1:
            raise ValueError(f"keep is {keep}, must be at least 1")
        self.every_n_steps, self.keep = every_n_steps, keep
        self.identity: dict[str, Any] = {}
        """What makes the numbers of this run (settings, versions); written into every checkpoint."""
        self.resumed_at: list[int] = []
        """Steps at which this run was continued."""
        self._stop = StopRequest()
        self._validated = False
        self._saved = 0
        self._random: dict[str, Any] | None = None  # at the start of the validation under way
        self._extra: dict[str, Any] | None = None  # while a checkpoint of this callback is made
        self._restored: dict[str, Any] | None = None  # until the first batch of a continued run

    @property
    def findings(self) -> Findings:
        """Where the run was continued, if it was."""
        return {"resumed_at_steps": self.resumed_at} if self.resumed_at else {}

    def state_dict(self) -> dict[str, Any]:
        """The history of the run."""
        return {"resumed_at": self.resumed_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the history of the run that is continued."""
        self.resumed_at = [*state_dict["resumed_at"]]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Removes what a killed process was writing."""
        if stage == "fit" and trainer.is_global_zero:
            for folder in (self._folder(trainer), Path(trainer.default_root_dir) / "checkpoints"):
                clear_drafts(folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens to signals, after Lightning has installed its own handlers."""
        self._stop.listen()
        self._saved = trainer.global_step
        if self._restored is not None:
            self.resumed_at.append(trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets signals end the process again."""
        self._stop.leave()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Lets signals end the process again."""
        self._stop.leave()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Puts the state back, or saves it.

        Raises:
            Interrupted: a signal came; the state is saved.
        """
        if self._restored is not None:
            self._continue(trainer)
        stop = self._stop_wanted(trainer)
        whole = pl_module.automatic_optimization and batch_idx % trainer.accumulate_grad_batches == 0
        if whole and (stop or self._due(trainer.global_step)):
            self._save(trainer, before_batch(trainer), random_state())
        if stop and (whole or not pl_module.automatic_optimization):
            raise Interrupted(stop)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes the random state, which a signal during the validation makes worth saving."""
        if self._restored is not None and self._restored["validation_due"]:
            self._continue(trainer)
        self._random = random_state()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leaves a validation that would keep the process from ending in time.

        Raises:
            Interrupted: a signal came; the state at the validation's start is saved.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking or not (stop := self._stop_wanted(trainer)):
            return
        # After the very last step Lightning would not validate again, and gradients that wait for more batches are in
        # no checkpoint: then the save before it has to do.
        last = trainer.global_step == trainer.max_steps
        if self._random is not None and not last and not accumulates(trainer):
            self._save(trainer, before_validation(trainer), self._random)
        raise Interrupted(stop)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Has the state saved before the next batch."""
        self._validated, self._random = not trainer.sanity_checking, None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what Lightning does not keep."""
        if self._extra is not None:
            checkpoint[KEY] = self._extra
            checkpoint["loops"]["fit_loop"] = self._extra.pop("fit_loop")

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the state of a run that is continued.

        Raises:
            CheckpointError: the file holds weights only, or the run had another number of processes.
        """
        saved = checkpoint.get(KEY)
        if saved is None:
            raise CheckpointError(f"{trainer.ckpt_path}: expected a checkpoint of resume/, found weights only")
        if len(saved["random"]) != trainer.world_size:
            raise CheckpointError(
                f"{trainer.ckpt_path}: expected a run of {len(saved['random'])} processes, found {trainer.world_size}"
            )
        self._restored = saved
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state and trainer.is_global_zero:
                _follow(callback, state)
                _put_back_best(state, Path(str(trainer.ckpt_path)))
        if trainer.is_global_zero:
            put_back_logs(trainer, saved["logs"])

    def _continue(self, trainer: L.Trainer) -> None:
        """Random state and progress as they were, in the same hook."""
        saved = cast("dict[str, Any]", self._restored)
        self._restored = None
        if wrong := restore_counters(trainer, saved):
            raise CheckpointError(f"the run cannot be continued exactly: {wrong}")
        set_random_state(saved["random"][trainer.global_rank])

    def _stop_wanted(self, trainer: L.Trainer) -> int:
        """The signal that any process has had, 0 without one."""
        signum = self._stop.signum or 0
        if trainer.world_size > 1:
            largest = trainer.strategy.reduce(
                torch.tensor(signum, device=trainer.strategy.root_device), reduce_op="max"
            )
            signum = int(largest)
        return signum

    def _due(self, step: int) -> bool:
        if step in (0, self._saved):
            return False
        return self._validated if self.every_n_steps is None else step % self.every_n_steps == 0

    def _save(self, trainer: L.Trainer, progress: dict[str, Any], randomness: dict[str, Any]) -> None:
        step = trainer.global_step
        self._extra = {
            **progress,
            "format": 1,
            "identity": json.dumps(self.identity, default=str),
            "random": _of_all_processes(trainer, randomness),
            "logs": logs_so_far(trainer) if trainer.is_global_zero else {},
        }
        path = self._folder(trainer) / f"step-{step:08d}.ckpt"
        if trainer.is_global_zero:
            _keep_best(trainer, path)
        try:
            trainer.save_checkpoint(path, weights_only=False)
        finally:
            self._extra = None
        self._saved, self._validated = step, False
        if trainer.is_global_zero:
            _prune(path.parent, self.keep)

    @staticmethod
    def _folder(trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "resume"


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a run's `resume` folder, the newest first.

    Example:
        >>> checkpoints_in(Path("nowhere"))
        []
    """
    return sorted((path for path in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+", path.stem)), reverse=True)


def best_beside(path: Path) -> Path:
    """Where the best weights at the time of a checkpoint lie.

    Example:
        >>> best_beside(Path("resume/step-00000100.ckpt")).name
        'step-00000100.best'
    """
    return path.with_suffix(".best")


def _prune(folder: Path, keep: int) -> None:
    newest = checkpoints_in(folder)[:keep]
    for old in checkpoints_in(folder)[keep:]:
        remove_checkpoint(old)
    for best in folder.glob("step-*.best"):
        if best.with_suffix(".ckpt") not in newest:
            remove_checkpoint(best)


def _keep_best(trainer: L.Trainer, path: Path) -> None:
    """The best weights belong to the state: a later validation may replace them, and then the process may die."""
    best = Path(getattr(trainer.checkpoint_callback, "best_model_path", "") or "nowhere")
    if best.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        link_checkpoint(best, best_beside(path))


def _put_back_best(state: dict[str, Any], path: Path) -> None:
    best = best_beside(path)
    if state.get("best_model_path") and best.is_file():
        check_file(best)
        link_checkpoint(best, Path(state["best_model_path"]))


def _follow(callback: ModelCheckpoint, state: dict[str, Any]) -> None:
    """Rewrites paths in the state of a ModelCheckpoint whose run folder has moved, or is named another way."""
    before, now = str(state["dirpath"]), str(callback.dirpath)

    def moved(path: str) -> str:
        return now + path.removeprefix(before) if path.startswith(before) else path

    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state[name])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = now


def _of_all_processes(trainer: L.Trainer, randomness: dict[str, Any]) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [randomness]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, randomness)
    return gathered
