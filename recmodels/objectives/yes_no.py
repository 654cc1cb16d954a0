"""Yes against No."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective, check_positive, log_shares


class YesNo(Objective):
    """Binary cross-entropy on the score of Yes less that of No (TALLRec, arXiv 2305.00447).

    Args:
        positive_weight: weight of a case whose answer is Yes, beside 1 for one whose answer is No; for rare likes. It
            shifts the probabilities, so that they are no longer calibrated.

    Example:
        >>> zeros = torch.zeros(2)
        >>> scores = BranchScores(zeros, zeros, zeros, torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long))
        >>> round(YesNo()(scores).exp().item(), 4)
        2.0
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("yes_no", task="like")

    def __init__(self, positive_weight: float = 1.0) -> None:
        check_positive(positive_weight=positive_weight)
        self.positive_weight = positive_weight

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns nats a case.

        Raises:
            ValueError: a case has not exactly two answers.
        """
        if bool((torch.bincount(scores.branch_case) != 2).any()):
            raise ValueError("the yes_no objective needs exactly two answers a case; use data.task=like")
        share = log_shares(scores.score, scores.branch_case)
        gain = scores.relevance.clone()
        gain[::2] *= self.positive_weight  # the first answer of a case is Yes
        return -(share * gain).sum() / scores.relevance.sum()
