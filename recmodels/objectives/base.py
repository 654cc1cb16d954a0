"""What an objective is: a class with its options, from the scores of a batch's branches to a loss.

# B branches, U cases
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from datamodules.contract.objectives import ObjectiveNeeds


@dataclass(frozen=True)
class BranchScores:
    """All that an objective may read of a training batch.

    Attributes:
        log_likelihood: `[B]` summed log-probability of each branch's tokens.
        length: `[B]` number of those tokens.
        score: `[B]` score by the model's rule, the sum or the mean a token.
        relevance: `[B]` gains; positive for right answers.
        branch_case: `[B]` case of each branch, sorted.
        value: `[B]` what each answer stands for; None unless answers are ratings.
    """

    log_likelihood: Tensor
    length: Tensor
    score: Tensor
    relevance: Tensor
    branch_case: Tensor
    value: Tensor | None = None


class Objective(ABC):
    """What tuning minimises; a subclass names its options in its constructor."""

    needs: ClassVar[ObjectiveNeeds]
    """What the data must offer; the command line hands it to the data module."""

    @abstractmethod
    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns the loss of a batch, a scalar that is lower for better scores.

        Raises:
            ValueError: the batch has not what the objective needs.
        """


def log_shares(score: Tensor, branch_case: Tensor) -> Tensor:
    """Returns `[B]`: the log-softmax of each branch's score among those of its case.

    Example:
        >>> import torch
        >>> log_shares(torch.zeros(4), torch.tensor([0, 0, 1, 1])).exp()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    cases = int(branch_case[-1]) + 1
    # The largest score of each case keeps the exponentials in range.
    top = score.detach().new_full((cases,), float("-inf")).scatter_reduce(0, branch_case, score.detach(), "amax")
    total = score.new_zeros(cases).index_add(0, branch_case, (score - top[branch_case]).exp())
    return score - top[branch_case] - total.log()[branch_case]
