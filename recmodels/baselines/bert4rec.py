"""BERT4Rec: hidden items of a sequence are told from both sides.

# W windows, H history, I items, T hidden items, D dimensions
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from datamodules.contract.batch import SequenceBatch
from datamodules.contract.errors import InputError
from recmodels.baselines.sequential import ItemTransformer, SequenceRecommender


class BERT4Rec(SequenceRecommender):
    """Bidirectional self-attention trained on masked items (Sun et al. 2019, arXiv 1904.06690).

    To recommend, a mask is put after the history. In a share of the training rows only the last item is hidden, as the
    paper does, since that is what is asked in the end.

    Args:
        mask_share: probability that an item is hidden; at least one of a row is.
        last_only: share of the rows in which the last item alone is hidden.
        **kwargs: of `SequenceRecommender`.

    Raises:
        InputError: a share is out of its range.
    """

    def __init__(self, mask_share: float = 0.2, last_only: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < mask_share < 1:
            raise InputError(f"model.mask_share is {mask_share}, must be above 0 and below 1")
        if not 0 <= last_only <= 1:
            raise InputError(f"model.last_only is {last_only}, must be 0 to 1")
        self.mask_share, self.last_only = mask_share, last_only

    def build(self, users: int, items: int) -> None:
        """Makes the transformer, with one code more than there are items, which is the mask."""
        self.mask = items
        sizes = (self.dimensions, self.layers, self.heads, self.inner, self.dropout)
        self.network = ItemTransformer(items + 1, self.max_length + 1, *sizes, causal=False)
        self.bias = nn.Parameter(torch.zeros(items))

    def states_after(self, history: Tensor) -> Tensor:
        """Returns states `[U, D]` at a mask after the history."""
        history = history[:, -self.max_length :]
        masked = torch.cat((history, history.new_full((len(history), 1), self.mask)), dim=1)
        return cast(Tensor, self.network(masked)[:, -1])

    def item_vectors(self) -> Tensor:
        """Returns the input's item table, without the mask."""
        return self.network.item.weight[:-1]

    def item_bias(self) -> Tensor:
        """Returns the bias `[I]`."""
        return self.bias

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Returns the mean cross-entropy over the catalogue of the hidden items."""
        item = batch.item[:, -(self.max_length + 1) :]
        hidden = hide_items(item >= 0, self.mask_share, self.last_only)
        state = self.network(item.masked_fill(hidden, self.mask))[hidden]  # [T, D]
        return nn.functional.cross_entropy(state @ self.item_vectors().T + self.bias, item[hidden])


def hide_items(real: Tensor, share: float, last_only: float) -> Tensor:
    """Draws which of the `real` items `[W, H]` to hide, at least one in every row; padding is on the left.

    An item is hidden with probability `share`; in a share `last_only` of the rows only the last one is.

    Example:
        >>> hide_items(torch.tensor([[False, True, True]]), 0.5, 1.0).tolist()
        [[False, False, True]]
    """
    hidden = (torch.rand(real.shape, device=real.device) < share) & real
    alone = (torch.rand(len(real), device=real.device) < last_only) | ~hidden.any(1)
    hidden[alone] = False
    hidden[alone, -1] = True
    return hidden
