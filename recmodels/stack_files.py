"""The files that bottleneck adapters of an earlier run are read from: a run's folder, a checkpoint, or an export."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datamodules.sources import InputError
from recmodels.adapter_levels import Level, read_level
from recmodels.own_parts import SETTINGS, TENSORS

KEY = "stack"
"""Of a checkpoint: the levels below its own."""


@dataclass(frozen=True)
class Stack:
    """Adapters that new ones stand on.

    Attributes:
        levels: the lowest first.
        backbone: name of the backbone that they belong to.
        base_checksum: of its weights.
    """

    levels: list[Level]
    backbone: str
    base_checksum: str


def read_stack(source: str) -> Stack:
    """Reads the adapters of an earlier run; no model is loaded, and no code from the files is run.

    Args:
        source: a run's folder, a checkpoint, or the folder of an exported adapter.

    Raises:
        InputError: there is no such thing, it is damaged, or it holds no bottleneck adapters.
    """
    path = Path(os.path.expanduser(source))
    try:
        if path.is_file():
            return _from_checkpoint(path)
        if (path / SETTINGS).is_file():
            return _from_export(path)
        for name in ("best.ckpt", "last.ckpt"):
            if (path / "checkpoints" / name).is_file():
                return _from_checkpoint(path / "checkpoints" / name)
    except InputError as error:
        raise InputError(f"model.stack_on {source}: {error}") from error
    there = "holds neither of the last two" if path.exists() else "is not there"
    raise InputError(
        f"model.stack_on takes a checkpoint, a folder with checkpoints/best.ckpt (of a run) or with {SETTINGS} (of an"
        f" export); {source} {there}"
    )


def levels_below(checkpoint: dict[str, Any]) -> list[Level]:
    """The levels below a checkpoint's own.

    Raises:
        InputError: they are not as this version writes them.
    """
    kept = checkpoint.get(KEY, [])
    if not isinstance(kept, list) or not all(isinstance(each, dict) for each in kept):
        raise InputError("it holds no adapters as this version writes them")
    return [read_level(each, each.get("state")) for each in kept]


def plain_level(level: Level) -> dict[str, Any]:
    """A level as a checkpoint keeps it."""
    return level.settings() | {"state": level.state}


def _from_checkpoint(path: Path) -> Stack:
    _check_sum(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        made, state = content["instructrec"], content["state_dict"]
        method = str(made["model"])
    except Exception as error:  # a broken archive or pickle raises whatever it meets
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise InputError(f"it cannot be read as a checkpoint of instructrec: {reason}") from error
    if method != "AdapterTuning":
        raise InputError(f"it is of {method}; adapters stand on adapters only, which AdapterTuning trains")
    if "adapters" not in made:
        raise InputError("it was written before adapters were stacked; `instructrec export` it, and stand on that")
    own = {name.removeprefix("network."): value for name, value in state.items()}
    levels = [*levels_below(content), read_level(made["adapters"], own)]
    return Stack(levels, str(made.get("backbone")), str(made.get("base_checksum")))


def _check_sum(path: Path) -> None:
    """Compares a checkpoint with the manifest beside it, where there is one."""
    manifest = path.with_name(f"{path.name}.sha256")
    if not manifest.is_file():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found not in manifest.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{path.name} is damaged: its sha256 {found} is not in {manifest.name}")


def _from_export(folder: Path) -> Stack:
    from safetensors.torch import load_file

    try:
        told = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        state = load_file(folder / TENSORS)
        method, levels = str(told["method"]), told.get("levels")
    except Exception as error:  # of several libraries; each means that the files are not what they should be
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise InputError(f"{SETTINGS} and {TENSORS} cannot be read: {reason}") from error
    if method != "adapter":
        raise InputError(f"it is of method {method!r}; adapters stand on adapters only, which AdapterTuning trains")
    if not isinstance(levels, list) or not levels:
        raise InputError("it was written before adapters were stacked; export its checkpoint again")
    parts: list[dict[str, Any]] = [{} for _ in levels]
    for name, value in state.items():
        number, _, rest = name.partition(".")
        if not number.isdecimal() or int(number) >= len(levels):
            raise InputError(f"{TENSORS} holds {name!r}, which belongs to no level")
        parts[int(number)][rest] = value
    made = [read_level(level, part) for level, part in zip(levels, parts, strict=True)]
    return Stack(made, str(told.get("base_model")), str(told.get("base_checksum")))


def check_backbone(stack: Stack, source: str, name: str) -> None:
    """Refuses a stack over another backbone by its name; loads nothing.

    A folder that is no longer where it was is passed over here: the sum of its weights decides when they are loaded.

    Args:
        stack: as read.
        source: where from.
        name: of the configured backbone.

    Raises:
        InputError: it belongs to another.
    """
    if stack.backbone == name:
        return
    one, other = (Path(os.path.expanduser(each)) for each in (stack.backbone, name))
    moved = one.is_absolute() and not one.exists()
    if moved or (one.exists() and other.exists() and one.samefile(other)):
        return
    raise InputError(
        f"model.stack_on {source}: its adapters belong to backbone {stack.backbone!r}, and model.backbone is {name!r};"
        f" use --model.backbone {stack.backbone}"
    )
