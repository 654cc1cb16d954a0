"""What an exported folder holds of bottleneck adapters and prefixes, which PEFT has no form for."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from datamodules.sources import InputError
from recmodels.backbone import Backbone
from recmodels.bottleneck import ACTIVATIONS, Adapted
from recmodels.causal import CausalBackbone
from recmodels.prefix_states import Prefix


def own_parts(backbone: Backbone) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Settings and tensors of adapters or prefixes; None where a backbone has neither.

    Adapters go by the name of the layer that they stand behind, in the untuned model; prefixes by the number of theirs.

    Args:
        backbone: as tuned.

    Raises:
        InputError: plain transformers has no place for the prefix.
    """
    adapters = {name: one for name, one in backbone.model.named_modules() if isinstance(one, Adapted)}
    if adapters:
        return _adapters(backbone, adapters)
    prefixes = [one for one in backbone.model.modules() if isinstance(one, Prefix)]
    return _prefixes(backbone, prefixes) if prefixes else None


def _adapters(backbone: Backbone, adapters: dict[str, Adapted]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    names = {module: name for name, module in backbone.model.named_modules()}
    reads: dict[str, str] = {}
    state: dict[str, Tensor] = {}
    for name, one in adapters.items():
        parts = {"down.weight": one.down.weight, "down.bias": one.down.bias}
        parts |= {"up.weight": one.up.weight, "up.bias": one.up.bias}
        if isinstance(one.scaling, Tensor):
            parts["scaling"] = one.scaling
        state |= {f"{name}.{part}": plain(value) for part, value in parts.items()}
        if one.beside:
            block: nn.Module = next(layer for layer in backbone.layers() if one in layer.modules())
            reads[name] = names[backbone.input_layer(block)]
    first = next(iter(adapters.values()))
    activation = next(name for name, kind in ACTIVATIONS.items() if isinstance(first.activation, kind))
    scaling = None if isinstance(first.scaling, Tensor) else first.scaling
    return {"method": "adapter", "activation": activation, "scaling": scaling, "reads": reads}, state


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
