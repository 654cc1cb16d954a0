"""Virtual tokens: trained embeddings before every prompt, and PEFT's prefixes, inside prompt trees.

# P virtual tokens, D hidden, G key/value heads, K head size
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor, nn

from datamodules.contract.compat.peft import completed_for
from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.backbones.causal import CausalBackbone
from recmodels.layers.reference import Reference

VIRTUAL = (PeftType.PROMPT_TUNING, PeftType.P_TUNING, PeftType.MULTITASK_PROMPT_TUNING, PeftType.PREFIX_TUNING)


class VirtualTokens(nn.Module):
    """Embeddings `[P, D]` that a PEFT encoder makes, of one task where it has several."""

    def __init__(self, encoder: nn.Module, count: int, task: int | None) -> None:
        super().__init__()
        self.encoder, self.count, self.task = encoder, count, task

    def forward(self) -> Tensor:
        """Returns the embeddings."""
        device = next(self.encoder.parameters()).device
        number = torch.arange(self.count, device=device)
        if self.task is None:
            return cast(Tensor, self.encoder(number))
        return cast(Tensor, self.encoder(number[None], torch.tensor([self.task], device=device))[0])


class PrefixOfLayer(nn.Module):
    """One layer's keys and values `[1, G, P, K]` out of PEFT's prefix encoder, which the model's body holds."""

    def __init__(self, encoder: nn.Module, layer: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self._encoder, self.layer, self.shape = Reference(encoder), layer, shape

    def forward(self) -> tuple[Tensor, Tensor]:
        """Returns keys and values to prepend."""
        count, heads, size = self.shape
        encoder = self._encoder.module
        number = torch.arange(count, device=next(encoder.parameters()).device)
        states = encoder(number).view(count, -1, heads, size)[:, 2 * self.layer : 2 * self.layer + 2]
        key, value = states.permute(1, 2, 0, 3).unsqueeze(1)
        return key, value


def is_virtual(config: Any) -> bool:
    """Returns whether a PEFT method is a beginning before the prompt and no layer in the model.

    Example:
        >>> from peft import IA3Config, PrefixTuningConfig
        >>> is_virtual(IA3Config()), is_virtual(PrefixTuningConfig(num_virtual_tokens=4))
        (False, True)
    """
    return config.peft_type in VIRTUAL


def add_virtual_tokens(backbone: Backbone, config: Any) -> Any:
    """Puts a prompt-learning method before every prompt.

    Returns:
        The completed configuration.

    Raises:
        InputError: the backbone is no causal one, or its context is too short.
    """
    if not isinstance(backbone, CausalBackbone):
        raise InputError(
            f"{type(config).__name__} needs a causal backbone, and {backbone.name!r} ({backbone.family}) is not one; use"
            " PrefixTuning, which reaches encoders and decoders"
        )
    text = backbone.model.config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    if config.num_virtual_tokens is None or config.num_virtual_tokens < 1:
        raise InputError(f"model.peft_config.num_virtual_tokens is {config.num_virtual_tokens}, must be at least 1")
    if context is not None and config.num_virtual_tokens >= context:
        raise InputError(
            f"model.peft_config.num_virtual_tokens is {config.num_virtual_tokens}, the backbone's context {context};"
            f" at most {context - 1} works"
        )
    config.num_transformer_submodules = 1
    embedding = backbone.model.get_input_embeddings()
    if config.peft_type != PeftType.PREFIX_TUNING and config.token_dim is None:
        config.token_dim = embedding.weight.shape[1]  # which OPT may project to another width
    config = completed_for(config, text)
    encoder_class: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    takes_words = config.peft_type in (PeftType.PROMPT_TUNING, PeftType.MULTITASK_PROMPT_TUNING)
    encoder = encoder_class(config, embedding) if takes_words else encoder_class(config)
    encoder = encoder.to(embedding.weight.device)
    if config.peft_type != PeftType.PREFIX_TUNING:
        task = 0 if config.peft_type == PeftType.MULTITASK_PROMPT_TUNING else None
        backbone.body.add_module("virtual_tokens", VirtualTokens(encoder, config.num_virtual_tokens, task))
        return config
    backbone.body.add_module("prefix_encoder", encoder)
    backbone.body.first_position = config.num_virtual_tokens
    shape = (config.num_virtual_tokens, config.num_attention_heads, config.token_dim // config.num_attention_heads)
    for number, attention in enumerate(backbone.attention_layers()):
        attention.add_module("prefix", PrefixOfLayer(encoder, number, shape))
    return config
