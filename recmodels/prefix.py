"""Prefix tuning: trained keys and values before every layer's own, inside the prompt-tree attention."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datamodules.sources import InputError
from recmodels.backbone import Backbone
from recmodels.causal import CausalBackbone
from recmodels.instruction import InstructionRecommender


class Prefix(nn.Module):
    """Keys and values of one layer, `[1, G, P, K]` each (G key/value heads, P positions, K head size).

    Args:
        heads: key/value heads G.
        length: positions P.
        size: head size K.
        hidden: width of the reparameterisation MLP; 0 trains keys and values directly.
    """

    def __init__(self, heads: int, length: int, size: int, hidden: int) -> None:
        super().__init__()
        self.shape = (2, 1, heads, length, size)
        if hidden:
            self.seed = nn.Parameter(torch.randn(length, hidden) * 0.02)
            self.expand = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 2 * heads * size))
        else:
            self.states = nn.Parameter(torch.randn(self.shape) * 0.02)
        self.hidden = hidden

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values to prepend."""
        if self.hidden:
            _, _, heads, length, size = self.shape
            states = self.expand(self.seed).view(length, 2, heads, size).permute(1, 2, 0, 3).unsqueeze(1)
        else:
            states = self.states
        return states[0], states[1]


class PrefixTuning(InstructionRecommender):
    """Prefix tuning (Li and Liang 2021, arXiv 2101.00190).

    Not the identity at the start: a random prefix draws attention away from the prompt.

    Args:
        length: positions of the prefix in every layer; null is 16, or what the budget gives.
        reparameterisation: width of the MLP that makes keys and values from a trained table; 0 trains them directly.
        **kwargs: of `InstructionRecommender`.
    """

    size_field: ClassVar[str] = "length"

    def __init__(self, length: int | None = None, reparameterisation: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length, self.reparameterisation = self.size(length, 16), reparameterisation

    def tune(self, backbone: Backbone) -> None:
        """Gives every attention layer a prefix.

        Raises:
            InputError: the prefix does not fit the context, or attention layers are not where they are looked for.
        """
        if not isinstance(backbone, CausalBackbone):
            raise InputError(f"PrefixTuning needs a causal backbone; {backbone.name!r} is an encoder-decoder")
        config = backbone.model.config.get_text_config()
        if self.length >= config.max_position_embeddings:
            raise InputError(f"model.length is {self.length}, the backbone's context {config.max_position_embeddings}")
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        for attention in backbone.attention_layers():
            attention.add_module("prefix", Prefix(heads, self.length, size, self.reparameterisation))
