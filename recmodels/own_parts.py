"""What an exported folder holds of bottleneck adapters and prefixes, which PEFT has no form for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from datamodules.sources import InputError
from recmodels.adapter_levels import Level, levels_of
from recmodels.backbone import Backbone
from recmodels.causal import CausalBackbone
from recmodels.prefix_states import Prefix

SETTINGS, TENSORS = "instructrec_adapter.json", "instructrec_adapter.safetensors"
"""The files of such a folder."""


def own_parts(backbone: Backbone) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Settings and tensors of adapters or prefixes; None where a backbone has neither.

    Adapters go by the number of their level, from the lowest, and the name of the layer that they stand behind, in the
    untuned model; prefixes by the number of theirs.

    Args:
        backbone: as tuned.

    Raises:
        InputError: plain transformers has no place for the prefix.
    """
    if levels := levels_of(backbone):
        return _adapters(levels)
    prefixes = [one for one in backbone.model.modules() if isinstance(one, Prefix)]
    return _prefixes(backbone, prefixes) if prefixes else None


def _adapters(levels: list[Level]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = {f"{number}.{name}": value for number, level in enumerate(levels) for name, value in level.state.items()}
    settings = {"method": "adapter", "levels": [level.settings() for level in levels]}
    return settings, {name: plain(value) for name, value in state.items()}


def _prefixes(backbone: Backbone, prefixes: list[Prefix]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not isinstance(backbone, CausalBackbone):
        raise InputError(
            f"the prefix over backbone {backbone.name!r} ({backbone.family}) lies in an encoder, too, and transformers'"
            " cache has no place for that; keep the checkpoint, or tune a causal backbone"
        )
    places = (backbone.model.config.get_text_config(), *backbone.model.modules())
    if any(vars(place).get("sliding_window") for place in places):
        raise InputError(
            f"the prefix over backbone {backbone.name!r} ({backbone.family}) stays in sight of every token, and in"
            " transformers it would slide out of the window; keep the checkpoint"
        )
    state: dict[str, Tensor] = {}
    for number, prefix in enumerate(prefixes):
        key, value = prefix()
        state |= {f"{number}.key": plain(key), f"{number}.value": plain(value)}
    return {"method": "prefix", "length": int(state["0.key"].shape[2])}, state


def plain(value: Tensor) -> Tensor:
    """A tensor as a file holds it."""
    return value.detach().cpu().float().contiguous().clone()
