"""Attention of decoders over trees of answers, and of encoders over texts packed into one row.

# R rows, N tokens, S attended tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from recmodels.engine.tree_attention import behind, prefix_of


def segment_mask(query: Tensor, key: Tensor) -> Tensor:
    """The attention rule of packed texts as a boolean mask `[R, 1, N, S]`: a token sees the tokens of its own text.

    `query` `[R, N]` and `key` `[R, S]` hold the number of each token's text.

    Example:
        >>> import torch
        >>> segment = torch.tensor([[2, 2, 3]])
        >>> segment_mask(segment, segment)[0, 0].int().tolist()
        [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    return (query[:, :, None] == key[:, None, :]).unsqueeze(1)


ATTENTION = "answer_tree"
"""Name under which the attention is registered with transformers."""


def bias_at(bias: Tensor, depth: Tensor) -> Tensor:
    """Returns a causal relative position bias, made for positions 0, 1, 2, ..., read at the depths of a tree.

    Args:
        bias: `[1, H, N, N]` by query and key position; it depends on their distance alone.
        depth: `[R, N]`.

    Returns:
        `[R, H, N, N]`; right wherever the key is an ancestor of the query, and masked elsewhere.

    Example:
        >>> import torch
        >>> bias = torch.tensor([[[[0.0, -1, -2], [1, 0, -1], [2, 1, 0]]]])  # query minus key position
        >>> bias_at(bias, torch.tensor([[0, 1, 1]]))[0, 0].tolist()  # two children of one root
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    by_distance = bias[0, :, :, 0].T  # [N, H] key 0 as seen from each position
    distance = (depth[:, :, None] - depth[:, None, :]).clamp(min=0)
    return nn.functional.embedding(distance, by_distance).permute(0, 3, 1, 2)


def answer_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor | None = None,
    depth: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers' `AttentionInterface`: SDPA, with T5's position bias read at the depths of the trees.

    Args:
        module: the attention layer; only a decoder's attention over its own tokens `is_causal`. Its `prefix` (a module
            that returns keys and values `[1, H, P, K]`) is seen by every token, at no distance.
        query: `[R, H, N, K]`.
        key: `[R, H, N, K]`, or of S tokens.
        value: as the key.
        attention_mask: boolean, `[R, 1, N, N]` or `[R, 1, N, S]`.
        position_bias: of T5's family, for positions 0, 1, 2, ...
        depth: `[R, N]` within a decoder, None within an encoder.
        **options: what the layer passes on (dropout, scaling).

    Returns:
        `[R, N, H, K]` and no weights.
    """
    if position_bias is not None and depth is not None and getattr(module, "is_causal", False):
        position_bias = bias_at(position_bias, depth)
    ahead = prefix_of(module, key.dtype)
    if ahead:
        key, value = behind(ahead, 0, key), behind(ahead, 1, value)
        if attention_mask is not None:
            attention_mask = nn.functional.pad(attention_mask, (ahead[0].shape[2], 0), value=True)
        elif getattr(module, "is_causal", False):
            raise ValueError("a prefix needs an explicit attention mask")
        if position_bias is not None:
            position_bias = nn.functional.pad(position_bias, (ahead[0].shape[2], 0))
    options["position_bias"] = position_bias
    return cast("tuple[Tensor, None]", sdpa_attention_forward(module, query, key, value, attention_mask, **options))


@contextmanager
def embedded_at(stack: nn.Module, position: Tensor) -> Iterator[None]:
    """While it lasts, a stack that embeds positions 0, 1, 2, ... embeds `position` `[R, N]` instead."""
    embedding = getattr(stack, "embed_positions", None)
    if embedding is None:  # T5 has none
        yield
        return

    def read_again(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        table = output.reshape(-1, *output.shape[-2:])[0]  # [N, D]
        return nn.functional.embedding(position, table)

    handle = embedding.register_forward_hook(read_again)
    try:
        yield
    finally:
        handle.remove()
