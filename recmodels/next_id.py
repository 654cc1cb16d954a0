"""No recommender but a probe: it guesses the number after the largest that it has seen."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from datamodules.batch import BatchFormat, InteractionBatch
from recmodels.base import Kind, Recommender


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
        """Scores `[B]`."""
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
