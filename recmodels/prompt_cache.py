"""Prompts encoded once: their keys and values, shown to every later forward pass.

# U users, S longest prompt, R rows a user, n tokens a row, G key/value heads, K head size, D hidden
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from recmodels.backbone import CausalBackbone
from recmodels.prompt_tree import tree_mask


class PromptCache(DynamicCache):
    """Keys and values of prompts. Once `closed`, it goes before the keys of any pass and keeps none of them.

    A pass may hold several rows for each user, user by user; all of them see the user's one prompt.
    """

    def __init__(self) -> None:
        super().__init__()  # without the model's config: every layer keeps all positions, masks say what is seen
        self.closed = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values `[U * R, G, S + n, K]` that a layer attends to."""
        if not self.closed:
            return cast("tuple[Tensor, Tensor]", super().update(key_states, value_states, layer_idx, *args, **kwargs))
        kept = self.layers[layer_idx]
        return _behind(kept.keys, key_states), _behind(kept.values, value_states)


def _behind(prompt: Tensor, own: Tensor) -> Tensor:
    rows = own.shape[0] // prompt.shape[0]
    shown = prompt[:, None].expand(-1, rows, -1, -1, -1)  # [U, R, G, S, K], not a copy
    return torch.cat([shown, own.unflatten(0, (-1, rows))], dim=3).flatten(0, 1)


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts that have been through the network.

    Attributes:
        cache: their keys and values.
        real: `[U, S]` false at padding.
        length: `[U]` real tokens, which is the position of the first token of an answer.
        state: `[U, D]` last hidden state of each prompt's last token, which predicts the first token of an answer.
    """

    cache: PromptCache
    real: Tensor
    length: Tensor
    state: Tensor


def encode_prompts(backbone: CausalBackbone, prompt: Tensor, length: Tensor, *, closed: bool) -> EncodedPrompts:
    """Encodes prompts once.

    Args:
        backbone: the model.
        prompt: `[U, S]` ids, padded on the left.
        length: `[U]` real tokens.
        closed: whether the cache forgets what follows the prompts; else it grows.
    """
    width = prompt.shape[1]
    place = torch.arange(width, device=prompt.device)
    real = place >= width - length[:, None]
    end = torch.where(real, width, place + 1)  # padding: trees of one token
    cache = PromptCache()
    state = forward(backbone, cache, prompt, tree_mask(end), (place - (width - length[:, None])).clamp(min=0))
    cache.closed = closed
    return EncodedPrompts(cache=cache, real=real, length=length, state=state[:, -1])


def forward(backbone: CausalBackbone, cache: DynamicCache, token: Tensor, mask: Tensor, position: Tensor) -> Tensor:
    """Last hidden states `[R, n, D]` of tokens that see the cache.

    Args:
        backbone: the model.
        cache: keys and values of S earlier tokens.
        token: `[R, n]` ids.
        mask: `[R, 1, n, S + n]`, true where a token may attend.
        position: `[R, n]`.
    """
    output = backbone.body(
        input_ids=token,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        return_dict=True,
    )
    return cast(Tensor, output.last_hidden_state)
