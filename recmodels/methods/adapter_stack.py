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
        """Returns the tensors of each adapter by part, by layer."""
        layers: dict[str, dict[str, Tensor]] = {}
        for name, value in self.state.items():
            part = next((part for part in PARTS if name.endswith(f".{part}")), "")
            layers.setdefault(name.removesuffix(f".{part}"), {})[part] = value
        return layers

    def form(self) -> dict[str, Any]:
        """Returns settings and shapes: what two levels must share for one to take the other's tensors."""
        return self.settings() | {"shapes": {name: tuple(value.shape) for name, value in self.state.items()}}


def read_level(settings: Any, state: Any) -> Level:
    """Returns a level from what a file holds.

    Raises:
        InputError: it is none.

    Example:
        >>> state = {f"out.{part}": torch.zeros(1) for part in ("down.weight", "down.bias", "up.weight", "up.bias")}
        >>> list(read_level({"activation": "relu", "scaling": 2.0, "reads": {}}, state).layers())
        ['out']
    """
    try:
        level = Level(settings["activation"], settings["scaling"], dict(settings["reads"]), dict(state))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"it holds no adapters as this version writes them ({error!r})") from error
    scaled = level.scaling is None or (isinstance(level.scaling, (int, float)) and math.isfinite(level.scaling))
    known = isinstance(level.activation, str) and level.activation in ACTIVATIONS
    if not known or not scaled or not level.state:
        raise InputError(f"it holds no adapters as this version writes them ({level.settings()})")
    for name, value in level.state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise InputError(f"its {name} is no tensor of finite numbers")
    return level


def levels_of(backbone: Backbone) -> list[Level]:
    """Returns the levels that stand in a backbone, the lowest first; tensors are shared with it."""
    adapters = {name: module for name, module in backbone.model.named_modules() if isinstance(module, Adapted)}
    levels: dict[int, dict[str, Adapted]] = {}
    for name, adapter in adapters.items():
        while name.removesuffix(".layer") in adapters and name.endswith(".layer"):
            name = name.removesuffix(".layer")  # it stands inside the adapter of a higher level
        levels.setdefault(adapter.level, {})[name] = adapter
    return [_level(backbone, levels[number]) for number in sorted(levels)]


def _level(backbone: Backbone, adapters: dict[str, Adapted]) -> Level:
    names = {module: name for name, module in backbone.model.named_modules()}
    reads: dict[str, str] = {}
    for name, adapter in adapters.items():
        if adapter.beside:
            block: nn.Module = next(layer for layer in backbone.layers() if adapter in layer.modules())
            reads[name] = names[backbone.input_layer(block)]
    first = next(iter(adapters.values()))
    activation = next(name for name, kind in ACTIVATIONS.items() if isinstance(first.activation, kind))
    scaling = None if isinstance(first.scaling, Tensor) else first.scaling
    state = {f"{name}.{part}": value.detach() for name, a in adapters.items() for part, value in a.parts().items()}
    return Level(activation, scaling, reads, state)


def put_level(backbone: Backbone, level: Level, number: int) -> None:
    """Puts the adapters of a level behind their layers, above what stands there already, without dropout.

    Raises:
        InputError: the backbone has no such layers, or the tensors do not fit them.
    """
    for name, parts in level.layers().items():
        try:
            inner: nn.Module = backbone.model.get_submodule(name)
            reads = level.reads.get(name)
            first = None if reads is None else cast(nn.Module, backbone.model.get_submodule(reads))
            adapted = Adapted(
                inner,
                widths(inner)[1],
                len(parts["down.weight"]),
                cast(Activation, level.activation),
                dropout=0.0,
                scaling=level.scaling,
                first=first,
                level=number,
            )
            if {part: value.shape for part, value in parts.items()} != {k: v.shape for k, v in adapted.parts().items()}:
                raise ValueError("other shapes")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"its adapter behind {name!r} fits no layer of backbone {backbone.name!r} ({error})"
            ) from error
        adapted.load_parts(parts)
        parent, _, leaf = name.rpartition(".")
        setattr(backbone.model.get_submodule(parent), leaf, adapted.to(next(inner.parameters()).device))


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


