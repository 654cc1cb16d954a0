"""Bottleneck adapters, level by level: those in a backbone as settings and tensors, and these put into a backbone.

A level is what one run has trained; levels stand on each other behind the same layers (MAD-X, Pfeiffer et al. 2020,
arXiv 2005.00052).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from datamodules.sources import InputError
from recmodels.backbone import Backbone, widths
from recmodels.bottleneck import ACTIVATIONS, Activation, Adapted

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

    Args:
        settings: as `Level.settings` gives them.
        state: as `Level.state`.

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
