"""Prompts encoded once: their keys and values, shown to every later forward pass.

# U users, S longest prompt, R rows a user, n tokens a row, G key/value heads, K head size, D hidden
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from datamodules.contract.compat.transformers import cache_argument
from recmodels.backbones.causal import CausalBackbone
from recmodels.engine.tree_attention import AttentionForest, few_rows, spread


class PromptCache(DynamicCache):
    """Keys and values of prompts. Once `closed`, it goes before the keys of any pass and keeps none of them.

    A pass may hold several rows for each user, user by user; all of them see the user's one prompt. While there is a
    `table`, a pass is one row of all users' tokens, and it says where each user's stand.
    """

    def __init__(self) -> None:
        super().__init__()  # without the model's config: every layer keeps all positions, masks say what is seen
        self.closed = False
        self.table: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns keys and values `[U * R, G, S + n, K]` that a layer attends to."""
        if self.table is not None:
            key_states, value_states = spread(key_states, self.table), spread(value_states, self.table)
        if not self.closed:
            return cast("tuple[Tensor, Tensor]", super().update(key_states, value_states, layer_idx, *args, **kwargs))
        prompt = self.layers[layer_idx]
        return _behind(prompt.keys, key_states), _behind(prompt.values, value_states)

    def lay_out(self, index: Tensor) -> None:
        """Gives each user a row: its keys and values stand at indices `[U, S]` of the one row there is."""
        for layer in self.layers:
            layer.keys, layer.values = (
                part[0].index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)
                for part in (layer.keys, layer.values)
            )


def _behind(prompt: Tensor, states: Tensor) -> Tensor:
    rows = states.shape[0] // prompt.shape[0]
    shown = prompt[:, None].expand(-1, rows, -1, -1, -1)  # [U, R, G, S, K], not a copy
    return torch.cat([shown, states.unflatten(0, (-1, rows))], dim=3).flatten(0, 1)


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts that have been through the network, and what may follow them.

    Attributes:
        cache: their keys and values.
        real: `[U, S]` false at padding.
        position: `[U, S]`.
        length: `[U]` real tokens, which is the position of the first token of an answer.
        state: `[U, D]` last hidden state of each prompt's last token, which predicts the first token of an answer.
    """

    cache: PromptCache
    real: Tensor
    position: Tensor
    length: Tensor
    state: Tensor

    def follow(
        self, backbone: CausalBackbone, token: Tensor, depth: Tensor, seen: Tensor, table: Tensor | None = None
    ) -> Tensor:
        """Returns the last hidden states of tokens that follow the prompts.

        Args:
            backbone: the model that encoded them.
            token: `[U * R, n]` ids, R rows for each user.
            depth: `[U * R, m]` tokens between the prompt and each key behind it, the n tokens last.
            seen: `[U * R, n, m]` which of these keys a token attends to, besides its prompt.
            table: `[U, n]` indices of the tokens in one row `[1, L]`, which `token` is then; -1 at padding.

        Returns:
            `[U * R, n, D]`, or `[1, L, D]`.
        """
        rows, tokens = len(seen) // len(self.real), seen.shape[1]
        real, before = (part.repeat_interleave(rows, 0) for part in (self.real, self.position))
        mask = torch.cat([real[:, None].expand(-1, tokens, -1), seen], -1)
        key = torch.cat([before, self.length.repeat_interleave(rows)[:, None] + depth], 1)
        self.cache.table = table
        return forward_cached(backbone, self.cache, token, mask[:, None], (key[:, -tokens:], key), table=table)


def encode_prompts(backbone: CausalBackbone, prompt: Tensor, length: Tensor, *, closed: bool) -> EncodedPrompts:
    """Encodes prompts once: side by side in one row, behind what all of them begin with, so that nothing is padded.

    Prompts `[U, S]` are padded on the left; a `closed` cache forgets what follows them, and another grows.
    """
    ahead = backbone.virtual_tokens()
    virtual = 0 if ahead is None else len(ahead)
    width = prompt.shape[1] + virtual
    column = torch.arange(width, device=prompt.device)
    real = (column >= width - length[:, None]) | (column < virtual)  # virtual tokens stand before the padding
    length = length + virtual
    position = torch.where(column < virtual, column, (column - (width - length[:, None])).clamp(min=0))

    token = nn.functional.pad(prompt, (virtual, 0))
    trunk = max(virtual, _shared_beginning(token, length, virtual))
    rest = length - trunk  # what a prompt has for itself
    bound = trunk + nn.functional.pad(rest.cumsum(0), (1, 0))  # where each prompt's own part begins, and where all end
    packed = torch.where(position < trunk, position, bound[:-1, None] + position - trunk)  # [U, S] indices in the row
    laid = real & ((position >= trunk) | (torch.arange(len(token), device=token.device) == 0)[:, None])
    size = int(bound[-1])
    row, depth = (part.new_empty(size).index_put((packed[laid],), part[laid]) for part in (token, position))
    end = torch.cat([bound[-1:].expand(trunk), bound[1:].repeat_interleave(rest)])
    cache = PromptCache()
    forest = AttentionForest(end, depth, trunk, bound.tolist(), flex=False)
    last = bound[1:] - 1
    with few_rows(backbone.layers()[-1], last):
        state = forward_cached(
            backbone, cache, row[None], end[None, None, None], (depth[None], depth[None]), ahead, forest=forest
        )
    cache.lay_out(packed)
    cache.closed = closed
    return EncodedPrompts(cache=cache, real=real, position=position, length=length, state=state[0, last])


def _shared_beginning(token: Tensor, length: Tensor, virtual: int) -> int:
    """Returns how many tokens all prompts `[U, S]` begin with, the virtual ones among them; never a prompt's last one."""
    if len(token) == 1:
        return 0
    width = token.shape[1]
    index = torch.arange(width, device=token.device)
    column = torch.where(index < virtual, index, width - length[:, None] + index)  # padding moves to the end
    left = token.gather(1, column.clamp(max=width - 1))
    same = (left == left[0]).all(0) & (index < length.min() - 1)
    return int(same.cumprod(0).sum())


def forward_cached(
    backbone: CausalBackbone,
    cache: DynamicCache,
    token: Tensor,
    mask: Tensor,
    positions: tuple[Tensor, Tensor],
    ahead: Tensor | None = None,
    table: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Returns the last hidden states `[R, n, D]` of tokens that see the cache.

    Args:
        backbone: the model.
        cache: keys and values of earlier tokens.
        token: `[R, n]` ids.
        mask: `[R, 1, n, M]`, true where a token may attend; layers with a window see less of it.
        positions: `[R, n]` of the tokens, and `[R, M]` of all keys.
        ahead: embeddings `[P, D]` in place of the first P tokens.
        table: where the tokens of R rows stand in the one row that `token` is.
        **options: for every layer's attention.
    """
    position = positions[0] if table is None else positions[0][table >= 0][None]
    output = backbone.body(
        **backbone.inputs(token, ahead),
        attention_mask=mask,
        position_ids=position + backbone.first_position,
        positions=positions,
        table=table,
        **{cache_argument(backbone.body): cache},
        use_cache=True,
        return_dict=True,
        **options,
    )
    return cast(Tensor, output.last_hidden_state)
