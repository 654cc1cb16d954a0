"""Right answers preferred to wrong ones, pair by pair."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective, check_positive, gains, pairs


class DPO(Objective):
    """Direct preference optimisation of every pair of a right and a wrong answer (Rafailov et al. 2023, arXiv 2305.18290).

    The reference is the model before training, scored in the same trees.

    Args:
        beta: how strongly the tuned model is held to the reference; smaller lets it go further.

    Example:
        >>> import torch
        >>> zeros, right = torch.zeros(2), torch.tensor([1.0, 0.0])
        >>> scores = BranchScores(zeros, zeros, zeros, right, torch.zeros(2, dtype=torch.long), reference=zeros)
        >>> round(DPO()(scores).exp().item(), 4)
        2.0
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("dpo", negatives=True)
    needs_reference = True

    def __init__(self, beta: float = 0.1) -> None:
        check_positive(beta=beta)
        self.beta = beta

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns nats a pair; log(2) at the start.

        Raises:
            ValueError: a case has no wrong answer.
        """
        won, lost = pairs(scores, "dpo")
        gain = gains(scores, self.beta)
        return -logsigmoid(gain[won] - gain[lost]).mean()
