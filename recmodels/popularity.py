"""Popularity: the number of training events of an item. The row that any recommender must beat."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datamodules.batch import BatchFormat, EventBatch, InteractionBatch
from datamodules.sources import InputError
from recmodels.base import Kind, Recommender


class Popularity(Recommender):
    """Scores an item by how often it was chosen in training.

    Args:
        cutoffs: the k of HR@k and NDCG@k.
    """

    batch_format: ClassVar[BatchFormat] = "interactions"
    kind: ClassVar[Kind] = "reference"

    def __init__(self, cutoffs: tuple[int, ...] = (1, 3, 5, 10)) -> None:
        super().__init__(cutoffs=cutoffs)
        self.automatic_optimization = False
        self.register_buffer("counts", torch.zeros(0))

    def kept_state(self) -> set[str]:
        """The counts."""
        return {"counts"}

    def configure_optimizers(self) -> None:
        """None: counting needs no optimiser."""

    def training_step(self, batch: EventBatch, batch_idx: int) -> None:
        """Counts all training events at once and ends the training."""
        self.counts = item_counts(batch.item, batch.items)
        self.trainer.should_stop = True

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Takes the catalogue's size from the checkpoint."""
        state = checkpoint["state_dict"]
        if isinstance(state, dict) and isinstance(counts := state.get("counts"), Tensor):
            self.counts = torch.zeros_like(counts)
        super().on_load_checkpoint(checkpoint)

    def forward(self, batch: InteractionBatch) -> Tensor:
        """Scores `[B]`: training events of each branch's item.

        Raises:
            InputError: the model has not been fitted.
        """
        if len(self.counts) == 0:
            raise InputError("popularity has counted nothing; run fit first, or give --ckpt_path")
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
