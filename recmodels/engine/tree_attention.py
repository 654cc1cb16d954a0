"""Attention over forests of tokens, as transformers' `AttentionInterface` calls it in every layer.

A forest lies in one row, its trees side by side; token i attends to token j exactly when `j <= i < end[j]`, and, in a
layer with a sliding window of W, `depth[i] - depth[j] < W`. Trees see at most a common trunk, and not each other, so on
a CPU they are computed a stretch at a time and nothing is padded; on a GPU the rule is FlexAttention's block mask.

# R rows, N tokens a row, M keys, P prefix length, H query heads, G key/value heads, K head size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from datamodules.contract.compat.torch import allow_recompiling
from recmodels.engine.prompt_tree import tree_mask

ATTENTION = "prompt_tree"
"""Name under which the attention is registered with transformers."""

WIDEST = 1024
"""Tokens of a stretch up to which its attention weights are held whole; wider ones go through SDPA."""

BLOCK = 128
"""Tokens of a stretch whose attention is computed at once: those of a block see no token behind it."""


class AttentionForest:
    """What every layer needs to know of a forest, made once for a forward pass.

    Args:
        end: `[N]` index after the last descendant of each token.
        depth: `[N]` distance from the root.
        trunk: tokens at the front that are ancestors of all others.
        stretches: bounds of runs of whole trees behind the trunk, from its end to N or to padding; none sees another.
        flex: use FlexAttention; by default on a GPU.
    """

    def __init__(
        self, end: Tensor, depth: Tensor, trunk: int, stretches: Sequence[int], *, flex: bool | None = None
    ) -> None:
        self.end, self.depth, self.trunk = end, depth, trunk
        padded = [*stretches, len(end)] if stretches[-1] < len(end) else stretches
        self.bounds = [*([(0, trunk)] if trunk else []), *pairwise(padded)]
        self.flex = end.is_cuda if flex is None else flex
        self._penalties: dict[tuple[int | None, int, torch.dtype], list[Tensor]] = {}
        self._block: dict[int | None, BlockMask] = {}

    def penalties(self, window: int | None, prefix: int, dtype: torch.dtype) -> list[Tensor]:
        """For each of `bounds` `[n, P + trunk + n]`: 0 where a token attends, minus infinity elsewhere.

        The trunk's own tokens have no trunk before them: `[trunk, P + trunk]`.
        """
        key = (window, prefix, dtype)
        if key not in self._penalties:
            self._penalties[key] = [self._penalty(*bound, window, prefix, dtype) for bound in self.bounds]
        return self._penalties[key]

    def _penalty(self, begin: int, stop: int, window: int | None, prefix: int, dtype: torch.dtype) -> Tensor:
        index = torch.arange(begin, stop, device=self.end.device)
        if begin:
            index = torch.cat([torch.arange(self.trunk, device=index.device), index])
        # Tokens that are left out do not matter: a run lies wholly behind them.
        end = self.end[index] - (begin - self.trunk if begin else 0)
        seen = tree_mask(end[None], self.depth[None, index], window)[0, 0, self.trunk if begin else 0 :]
        penalty = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
        return nn.functional.pad(penalty, (prefix, 0))

    def block_mask(self, window: int | None) -> BlockMask:
        """Returns the rule over the whole row as FlexAttention takes it."""
        if window not in self._block:
            size, end, depth = len(self.end), self.end, self.depth

            def seen(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
                inside = (key <= query) & (query < end[key])
                return inside if window is None else inside & (depth[query] - depth[key] < window)

            self._block[window] = create_block_mask(seen, None, None, size, size, device=str(end.device))
        return self._block[window]


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    forest: AttentionForest | None = None,
    positions: tuple[Tensor, Tensor] | None = None,
    table: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, with a trained prefix where the layer has one.

    Args:
        module: the attention layer; its `prefix` (a module that returns keys and values `[1, G, P, K]`) is prepended.
        query: `[R, H, N, K]`.
        key: `[R, G, M, K]`, already rotated.
        value: `[R, G, M, K]`.
        attention_mask: boolean `[R, 1, N, M]`, used where there is no forest.
        forest: the rule of the one row.
        positions: `[R, N]` of the tokens and `[R, M]` of the keys, by which a window narrows the mask.
        table: `[R, N]` where the tokens of each row stand in the query, which is then one row without padding; -1 at
            padding.
        dropout: probability for the attention weights.
        scaling: of the scores; by default one over the root of K.
        sliding_window: tokens that this layer looks back over.
        softcap: scores are squeezed to this range by a hyperbolic tangent (Gemma 2).
        **options: what else the layer passes on.

    Returns:
        `[R, N, H, K]` and no weights.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    ahead = prefix_of(module, key.dtype)
    if forest is not None and forest.flex and not dropout:
        return _flex(forest, query, key, value, ahead, scaling, sliding_window, softcap), None
    if forest is not None:
        penalties = forest.penalties(sliding_window, ahead[0].shape[2] if ahead else 0, query.dtype)
        trunk = ahead
        if forest.trunk:
            trunk = tuple(behind(ahead, n, part[:, :, : forest.trunk]) for n, part in enumerate((key, value)))
        # Split, not sliced: the gradient of a slice is as long as the row, and there is one for each stretch.
        parts = (part.split([stop - begin for begin, stop in forest.bounds], dim=2) for part in (query, key, value))
        outputs = []
        for (begin, _), queries, keys, values, penalty in zip(forest.bounds, *parts, penalties, strict=True):
            front = trunk if begin else ahead
            keys, values = behind(front, 0, keys), behind(front, 1, values)
            outputs.append(_attend(queries, keys, values, penalty, dropout, scaling, softcap))
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], None
    if table is not None:
        rest: dict[str, Any] = {"positions": positions, "dropout": dropout, "scaling": scaling, "softcap": softcap}
        rows, _ = tree_attention(
            module, spread(query, table), key, value, attention_mask, sliding_window=sliding_window, **rest, **options
        )
        return rows[table >= 0][None], None
    if sliding_window is not None and positions is not None and attention_mask is not None:
        near = positions[0][:, :, None] - positions[1][:, None, :] < sliding_window
        attention_mask = attention_mask & near.unsqueeze(1)
    if ahead:
        if attention_mask is None:
            raise ValueError("a prefix needs an explicit attention mask")
        key, value = behind(ahead, 0, key), behind(ahead, 1, value)
        attention_mask = nn.functional.pad(attention_mask, (ahead[0].shape[2], 0), value=True)
    narrow = not torch.is_grad_enabled() and key.device.type == "cpu" and key.shape[2] <= WIDEST
    if softcap is not None or (narrow and attention_mask is not None):
        if attention_mask is None:
            attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
        penalty = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill_(~attention_mask, -torch.inf)
        return _weigh(query, key, value, penalty, dropout, scaling, softcap), None
    options |= {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window}
    return cast("tuple[Tensor, None]", sdpa_attention_forward(module, query, key, value, attention_mask, **options))


AttentionInterface.register(ATTENTION, tree_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # for plain calls, whose masks have two dimensions


def prefix_of(module: nn.Module, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Returns keys and values `[1, G, P, K]` of a layer's trained prefix; nothing where it has none."""
    prefix = cast("Callable[[], tuple[Tensor, Tensor]] | None", getattr(module, "prefix", None))
    return tuple(part.to(dtype) for part in prefix()) if prefix is not None else ()


