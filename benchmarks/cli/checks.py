"""Looks at a command line before the parser does: mistakes that the parser would overlook, and where they stand."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from benchmarks.cli.allowed_imports import OWN, class_named
from benchmarks.cli.names import config_named
from benchmarks.plain_yaml import read_yaml
from datamodules.contract.errors import InputError

LINKED = {
    "data.backbone": "model.backbone",
    "data.objective": "model.objective",
    "data.batch_format": "the model's class",
    "data.shots": "model.shots",
    "data.needs": "the model",
    "data.seed": "seed_everything",
}
"""Options that follow another; a value of the user's own would be overwritten in silence."""


def check_raw_input(arguments: list[str]) -> list[str]:
    """Returns a command line with the path of each config that it names; refuses what follows from another option.

    Raises:
        InputError: a file is missing, unreadable, too large or not plain YAML (named by line), or an option is linked.

    Example:
        >>> check_raw_input(["fit", "--data.seed=3"])
        Traceback (most recent call last):
            ...
        datamodules.contract.errors.InputError: --data.seed cannot be set, it follows seed_everything; set that
    """
    words, checked = iter(arguments), list[str]()
    for word in words:
        option, has_value, value = word.partition("=")
        if option in ("-c", "--config") or (word.startswith("-c") and not word.startswith("--")):
            name = value if has_value else word[2:] if option not in ("-c", "--config") else next(words, None)
            checked += ["--config"] if name is None else ["--config", _checked_config(name.removeprefix("="))]
            continue
        checked.append(word)
        if option.startswith("--"):
            key = re.sub(r"\.init_args\b", "", option[2:])
            if key in LINKED:
                raise InputError(f"{option} cannot be set, it follows {LINKED[key]}; set that")
            if value.endswith((".yaml", ".yml")) and Path(value).is_file():
                _refuse_linked(read_yaml(Path(value))[0], value, key)
    return checked


def _checked_config(name: str) -> str:
    if not name or "\n" in name or name.lstrip().startswith("{"):
        return name  # missing, or YAML in place of a file name: the parser's affair
    path = config_named(name)
    content, _ = read_yaml(path)
    if content is None:
        raise InputError(f"{name}:1: the file is empty; a config has keys such as model, data, trainer")
    if not isinstance(content, dict):
        raise InputError(f"{name}:1: a mapping (key: value) is needed, got {str(content)[:60]!r}")
    _refuse_linked(content, name, "")
    return str(path)


def _refuse_linked(content: Any, name: str, prefix: str) -> None:
    for key in _keys(content, prefix):
        if key in LINKED:
            raise InputError(f"{name}: {key} cannot be set, it follows {LINKED[key]}; set that")


def _keys(node: Any, prefix: str) -> Iterator[str]:
    """Dotted keys as the command line writes them, without `init_args` and without the name of a command in front."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        inner = prefix if key in ("init_args", "fit", "validate", "test", "predict") else f"{prefix}.{key}".strip(".")
        yield inner
        if inner.count(".") < 2:
            yield from _keys(value, inner)


def checked_seed(value: int | bool) -> int:
    """Returns a run's seed, which its data follow.

    Raises:
        InputError: it is true or false, by which Lightning seeds the model with a number that the data would not have.

    Example:
        >>> checked_seed(7)
        7
    """
    if isinstance(value, bool):
        raise InputError(f"seed_everything is {str(value).lower()}, must be a whole number: it seeds model and data")
    return value


AT_LEAST_ONE: Sequence[str] = ("accumulate_grad_batches", "log_every_n_steps")
"""Numbers of the trainer that Lightning takes as they are and then divides by."""


def refuse_unusable_values(config: Namespace) -> None:
    """Refuses what the parser cannot judge.

    Raises:
        InputError: an option is null that cannot be, the trainer is no mapping, one of its numbers has no meaning, or it
            would test a part of the users only.
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
    tested = trainer.get("limit_test_batches")
    if trainer.get("fast_dev_run") or not (tested is None or (isinstance(tested, float) and tested == 1)):
        name = "fast_dev_run" if trainer.get("fast_dev_run") else "limit_test_batches"
        raise InputError(
            f"trainer.{name}: a test of a part of the users would be recorded as whole; for a first try use"
            " --trainer.max_steps 1 --data.protocol.test_users 8"
        )


def refuse_nulls(built: Any, key: str) -> None:
    """Refuses null for an option of one of our classes that takes none; the parser lets it pass.

    Example:
        >>> refuse_nulls(Namespace(class_path="recmodels.methods.lora.LoRATuning", init_args=Namespace(r=None)), "model")
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
            raise InputError(f"{key}.{name} is null, must be of type {getattr(hint, '__name__', hint)}")


def _own(found: type) -> bool:
    return found.__module__.split(".")[0] in OWN


def refuse_unusable_paths(config: Namespace, fitting: bool) -> None:
    """Refuses an output folder, a checkpoint or an earlier run that cannot be used, before anything is loaded."""
    for option in ("stack_on", "init_from"):
        run = (config.model.get("init_args") or Namespace()).get(option)
        if fitting and run is not None and not Path(os.path.expanduser(run)).exists():
            kinds = "a run, a checkpoint or an exported folder" if option == "stack_on" else "a run or a checkpoint"
            raise InputError(f"model.{option} {run}: not {kinds}")
    checkpoint = config.get("ckpt_path")
    if checkpoint and not Path(checkpoint).is_file() and not (fitting and checkpoint == "last"):
        raise InputError(f"--ckpt_path {checkpoint} does not exist")
    nearest = next(path for path in (config.out.absolute(), *config.out.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"0")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"--out {config.out}: {nearest} is not a writable folder ({reason})") from error
