"""The right answer against the others of its case."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective, check_positive, log_shares


class Listwise(Objective):
    """Softmax cross-entropy of the right answer among its case's (ListNet with one positive, doi:10.1145/1273496.1273513).

    Args:
        temperature: divides the scores before the softmax; below 1 the strongest negatives weigh more.

    Example:
        >>> zeros = torch.zeros(4)
        >>> scores = BranchScores(zeros, zeros, zeros, torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long))
        >>> round(Listwise()(scores).exp().item(), 4)
        4.0
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("listwise", negatives=True)

    def __init__(self, temperature: float = 1.0) -> None:
        check_positive(temperature=temperature)
        self.temperature = temperature

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns nats a case; log(C) for C equal scores.

        Raises:
            ValueError: a case has one answer only.
        """
        if bool((torch.bincount(scores.branch_case) < 2).any()):
            raise ValueError("the listwise objective needs negatives; set data.train_negatives")
        share = log_shares(scores.score / self.temperature, scores.branch_case)
        return -(share * scores.relevance).sum() / scores.relevance.sum()
