"""Right answers preferred by a margin, without a reference."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective, check_positive, pairs


class SimPO(Objective):
    """Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734): means a token, a margin, no reference.

    Args:
        beta: factor on the mean log-probability a token.
        margin: by which a right answer should lead, in the same unit; the paper's gamma.

    Example:
        >>> import torch
        >>> zeros, right, case = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long)
        >>> round(SimPO(margin=0.0)(BranchScores(zeros, torch.ones(2), zeros, right, case)).exp().item(), 4)
        2.0
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("simpo", negatives=True)

    def __init__(self, beta: float = 2.0, margin: float = 1.0) -> None:
        check_positive(beta=beta)
        if not 0 <= margin < float("inf"):
            raise InputError(f"model.objective.margin is {margin}, must be at least 0")
        self.beta, self.margin = beta, margin

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns nats a pair.

        Raises:
            ValueError: a case has no wrong answer.
        """
        won, lost = pairs(scores, "simpo")
        reward = self.beta * scores.log_likelihood / scores.length
        return -logsigmoid(reward[won] - reward[lost] - self.margin).mean()
