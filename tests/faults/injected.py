"""What a trial's child does beside running the command: it records every step, and dies where it is told to."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from callbacks.resume_state import random_state
from datamodules.contract.checkpoints import write_checkpoint

POINTS = (
    "batch_start",
    "after_backward",
    "before_zero_grad",
    "batch_end",
    "validation",
    "epoch_start",
    "epoch_end",
    "write_before_fsync",
    "write_before_rename",
    "write_after_rename",
    "write_after_manifest",
)


def save_and_die(path: str, seed: int, call: str = "", number: int = 0, delay: float = 0.0) -> int:
    """Writes a checkpoint and dies at the n-th (from 0) call of an `os` function, or after a delay in seconds.

    Returns:
        0 where it was done before.
    """
    if call:
        original, calls = getattr(os, call), iter(range(1000))

        def deadly(*arguments: Any) -> Any:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        setattr(os, call, deadly)
    if delay:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends the process, wherever it is
        signal.setitimer(signal.ITIMER_REAL, delay)
    write_checkpoint(content(seed), Path(path))
    return 0


def content(seed: int) -> dict[str, Any]:
    """A small checkpoint."""
    torch.manual_seed(seed)
    return {"state_dict": {"w": torch.randn(300)}, "optimizer_states": [{"state": {0: torch.randn(300)}}], "epoch": 1}


def carry_out(
    arguments: list[str],
    trace: str | None = None,
    point: str | None = None,
    step: int = 0,
    signum: int = signal.SIGKILL,
    patches: dict[str, str] | None = None,
) -> int:
    """Runs `instructrec ARGUMENTS`.

    Args:
        arguments: of the command.
        trace: file that gets a line for every step: its number and the sum of all that training depends on.
        point: one of POINTS at which the process sends itself a signal.
        step: the first step at which it may.
        signum: that signal.
        patches: environment variables.
    """
    os.environ.update(patches or {})
    from benchmarks.__main__ import main
    from benchmarks.cli import app as cli

    original = cli.InstructRecCLI.fit
    saboteur = Saboteur(point, step, signum) if point else None

    def fit(self: Any, model: Any, **kwargs: Any) -> None:
        if trace:
            self.trainer.callbacks.append(Recorder(Path(trace)))
        if saboteur:
            saboteur.watch()
            self.trainer.callbacks.insert(0, saboteur)
        original(self, model, **kwargs)

    cli.InstructRecCLI.fit = fit  # type: ignore[method-assign]
    code = main(arguments)
    if saboteur and saboteur.struck:
        print(f"left {time.monotonic() - saboteur.struck:.1f} s after the signal")
    return code


class Recorder(L.Callback):
    """Writes what every step left: loss, weights, optimiser, random state, and the batch it trained on."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        parts = {
            "loss": _sum(outputs["loss"]),
            "weights": _sum({name: value.data for name, value in pl_module.trained().items()}),
            "optimizer": _sum(trainer.optimizers[0].state_dict()),
            "schedule": _sum(trainer.lr_scheduler_configs[0].scheduler.state_dict()),
            "random": _sum(random_state()),
            "batch": _sum(vars(batch)),
        }
        with self.file.open("a") as lines:
            lines.write(json.dumps({"step": trainer.fit_loop.total_batch_idx + 1, **parts}) + "\n")


def _sum(value: Any) -> str:
    digest = hashlib.sha256()

    def feed(one: Any) -> None:
        if isinstance(one, torch.Tensor):
            digest.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(one, dict):
            for key in one:
                digest.update(str(key).encode())
                feed(one[key])
        elif isinstance(one, (list, tuple)):
            for inner in one:
                feed(inner)
        else:
            digest.update(repr(one).encode())

    feed(value)
    return digest.hexdigest()[:24]


class Saboteur(L.Callback):
    """Sends this process a signal at a point."""

    def __init__(self, point: str, step: int, signum: int) -> None:
        assert point in POINTS
        self.point, self.step, self.signum = point, step, signum
        self.trainer: Any = None
        self.struck = 0.0

    def watch(self) -> None:
        """Where the point is inside a write, looks into it."""
        if self.point.startswith("write"):
            _watch_writing(self)

    def strike(self, point: str) -> None:
        if point == self.point and self.trainer is not None and self.trainer.global_step >= self.step:
            self.point, self.struck = "done", time.monotonic()
            os.kill(os.getpid(), self.signum)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.trainer = trainer

    def on_train_epoch_start(self, *_: Any) -> None:
        self.strike("epoch_start")

    def on_train_epoch_end(self, *_: Any) -> None:
        self.strike("epoch_end")

    def on_train_batch_start(self, *_: Any) -> None:
        self.strike("batch_start")

    def on_after_backward(self, *_: Any) -> None:
        self.strike("after_backward")

    def on_before_zero_grad(self, *_: Any) -> None:
        self.strike("before_zero_grad")

    def on_train_batch_end(self, *_: Any) -> None:
        self.strike("batch_end")

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        if batch_idx == 1:
            self.strike("validation")


def _watch_writing(saboteur: Saboteur) -> None:
    """Strikes around the system calls that put a resumable checkpoint in place."""
    replace, fsync = os.replace, os.fsync
    state = {"seen": False}

    def watched_fsync(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if name.endswith(".tmp") and "/.step-" in name and ".ckpt." in name and ".sha256." not in name:
            saboteur.strike("write_before_fsync")
        fsync(handle)

    def watched_replace(source: Any, target: Any) -> None:
        checkpoint = str(target).endswith(".ckpt") and "/resume/" in str(target)
        manifest = str(target).endswith(".ckpt.sha256") and "/resume/" in str(target)
        if checkpoint:
            saboteur.strike("write_before_rename")
        replace(source, target)
        if checkpoint:
            state["seen"] = True
            saboteur.strike("write_after_rename")
        if manifest and state["seen"]:
            saboteur.strike("write_after_manifest")

    os.replace, os.fsync = watched_replace, watched_fsync
