"""Results by segment: users with short and long histories, popular and rare items, and groups of users' profiles.

# U users (test cases), G groups, R permutations
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]
HEAD = 0.2
"""Share of the catalogue that is called head: its most popular items."""
LEAST = 5  # cases of a group whose mean is compared
_PERMUTATIONS = 2_000


def user_segments(history: Ints) -> dict[str, NDArray[np.bool_]]:
    """Test cases by how many events precede them: the least quarter is cold, the largest warm.

    Cases with as much as the one at the cut go the same way; a segment that holds all or none is left out.

    Example:
        >>> {name: rows.tolist() for name, rows in user_segments(np.array([1, 2, 3, 9])).items()}
        {'cold users (up to 1 event)': [True, False, False, False], 'warm users (from 9 events)': [False, False, False, True]}
    """
    if not len(history):
        return {}
    low, high = np.quantile(history, 0.25, method="lower"), np.quantile(history, 0.75, method="higher")
    named = {
        f"cold users (up to {low} event{'' if low == 1 else 's'})": history <= low,
        f"warm users (from {high} event{'' if high == 1 else 's'})": history >= high,
    }
    return _proper(named) if low < high else {}


def item_segments(target: Ints, popularity: Ints) -> dict[str, NDArray[np.bool_]]:
    """Test cases by how popular in training the item is that they ask about: head, tail, and never seen.

    Example:
        >>> found = item_segments(np.array([0, 1, 4]), np.array([90, 3, 2, 1, 0]))
        >>> {name: rows.tolist() for name, rows in found.items()}
        {'head items': [True, False, False], 'tail items': [False, True, False], 'unseen items': [False, False, True]}
    """
    if not len(target):
        return {}
    cut = np.sort(popularity)[::-1][max(0, round(HEAD * len(popularity)) - 1)]
    count = popularity[target]
    head = (count >= cut) & (count > 0)
    return _proper({"head items": head, "tail items": ~head & (count > 0), "unseen items": count == 0})


def group_segments(groups: Mapping[str, NDArray[np.str_]]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Test cases by the groups of each profile column, those of enough cases, where there are two or more.

    Args:
        groups: `[U]` names of groups by column, "" where it is not known.

    Example:
        >>> list(group_segments({"gender": np.array(["F", "M"] * 5), "age": np.array(["old"] * 10)})["gender"])
        ['F', 'M']
    """
    segments = {}
    for column, names in groups.items():
        members = {str(name): names == name for name in np.unique(names) if name}
        members = {name: rows for name, rows in members.items() if rows.sum() >= LEAST}
        if len(members) > 1:
            segments[column] = members
    return segments


@dataclass(frozen=True)
class Gap:
    """How far the best group's mean is from the worst's.

    Attributes:
        value: the distance.
        p: share of random groupings of the same sizes that have such a gap, or a larger one.
    """

    value: float
    p: float


def group_gap(values: Floats, members: Mapping[str, NDArray[np.bool_]], seed: int = 0) -> Gap | None:
    """Largest difference between the means of two groups, and a permutation test of it.

    The largest of several differences is above zero by chance alone: read it with its p.

    Args:
        values: `[U]`, NaN where a case does not count.
        members: `[U]` true at the cases of each group; groups do not overlap.
        seed: of the permutations.

    Returns:
        None where fewer than two groups have a case that counts.

    Example:
        >>> group_gap(np.array([1.0] * 8 + [0.0] * 8), {"a": np.arange(16) < 8, "b": np.arange(16) >= 8})
        Gap(value=1.0, p=0.0004997501249375312)
    """
    counted = ~np.isnan(values)
    groups = [rows & counted for rows in members.values() if (rows & counted).any()]
    if len(groups) < 2:
        return None
    pooled = np.concatenate([values[rows] for rows in groups])
    ends = np.cumsum([rows.sum() for rows in groups])
    begins = np.concatenate(([0], ends[:-1]))
    measured = _spread(pooled[None], begins, ends)[0]
    generator = np.random.default_rng(seed)
    least, done = 0, 0
    while done < _PERMUTATIONS:
        rows = min(_PERMUTATIONS - done, max(1, (1 << 22) // len(pooled)))
        drawn = generator.permuted(np.broadcast_to(pooled, (rows, len(pooled))), axis=1)
        least += int((_spread(drawn, begins, ends) >= measured - 1e-12).sum())
        done += rows
    return Gap(float(measured), (least + 1) / (_PERMUTATIONS + 1))


def _spread(values: Floats, begins: Ints, ends: Ints) -> Floats:
    """`[R]` largest minus smallest mean of the groups that lie one behind another in each row."""
    means = np.add.reduceat(values, begins, axis=1) / (ends - begins)
    return np.asarray(means.max(1) - means.min(1))


def _proper(named: dict[str, NDArray[np.bool_]]) -> dict[str, NDArray[np.bool_]]:
    return {name: rows for name, rows in named.items() if 0 < rows.sum() < len(rows)}
