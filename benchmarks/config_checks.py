"""What can be known to be wrong of a parsed config before a model or data file is opened."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from benchmarks.allowed_imports import OWN, class_named
from datamodules.sources import InputError

AT_LEAST_ONE: Sequence[str] = ("accumulate_grad_batches", "log_every_n_steps")
"""Numbers of the trainer that Lightning takes as they are and then divides by."""


def refuse_unusable_values(config: Namespace) -> None:
    """Refuses what the parser cannot judge.

    Raises:
        InputError: an option is null that cannot be, the trainer is no mapping, or one of its numbers has no meaning.
    """
    for part in ("model", "data"):
        refuse_nulls(config.get(part), part)
    trainer: Any = config.trainer
    if not isinstance(trainer, Namespace):
        raise InputError(f"trainer: a mapping (key: value) is needed, got {str(trainer)[:60]!r}")
    for name in AT_LEAST_ONE:
        value = trainer.get(name)
        if isinstance(value, (int, float)) and value < 1:
            raise InputError(f"trainer.{name} is {value}, must be at least 1")


def refuse_nulls(built: Any, key: str) -> None:
    """Refuses null for an option of one of our classes that takes none; the parser lets it pass.

    Args:
        built: a class with its options, as parsed.
        key: of it in the config.

    Raises:
        InputError: with the option's key.

    Example:
        >>> refuse_nulls(Namespace(class_path="recmodels.lora.LoRATuning", init_args=Namespace(r=None)), "model")
    """
    found = class_named(str(built.get("class_path"))) if isinstance(built, Namespace) else None
    if found is None or not _own(found):
        return
    hints: dict[str, Any] = {}
    for each in reversed([one for one in found.__mro__ if _own(one) and "__init__" in vars(one)]):
        hints |= get_type_hints(each.__init__)  # type: ignore[misc]
    for name, value in (built.get("init_args") or Namespace()).items(branches=False):
        hint = hints.get(name)
        if value is None and hint not in (None, Any) and type(None) not in get_args(hint):
            raise InputError(f"{key}.{name} is null, which is no {getattr(hint, '__name__', 'value that it takes')}")


def _own(found: type) -> bool:
    return found.__module__.split(".")[0] in OWN


def refuse_unusable_paths(config: Namespace, fitting: bool) -> None:
    """Refuses an output folder, a checkpoint or an earlier run that cannot be used, before anything is loaded.

    Args:
        config: of the command.
        fitting: whether `last` is a checkpoint too.

    Raises:
        InputError: the checkpoint or the earlier run is not there, or the folder is not writable.
    """
    below = (config.model.get("init_args") or Namespace()).get("stack_on")
    if fitting and below is not None and not Path(os.path.expanduser(below)).exists():
        raise InputError(f"model.stack_on {below}: there is no such run, checkpoint or exported folder")
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
