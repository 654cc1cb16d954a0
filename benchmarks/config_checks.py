"""What can be known to be wrong of a parsed config before a model or data file is opened."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from datamodules.sources import InputError

AT_LEAST_ONE: Sequence[str] = ("accumulate_grad_batches", "log_every_n_steps")
"""Numbers of the trainer that Lightning takes as they are and then divides by."""


def refuse_unusable_values(config: Namespace) -> None:
    """Refuses what the parser cannot judge.

    Raises:
        InputError: the trainer is no mapping, or one of its numbers has no meaning.
    """
    trainer: Any = config.trainer
    if not isinstance(trainer, Namespace):
        raise InputError(f"trainer: a mapping (key: value) is needed, got {str(trainer)[:60]!r}")
    for name in AT_LEAST_ONE:
        value = trainer.get(name)
        if isinstance(value, (int, float)) and value < 1:
            raise InputError(f"trainer.{name} is {value}, must be at least 1")


def refuse_unusable_paths(config: Namespace, fitting: bool) -> None:
    """Refuses an output folder or a checkpoint that cannot be used, before anything is loaded.

    Args:
        config: of the command.
        fitting: whether `last` is a checkpoint too.

    Raises:
        InputError: the checkpoint is not there or the folder is not writable.
    """
    checkpoint = config.get("ckpt_path")
    if checkpoint and not Path(checkpoint).is_file() and not (fitting and checkpoint == "last"):
        raise InputError(f"--ckpt_path {checkpoint}: there is no such file")
    nearest = next(path for path in (config.out.absolute(), *config.out.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"0")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"--out {config.out}: {nearest} is not a writable folder ({reason})") from error
