"""SASRec: next-item prediction by causal self-attention, with the paper's loss or with the full softmax.

# W windows, H history, I items, N negatives, T targets, D dimensions
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from datamodules.contract.batch import SequenceBatch
from recmodels.baselines.sequential import ItemTransformer, SequenceRecommender


class SASRec(SequenceRecommender):
    """Causal self-attention over item codes (Kang and McAuley 2018, arXiv 1808.09781).

    Layers are laid out as in RecBole 1.2: post-norm, GELU, one item table for input and output. The loss decides more
    than the layers: with the full softmax the same network is far above the numbers usually quoted for it.

    Args:
        loss: `bce`, binary cross-entropy of the target against `data.train_negatives` sampled items (at least one), or
            `softmax`, cross-entropy over the whole catalogue.
        **kwargs: of `SequenceRecommender`.
    """

    def __init__(self, loss: Literal["bce", "softmax"] = "softmax", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_name = loss

    def build(self, users: int, items: int) -> None:
        """Makes the transformer."""
        sizes = (self.dimensions, self.layers, self.heads, self.inner, self.dropout)
        self.network = ItemTransformer(items, self.max_length, *sizes, causal=True)

    def states_after(self, history: Tensor) -> Tensor:
        """Returns states `[U, D]` at the last item."""
        return cast(Tensor, self.network(history[:, -self.max_length :])[:, -1])

    def item_vectors(self) -> Tensor:
        """Returns the input's item table."""
        return self.network.item.weight

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Mean over the targets that the windows own; every target is predicted from all events before it."""
        begin = max(0, batch.item.shape[1] - 1 - self.max_length)
        item, owned = batch.item[:, begin:], batch.own[:, begin + 1 :]
        owned = owned & (item[:, :-1] >= 0)  # a user's first event has nothing before it
        state = self.network(item[:, :-1])[owned]  # [T, D]
        target, negative = item[:, 1:][owned], batch.negative[:, begin + 1 :][owned]
        if self.loss_name == "softmax":
            return nn.functional.cross_entropy(state @ self.item_vectors().T, target)
        return sampled_loss(state, self.item_vectors(), target, negative)


def sampled_loss(state: Tensor, vectors: Tensor, target: Tensor, negative: Tensor) -> Tensor:
    """Returns the binary cross-entropy of targets (true) and the mean over their negatives (false).

    States `[T, D]` meet the vectors `[I, D]` of targets `[T]` and of negatives `[T, N]`.

    Example:
        >>> zero = torch.zeros(1, 2)
        >>> round(sampled_loss(zero, torch.ones(3, 2), torch.tensor([0]), torch.tensor([[1, 2]])).item(), 4)
        1.3863
    """
    positive = (state * vectors[target]).sum(-1)
    others = torch.einsum("td,tnd->tn", state, vectors[negative])
    return nn.functional.softplus(-positive).mean() + nn.functional.softplus(others).mean()
