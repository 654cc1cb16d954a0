"""EASE: a linear item-item model in closed form.

# U cases, B branches, I items
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from datamodules.batch import EventBatch, InteractionBatch
from datamodules.sources import InputError
from recmodels.closed_form import ClosedForm, history_counts, user_item_matrix

MOST_ITEMS = 16_384
"""A square float64 matrix of so many items takes 2 GiB; the inverse takes as much again."""


class EASE(ClosedForm):
    """Each item as a ridge regression on all others (Steck 2019, arXiv 1905.03375).

    Args:
        regularization: lambda, added to the diagonal of the item-item counts.
        cutoffs: the k of HR@k and NDCG@k.

    Raises:
        InputError: the regularisation is not positive.
    """

    solved: ClassVar[tuple[str, ...]] = ("weight",)
    weight: Tensor  # [I, I] from item of the history (row) to item scored (column)

    def __init__(self, regularization: float = 500.0, cutoffs: Sequence[int] = (1, 3, 5, 10)) -> None:
        super().__init__(cutoffs=cutoffs)
        if not 0 < regularization < float("inf"):
            raise InputError(f"model.regularization is {regularization}, must be a number above 0")
        self.regularization = regularization

    def solve(self, events: EventBatch) -> dict[str, Tensor]:
        """Solves the regressions.

        Raises:
            InputError: the catalogue's square does not fit the memory that a row may take.
        """
        if events.items > MOST_ITEMS:
            raise InputError(
                f"EASE inverts an items x items matrix: {events.items:,} items need {events.items**2 * 8 / 2**30:.1f} GiB"
                f" for it, the limit is {MOST_ITEMS:,} items (2 GiB); ItemKNN takes catalogues of any size"
            )
        matrix = user_item_matrix(events)
        counts = torch.sparse.mm(matrix.t().coalesce(), matrix).to_dense()
        return {"weight": ease_weights(counts, self.regularization)}

    def score_branches(self, batch: InteractionBatch) -> Tensor:
        """Scores `[B]`: weights from the history's items, added up."""
        seen = history_counts(batch.history, len(self.weight))
        return (seen @ self.weight)[batch.branch_case, batch.branch_item]


def ease_weights(counts: Tensor, regularization: float) -> Tensor:
    """Item-item weights with a zero diagonal.

    Args:
        counts: `[I, I]` users that two items share.
        regularization: lambda.

    Returns:
        `[I, I]` float32.

    Example:
        >>> ease_weights(torch.tensor([[1.0, 1.0], [1.0, 2.0]]), 1.0).tolist()
        [[0.0, 0.5], [0.3333333432674408, 0.0]]
    """
    gram = counts.double()
    gram.diagonal().add_(regularization)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weight = -inverse / inverse.diagonal()
    weight.fill_diagonal_(0.0)
    return weight.float()
