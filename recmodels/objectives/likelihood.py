"""Language modelling of the right answers."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective


class Likelihood(Objective):
    """Negative log-likelihood of the right answers, as in language modelling (P5, arXiv 2203.13366).

    Args:
        mean: over all tokens of the right answers, or first over each answer's, so that long titles weigh no more.

    Example:
        >>> import torch
        >>> log_likelihood, length, right = torch.tensor([-4.0, -9.0]), torch.tensor([2, 3]), torch.tensor([1.0, 0.0])
        >>> Likelihood()(BranchScores(log_likelihood, length, log_likelihood, right, torch.tensor([0, 0]))).item()
        2.0
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("likelihood")

    def __init__(self, mean: Literal["tokens", "answers"] = "tokens") -> None:
        self.mean = mean

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns nats a token."""
        right = scores.relevance > 0
        log_likelihood, length = scores.log_likelihood[right], scores.length[right]
        return -log_likelihood.sum() / length.sum() if self.mean == "tokens" else -(log_likelihood / length).mean()
