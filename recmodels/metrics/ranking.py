"""Rank metrics with the exact expectation over equal scores: pure functions, and a thin torchmetrics class.

Where scores tie, a rank metric is its expected value over a uniformly random order of the tied items, in
closed form (McSherry and Najork 2008, "Computing information retrieval performance measures efficiently in
the presence of tied scores"); storage order never decides. Scores may be any real numbers: only their order
and their equality count, so that every strictly increasing transform of them gives the same value. Users
without a relevant item have no value (NaN) and take no part in a mean.

The functions share their arguments:

- `scores`: `[U, C]`, higher is better; finite at real candidates.
- `relevance`: `[U, C]`, gains >= 0; an item is relevant where its gain is positive.
- `k`: the cut-off, counted from 1; a list shorter than k is taken whole.
- `mask`: `[U, C]`, true at real candidates (lists may be ragged); without it all are.
- `total_relevant`: `[U]`, relevant items with those absent from the list, which count as misses; without it
  those in the list.

They return `[U]` in float64, on the device of the scores. All raise ValueError, with the first such user,
where a score is NaN or infinite, a gain is negative or not finite, `total_relevant` is below the number in
the list, shapes differ, or k is below 1. The measures of yes/no probabilities are in `recmodels.metrics.binary`.

# U users (test cases), C candidates, P relevant ones, W the longest run of equal scores, M metrics
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.prints import rank_zero_only

from datamodules.contract.errors import InputError
from recmodels.metrics.ties import MaybeTensor, Ranking, per_user

log = logging.getLogger(__name__)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """Returns the logarithm of the binomial coefficient; -inf where that is zero."""
    zero = (k < 0) | (k > n)
    n, k = n.masked_fill(zero, 0.0), k.masked_fill(zero, 0.0)
    value = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return value.masked_fill(zero, -torch.inf)


def _hit_rate(ranking: Ranking, k: int) -> Tensor:
    # The best relevant item decides, and those that tie with it.
    first, size, relevant = (value[:, 0] for value in (ranking.first, ranking.size, ranking.relevant))
    room = (k - first).clamp(min=0).minimum(size)  # places of the run that are within the cut-off
    missed = (_log_choose(size - relevant, room) - _log_choose(size, room)).exp()
    hit = torch.where(relevant == 1, room / size, 1 - missed)  # one relevant item: exact, without logarithms
    return ranking.where_relevant(hit.masked_fill(~ranking.held[:, 0], 0.0))


def hit_rate(
    scores: Tensor, relevance: Tensor, k: int, mask: MaybeTensor = None, total_relevant: MaybeTensor = None
) -> Tensor:
    """HR@k: probability that a relevant item has rank at most k. Higher is better.

    Example:
        >>> hit_rate(torch.zeros(1, 20), torch.eye(20)[:1], 5).tolist()  # a constant scorer
        [0.25]
    """
    return per_user(lambda r: _hit_rate(r, k), scores, relevance, mask, total_relevant, k)


def _hits(ranking: Ranking, k: int) -> Tensor:
    """Returns the expected number of relevant items within the cut-off, `[U]`."""
    chance = ((k - ranking.first) / ranking.size).clamp(0, 1)
    return chance.masked_fill(~ranking.held, 0.0).sum(1)


def recall(
    scores: Tensor, relevance: Tensor, k: int, mask: MaybeTensor = None, total_relevant: MaybeTensor = None
) -> Tensor:
    """Recall@k: relevant items with rank at most k, divided by all relevant items. Higher is better.

    Example:
        >>> recall(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1, 0, 1]]), 2).tolist()
        [0.5]
    """
    return per_user(lambda r: _hits(r, k) / r.total, scores, relevance, mask, total_relevant, k)


def precision(
    scores: Tensor, relevance: Tensor, k: int, mask: MaybeTensor = None, total_relevant: MaybeTensor = None
) -> Tensor:
    """Precision@k: relevant items with rank at most k, divided by k, also in shorter lists. Higher is better.

    Example:
        >>> precision(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1, 0, 1]]), 2).tolist()
        [0.5]
    """
    return per_user(lambda r: r.where_relevant(_hits(r, k) / k), scores, relevance, mask, total_relevant, k)


def _reciprocal_rank(ranking: Ranking, k: int | None) -> Tensor:
    held = ranking.held[:, 0]
    first, n, r = (value[:, :1] for value in (ranking.first, ranking.size, ranking.relevant))
    width = int(n[held].max()) if bool(held.any()) else 0
    offset = torch.arange(width, device=n.device)  # [W] of the first relevant item in its run
    chance = (_log_choose(n - 1 - offset, r - 1) - _log_choose(n, r)).exp()
    chance = torch.where(r == 1, (offset < n) / n, chance)  # one relevant item: exact, without logarithms
    rank = first + offset + 1
    within = chance if k is None else chance.masked_fill(rank > k, 0.0)
    return ranking.where_relevant((within / rank).sum(1).masked_fill(~held, 0.0))


def reciprocal_rank(
    scores: Tensor,
    relevance: Tensor,
    k: int | None = None,
    mask: MaybeTensor = None,
    total_relevant: MaybeTensor = None,
) -> Tensor:
    """One over the rank of the best relevant item, 0 beyond k; its mean is MRR@k. Higher is better.

    Without k there is no cut-off.

    Example:
        >>> reciprocal_rank(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[0, 1, 0]])).tolist()
        [0.5]
    """
    return per_user(lambda r: _reciprocal_rank(r, k), scores, relevance, mask, total_relevant, k)


def _average_precision(ranking: Ranking, k: int) -> Tensor:
    first, size = ranking.first, ranking.size
    # Given that an item stands at a place of its run, an earlier place of the run is relevant with chance c. So
    # its share is the mean over the run's places p, from 0, of (1 + before + c (p - first)) / (p + 1), 0 from k.
    c = (ranking.relevant - 1) / (size - 1).clamp(min=1)
    places = ((first + size).clamp(max=k) - first).clamp(min=0)
    inverse = ranking.sum_over_run(torch.reciprocal, k)
    precision_sum = (1 + ranking.before - c * (first + 1)) * inverse + c * places
    return (precision_sum / size).masked_fill(~ranking.held, 0.0).sum(1) / ranking.total


def average_precision(
    scores: Tensor, relevance: Tensor, k: int, mask: MaybeTensor = None, total_relevant: MaybeTensor = None
) -> Tensor:
    """Returns the mean over all relevant items of the precision at their rank, 0 beyond k; its mean is MAP@k.

    The denominator is the number of relevant items, not min(R, k). Higher is better.

    Example:
        >>> average_precision(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[0, 1, 1]]), 2).tolist()
        [0.25]
    """
    return per_user(lambda r: _average_precision(r, k), scores, relevance, mask, total_relevant, k)


def _discount(rank: Tensor) -> Tensor:
    return 1 / torch.log2(rank + 1)


def _ndcg(ranking: Ranking, k: int) -> Tensor:
    expected = ranking.gain * ranking.sum_over_run(_discount, k) / ranking.size
    value = expected.masked_fill(~ranking.held, 0.0).sum(1)
    best = ranking.best_gains[:, :k]
    rank = torch.arange(1, best.shape[1] + 1, device=best.device, dtype=torch.float64)
    # The order of summation may leave 1 + 2e-16.
    return ranking.where_relevant((value / (best * _discount(rank)).sum(1)).clamp(max=1.0))


def ndcg(
    scores: Tensor, relevance: Tensor, k: int, mask: MaybeTensor = None, total_relevant: MaybeTensor = None
) -> Tensor:
    """NDCG@k: sum of gain / log2(rank + 1) over ranks up to k, divided by its ideal. Higher is better.

    Gain is linear; the ideal is the same sum over the min(R, k) best gains. Relevant items absent from the
    list stand in the ideal with gain 1 (Jarvelin and Kekalainen 2002).

    Example:
        >>> ndcg(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1, 0, 0]]), 10).tolist()
        [0.5]
    """
    return per_user(lambda r: _ndcg(r, k), scores, relevance, mask, total_relevant, k)


def tie_rate(scores: Tensor, mask: MaybeTensor = None) -> Tensor:
    """Returns whether any two real candidates of a user have equal scores, 1 or 0; its mean is the tie rate.

    Example:
        >>> tie_rate(torch.tensor([[1.0, 1.0], [1.0, 2.0]])).tolist()
        [1.0, 0.0]
    """
    return per_user(lambda r: r.tied.double(), scores, torch.zeros_like(scores), mask, None)


def user_values(
    scores: Tensor,
    relevance: Tensor,
    cutoffs: Sequence[int],
    mask: MaybeTensor = None,
    total_relevant: MaybeTensor = None,
) -> dict[str, Tensor]:
    """HR@k and NDCG@k at every cut-off, reciprocal rank (`mrr`) and `tie_rate` by name; lists are ranked once.

    Example:
        >>> user_values(torch.tensor([[3.0, 2.0]]), torch.tensor([[0, 1]]), (1,))["mrr"].tolist()
        [0.5]
    """
    names = [f"{name}@{k}" for name in ("hr", "ndcg") for k in cutoffs] + ["mrr", "tie_rate"]

    def measure(ranking: Ranking) -> Tensor:
        columns = [_hit_rate(ranking, k) for k in cutoffs] + [_ndcg(ranking, k) for k in cutoffs]
        return torch.stack([*columns, _reciprocal_rank(ranking, None), ranking.tied.double()], dim=1)

    return dict(zip(names, per_user(measure, scores, relevance, mask, total_relevant).unbind(1), strict=True))


def informative_cutoffs(cutoffs: Sequence[int], num_candidates: int) -> tuple[int, ...]:
    """Returns the cut-offs below the number of candidates; from there on HR@k is 1 by construction.

    Example:
        >>> informative_cutoffs((1, 5, 10), 10)
        (1, 5)
    """
    return tuple(k for k in cutoffs if k < num_candidates)


class RankingMetrics(Metric):
    """Means over users of HR@k, NDCG@k and reciprocal rank; with `tie_rate`, `users` and `skipped_users`.

    Higher is better, but for `tie_rate`. Users without a relevant item are skipped and counted. All states
    are sums, so processes and objects merge by adding. A cut-off that no list exceeds is left out, with a
    warning.

    Args:
        cutoffs: the k, at least 1 each.
        kwargs: those of `torchmetrics.Metric`.

    Raises:
        InputError: a cut-off is below 1, or there is none.

    Example:
        >>> metric = RankingMetrics(cutoffs=(1,))
        >>> metric.update(torch.tensor([[3.0, 2.0], [3.0, 2.0]]), torch.tensor([[1, 0], [0, 1]]))
        >>> values = metric.compute()
        >>> values["hr@1"].item(), values["mrr"].item(), values["users"].item()
        (0.5, 0.75, 2.0)
    """

    full_state_update = False
    sums: Tensor  # [M] over counted users
    longer: Tensor  # [K] lists longer than the cut-off
    skipped: Tensor

    def __init__(self, cutoffs: Sequence[int] = (1, 5, 10), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not cutoffs or min(cutoffs) < 1:
            raise InputError(f"cutoffs are {list(cutoffs)}, must be one or more whole numbers from 1")
        self.cutoffs = tuple(sorted(set(cutoffs)))
        self.names = [f"{name}@{k}" for name in ("hr", "ndcg") for k in self.cutoffs]
        self.names += ["mrr", "tie_rate", "users"]
        for state, size in (("sums", len(self.names)), ("longer", len(self.cutoffs)), ("skipped", 1)):
            self.add_state(state, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Metric:
        # Lightning's bf16-true casts a whole module with .to(dtype); sums in bfloat16 stop growing at 256.
        super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), exclude_state)
        return self

    def update(
        self,
        scores: Tensor,
        relevance: Tensor,
        mask: MaybeTensor = None,
        total_relevant: MaybeTensor = None,
        candidates: MaybeTensor = None,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Adds users; the arguments are those of the functions of this module.

        `candidates`, `[U]`, says how many each list was retrieved from; without it lists are whole. `values` are what
        `user_values` gives of the same lists, where they have been measured already.
        """
        if values is None:
            values = user_values(scores, relevance, self.cutoffs, mask, total_relevant)
        columns = {**values, "users": torch.ones_like(values["mrr"])}
        table = torch.stack([columns[name] for name in self.names], dim=1)  # [U, M]
        counted = table[~table.isnan().any(1)]
        self.sums += counted.sum(0).to(self.sums.device)
        self.skipped += len(table) - len(counted)
        real = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
        size = real.sum(1) if candidates is None else candidates
        self.longer += (size[:, None] > torch.tensor(self.cutoffs, device=size.device)).sum(0).to(self.longer)

    def compute(self) -> dict[str, Tensor]:
        """Returns values by name; `users` and `skipped_users` are numbers of users, the rest means over `users`."""
        sums = dict(zip(self.names, self.sums, strict=True))
        users, skipped = sums.pop("users"), self.skipped[0]
        seen = bool(users + skipped > 0)
        reached = [k for k, lists in zip(self.cutoffs, self.longer, strict=True) if seen and not bool(lists)]
        if reached:
            message = "cut-offs %s are left out: no list has more candidates, so HR@k is 1 anyhow"
            rank_zero_only(log.warning)(message, reached)
        left_out = {f"{name}@{k}" for name in ("hr", "ndcg") for k in reached}
        means = {name: total / users for name, total in sums.items() if name not in left_out}
        return means | {"users": users, "skipped_users": skipped}


def pad_branches(value: Tensor, branch_case: Tensor, cases: int, fill: float) -> tuple[Tensor, Tensor]:
    """Lays flat branches `[B]`, sorted by case, out as a table.

    Returns:
        `[U, C]` values and `[U, C]` mask of real cells, C being the longest list.

    Example:
        >>> pad_branches(torch.tensor([1.0, 2, 3]), torch.tensor([0, 0, 1]), 2, 0.0)[0].tolist()
        [[1.0, 2.0], [3.0, 0.0]]
    """
    counts = torch.bincount(branch_case, minlength=cases)
    start = counts.cumsum(0) - counts
    column = torch.arange(len(value), device=value.device) - start[branch_case]
    table = value.new_full((cases, int(counts.max())), fill)
    mask = torch.zeros_like(table, dtype=torch.bool)
    table[branch_case, column] = value
    mask[branch_case, column] = True
    return table, mask
