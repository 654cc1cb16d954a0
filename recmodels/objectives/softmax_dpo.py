"""A right answer preferred to all wrong ones of its case at once."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective, check_positive, gains, log_shares, pairs


class SoftmaxDPO(Objective):
    """S-DPO (Chen et al. 2024, arXiv 2406.09215): DPO of a right answer against any number of wrong ones on one prompt.

    -log sigmoid(-log sum exp(r_wrong - r_right)) with r = beta log(p / p_before): the cross-entropy of the right answer
    under a softmax of r. The reference is the model before training, so S-DPO after fine-tuning is
    `--model.init_from` of that run.

    Args:
        beta: how strongly the tuned model is held to the reference; smaller lets it go further.

    Example:
        >>> import torch
        >>> zeros, right = torch.zeros(4), torch.tensor([1.0, 0, 0, 0])
        >>> scores = BranchScores(zeros, zeros, zeros, right, torch.zeros(4, dtype=torch.long), reference=zeros)
        >>> round(SoftmaxDPO()(scores).exp().item(), 4)
        4.0
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("softmax_dpo", negatives=True)
    needs_reference = True

    def __init__(self, beta: float = 1.0) -> None:
        check_positive(beta=beta)
        self.beta = beta

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns nats a right answer; log(C) for C answers at the start.

        Raises:
            ValueError: a case has no wrong answer.
        """
        pairs(scores, "softmax_dpo")  # refuses
        share = log_shares(gains(scores, self.beta), scores.branch_case)
        return -(share * scores.relevance).sum() / scores.relevance.sum()