def read_stack(source: str, backbone: str) -> Stack:
    """Reads the adapters of an earlier run; no model is loaded, and no code from the files is run.

    Args:
        source: its folder, a checkpoint, or the folder of an export.
        backbone: name of the backbone that they must belong to.

    Raises:
        InputError: it does not exist, is damaged, holds no bottleneck adapters, or those of another backbone.
    """
    stack = _find_stack(source)
    check_backbone(stack, source, backbone)
    return stack


def put_stack(backbone: Backbone, stack: Stack, base_checksum: str, source: str) -> int:
    """Puts the adapters of an earlier run into a backbone; returns how many numbers they hold.

    Raises:
        InputError: they do not belong to these weights.
    """
    if stack.base_checksum != base_checksum:
        raise InputError(
            f"model.stack_on {source}: its adapters were trained on backbone weights {stack.base_checksum[:12]}, the"
            f" configured ones are {base_checksum[:12]}; use its run's model.backbone, model.quantization and"
            " trainer.precision"
        )
    for number, level in enumerate(stack.levels):
        try:
            put_level(backbone, level, number)
        except InputError as error:
            raise InputError(f"model.stack_on {source}: {error}") from error
    return sum(value.numel() for level in stack.levels for value in level.state.values())


def _find_stack(source: str) -> Stack:
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
    """Returns the levels below a checkpoint's own.

    Raises:
        InputError: they are not as this version writes them.
    """
    levels = checkpoint.get(KEY, [])
    if not isinstance(levels, list) or not all(isinstance(level, dict) for level in levels):
        raise InputError("it holds no adapters as this version writes them")
    return [read_level(level, level.get("state")) for level in levels]


def plain_level(level: Level) -> dict[str, Any]:
    """Returns a level as a checkpoint keeps it."""
    return level.settings() | {"state": level.state}


def _from_checkpoint(path: Path) -> Stack:
    content = read_checkpoint(path, mmap=True)
    try:
        origin, state = content["instructrec"], content["state_dict"]
        method = str(origin["model"])
    except (KeyError, TypeError) as error:
        raise InputError(f"it cannot be read as a checkpoint of instructrec: {error} is missing") from error
    if method != "AdapterTuning":
        raise InputError(f"it is of {method}; adapters stand on adapters only, which AdapterTuning trains")
    if "adapters" not in origin:
        raise InputError("it was written before adapters were stacked; `instructrec export` it, and stand on that")
    top = {name.removeprefix("network."): value for name, value in state.items()}
    levels = [*levels_below(content), read_level(origin["adapters"], top)]
    return Stack(levels, str(origin.get("backbone")), str(origin.get("base_checksum")))


def _from_export(folder: Path) -> Stack:
    from safetensors.torch import load_file

    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        state = load_file(folder / TENSORS)
        method, levels = str(settings["method"]), settings.get("levels")
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
    read = [read_level(level, part) for level, part in zip(levels, parts, strict=True)]
    return Stack(read, str(settings.get("base_model")), str(settings.get("base_checksum")))


def check_backbone(stack: Stack, source: str, name: str) -> None:
    """Refuses a stack over another backbone by its name; loads nothing.

    A folder that is no longer where it was is passed over here: the sum of its weights decides when they are loaded.

    Raises:
        InputError: it belongs to another.
    """
    if stack.backbone == name:
        return
    recorded, configured = (Path(os.path.expanduser(folder)) for folder in (stack.backbone, name))
    moved = recorded.is_absolute() and not recorded.exists()
    if moved or (recorded.exists() and configured.exists() and recorded.samefile(configured)):
        return
    raise InputError(
        f"model.stack_on {source}: its adapters belong to backbone {stack.backbone!r}, and model.backbone is {name!r};"
        f" use --model.backbone {stack.backbone}"
    )
