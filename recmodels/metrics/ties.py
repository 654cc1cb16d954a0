"""Where relevant items stand in a list with tied scores: what every rank metric is computed from.

# U users (test cases), C candidates, P most relevant items of a user
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MaybeTensor = Tensor | None
_CELLS = 1 << 21  # scores ranked at once: keeps the memory for temporaries near 200 MB


@dataclass(frozen=True)
class Ranking:
    """Where the relevant items stand, in descending order of score; each in a run of equal scores."""

    held: Tensor  # [U, P] a relevant item, not padding
    gain: Tensor  # [U, P] its gain, 0 at padding
    first: Tensor  # [U, P] rank, from 0, at which its run begins
    size: Tensor  # [U, P] items in its run
    relevant: Tensor  # [U, P] relevant items in its run
    before: Tensor  # [U, P] relevant items in earlier runs
    tied: Tensor  # [U] whether two real candidates tie
    total: Tensor  # [U] relevant items, absent ones too

    def where_relevant(self, value: Tensor) -> Tensor:
        """Returns the value `[U]`, NaN for users without a relevant item."""
        return value.masked_fill(self.total == 0, torch.nan)

    def sum_over_run(self, weight: Callable[[Tensor], Tensor], k: int) -> Tensor:
        """Returns the sum of a weight of the rank, over those ranks of each run that are within k: `[U, P]`."""
        first, end = (rank.clamp(max=k).long() for rank in (self.first, self.first + self.size))
        depth = int(end.max()) if end.numel() else 0
        # On the CPU, because a cumsum of floats has no deterministic CUDA kernel.
        table = weight(torch.arange(1.0, depth + 1, dtype=torch.float64))
        below = torch.cat([torch.zeros(1, dtype=torch.float64), table.cumsum(0)]).to(self.gain.device)
        alone = torch.where(end > first, weight(first.double() + 1), 0.0)  # without the rounding of a difference
        return torch.where(self.size == 1, alone, below[end] - below[first])

    @cached_property
    def best_gains(self) -> Tensor:
        """All positive gains in descending order, 0 after the last; absent items have gain 1."""
        absent = self.total - self.held.sum(1)
        missing = int(absent.max()) if len(absent) else 0
        extra = torch.arange(missing, device=absent.device) < absent[:, None]
        return torch.cat([self.gain, extra.double()], dim=1).sort(dim=1, descending=True).values


def _stand(ordered: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the rank at which each value begins in ascending rows, and how often it occurs; in float64."""
    first, end = (torch.searchsorted(ordered, value, right=right).double() for right in (False, True))
    return first, end - first


def _rank(scores: Tensor, gains: Tensor, real: Tensor, total: Tensor) -> Ranking:
    gains = gains.double().masked_fill(~real, 0.0)
    # Negated, so that the best come first; real scores are finite, so padding comes last.
    cost = (-scores.double()).masked_fill(~real, torch.inf)
    ordered = cost.sort(dim=1).values
    width = int((gains > 0).sum(1).max()) if len(gains) else 0
    gain, item = gains.topk(max(width, 1), dim=1)
    relevant_cost, order = cost.gather(1, item).masked_fill(gain == 0, torch.inf).sort(dim=1)
    gain = gain.gather(1, order)
    (first, size), (before, relevant) = _stand(ordered, relevant_cost), _stand(relevant_cost, relevant_cost)
    tied = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] < torch.inf)
    return Ranking(gain > 0, gain, first, size, relevant, before, tied.any(1), total)


def _refuse(wrong: Tensor, message: str) -> None:
    if bool(wrong.any()):
        raise ValueError(f"{message} of user {int(wrong.nonzero()[0, 0])} (row of the table, from 0)")


def per_user(
    measure: Callable[[Ranking], Tensor],
    scores: Tensor,
    relevance: Tensor,
    mask: MaybeTensor,
    total_relevant: MaybeTensor,
    k: int | None = None,
) -> Tensor:
    """Checks the input, ranks it, some users at a time, and returns what is measured of each ranking, `[U, ...]`.

    The arguments are those of the functions of `recmodels.metrics.ranking`; a cut-off is only checked.

    Raises:
        ValueError: as the functions of `recmodels.metrics.ranking`.
    """
    if k is not None and k < 1:
        raise ValueError(f"cut-off k is {k}, must be at least 1")
    users = scores.shape[:1]
    given = {"relevance": (relevance, scores.shape), "mask": (mask, scores.shape)}
    for name, (value, shape) in (given | {"total_relevant": (total_relevant, users)}).items():
        if scores.ndim != 2 or (value is not None and value.shape != shape):
            actual = None if value is None else tuple(value.shape)
            raise ValueError(f"scores {tuple(scores.shape)} must be [U, C], {name} {actual} must fit it")
    scores, relevance = scores.detach(), relevance.detach()
    real = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
    _refuse((real & ~torch.isfinite(scores)).any(1), "NaN or infinite score among the candidates")
    _refuse((real & ~((relevance >= 0) & torch.isfinite(relevance))).any(1), "gain below 0 or not finite")
    listed = ((relevance > 0) & real).sum(1).double()
    total = listed if total_relevant is None else total_relevant.to(listed)
    fits = (total >= listed) & (total == total.floor()) & torch.isfinite(total)
    _refuse(~fits, "total_relevant is no whole number, or below the number in the list,")
    if scores.shape[1] == 0:  # one place of padding, so that every list has a place
        scores, relevance, real = (torch.zeros(*users, 1).to(t) for t in (scores, relevance, real))
    rows = max(1, _CELLS // scores.shape[1])
    parts = zip(*(t.split(rows) for t in (scores, relevance, real, total)), strict=True)
    return torch.cat([measure(_rank(*part)) for part in parts])
