"""Language modelling of the right answers."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective

Mean = Literal["tokens", "answers"]


class Likelihood(Objective):
    """Negative log-likelihood of the right answers, as in language modelling (P5, arXiv 2203.13366).

    Args:
        mean: over all tokens of the right answers, or first over each answer's, so that long titles weigh no more.
        smoothing: share of each label that is spread over the whole vocabulary (label smoothing,
            doi:10.1109/CVPR.2016.308); 0 is the likelihood.
        certain_weight: weight of tokens to which the catalogue has no alternative, such as the end of a title that its
            beginning tells apart (information gain, arXiv 2506.13229); 1 weighs all tokens alike.

    Example:
        >>> import torch
        >>> log_likelihood, length, right = torch.tensor([-4.0, -9.0]), torch.tensor([2, 3]), torch.tensor([1.0, 0.0])
        >>> Likelihood()(BranchScores(log_likelihood, length, log_likelihood, right, torch.tensor([0, 0]))).item()
        2.0
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("likelihood")

    def __init__(self, mean: Mean = "tokens", smoothing: float = 0.0, certain_weight: float = 1.0) -> None:
        if not 0 <= smoothing < 1:
            raise InputError(f"model.objective.smoothing is {smoothing}, must be 0 to below 1")
        if not 0 <= certain_weight < float("inf"):
            raise InputError(f"model.objective.certain_weight is {certain_weight}, must be at least 0")
        self.mean, self.smoothing, self.certain_weight = mean, smoothing, certain_weight
        self.needs_catalogue = "choices" if certain_weight != 1 else None

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns nats a token."""
        tokens = scores.tokens
        if self.certain_weight != 1:
            if tokens is None or tokens.choices is None:
                raise RuntimeError("nothing was computed of what the catalogue allows")
            weight = (tokens.choices == 1).to(tokens.log_probability) * (self.certain_weight - 1) + 1
            return answer_loss(scores, tokens.log_probability, self.mean, weight)
        right = scores.relevance > 0
        log_likelihood, length = scores.log_likelihood[right], scores.length[right]
        return -log_likelihood.sum() / length.sum() if self.mean == "tokens" else -(log_likelihood / length).mean()


def answer_loss(scores: BranchScores, log_probability: Tensor, mean: Mean, weight: Tensor | None = None) -> Tensor:
    """Returns the negative mean of tokens' log-probabilities `[L]` over the right answers, by weight `[L]` if given."""
    if scores.tokens is None:
        raise RuntimeError("no tokens were given")
    right = (scores.relevance > 0)[scores.tokens.branch]
    value, branch = log_probability[right], scores.tokens.branch[right]
    one = value.new_ones(len(value)) if weight is None else weight[right]
    if mean == "tokens":
        return -(value * one).sum() / one.sum()
    answers, index = branch.unique(return_inverse=True)
    total = value.new_zeros(len(answers)).index_add(0, index, value * one)
    return -(total / value.new_zeros(len(answers)).index_add(0, index, one)).mean()
