"""Objectives: from branch scores and labels to a loss.

# B branches, U cases, L labelled tokens
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Objective = Literal["likelihood", "listwise", "yes_no", "rating"]


def likelihood(log_likelihood: Tensor, length: Tensor, relevance: Tensor) -> Tensor:
    """Negative log-likelihood of the right answers, averaged over their tokens, as in language modelling.

    Args:
        log_likelihood: `[B]` summed log-probability of each branch's tokens.
        length: `[B]` number of those tokens.
        relevance: `[B]` positive for right answers.

    Returns:
        Scalar, in nats a token; lower is better.

    Example:
        >>> likelihood(torch.tensor([-4.0, -9.0]), torch.tensor([2, 3]), torch.tensor([1.0, 0.0])).item()
        2.0
    """
    right = relevance > 0
    return -log_likelihood[right].sum() / length[right].sum()


def listwise(score: Tensor, relevance: Tensor, branch_case: Tensor) -> Tensor:
    """Softmax cross-entropy of the right answer among its case's branches (ListNet with one positive).

    With the two branches of a yes/no question this *is* binary cross-entropy on the score difference.

    Args:
        score: `[B]` branch scores.
        relevance: `[B]` positive for the right answer.
        branch_case: `[B]` case of each branch, sorted.

    Returns:
        Scalar, in nats a case; lower is better; log(C) for C equal scores.

    Example:
        >>> loss = listwise(torch.zeros(4), torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long))
        >>> round(loss.exp().item(), 4)
        4.0
    """
    cases = int(branch_case[-1]) + 1
    # The largest score of each case keeps the exponentials in range.
    top = score.detach().new_full((cases,), -torch.inf).scatter_reduce(0, branch_case, score.detach(), "amax")
    total = score.new_zeros(cases).index_add(0, branch_case, (score - top[branch_case]).exp())
    log_share = score - top[branch_case] - total.log()[branch_case]
    return -(log_share * relevance).sum() / relevance.sum()


def expected_rating(score: Tensor, branch_case: Tensor, value: Tensor) -> Tensor:
    """Mean answer of each case under the softmax of its branches' scores.

    Args:
        score: `[B]` branch scores.
        branch_case: `[B]` case of each branch, sorted.
        value: `[B]` what each answer stands for.

    Returns:
        `[U]`, between the smallest and the largest value.

    Example:
        >>> expected_rating(torch.zeros(5), torch.zeros(5, dtype=torch.long), torch.arange(1.0, 6.0)).item()
        3.0
    """
    cases = int(branch_case[-1]) + 1
    top = score.detach().new_full((cases,), -torch.inf).scatter_reduce(0, branch_case, score.detach(), "amax")
    weight = (score - top[branch_case]).exp()
    total = score.new_zeros(cases).index_add(0, branch_case, weight)
    return score.new_zeros(cases).index_add(0, branch_case, weight * value.to(score)) / total


def squared_error(score: Tensor, relevance: Tensor, branch_case: Tensor, value: Tensor) -> Tensor:
    """Squared error of the expected rating, averaged over cases.

    Args:
        score: `[B]` branch scores.
        relevance: `[B]` gains that add up to one in each case; their mean answer is the true rating.
        branch_case: `[B]` case of each branch, sorted.
        value: `[B]` what each answer stands for.

    Returns:
        Scalar, in squared steps of the scale; lower is better.

    Example:
        >>> gains = torch.tensor([0.0, 0, 0, 0.5, 0.5])  # four and a half stars
        >>> squared_error(torch.zeros(5), gains, torch.zeros(5, dtype=torch.long), torch.arange(1.0, 6.0)).item()
        2.25
    """
    expected = expected_rating(score, branch_case, value)
    true = torch.zeros_like(expected).index_add(0, branch_case, relevance.to(expected) * value.to(expected))
    return (expected - true).square().mean()


def training_loss(
    objective: Objective,
    log_likelihood: Tensor,
    score: Tensor,
    length: Tensor,
    relevance: Tensor,
    branch_case: Tensor,
    value: Tensor | None = None,
) -> Tensor:
    """The chosen objective.

    Args:
        objective: its name.
        log_likelihood: `[B]` summed log-probabilities.
        score: `[B]` scores by the model's rule (sum or mean).
        length: `[B]` tokens of each branch.
        relevance: `[B]` gains.
        branch_case: `[B]` case of each branch.
        value: `[B]` what each answer stands for; only `rating` needs it.

    Raises:
        ValueError: `rating` without values, `yes_no` on cases without exactly two branches, or `listwise` without negatives.
    """
    if objective == "likelihood":
        return likelihood(log_likelihood, length, relevance)
    if objective == "rating":
        if value is None:
            raise ValueError("the rating objective needs answers that are ratings; use data.task=rating")
        return squared_error(score, relevance, branch_case, value)
    branches = torch.bincount(branch_case)
    if objective == "yes_no" and bool((branches != 2).any()):
        raise ValueError("the yes_no objective needs exactly two answers a case; use data.task=like")
    if objective == "listwise" and bool((branches < 2).any()):
        raise ValueError("the listwise objective needs negatives; set data.train_negatives")
    return listwise(score, relevance, branch_case)