def behind(ahead: tuple[Tensor, ...], which: int, states: Tensor) -> Tensor:
    """Returns keys (`which` 0) or values (1) `[R, G, M, K]` with those of a prefix, if there is one, before them."""
    return torch.cat([ahead[which].expand(len(states), -1, -1, -1), states], dim=2) if ahead else states


def spread(row: Tensor, table: Tensor) -> Tensor:
    """Lays one row `[1, H, L, K]` of all users' tokens out as `[U, H, N, K]`, given their positions `[U, N]` in it."""
    return row[0][:, table.clamp(min=0)].transpose(0, 1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, penalty: Tensor, dropout: float, scaling: float, softcap: float | None
) -> Tensor:
    if softcap is None and key.shape[2] > WIDEST:
        share = query.shape[1] // key.shape[1]
        keys, values = (part.repeat_interleave(share, dim=1) if share > 1 else part for part in (key, value))
        return nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=penalty[None, None], dropout_p=dropout, scale=scaling
        ).transpose(1, 2)
    tokens, ahead = query.shape[2], key.shape[2] - query.shape[2]
    if tokens <= BLOCK:
        return _weigh(query, key, value, penalty, dropout, scaling, softcap)
    step = -(-tokens // -(-tokens // BLOCK))
    parts = []
    for begin, queries in zip(range(0, tokens, step), query.split(step, dim=2), strict=True):
        seen = ahead + begin + queries.shape[2]
        rows = penalty[begin : begin + queries.shape[2], :seen]
        parts.append(_weigh(queries, key[:, :, :seen], value[:, :, :seen], rows, dropout, scaling, softcap))
    return torch.cat(parts, dim=1)


def _weigh(
    query: Tensor, key: Tensor, value: Tensor, penalty: Tensor, dropout: float, scaling: float, softcap: float | None
) -> Tensor:
    """Attention by plain matrix products, `[R, N, H, K]`.

    On a CPU its backward pass is three to five times faster than SDPA's, and the query heads that share a key head
    share one product, so that no key is repeated.
    """
    rows, heads, tokens, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    folded = (query * scaling).reshape(rows, groups, -1, size)  # [R, G, H / G * N, K]
    score = (folded @ key.transpose(2, 3)).view(rows, heads, tokens, keys)
    score = score.div(softcap).tanh().mul(softcap) if softcap else score
    with torch.no_grad():  # a constant changes no gradient, and autograd would copy the scores to see that it does not
        score.add_(penalty)
    weight = nn.functional.dropout(score.softmax(-1), dropout)
    output = weight.view(rows, groups, -1, keys) @ value
    return output.view(rows, heads, tokens, size).transpose(1, 2)


def _flex(
    forest: AttentionForest,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ahead: tuple[Tensor, ...],
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """FlexAttention over the row; a prefix is attended to apart and joined by the weights' normalisers."""
    attend = compiled_flex() if query.is_cuda else flex_attention
    cap = _softcap(softcap) if softcap else None
    rest: dict[str, Any] = {"score_mod": cap, "block_mask": forest.block_mask(window), "scale": scaling}
    output, aux = attend(query, key, value, **rest, enable_gqa=True, return_aux=AuxRequest(lse=True))
    if ahead:
        rows, heads, tokens, size = query.shape
        folded = (query * scaling).reshape(rows, key.shape[1], -1, size)
        score = (folded @ ahead[0].transpose(2, 3)).float().view(rows, heads, tokens, -1)
        score = (score / softcap).tanh() * softcap if softcap else score
        normaliser = score.logsumexp(-1)  # [R, H, N]
        weight = score.softmax(-1).to(value.dtype).view(rows, key.shape[1], -1, score.shape[-1])
        other = (weight @ ahead[1]).view(rows, heads, tokens, size)
        share = torch.sigmoid(aux.lse - normaliser)[..., None].to(output.dtype)
        output = share * output + (1 - share) * other
    return cast(Tensor, output.transpose(1, 2))


def _softcap(limit: float) -> Callable[..., Tensor]:
    return lambda score, *_: limit * torch.tanh(score / limit)


@cache
def compiled_flex() -> Any:
    """FlexAttention compiled once; it compiles again for each new length, so lengths come in few sizes.

    Still more than eight, after which torch would give up compiling, and hold all attention weights instead.
    """
    allow_recompiling(256, 1024)
    return torch.compile(flex_attention, dynamic=False)


def bucket(tokens: int) -> int:
    """Returns the length a row is padded to on a GPU: a multiple of 128, eight sizes to each power of two.

    Example:
        >>> [bucket(n) for n in (1, 128, 129, 1025, 5000)]
        [128, 128, 256, 1152, 5120]
    """
    step = max(128, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


@contextmanager
def few_rows(block: nn.Module, rows: Tensor | None) -> Iterator[None]:
    """While it lasts, a block's feed-forward computes some tokens only, and adds nothing to the states of the others.

    For the last block: what a token computes there no other token sees, and most tokens of a prompt predict nothing.
    A block that names its feed-forward otherwise than `mlp`, or computes it again for the gradient, is left alone.

    Args:
        block: the last one of a stack.
        rows: `[n]` the tokens' positions in the one row of N, each once; None for all.

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
    forward, replaced = inner.forward, "forward" in vars(inner)

    def some(states: Tensor) -> Any:
        output = forward(states.index_select(1, rows))
        if not isinstance(output, Tensor):  # experts may return their routing, too
            return forward(states)
        return states.new_zeros(states.shape, dtype=output.dtype).index_copy(1, rows, output)

    inner.forward = cast(Any, some)
    try:
        yield
    finally:
        if replaced:
            inner.forward = forward
        else:
            del inner.forward
