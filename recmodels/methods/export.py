"""What is exported of a tuned backbone: a merged model, PEFT's adapter folder, or our own where PEFT has no form."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import torch
from peft import PeftConfig, PeftType, TaskType
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from datamodules.contract.compat.peft import forget_layers
from datamodules.contract.compat.transformers import default_attention
from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.backbones.causal import CausalBackbone
from recmodels.backbones.quantization import holds_four_bits
from recmodels.layers.prefix import Prefix
from recmodels.methods.adapter_stack import Level, levels_of
from recmodels.methods.virtual_tokens import VirtualTokens

TOLERANCE = 1e-4
"""How far a merged model's scores may be from those of its parts in float32, relative to the largest score."""


class _Wrapped(nn.Module):
    """A tuner where `PeftModel` has it and PEFT's functions look for it."""

    def __init__(self, tuner: Any) -> None:
        super().__init__()
        self.base_model = tuner
        self.peft_config = {"default": copy.deepcopy(tuner.peft_config["default"])}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)


def merged(backbone: Backbone, tuner: Any, tolerance: float) -> Any:
    """Returns a copy of the tuned model in the untuned one's layout, its updates added to the weights.

    Returns:
        The transformers model, in evaluation mode; it attends as any model of the library does.

    Raises:
        InputError: PEFT cannot merge the method, or merging changes the scores.
    """
    kind = type(tuner).__name__.removesuffix("Model")
    if holds_four_bits(backbone.model):
        raise InputError(
            f"{kind} cannot be merged into the backbone: it is held in four bits, to which the sum would be rounded; keep"
            " it beside"
        )
    expected = backbone.probe()
    model, copied = copy.deepcopy((backbone.model, tuner))  # together, so that both hold the same copy
    model.requires_grad_(False)
    try:
        # Autocast is for forward passes: within it some updates come out in another precision than their weights.
        with warnings.catch_warnings(), torch.autocast(model.device.type, enabled=False):
            warnings.simplefilter("ignore")
            copied.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{kind} cannot be merged into the backbone: {reason}; keep it beside") from error
    difference = float((dataclasses.replace(backbone, model=model).probe() - expected).abs().max())
    if not difference <= tolerance * max(1.0, float(expected.abs().max())):
        raise InputError(
            f"{kind} cannot be merged into the backbone: scores change by {difference:.3g}; keep it beside"
        )
    model.set_attn_implementation(default_attention(model))
    return model.eval()


def adapter_parts(backbone: Backbone, tuner: Any) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Returns the configuration and tensors of a PEFT adapter folder, which `PeftModel.from_pretrained` reads."""
    wrapped = _Wrapped(tuner)
    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    inside = "" if tuner.model is backbone.model else f"{backbone.model.base_model_prefix}."
    start = "base_model.model."  # the body there, the whole model in the folder
    state = {f"{start}{inside}{n[len(start) :]}" if n.startswith(start) else n: v for n, v in state.items()}
    return _finished(backbone, wrapped.peft_config["default"]), _plain(state)


def prompt_parts(backbone: Backbone, config: Any) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Returns the same for virtual tokens: what their encoder makes, so that it need not be kept."""
    tokens = getattr(backbone.body, "virtual_tokens", None)
    encoder: Any = tokens.encoder if isinstance(tokens, VirtualTokens) else backbone.body.prefix_encoder
    if config.peft_type == PeftType.MULTITASK_PROMPT_TUNING:
        state = {name: getattr(encoder, name) for name in ("prefix_task_cols", "prefix_task_rows")}
        state["prompt_embeddings"] = encoder.embedding.weight
    else:
        number = torch.arange(config.num_virtual_tokens, device=next(encoder.parameters()).device)
        with torch.no_grad():
            state = {"prompt_embeddings": encoder(number)}
    return _finished(backbone, copy.deepcopy(config)), _plain(state)


def _finished(backbone: Backbone, config: Any) -> PeftConfig:
    config.task_type = TaskType.CAUSAL_LM if isinstance(backbone, CausalBackbone) else TaskType.SEQ_2_SEQ_LM
    config.base_model_name_or_path = backbone.name
    config.inference_mode = True
    forget_layers(config)  # the fast layer computes the same; other programs have PEFT's
    return config


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def own_parts(backbone: Backbone) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Returns settings and tensors of adapters or prefixes; None where a backbone has neither.

    Adapters go by the number of their level, from the lowest, and the name of the layer that they stand behind, in the
    untuned model; prefixes by the number of theirs.

    Raises:
        InputError: plain transformers has no place for the prefix.
    """
    if levels := levels_of(backbone):
        return _adapters(levels)
    prefixes = [module for module in backbone.model.modules() if isinstance(module, Prefix)]
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
    parts = (backbone.model.config.get_text_config(), *backbone.model.modules())
    if any(vars(part).get("sliding_window") for part in parts):
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
    """Returns a tensor as a file holds it."""
    return value.detach().cpu().float().contiguous().clone()
