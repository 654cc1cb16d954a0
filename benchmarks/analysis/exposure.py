"""Which items a recommender shows: coverage, concentration, popularity, novelty and diversity of its top k.

Where scores tie, each value is exact over a uniformly random order of equal scores: `chances` gives the probability that
an item is in the top k, and the rest follows from it. Coverage, diversity and the means are expected values; the Gini
index is that of the expected exposure.

# U lists, B entries of all lists one behind another, I items, F features
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]
_CELLS = 1 << 22  # numbers of a list's features held at once


@dataclass(frozen=True)
class Chances:
    """Who is in the top k.

    Attributes:
        value: `[B]` probability that the entry is among its list's first k.
        places: `[B]` places within the top k that the entry's run of equal scores has.
        size: `[B]` entries in that run.
        owner: `[B]` number of the list, from 0.
        length: `[U]` entries shown: k, or all of a shorter list.
    """

    value: Floats
    places: Floats
    size: Floats
    owner: Ints
    length: Ints


def chances(score: Floats, start: Ints, k: int) -> Chances:
    """Each entry's probability of a place among the k best of its list, equal scores in random order.

    Args:
        score: `[B]`, higher is better.
        start: `[U + 1]` where each list begins.
        k: the cut-off, from 1.

    Example:
        >>> chances(np.array([3.0, 1.0, 1.0, 5.0]), np.array([0, 3, 4]), 2).value.tolist()
        [1.0, 0.5, 0.5, 1.0]
    """
    if k < 1:
        raise ValueError(f"cut-off k is {k}, must be at least 1")
    if not np.isfinite(score).all():
        raise ValueError(f"NaN or infinite score in entry {int((~np.isfinite(score)).argmax())}")
    count = np.diff(start)
    owner = np.repeat(np.arange(len(count)), count)
    order = np.lexsort((-score, owner))
    ordered, place = score[order], np.arange(len(score)) - start[:-1][owner]
    begins = np.ones(len(score), dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]) | (owner[1:] != owner[:-1])
    run = np.cumsum(begins) - 1
    first, size = place[begins][run], np.bincount(run)[run] if len(run) else run
    places = np.clip(k - first, 0, size)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    value = (places / np.maximum(size, 1))[back]
    return Chances(value, places[back].astype(float), size[back].astype(float), owner, np.minimum(count, k))


def coverage(shown: Chances, item: Ints, items: int) -> float:
    """Share of the catalogue of `items` that is in at least one list's top k: 1 where every item is. Higher is broader.

    Example:
        >>> coverage(chances(np.array([2.0, 1.0, 1.0]), np.array([0, 2, 3]), 1), np.array([0, 1, 0]), 4)
        0.25
    """
    with np.errstate(divide="ignore"):
        never = np.zeros(items)
        np.add.at(never, item, np.log1p(-shown.value))  # lists are independent, and hold an item once
    return float(-np.expm1(never).sum() / items)


def gini(exposure: Floats) -> float:
    """Gini index: 0 where all are shown equally often, towards 1 where one takes all. NaN where nothing is shown.

    Args:
        exposure: `[I]` how often each item is shown, those never shown included.

    Example:
        >>> gini(np.array([1.0, 1.0])), gini(np.array([0.0, 0.0, 0.0, 8.0]))
        (0.0, 0.75)
    """
    total, count = float(exposure.sum()), len(exposure)
    if not total:
        return float("nan")
    ranks = np.arange(1, count + 1)
    return float(((2 * ranks - count - 1) * np.sort(exposure)).sum() / (count * total))


def item_percentile(popularity: Ints) -> Floats:
    """`[I]` share of the catalogue that is less popular in training, equally popular items counted half: .5 on average.

    Example:
        >>> item_percentile(np.array([5, 1, 1, 9])).tolist()
        [0.625, 0.25, 0.25, 0.875]
    """
    ordered = np.sort(popularity)
    below, upto = (np.searchsorted(ordered, popularity, side=side) for side in ("left", "right"))
    return np.asarray((below + upto) / (2 * len(popularity)))


def item_novelty(popularity: Ints) -> Floats:
    """`[I]` self-information in bits of an item being the one of a training event, with one event added to each item.

    So an item that training never saw has a finite value (mean self-information, Zhou et al. 2010, doi:10.1073/pnas.1000488107).

    Example:
        >>> item_novelty(np.array([3, 0, 0, 1])).tolist()
        [1.0, 3.0, 3.0, 2.0]
    """
    smoothed = popularity + 1.0
    return np.asarray(-np.log2(smoothed / smoothed.sum()))


def mean_of_shown(shown: Chances, item: Ints, value: Floats) -> float:
    """Mean over lists of the mean over the top k of an item's value, `[I]`.

    Example:
        >>> mean_of_shown(chances(np.array([2.0, 1.0, 1.0]), np.array([0, 3]), 2), np.arange(3), np.array([4.0, 1.0, 3.0]))
        3.0
    """
    sums = np.bincount(shown.owner, weights=shown.value * value[item], minlength=len(shown.length))
    return float((sums[shown.length > 0] / shown.length[shown.length > 0]).mean())


def diversity(shown: Chances, item: Ints, feature_start: Ints, feature: Ints) -> float:
    """Intra-list diversity: mean over lists of the mean cosine distance between two items of the top k.

    Items are sets of features; an item without any is at distance 1 from all. Lists that show one item do not count;
    NaN where none shows two.

    Args:
        shown: from `chances`.
        item: `[B]` item codes.
        feature_start: `[I + 1]` where each item's features begin.
        feature: their numbers.

    Example:
        >>> shown = chances(np.array([2.0, 1.0]), np.array([0, 2]), 2)
        >>> diversity(shown, np.array([0, 1]), np.array([0, 1, 3]), np.array([0, 0, 1])).__round__(4)
        0.2929
    """
    if not (shown.length > 1).any():
        return float("nan")
    number = np.diff(feature_start)
    width = int(feature.max()) + 1 if len(feature) else 1
    step = max(1, _CELLS // width)
    similar = np.zeros(len(shown.length))
    for first in range(0, len(similar), step):
        rows = (shown.owner >= first) & (shown.owner < first + step)
        lists = min(step, len(similar) - first)
        whole = _similar_pairs(item, shown, rows & (shown.value == 1), first, lists, feature_start, feature, number)
        split = _similar_pairs(
            item, shown, rows & (shown.value > 0) & (shown.value < 1), first, lists, feature_start, feature, number
        )
        places, size = (_of_split(shown, rows, first, lists, column) for column in (shown.places, shown.size))
        share = places / np.maximum(size, 1)
        both = share * (places - 1) / np.maximum(size - 1, 1)  # two of the run that straddles the cut-off
        across = (whole.vector * split.vector).sum(1) * share
        similar[first : first + lists] = whole.pairs + across + both * split.pairs
    counted = shown.length > 1
    length = shown.length[counted]
    return float((1 - similar[counted] / (length * (length - 1) / 2)).mean())


@dataclass(frozen=True)
class _Sums:
    vector: Floats  # [lists, F] sum of unit vectors
    pairs: Floats  # [lists] sum of cosines over pairs


def _similar_pairs(
    item: Ints,
    shown: Chances,
    rows: NDArray[np.bool_],
    first: int,
    lists: int,
    start: Ints,
    feature: Ints,
    number: Ints,
) -> _Sums:
    width = int(feature.max()) + 1 if len(feature) else 1
    own, codes = shown.owner[rows] - first, item[rows]
    count = number[codes]
    where = np.repeat(start[:-1][codes] - np.concatenate(([0], np.cumsum(count)[:-1])), count) + np.arange(count.sum())
    weight = np.repeat(1 / np.sqrt(np.maximum(count, 1)), count)
    cell = np.repeat(own, count) * width + feature[where]
    vector = np.bincount(cell, weights=weight, minlength=lists * width).reshape(lists, width).astype(np.float64)
    alone = np.bincount(own, weights=(count > 0).astype(float), minlength=lists)
    return _Sums(vector, ((vector**2).sum(1) - alone) / 2)


def _of_split(shown: Chances, rows: NDArray[np.bool_], first: int, lists: int, column: Floats) -> Floats:
    """`[lists]` a column's value in the run that straddles each list's cut-off, 0 where none does."""
    values = np.zeros(lists)
    split = rows & (shown.value > 0) & (shown.value < 1)
    values[shown.owner[split] - first] = column[split]
    return values


def rank_correlation(score: Floats, other: Floats, start: Ints) -> float:
    """Mean over lists of Spearman's correlation of two scores of the same entries; equal scores share their mean rank.

    Lists in which either score is constant have none and are left out; NaN where none is left.

    Args:
        score: `[B]`, as `other`.
        other: see there.
        start: `[U + 1]` where each list begins.

    Example:
        >>> score, other = np.array([3.0, 2.0, 1.0, 5.0, 4.0]), np.array([9.0, 8.0, 7.0, 0.0, 1.0])
        >>> rank_correlation(score, other, np.array([0, 3, 5]))
        0.0
    """
    count = np.diff(start)
    owner = np.repeat(np.arange(len(count)), count)
    one, two = (centred_ranks(each, owner, start) for each in (score, other))
    sums = [np.bincount(owner, weights=product, minlength=len(count)) for product in (one * two, one**2, two**2)]
    varied = (sums[1] > 0) & (sums[2] > 0)
    if not varied.any():
        return float("nan")
    return float((sums[0][varied] / np.sqrt(sums[1][varied] * sums[2][varied])).mean())


def centred_ranks(score: Floats, owner: Ints, start: Ints) -> Floats:
    """Ranks within lists, higher for higher scores and less their mean; equal scores share their mean rank.

    Example:
        >>> centred_ranks(np.array([3.0, 1.0, 1.0, 5.0]), np.array([0, 0, 0, 1]), np.array([0, 3, 4])).tolist()
        [1.0, -0.5, -0.5, 0.0]
    """
    order = np.lexsort((score, owner))
    ordered, mine = score[order], owner[order]
    begins = np.ones(len(score), dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]) | (mine[1:] != mine[:-1])
    run = np.cumsum(begins) - 1
    rank = np.empty(len(score))
    rank[order] = np.bincount(run, weights=np.arange(len(score)))[run] / np.bincount(run)[run]
    return rank - (start[:-1] + (np.diff(start) - 1) / 2)[owner]
