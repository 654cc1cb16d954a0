"""Prefix tuning: trained keys and values before every layer's own, inside the prompt-tree attention."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.backbones.encoder import TextEncoder
from recmodels.engine.answer_attention import ATTENTION
from recmodels.layers.prefix import Prefix, key_shape
from recmodels.methods.base import InstructionRecommender


class PrefixTuning(InstructionRecommender):
    """Prefix tuning (Li and Liang 2021, arXiv 2101.00190): of every attention, in encoders and across stacks, too.

    Not the identity at the start: a random prefix draws attention away from the prompt.

    Args:
        length: positions of the prefix in every layer; null is 16, or what the budget gives.
        reparameterisation: width of the MLP that makes keys and values from a trained table; 0 trains them directly.
        **kwargs: of `InstructionRecommender`.
    """

    size_field: ClassVar[str] = "length"

    def __init__(self, length: int | None = None, reparameterisation: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if reparameterisation < 0:
            raise InputError(f"model.reparameterisation is {reparameterisation}, must be at least 0")
        self.length, self.reparameterisation = self.size(length, 16), reparameterisation

    def tune(self, backbone: Backbone) -> None:
        """Gives every attention layer a prefix.

        Raises:
            InputError: the prefix does not fit the context, or attention layers are not where they are looked for.
        """
        config = backbone.model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        if context is not None and self.length >= context:
            raise InputError(
                f"model.length is {self.length}, the backbone's context {context}; at most {context - 1} works"
            )
        before = None
        if isinstance(backbone, TextEncoder):
            before = None if backbone.model.device.type == "meta" else backbone.probe()
            backbone.model.set_attn_implementation(ATTENTION)  # which looks for prefixes
        for attention in backbone.attention_layers():
            prefix = Prefix(*key_shape(attention, config), self.length, self.reparameterisation)
            attention.add_module("prefix", prefix.to(next(attention.parameters()).device))
        if before is not None and torch.equal(before, backbone.probe()):
            raise InputError(
                f"backbone {backbone.name!r} ({backbone.family}) takes no prefix: it attends in a way of its own; use"
                " LoRATuning or AdapterTuning"
            )
