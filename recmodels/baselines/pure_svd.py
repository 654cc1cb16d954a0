"""PureSVD: items are alike when they lie alike in the strongest factors of who chose what.

# U cases, B branches, H history, I items, K factors
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from datamodules.contract.batch import EventBatch, InteractionBatch
from datamodules.contract.errors import InputError
from recmodels.baselines.closed_form import ClosedForm
from recmodels.layers.item_factors import item_factors


class PureSVD(ClosedForm):
    """Scores an item by the inner product of its factors with those of the history, added up.

    Cremonesi, Koren and Turrin 2010, doi:10.1145/1864708.1864721: a user who is new in the test is projected onto the
    factors, as there. What a language model whose item tokens start from `events` begins with.

    Args:
        factors: kept of the user-item matrix.
        normalised: divide each entry by the roots of its user's and its item's number of entries; the paper does not.
        half_life: events of the history after which one counts half; null counts all alike, as the paper does.
        cutoffs: the k of HR@k and NDCG@k.

    Raises:
        InputError: no factors, or a half-life that is not above 0.
    """

    solved: ClassVar[tuple[str, ...]] = ("vectors",)
    vectors: Tensor  # [I, K]

    def __init__(
        self,
        factors: int = 50,
        normalised: bool = True,
        half_life: float | None = None,
        cutoffs: Sequence[int] = (1, 3, 5, 10),
    ) -> None:
        super().__init__(cutoffs=cutoffs)
        if factors < 1:
            raise InputError(f"model.factors is {factors}, must be at least 1")
        if half_life is not None and not 0 < half_life < float("inf"):
            raise InputError(f"model.half_life is {half_life}, must be a number above 0, or null")
        self.factors, self.normalised, self.half_life = factors, normalised, half_life

    def solve(self, events: EventBatch) -> dict[str, Tensor]:
        """Factors the training events."""
        return {"vectors": item_factors(events, self.factors, self.normalised)}

    def item_vectors(self) -> Tensor:
        """Returns the factors `[I, K]` of items."""
        return self.vectors

    def score_branches(self, batch: InteractionBatch) -> Tensor:
        """Returns scores `[B]`: of a candidate's factors with the weighted sum of those of the history."""
        shown = batch.history >= 0
        weight = shown.to(self.vectors.dtype)
        if self.half_life is not None:
            later = shown.flip(1).cumsum(1).flip(1) - 1  # events that stand after each
            weight = weight * 0.5 ** (later / self.half_life)
        user = torch.einsum("uh,uhk->uk", weight, self.vectors[batch.history.clamp(min=0)])
        return (user[batch.branch_case] * self.vectors[batch.branch_item]).sum(-1)
