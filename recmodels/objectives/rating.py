"""The expected rating against the true one."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective, log_shares

ERRORS: dict[str, Any] = {
    "squared": functional.mse_loss,
    "absolute": functional.l1_loss,
    "huber": functional.huber_loss,
}


class Rating(Objective):
    """Error of the rating that the model expects, averaged over cases (regression-aware tuning, arXiv 2403.04182).

    Args:
        error: `squared`, `absolute`, or `huber`: squared below one step of the scale and linear above it.

    Example:
        >>> zeros, gains = torch.zeros(5), torch.tensor([0.0, 0, 0, 0.5, 0.5])  # four and a half stars
        >>> case, stars = torch.zeros(5, dtype=torch.long), torch.arange(1.0, 6.0)
        >>> Rating()(BranchScores(zeros, zeros, zeros, gains, case, stars)).item()
        2.25
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("rating", task="rating")

    def __init__(self, error: Literal["squared", "absolute", "huber"] = "squared") -> None:
        self.error = error

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns (squared) steps of the scale.

        Raises:
            ValueError: answers are not ratings.
        """
        if scores.value is None:
            raise ValueError("the rating objective needs answers that are ratings; use data.task=rating")
        expected = expected_rating(scores.score, scores.branch_case, scores.value)
        # A case's gains add up to one, and their mean answer is its true rating.
        gain = scores.relevance.to(expected) * scores.value.to(expected)
        true = torch.zeros_like(expected).index_add(0, scores.branch_case, gain)
        loss: Tensor = ERRORS[self.error](expected, true)
        return loss


def expected_rating(score: Tensor, branch_case: Tensor, value: Tensor) -> Tensor:
    """Returns `[U]`: the mean answer of each case under the softmax of its branches' scores.

    Example:
        >>> expected_rating(torch.zeros(5), torch.zeros(5, dtype=torch.long), torch.arange(1.0, 6.0)).item()
        3.0
    """
    share = log_shares(score, branch_case).exp()
    empty = score.new_zeros(int(branch_case[-1]) + 1)
    # Divided once more: shares from logarithms in float32 add up to 1 with an error that the error's square shows.
    return empty.index_add(0, branch_case, share * value.to(score)) / empty.index_add(0, branch_case, share)
