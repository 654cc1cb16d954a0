"""What the true item is ranked among: lists drawn once, in columns, as a function of seed and user id alone.

# S cases, C candidates, N negatives, D draws, I items
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from datamodules.contract.errors import InputError
from datamodules.protocol.events import Events
from datamodules.protocol.pcg64 import Bits, Streams, generator, key_digests
from datamodules.protocol.rules import Protocol

Ints = NDArray[np.int64]
_ROWS = 8192  # cases drawn at once: enough for numpy, few enough for the cache
_MARKS = 1 << 20  # a rough first look at whether an item is the user's own

Pick = Callable[[Bits], Ints]
"""From raw bits to item codes."""


@dataclass(frozen=True)
class CaseRequest:
    """The cases of one split before their candidates.

    Attributes:
        user: `[S]` user codes.
        target: `[S]` places of the true events.
        shown: `[S]` one past the last event a prompt may show.
        name: what the draws of this split are keyed by, beside seed and user.
    """

    user: Ints
    target: Ints
    shown: Ints
    name: str

    def keys(self, user_ids: Sequence[str]) -> list[str]:
        r"""`[S]` the user's id, and from a user's second case on which one it is.

        Example:
            >>> CaseRequest(np.array([0, 1, 1]), np.arange(3), np.arange(3), "1").keys(["ann", "bob"])
            ['ann', 'bob', 'bob\x001']
        """
        first = np.searchsorted(self.user, self.user)
        number = (np.arange(len(self.user)) - first).tolist()
        return [
            user_ids[user] if n == 0 else f"{user_ids[user]}\0{n}"
            for user, n in zip(self.user.tolist(), number, strict=True)
        ]


def draw(wanted: CaseRequest, events: Events, protocol: Protocol, pick: Pick, weighted: Ints | None = None) -> Ints:
    """`[S, C]` the true item and distinct negatives, each list in random order.

    A later event of the user is no negative either: it is an item the user did choose.

    Args:
        wanted: the cases, users ascending.
        events: all events.
        protocol: the rules.
        pick: which item some bits mean.
        weighted: `[I]` weights, where an item of weight zero is never picked.

    Raises:
        InputError: a user leaves too few items to draw from.
    """
    keys = wanted.keys(events.user_ids)
    size = protocol.negatives + 1
    drawn = np.empty((len(keys), size), dtype=np.int64)
    possible = np.ones(len(events.item_ids), dtype=bool) if weighted is None else weighted > 0

    def fill(begin: int) -> None:
        rows = slice(begin, begin + _ROWS)
        own = _own_pairs(wanted, events, protocol, rows)
        _check_room(own, possible, wanted, events, protocol, begin)
        digests = key_digests(protocol.seed, keys[rows], "candidates", wanted.name)
        lists = _draw_rows(digests, own, events.item[wanted.target[rows]], protocol.negatives, pick, len(possible))
        for short in np.flatnonzero(lists[:, 0] < 0).tolist():
            mine = own[own // len(possible) == short] % len(possible)
            bits = generator(protocol.seed, "candidates", wanted.name, keys[begin + short])
            true = int(events.item[wanted.target[begin + short]])
            lists[short] = _draw_one(bits, mine, true, protocol.negatives, pick)
        drawn[rows] = lists

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:  # numpy works outside the interpreter's lock
        list(threads.map(fill, range(0, len(keys), _ROWS)))  # in order, so the first user in want is the one named
    return drawn


def uniform(items: int) -> Pick:
    """Every item alike.

    Example:
        >>> uniform(10)(np.array([7, 12], dtype=np.uint64)).tolist()
        [7, 2]
    """
    return lambda raw: (raw % np.uint64(items)).astype(np.int64)


def by_weight(weight: Ints) -> Pick:
    """Each item as often as it weighs.

    Example:
        >>> by_weight(np.array([2, 0, 1]))(np.arange(4, dtype=np.uint64)).tolist()
        [0, 0, 2, 0]
    """
    total = np.cumsum(weight)
    return lambda raw: np.searchsorted(total, (raw % np.uint64(total[-1])).astype(np.int64), side="right")


def shuffled_lists(wanted: CaseRequest, events: Events, seed: int, ranked: Ints) -> Ints:
    """`[S, C]` the true item and the given negatives, each list in random order.

    Args:
        wanted: the cases.
        events: all events.
        seed: of the order.
        ranked: `[S, N]` negatives.
    """
    lists = np.concatenate((events.item[wanted.target][:, None], ranked), axis=1)
    streams = Streams(key_digests(seed, wanted.keys(events.user_ids), "candidates", wanted.name))
    return np.take_along_axis(lists, np.argsort(streams.draw(lists.shape[1]), axis=1, kind="stable"), axis=1)


def published_lists(wanted: CaseRequest, events: Events, seed: int) -> Ints:
    """`[S, C]` the lists of the data's `candidates` column with the true item among them, in random order.

    A shorter list ends in -1. An id that stands twice counts once.

    Raises:
        InputError: there is no such column, a case has no list, or a list names an unknown item.
    """
    if "candidates" not in events.table.columns:
        raise InputError(
            "protocol.candidates published needs a column `candidates` in the interactions, which this data has not;"
            " use uniform or full"
        )
    code = {item: number for number, item in enumerate(events.item_ids)}
    lists: list[list[int]] = []
    given = events.table["candidates"].gather(pl.Series(wanted.target))
    for user, target, row in zip(wanted.user.tolist(), wanted.target.tolist(), given.to_list(), strict=True):
        if not row:
            raise InputError(f"user {events.user_ids[user]!r} has a test event without a list in column `candidates`")
        unknown = next((item for item in row if item not in code), None)
        if unknown is not None:
            raise InputError(
                f"column `candidates` of user {events.user_ids[user]!r} names {unknown!r}, which is not an item"
            )
        true = int(events.item[target])
        lists.append([true, *(c for c in dict.fromkeys(code[item] for item in row) if c != true)])
    width = max(map(len, lists), default=1)
    table = np.full((len(lists), width), -1, dtype=np.int64)
    bits = Streams(key_digests(seed, wanted.keys(events.user_ids), "candidates", wanted.name)).draw(width)
    for number, row in enumerate(lists):
        table[number, : len(row)] = np.array(row)[np.argsort(bits[number, : len(row)], kind="stable")]
    return table


def _own_pairs(wanted: CaseRequest, events: Events, protocol: Protocol, rows: slice) -> Ints:
    """Row x items + item, sorted, for every item that a row of the slice must not draw."""
    user, target = wanted.user[rows], wanted.target[rows]
    begin = events.start[user] if protocol.exclude_seen else target
    count = events.start[user + 1] - begin if protocol.exclude_seen else np.ones(len(user), dtype=np.int64)
    row = np.repeat(np.arange(len(user)), count)
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(begin, count)
    pair = np.sort(row * len(events.item_ids) + events.item[place])
    distinct: Ints = pair[np.r_[True, pair[1:] != pair[:-1]][: len(pair)]]
    return distinct


def _check_room(
    own: Ints, possible: NDArray[np.bool_], wanted: CaseRequest, events: Events, protocol: Protocol, begin: int
) -> None:
    rows = min(_ROWS, len(wanted.user) - begin)
    mine = own[possible[own % len(possible)]]
    free = int(possible.sum()) - np.bincount(mine // len(possible), minlength=rows)
    if len(free) and free.min() < protocol.negatives:
        row = int(np.argmax(free < protocol.negatives))
        raise InputError(
            f"user {events.user_ids[wanted.user[begin + row]]!r} leaves {free[row]} items to draw from,"
            f" protocol.negatives is {protocol.negatives}"
        )


def _draw_rows(digests: NDArray[np.uint32], own: Ints, true: Ints, negatives: int, pick: Pick, items: int) -> Ints:
    """`[K, C]` lists of the rows for which a few draws suffice; other rows are -1."""
    streams = Streams(digests)
    size = negatives + 1
    few = 2 * size
    if items >= 1000 * size:  # of a large catalogue the other draws are hardly ever needed
        few = min(few, size + 4)
    value = pick(streams.draw(few))  # [K, D]
    streams.skip(2 * size - few)
    pair = np.arange(len(value))[:, None] * items + value
    marked = np.zeros(_MARKS, dtype=bool)
    marked[own & (_MARKS - 1)] = True
    fresh = ~marked[pair & (_MARKS - 1)]
    doubtful = np.nonzero(~fresh)
    place = np.minimum(np.searchsorted(own, pair[doubtful]), len(own) - 1)
    fresh[doubtful] = own[place] != pair[doubtful]
    ordered = np.sort(value, axis=1)
    again = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    by_item = np.argsort(value[again], axis=1, kind="stable")
    sorted_again = np.take_along_axis(value[again], by_item, axis=1)
    repeated = np.zeros_like(by_item, dtype=bool)
    repeated[:, 1:] = sorted_again[:, 1:] == sorted_again[:, :-1]
    first = np.empty_like(repeated)
    np.put_along_axis(first, by_item, ~repeated, axis=1)
    fresh[again] &= first
    rank = np.cumsum(fresh, axis=1)
    enough = rank[:, -1] >= negatives
    lists = np.full((len(value), size), -1, dtype=np.int64)
    lists[:, 0] = true
    chosen = fresh & (rank <= negatives) & enough[:, None]
    lists[enough, 1:] = value[chosen].reshape(-1, negatives)
    lists = np.take_along_axis(lists, np.argsort(streams.draw(size), axis=1, kind="stable"), axis=1)
    lists[~enough] = -1
    return lists


def _draw_one(bits: np.random.PCG64, own: Ints, true: int, negatives: int, pick: Pick) -> Ints:
    """`[C]` one list, for as many blocks of draws as it takes."""
    size = negatives + 1
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < negatives:
        value = pick(bits.random_raw(2 * size))
        both = np.concatenate((drawn, value[~np.isin(value, own)]))
        _, first = np.unique(both, return_index=True)
        drawn = both[np.sort(first)][:negatives]
    order = np.argsort(bits.random_raw(size), kind="stable")
    return np.concatenate(([true], drawn))[order]
