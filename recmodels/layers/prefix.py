"""Keys and values of a trained prefix, and how many of what size an attention layer takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Prefix(nn.Module):
    """Keys and values of one layer, `[1, G, P, K]` each (G key/value heads, P positions, K head size).

    Args:
        heads: key/value heads G.
        size: head size K.
        length: positions P.
        hidden: width of the reparameterisation MLP; 0 trains keys and values directly.
    """

    def __init__(self, heads: int, size: int, length: int, hidden: int) -> None:
        super().__init__()
        self.shape = (2, 1, heads, length, size)
        if hidden:
            self.seed = nn.Parameter(torch.randn(length, hidden) * 0.02)
            self.expand = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 2 * heads * size))
        else:
            self.states = nn.Parameter(torch.randn(self.shape) * 0.02)
        self.hidden = hidden

    def forward(self) -> tuple[Tensor, Tensor]:
        """Returns keys and values to prepend."""
        if self.hidden:
            _, _, heads, length, size = self.shape
            states = self.expand(self.seed).view(length, 2, heads, size).permute(1, 2, 0, 3).unsqueeze(1)
        else:
            states = self.states
        return states[0], states[1]


def key_shape(attention: nn.Module, config: Any) -> tuple[int, int]:
    """Number of key/value heads of an attention layer and their size, by its own account or its configuration's.

    Example:
        >>> from transformers import T5Config
        >>> key_shape(nn.Identity(), T5Config(num_heads=4, d_kv=8, d_model=32))
        (4, 8)
    """

    def first(*names: str) -> int | None:
        return next((int(v) for n in names if isinstance(v := getattr(attention, n, None), int) and v), None)

    heads = getattr(config, "num_key_value_heads", None) or first("n_heads", "num_heads", "num_attention_heads")
    heads = heads or int(config.num_attention_heads)
    size = first("key_value_proj_dim", "head_dim", "attention_head_size") or getattr(config, "head_dim", None)
    return int(heads), int(size or config.hidden_size // config.num_attention_heads)
