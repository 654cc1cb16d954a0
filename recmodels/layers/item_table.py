"""Items as tokens: vectors beside a vocabulary's word embeddings, which a model reads and predicts by.

# I items, D hidden, K dimensions of given vectors, N tokens
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class ItemTable(nn.Module):
    """In the place of word embeddings: those for ids of words, and a row of its own table for every id behind them.

    Args:
        words: the word embeddings.
        first: id of item 0.
        item: `[I, D]` what the items' vectors start from.
        output: `[I, D]` rows by which items are predicted; None takes the vectors themselves, as heads that are tied to
            the word embeddings do.
        sampled: items that `sampled_log_probabilities` draws; None draws none.

    Example:
        >>> table = ItemTable(nn.Embedding(5, 2), 5, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> table(torch.tensor([6])).tolist(), table.logits(torch.tensor([[1.0, 0.0]])).tolist()
        ([[3.0, 4.0]], [[1.0, 3.0]])
    """

    def __init__(
        self, words: nn.Module, first: int, item: Tensor, output: Tensor | None = None, sampled: int | None = None
    ) -> None:
        super().__init__()
        self.words, self.first, self.sampled = words, first, sampled
        self.item = nn.Parameter(item.float())
        self.output = None if output is None else nn.Parameter(output.float())

    @property
    def weight(self) -> nn.Parameter:
        """Of the word embeddings, where those who look for them find it."""
        return cast(nn.Parameter, self.words.weight)

    @property
    def rows(self) -> nn.Parameter:
        """`[I, D]` by which items are predicted."""
        return self.item if self.output is None else self.output

    @property
    def tables(self) -> list[nn.Parameter]:
        """What trains."""
        return [self.item] if self.output is None else [self.item, self.output]

    def forward(self, token: Tensor) -> Tensor:
        """Embeddings `[*, N, D]` of ids `[*, N]`, in the words' type."""
        is_word = token < self.first
        words = cast(Tensor, self.words(token.where(is_word, 0)))
        items = nn.functional.embedding((token - self.first).clamp(min=0), self.item).to(words.dtype)
        return torch.where(is_word[..., None], words, items)

    def logits(self, states: Tensor) -> Tensor:
        """Logits `[*, I]` of every item after states `[*, D]`, in float32: rounded to bfloat16 they would tie."""
        with torch.autocast(states.device.type, enabled=False):
            return states.float() @ self.rows.T

    def sampled_log_probabilities(self, states: Tensor, item: Tensor) -> Tensor:
        """Estimates of the log-probabilities `[L]` of items `[L]` after states `[L, D]`: beside drawn ones alone.

        The sum over the others is that over the `sampled` ones, times as many others as there are for each one drawn; a
        target among the drawn is not counted as one of them.
        """
        drawn = torch.randint(len(self.rows), (self.sampled or 1,), device=item.device)
        with torch.autocast(states.device.type, enabled=False):
            wide = states.float()
            own = (wide * self.rows[item]).sum(-1, keepdim=True)
            hit = drawn == item[:, None]
            others = (wide @ self.rows[drawn].T).masked_fill(hit, -torch.inf)
        weight = (len(self.rows) - 1) / (~hit).sum(-1, keepdim=True).clamp(min=1)
        return (own - torch.cat([own, others + weight.log()], dim=1).logsumexp(1, keepdim=True))[:, 0]


def mean_rows(weight: Tensor, words: Any) -> Tensor:
    """`[I, D]`: the mean of the rows of each item's words; of all rows, where it has none.

    Args:
        weight: `[V, D]`.
        words: `[I]` sequences of ids.

    Example:
        >>> mean_rows(torch.tensor([[0.0], [2.0], [4.0]]), [[1, 2], [0], []]).tolist()
        [[3.0], [0.0], [2.0]]
    """
    every = weight.float().mean(0)
    return torch.stack([weight[list(ids)].float().mean(0) if len(ids) else every for ids in words])


def widened(vectors: Tensor, like: Tensor, draw: torch.Generator) -> Tensor:
    """Turns vectors `[I, K]` at random into a wider space; their angles stay.

    Args:
        vectors: at most as many dimensions; their mean norm becomes the spread of others.
        like: `[I, D]` these; their spread is their mean distance from their mean.
        draw: what the rotation is drawn from.

    Example:
        >>> wide = widened(torch.tensor([[3.0], [-1.0]]), torch.tensor([[0.0, 5.0], [0.0, 1.0]]), torch.Generator())
        >>> [round(float(norm), 4) for norm in wide.norm(dim=1)]
        [3.0, 1.0]
    """
    noise = torch.randn(like.shape[1], vectors.shape[1], generator=draw).to(vectors)
    spread = (like - like.mean(0)).norm(dim=1).mean()
    wide: Tensor = vectors @ torch.linalg.qr(noise)[0].T
    return wide.mul_(spread / vectors.norm(dim=1).mean().clamp(min=1e-12))
