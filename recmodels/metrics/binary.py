"""Measures of yes/no scores: how well they separate (AUC), and how far the probabilities can be trusted.

# N cases (yes/no questions), U users, B bins
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

_CLIP = 1e-15  # probabilities of 0 and 1 are moved by this much before a logarithm


def _positives(labels: Tensor, cases: Tensor) -> Tensor:
    """Returns labels as booleans `[N]`, checked against the cases they belong to."""
    if cases.ndim != 1 or labels.shape != cases.shape:
        raise ValueError(f"values {tuple(cases.shape)} and labels {tuple(labels.shape)} must both be [N]")
    if not bool(((labels == 0) | (labels == 1)).all()):
        wrong = labels[(labels != 0) & (labels != 1)][0].item()
        raise ValueError(f"labels must be 0 or 1, found {wrong}")
    return labels == 1


def _probabilities(probability: Tensor) -> Tensor:
    """Returns probabilities in float64, checked."""
    p = probability.detach().double()
    if not bool(((p >= 0) & (p <= 1)).all()):
        wrong = p[~((p >= 0) & (p <= 1))][0].item()
        raise ValueError(f"probabilities must lie between 0 and 1, found {wrong}")
    return p


def auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Probability that a random positive scores above a random negative, ties counted one half.

    Higher is better; .5 is chance. All cases are pooled.

    Args:
        scores: `[N]`, any finite numbers.
        labels: `[N]`, 0 or 1.

    Returns:
        A scalar in float64.

    Raises:
        ValueError: a score is NaN or infinite, a label is neither 0 nor 1, or one class is missing.

    Example:
        >>> auc(torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([1, 1, 0, 0])).item()
        0.875
    """
    values, _, _ = user_auc(scores, labels, torch.zeros_like(labels))
    if len(values) == 0:
        positives = int((labels == 1).sum())
        raise ValueError(f"AUC needs both classes; {positives} of {len(labels)} cases are positive")
    return values[0]


def user_auc(scores: Tensor, labels: Tensor, user: Tensor) -> tuple[Tensor, Tensor, int]:
    """AUC of each user who has both classes; the plain mean is UAUC. Higher is better.

    Args:
        scores: `[N]`, any finite numbers.
        labels: `[N]`, 0 or 1.
        user: `[N]`, id of the user of each case.

    Returns:
        `[U]` values in float64, `[U]` ids of these users in ascending order, and how many users were left out
        because they have one class only.

    Raises:
        ValueError: a score is NaN or infinite, a label is neither 0 nor 1, or shapes differ.

    Example:
        >>> values, users, left_out = user_auc(
        ...     torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1, 0, 1]), torch.tensor([7, 7, 8])
        ... )
        >>> values.tolist(), users.tolist(), left_out
        ([1.0], [7], 1)
    """
    positive = _positives(labels, scores)
    if user.shape != scores.shape:
        raise ValueError(f"user {tuple(user.shape)} and scores {tuple(scores.shape)} must both be [N]")
    finite = torch.isfinite(scores)
    if not bool(finite.all()):
        raise ValueError(f"NaN or infinite score of case {int((~finite).nonzero()[0, 0])}")
    order = scores.detach().argsort()
    order = order[user[order].argsort(stable=True)]  # by user, then by score
    score, hit = scores.detach()[order], positive[order].double()
    users, owner, cases = torch.unique_consecutive(user[order], return_inverse=True, return_counts=True)
    starts = torch.ones_like(positive)
    starts[1:] = (score[1:] != score[:-1]) | (owner[1:] != owner[:-1])
    run = starts.cumsum(0) - 1
    size = torch.bincount(run)
    # Mann-Whitney statistic over ranks within the user; equal scores share their mean rank.
    rank = (size.cumsum(0) - (size - 1) / 2).double()[run] - (cases.cumsum(0) - cases)[owner]
    rank_sum = torch.zeros_like(cases, dtype=torch.float64).index_add(0, owner, rank * hit)
    positives = torch.zeros_like(rank_sum).index_add(0, owner, hit)
    values = (rank_sum - positives * (positives + 1) / 2) / (positives * (cases - positives))
    both = (positives > 0) & (positives < cases)
    return values[both], users[both], int((~both).sum())


