"""The last block's feed-forward, for those tokens alone whose state somebody reads.

What a token computes there no other token sees, and most tokens of a prompt predict nothing.

# N tokens, n tokens that are read, D hidden
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn


@contextmanager
def few_rows(block: nn.Module, rows: Tensor | None) -> Iterator[None]:
    """While it lasts, a block's feed-forward computes some tokens only, and adds nothing to the states of the others.

    A block that names its feed-forward otherwise than `mlp`, or computes it again for the gradient, is left alone.

    Args:
        block: the last one of a stack.
        rows: `[n]` the tokens' places in the one row of N, each once; None for all.

    Example:
        >>> import torch
        >>> block = nn.Module()
        >>> block.mlp = nn.Identity()
        >>> with few_rows(block, torch.tensor([1])):
        ...     block.mlp(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten().tolist()
        [0.0, 2.0, 0.0]
    """
    inner = getattr(block, "mlp", None)
    if rows is None or not isinstance(inner, nn.Module) or getattr(block, "gradient_checkpointing", False):
        yield
        return
    forward, own = inner.forward, "forward" in vars(inner)

    def some(states: Tensor) -> Any:
        made = forward(states.index_select(1, rows))
        if not isinstance(made, Tensor):  # experts may return their routing, too
            return forward(states)
        return states.new_zeros(states.shape, dtype=made.dtype).index_copy(1, rows, made)

    inner.forward = cast(Any, some)
    try:
        yield
    finally:
        if own:
            inner.forward = forward
        else:
            del inner.forward
