"""Popularity: the number of training events of an item. The row that any recommender must beat."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datamodules.batch import EventBatch, InteractionBatch
from recmodels.closed_form import ClosedForm


class Popularity(ClosedForm):
    """Scores an item by how often it was chosen in training.

    Args:
        cutoffs: the k of HR@k and NDCG@k.
    """

    solved: ClassVar[tuple[str, ...]] = ("counts",)
    counts: Tensor  # [I]

    def solve(self, events: EventBatch) -> dict[str, Tensor]:
        """Counts all training events."""
        return {"counts": item_counts(events.item, events.items)}

    def score_branches(self, batch: InteractionBatch) -> Tensor:
        """Scores `[B]`: training events of each branch's item."""
        return self.counts[batch.branch_item]


def item_counts(item: Tensor, items: int) -> Tensor:
    """Number of events of each item.

    Args:
        item: `[E]` item codes.
        items: size of the catalogue I.

    Returns:
        `[I]` counts in float32 (exact below 2^24).

    Example:
        >>> item_counts(torch.tensor([2, 0, 2]), 4).tolist()
        [1.0, 0.0, 2.0, 0.0]
    """
    return torch.bincount(item, minlength=items).float()
