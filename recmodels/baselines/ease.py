"""EASE: a linear item-item model in closed form.

# U cases, B branches, I items
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import psutil
import torch
from torch import Tensor

from datamodules.contract.batch import EventBatch, InteractionBatch
from datamodules.contract.errors import InputError
from recmodels.baselines.closed_form import ClosedForm, history_counts, user_item_matrix

MOST_DOUBLE = 16_384
"""Items up to which the matrix is inverted in float64 (2 GiB a square), and above which in float32."""
SQUARES = 4
"""Squares of numbers that are there at once at the peak: counts, factor, inverse, and LAPACK's copy."""


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
            InputError: the catalogue's square does not fit the memory that is free.
        """
        check_square(events.items, psutil.virtual_memory().available)
        matrix = user_item_matrix(events)
        counts = torch.sparse.mm(matrix.t().coalesce(), matrix).to_dense()
        return {"weight": ease_weights(counts, self.regularization)}

    def score_branches(self, batch: InteractionBatch) -> Tensor:
        """Returns scores `[B]`: weights from the history's items, added up."""
        seen = history_counts(batch.history, len(self.weight))
        return (seen @ self.weight)[batch.branch_case, batch.branch_item]


def check_square(items: int, free: int) -> None:
    """Refuses a catalogue whose item-item matrices are larger than the `free` bytes of memory.

    Raises:
        InputError: they are.

    Example:
        >>> check_square(16_859, 8 * 2**30)
        >>> check_square(16_859, 4 * 2**30)
        Traceback (most recent call last):
        datamodules.contract.errors.InputError: EASE inverts an items x items matrix: 16,859 items need 4.2 GiB of memory and 4.0 GiB are free; ItemKNN takes catalogues of any size
    """
    need = SQUARES * items**2 * (8 if items <= MOST_DOUBLE else 4)
    if need > free:
        raise InputError(
            f"EASE inverts an items x items matrix: {items:,} items need {need / 2**30:.1f} GiB of memory and"
            f" {free / 2**30:.1f} GiB are free; ItemKNN takes catalogues of any size"
        )


def ease_weights(counts: Tensor, regularization: float, most_double: int = MOST_DOUBLE) -> Tensor:
    """Returns item-item weights `[I, I]` with a zero diagonal, in float32, from the users that two items share.

    The precision depends on the size alone, so that the same data give the same weights whatever memory is free.

    Example:
        >>> ease_weights(torch.tensor([[1.0, 1.0], [1.0, 2.0]]), 1.0).tolist()
        [[0.0, 0.5], [0.3333333432674408, 0.0]]
    """
    gram = counts.to(torch.float64 if len(counts) <= most_double else torch.float32, copy=True)
    gram.diagonal().add_(regularization)
    gram = torch.linalg.cholesky(gram)  # one name, so that each square goes when the next is there
    gram = torch.cholesky_inverse(gram)
    gram.div_(-gram.diagonal().clone())
    return gram.fill_diagonal_(0.0).float()
