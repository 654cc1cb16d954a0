"""Random scores: the row that shows what chance gives."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from datamodules.batch import BatchFormat, InteractionBatch
from recmodels.base import Kind, Recommender


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
        """Scores `[B]`, uniform on [0, 1)."""
        return hash_uniform(batch.case[batch.branch_case], batch.branch_item, self.seed)


def hash_uniform(first: Tensor, second: Tensor, seed: int) -> Tensor:
    """Uniform numbers that depend on two integers and a seed alone (the mixing steps of SplitMix64).

    Args:
        first: `[B]` integers.
        second: `[B]` integers.
        seed: any integer.

    Returns:
        `[B]` in [0, 1), float64.

    Example:
        >>> import torch
        >>> bool(hash_uniform(torch.arange(9999), torch.zeros(9999, dtype=torch.long), 1).mean().sub(0.5).abs() < 0.01)
        True
    """
    mixed = first * 0x9E3779B97F4A7C1 + second * 0x2545F4914F6CDD1D + (seed + 1) * 0x632BE59BD9B4E019
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    mixed = mixed ^ (mixed >> 31)
    return (mixed & (2**53 - 1)).double() / 2**53
