"""A right answer preferred to the mean of the wrong ones of its case."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective, check_positive, gains, pairs


class DMPO(Objective):
    """Direct multi-preference optimisation (Bai et al. 2024, arXiv 2405.16127): DPO against the mean of the wrong answers.

    The reference is the model before training, scored in the same trees.

    Args:
        beta: how strongly the tuned model is held to the reference; smaller lets it go further.

    Example:
        >>> import torch
        >>> zeros, right = torch.zeros(3), torch.tensor([1.0, 0, 0])
        >>> scores = BranchScores(zeros, zeros, zeros, right, torch.zeros(3, dtype=torch.long), reference=zeros)
        >>> round(DMPO()(scores).exp().item(), 4)
        2.0
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("dmpo", negatives=True)
    needs_reference = True

    def __init__(self, beta: float = 0.1) -> None:
        check_positive(beta=beta)
        self.beta = beta

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns nats a right answer; log(2) at the start.

        Raises:
            ValueError: a case has no wrong answer.
        """
        won, lost = pairs(scores, "dmpo")
        gain = gains(scores, self.beta)
        right, index, count = won.unique(return_inverse=True, return_counts=True)
        mean = gain.new_zeros(len(right)).index_add(0, index, gain[lost]) / count
        return -logsigmoid(gain[right] - mean).mean()