def log_loss(probability: Tensor, label: Tensor) -> Tensor:
    """Returns the mean of -ln of the probability given to the true label, in nats. Lower is better; ln 2 is a coin's.

    A probability of 0 or 1 is moved by 1e-15, so one certain mistake costs 34.5 nats.

    Args:
        probability: `[N]`, of label 1.
        label: `[N]`, 0 or 1.

    Raises:
        ValueError: a probability is outside 0 to 1, a label is neither 0 nor 1, or shapes differ.

    Example:
        >>> round(log_loss(torch.tensor([0.5, 0.5]), torch.tensor([1, 0])).item(), 4)
        0.6931
    """
    p = _probabilities(probability).clamp(_CLIP, 1 - _CLIP)
    return torch.where(_positives(label, p), -p.log(), -torch.log1p(-p)).mean()


def brier_score(probability: Tensor, label: Tensor) -> Tensor:
    """Returns the mean squared distance of probability and label. Lower is better; .25 is a coin's.

    Arguments and errors are those of `log_loss`.

    Example:
        >>> brier_score(torch.tensor([0.5, 1.0]), torch.tensor([1, 1])).item()
        0.125
    """
    p = _probabilities(probability)
    return (p - _positives(label, p).double()).square().mean()


def reliability_bins(probability: Tensor, label: Tensor, bins: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Reliability diagram over B bins of equal width: cases, mean probability and share of positives in each.

    The bins are [0, 1/B], (1/B, 2/B], ..., ((B-1)/B, 1], edges in float64. Other arguments and errors are
    those of `log_loss`.

    Args:
        probability: `[N]`, of label 1.
        label: `[N]`, 0 or 1.
        bins: number of bins B.

    Returns:
        Three `[B]` in float64; the last two are NaN in empty bins.

    Example:
        >>> p, label = torch.tensor([0.25, 0.75, 0.5]), torch.tensor([0, 1, 1])
        >>> tuple(column.tolist() for column in reliability_bins(p, label, bins=2))
        ([2.0, 1.0], [0.375, 0.75], [0.5, 1.0])
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}, must be at least 1")
    p = _probabilities(probability)
    hit = _positives(label, p).double()
    number = torch.bucketize(p, torch.arange(1, bins, device=p.device, dtype=torch.float64) / bins)
    total, confidence, positives = (
        torch.zeros(bins, dtype=torch.float64, device=p.device).index_add(0, number, value)
        for value in (torch.ones_like(p), p, hit)
    )
    return total, confidence / total, positives / total


def expected_calibration_error(probability: Tensor, label: Tensor, bins: int = 10) -> Tensor:
    """ECE: distance of mean probability and share of positives, averaged over bins by cases. Lower is better.

    Bins, arguments and errors are those of `reliability_bins` (Naeini et al. 2015; of the probability of
    label 1, not of the more likely label).

    Example:
        >>> expected_calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([1, 0])).item()
        0.25
    """
    total, confidence, positives = reliability_bins(probability, label, bins)
    return (total * (confidence - positives).abs()).nansum() / total.sum()


class BinaryMetrics(Metric):
    """AUC, log-loss, accuracy, Brier score and ECE (10 bins) of yes/no probabilities, over pooled cases.

    `auc` and `accuracy` are better when higher, the others when lower. A case counts as answered yes above
    probability one half. AUC compares all cases, so all are kept: two numbers each.

    Example:
        >>> metric = BinaryMetrics()
        >>> metric.update(torch.tensor([0.9, 0.2]), torch.tensor([1, 0]))
        >>> metric.compute()["auc"].item()
        1.0
    """

    full_state_update = False
    probability: list[Tensor]
    label: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("probability", [], dist_reduce_fx="cat")
        self.add_state("label", [], dist_reduce_fx="cat")

    def update(self, probability: Tensor, label: Tensor) -> None:
        """Adds cases: `[N]` probability of yes, and `[N]` label 0 or 1."""
        p = _probabilities(probability)
        self.label.append(_positives(label, p).long())
        self.probability.append(p)

    def compute(self) -> dict[str, Tensor]:
        """Returns values by name; `auc` is NaN unless both classes were seen; without cases all but counts are."""
        empty = torch.zeros(0, dtype=torch.float64, device=self.device)
        # After a sync over processes a state is one tensor already.
        p, label = (dim_zero_cat(s) if len(s) else empty for s in (self.probability, self.label))
        positives = (label == 1).sum().double()
        both = 0 < int(positives) < len(label)
        return {
            "auc": auc(p, label) if both else torch.full_like(positives, torch.nan),
            "log_loss": log_loss(p, label),
            "accuracy": ((p > 0.5) == (label == 1)).double().mean(),
            "brier": brier_score(p, label),
            "ece": expected_calibration_error(p, label),
            "positives": positives,
            "cases": torch.full_like(positives, len(label)),
        }
