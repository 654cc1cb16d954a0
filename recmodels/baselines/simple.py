"""No recommender but a probe: it guesses the number after the largest that it has seen."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datamodules.contract.batch import BatchFormat, EventBatch, InteractionBatch
from recmodels.base import Kind, Recommender
from recmodels.baselines.closed_form import ClosedForm


class NextId(Recommender):
    """Scores an item by how near its code is to the largest code of the history plus one; codes above it go first.

    Where ids are handed out along the users' sequences with the test items, this alone beats trained models: the leak of
    P5 (Geng et al. 2022, arXiv 2203.13366; https://github.com/jeykigung/P5/pull/3). Elsewhere it is at chance.

    Args:
        cutoffs: the k of HR@k and NDCG@k.
    """

    batch_format: ClassVar[BatchFormat] = "interactions"
    kind: ClassVar[Kind] = "reference"
    trains: ClassVar[bool] = False

    def __init__(self, cutoffs: tuple[int, ...] = (1, 3, 5, 10)) -> None:
        super().__init__(cutoffs=cutoffs)

    def forward(self, batch: InteractionBatch) -> Tensor:
        """Returns scores `[B]`."""
        return next_id_scores(batch.history, batch.branch_case, batch.branch_item)


def next_id_scores(history: Tensor, case: Tensor, item: Tensor) -> Tensor:
    """Minus the distance of codes to the largest of a history plus one; below it by half more, so that nothing ties.

    Args:
        history: `[U, H]` item codes, -1 at padding.
        case: `[B]` row of the history.
        item: `[B]` item code.

    Returns:
        `[B]` float64.

    Example:
        >>> import torch
        >>> next_id_scores(torch.tensor([[-1, 3, 1]]), torch.tensor([0, 0, 0]), torch.tensor([4, 5, 2])).tolist()
        [-0.0, -1.0, -2.5]
    """
    away = item - (history.amax(1)[case] + 1)
    return -(away.abs().double() + 0.5 * (away < 0))


# Popularity: the number of training events of an item. The row that any recommender must beat.


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
        """Returns scores `[B]`: training events of each branch's item."""
        return self.counts[batch.branch_item]


def item_counts(item: Tensor, items: int) -> Tensor:
    """Returns `[I]`: the number of events of each item, in float32 (exact below 2^24).

    Example:
        >>> item_counts(torch.tensor([2, 0, 2]), 4).tolist()
        [1.0, 0.0, 2.0, 0.0]
    """
    return torch.bincount(item, minlength=items).float()


class Random(Recommender):
    """Scores by a hash of case and item, so that no batch size or order changes them.

    Args:
        seed: of the hash.
        cutoffs: the k of HR@k and NDCG@k.
    """

    batch_format: ClassVar[BatchFormat] = "interactions"
    kind: ClassVar[Kind] = "reference"
    trains: ClassVar[bool] = False

    def __init__(self, seed: int = 0, cutoffs: tuple[int, ...] = (1, 3, 5, 10)) -> None:
        super().__init__(cutoffs=cutoffs)
        self.seed = seed

    def forward(self, batch: InteractionBatch) -> Tensor:
        """Returns scores `[B]`, uniform on [0, 1)."""
        return hash_uniform(batch.case[batch.branch_case], batch.branch_item, self.seed)


def hash_uniform(first: Tensor, second: Tensor, seed: int) -> Tensor:
    """Returns `[B]` uniform numbers in [0, 1) that depend on two integers and a seed alone (the mixing of SplitMix64).

    Example:
        >>> import torch
        >>> bool(hash_uniform(torch.arange(9999), torch.zeros(9999, dtype=torch.long), 1).mean().sub(0.5).abs() < 0.01)
        True
    """
    begin = ((seed + 1) * 0x632BE59BD9B4E019 + 2**63) % 2**64 - 2**63  # as 64 bits with a sign hold it
    mixed = first * 0x9E3779B97F4A7C1 + second * 0x2545F4914F6CDD1D + begin
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    mixed = mixed ^ (mixed >> 31)
    return (mixed & (2**53 - 1)).double() / 2**53
