"""Bottleneck adapters, level by level: those in a backbone as settings and tensors, and these put into a backbone.

A level is what one run has trained; levels stand on each other behind the same layers (MAD-X, Pfeiffer et al. 2020,
arXiv 2005.00052).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from datamodules.contract.checkpoints import read_checkpoint
from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone, widths
from recmodels.layers.bottleneck import ACTIVATIONS, Activation, Adapted

SETTINGS, TENSORS = "instructrec_adapter.json", "instructrec_adapter.safetensors"
"""The files of such a folder."""
PARTS = ("down.weight", "down.bias", "up.weight", "up.bias", "scaling")
"""The tensors of an adapter; the last only where it is trained."""


@dataclass(frozen=True)
class Level:
    """The adapters of one run.

    Attributes:
        activation: of all of them.
        scaling: of all of them; None where each has a trained one.
        reads: the feed-forward's first layer, by the layer that an adapter beside the feed-forward ends in.
        state: tensors by `LAYER.PART`, layers as the untuned model names them.
    """

    activation: str
    scaling: float | None
    reads: dict[str, str]
    state: dict[str, Tensor]

    def settings(self) -> dict[str, Any]:
        """All but the tensors, as plain values."""
        return {"activation": self.activation, "scaling": self.scaling, "reads": self.reads}

    def layers(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each adapter by part, by layer."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in self.state.items():
            part = next((part for part in PARTS if name.endswith(f".{part}")), "")
            found.setdefault(name.removesuffix(f".{part}"), {})[part] = value
        return found

    def form(self) -> dict[str, Any]:
        """Settings and shapes: what two levels must share for one to take the other's tensors."""
        return self.settings() | {"shapes": {name: tuple(value.shape) for name, value in self.state.items()}}


def read_level(settings: Any, state: Any) -> Level:
    """A level from what a file holds.

    Raises:
        InputError: it is none.

    Example:
        >>> state = {f"out.{part}": torch.zeros(1) for part in ("down.weight", "down.bias", "up.weight", "up.bias")}
        >>> list(read_level({"activation": "relu", "scaling": 2.0, "reads": {}}, state).layers())
        ['out']
    """
    try:
        made = Level(settings["activation"], settings["scaling"], dict(settings["reads"]), dict(state))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"it holds no adapters as this version writes them ({error!r})") from error
    scaled = made.scaling is None or (isinstance(made.scaling, (int, float)) and math.isfinite(made.scaling))
    known = isinstance(made.activation, str) and made.activation in ACTIVATIONS
    if not known or not scaled or not made.state:
        raise InputError(f"it holds no adapters as this version writes them ({made.settings()})")
    for name, value in made.state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise InputError(f"its {name} is no tensor of finite numbers")
    return made


def levels_of(backbone: Backbone) -> list[Level]:
    """The levels that stand in a backbone, the lowest first; tensors are shared with it."""
    found = {name: one for name, one in backbone.model.named_modules() if isinstance(one, Adapted)}
    levels: dict[int, dict[str, Adapted]] = {}
    for name, one in found.items():
        while name.removesuffix(".layer") in found and name.endswith(".layer"):
            name = name.removesuffix(".layer")  # it stands inside the adapter of a higher level
        levels.setdefault(one.level, {})[name] = one
    return [_level(backbone, levels[number]) for number in sorted(levels)]


def _level(backbone: Backbone, adapters: dict[str, Adapted]) -> Level:
    names = {module: name for name, module in backbone.model.named_modules()}
    reads: dict[str, str] = {}
    for name, one in adapters.items():
        if one.beside:
            block: nn.Module = next(layer for layer in backbone.layers() if one in layer.modules())
            reads[name] = names[backbone.input_layer(block)]
    first = next(iter(adapters.values()))
    activation = next(name for name, kind in ACTIVATIONS.items() if isinstance(first.activation, kind))
    scaling = None if isinstance(first.scaling, Tensor) else first.scaling
    state = {f"{name}.{part}": value.detach() for name, one in adapters.items() for part, value in one.parts().items()}
    return Level(activation, scaling, reads, state)


def put_level(backbone: Backbone, level: Level, number: int) -> None:
    """Puts the adapters of a level behind their layers, without dropout.

    Args:
        backbone: changed; what stands behind the layers already stays, below.
        level: its settings and tensors.
        number: of the level, from 0.

    Raises:
        InputError: the backbone has no such layers, or the tensors do not fit them.
    """
    for name, parts in level.layers().items():
        try:
            inner, first = (
                None if one is None else cast(nn.Module, backbone.model.get_submodule(one))
                for one in (name, level.reads.get(name))
            )
            made = Adapted(
                cast(nn.Module, inner),
                widths(cast(nn.Module, inner))[1],
                len(parts["down.weight"]),
                cast(Activation, level.activation),
                dropout=0.0,
                scaling=level.scaling,
                first=first,
                level=number,
            )
            if {part: value.shape for part, value in parts.items()} != {k: v.shape for k, v in made.parts().items()}:
                raise ValueError("other shapes")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"its adapter behind {name!r} fits no layer of backbone {backbone.name!r} ({error})"
            ) from error
        made.load_parts(parts)
        parent, _, leaf = name.rpartition(".")
        device = next(cast(nn.Module, inner).parameters()).device
        setattr(backbone.model.get_submodule(parent), leaf, made.to(device))


# The files that bottleneck adapters of an earlier run are read from: a run's folder, a checkpoint, or an export.

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
    content = read_checkpoint(path, mmap=True)
    try:
        made, state = content["instructrec"], content["state_dict"]
        method = str(made["model"])
    except (KeyError, TypeError) as error:
        raise InputError(f"it cannot be read as a checkpoint of instructrec: {error} is missing") from error
    if method != "AdapterTuning":
        raise InputError(f"it is of {method}; adapters stand on adapters only, which AdapterTuning trains")
    if "adapters" not in made:
        raise InputError("it was written before adapters were stacked; `instructrec export` it, and stand on that")
    own = {name.removeprefix("network."): value for name, value in state.items()}
    levels = [*levels_below(content), read_level(made["adapters"], own)]
    return Stack(levels, str(made.get("backbone")), str(made.get("base_checksum")))


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
