"""Filters before the split: a least rating, and the k-core to its fixpoint; what they remove is counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from datamodules.contract.errors import InputError
from datamodules.protocol.rules import Protocol, Ties
from datamodules.tables.interactions import Interactions

Ints = NDArray[np.int64]
Codes = NDArray[np.uint32]


class Coded(NamedTuple):
    """Names as whole numbers, equal exactly for equal names; in no order.

    Attributes:
        user: `[E]` of the users.
        item: `[E]` of the items.
    """

    user: Codes
    item: Codes


def filtered(data: Interactions, protocol: Protocol) -> tuple[Interactions, dict[str, Any], Coded]:
    """Removes low ratings, then users and items with too few events until none is left to remove.

    Items are removed from the catalogue as well, or candidates would be items that nobody chose.

    Returns:
        The remaining tables; counts before and after with what was removed, empty where no filter is set; and the codes
        of what remains.

    Raises:
        InputError: nothing remains, or ratings are missing.

    Example:
        >>> events = {"user": list("aab"), "item": list("xyx"), "rating": [5.0] * 3, "timestamp": [1.0, 2.0, 3.0]}
        >>> data = Interactions(pl.DataFrame(events), pl.DataFrame({"item": ["x", "y"], "title": ["X", "Y"]}), "sum")
        >>> kept, counts, _ = filtered(data, Protocol(user_core=2))
        >>> kept.interactions["user"].to_list(), counts["removed"]["users"]
        (['a', 'a'], 1)
    """
    if protocol.min_rating is None and protocol.user_core == protocol.item_core == 1:
        return data, {}, coded(data)
    events = data.interactions
    if protocol.min_rating is None:
        row = np.arange(len(events))
    else:
        if missing := events["rating"].null_count():
            raise InputError(f"protocol.min_rating is {protocol.min_rating}, and {missing} events have no rating")
        row = (events["rating"] >= protocol.min_rating).arg_true().to_numpy()
    # Codes: counting strings over and over would cost more than everything else.
    user, item = coded(data)
    before = _counts(user, item) | {"items": len(data.items)}
    row, rounds = _core(user, item, row, protocol.user_core, protocol.item_core)
    if len(row) == 0:
        raise InputError(
            f"no interaction passes protocol.min_rating {protocol.min_rating}, user_core {protocol.user_core} and"
            f" item_core {protocol.item_core}; lower one of them"
        )
    kept = np.zeros(len(events), dtype=bool)
    kept[row] = True
    events = events.filter(pl.Series(kept))
    items = data.items.join(events.select(pl.col("item").unique()), on="item", how="semi", maintain_order="left")
    after = _counts(user[row], item[row])
    removed = {name: before[name] - after[name] for name in before}
    return (
        replace(data, interactions=events, items=items, files=()),  # lines no longer match rows
        {"before": before, "after": after, "removed": removed, "rounds": rounds},
        Coded(user[row], item[row]),
    )


def coded(data: Interactions) -> Coded:
    """Codes of all events' users and items.

    Example:
        >>> events = {"user": list("aab"), "item": list("xyx"), "rating": [5.0] * 3, "timestamp": [1.0, 2.0, 3.0]}
        >>> items = pl.DataFrame({"item": ["x", "y"], "title": ["X", "Y"]})
        >>> user, item = coded(Interactions(pl.DataFrame(events), items, "sum"))
        >>> bool(user[0] == user[1]), bool(user[0] == user[2]), bool(item[0] == item[2])
        (True, False, True)
    """
    columns = [data.interactions[name] for name in ("user", "item")]
    with ThreadPoolExecutor(2) as threads:  # polars works outside the interpreter's lock
        return Coded(*threads.map(_codes, columns))


def _codes(names: pl.Series) -> Codes:
    """Ranks of the names' hashes, four times as fast as a table of names; a second hash tells whether two names met."""
    code: Codes = (_hashed(names, 0).rank("dense") - 1).to_numpy()
    second = _hashed(names, 1).to_numpy()
    one_of_each = np.empty(int(code.max()) + 1, dtype=second.dtype)
    one_of_each[code] = second
    return code if (one_of_each[code] == second).all() else names.cast(pl.Categorical).to_physical().to_numpy()


def _hashed(names: pl.Series, seed: int) -> pl.Series:
    return names.hash(seed=seed)


def _core(user: Codes, item: Codes, row: Ints, users: int, items: int) -> tuple[Ints, int]:
    """Rows of the largest set in which every user and item has enough; and after how many rounds."""
    rounds = 0
    while users > 1 or items > 1:
        mine, its = user[row], item[row]
        enough = (np.bincount(mine)[mine] >= users) & (np.bincount(its)[its] >= items)
        if enough.all():
            break
        row, rounds = row[enough], rounds + 1
    return row, rounds


def _counts(user: Codes, item: Codes) -> dict[str, int]:
    return {
        "users": int(np.count_nonzero(np.bincount(user))),
        "items": int(np.count_nonzero(np.bincount(item))),
        "interactions": len(user),
    }


def say_counts(counts: dict[str, Any]) -> str:
    """One line about a filter, for people.

    Example:
        >>> one, two = ({"users": n, "items": n, "interactions": n} for n in (3, 2))
        >>> say_counts({"before": one, "after": two, "removed": {}, "rounds": 1})
        'filter: users 3 -> 2, items 3 -> 2, interactions 3 -> 2 (1 round to the fixpoint)'
    """
    shown = ", ".join(f"{name} {counts['before'][name]} -> {counts['after'][name]}" for name in counts["before"])
    return f"filter: {shown} ({counts['rounds']} round{'s' * (counts['rounds'] != 1)} to the fixpoint)"


@dataclass(frozen=True)
class Events:
    """All events, user by user, in time order.

    Attributes:
        user_ids: `[U]` ids in order of first appearance.
        item_ids: `[I]` ids in catalogue order.
        item: `[E]` item codes.
        start: `[U + 1]` where each user's events begin.
        table: the other columns: `rating`, `timestamp` and whatever the data has, `[E]` rows.
    """

    user_ids: list[str]
    item_ids: list[str]
    item: Ints
    start: Ints
    table: pl.DataFrame

    @property
    def owner(self) -> Ints:
        """`[E]` user code of each event."""
        return np.repeat(np.arange(len(self.user_ids)), np.diff(self.start))

    @property
    def timestamp(self) -> NDArray[np.float64]:
        """`[E]` times, NaN where there is none."""
        return self.table["timestamp"].fill_null(np.nan).to_numpy()

    def reordered(self, order: Ints) -> Events:
        """The same events in another order within users."""
        return Events(self.user_ids, self.item_ids, self.item[order], self.start, self.table[order])


def ordered_events(data: Interactions, protocol: Protocol, codes: Coded) -> Events:
    """Codes users in order of first appearance and items in catalogue order, then sorts events by user and time.

    Example:
        >>>
        >>> events = {"user": list("aa"), "item": list("yx"), "rating": [5.0] * 2, "timestamp": [2.0, 1.0]}
        >>> items = pl.DataFrame({"item": ["x", "y"], "title": ["X", "Y"]})
        >>> data = Interactions(pl.DataFrame(events), items, "sum")
        >>> ordered_events(data, Protocol(), coded(data)).item.tolist()
        [0, 1]
    """
    count = len(data.interactions)
    item_ids = data.items["item"].to_list()
    # One row of each item is looked up by name, all others by code.
    named = _first_rows(codes.item, count)
    known = np.flatnonzero(named < count)
    names = data.interactions["item"].gather(pl.Series(named[known]))
    named[known] = names.cast(pl.Enum(data.items["item"])).to_physical().to_numpy()
    item = named[codes.item]
    first = _first_rows(codes.user, count)
    order = np.argsort(first, kind="stable")
    order = order[first[order] < count]
    code = np.empty(len(first), dtype=np.int64)
    code[order] = np.arange(len(order))
    user = code[codes.user]
    place = _sorted_rows(user, data.interactions, protocol)
    return Events(
        user_ids=data.interactions["user"].gather(pl.Series(first[order])).to_list(),
        item_ids=item_ids,
        item=item[place],
        start=np.concatenate(([0], np.cumsum(np.bincount(user)))).astype(np.int64),
        table=data.interactions.drop("user", "item")[place],
    )


def _first_rows(codes: NDArray[np.uint32], count: int) -> Ints:
    """`[max code + 1]` the earliest row of each code, and `count` for a code that no row has."""
    first = np.full(int(codes.max()) + 1, count)
    first[codes[::-1]] = np.arange(count)[::-1]  # the earliest row of each is written last
    return first


def _sorted_rows(user: Ints, interactions: pl.DataFrame, protocol: Protocol) -> Ints:
    """`[E]` rows by user, time, the rule for ties and at last their place in the file."""
    rows, time = np.arange(len(user)), interactions["timestamp"].fill_null(np.nan).to_numpy()
    span = time.max() - time.min() + 1
    if protocol.ties == "file_order" and float(span) * (int(user.max()) + 1) < 2**52 and not (time % 1).any():
        # User and time in one number: sorting by it is six times as fast, and whole numbers below 2^53 are exact.
        key = user * int(span) + (time - time.min()).astype(np.int64)
        return pl.DataFrame({"key": key, "row": rows}).sort("key", maintain_order=True)["row"].to_numpy()
    by_tie: dict[Ties, list[pl.Series]] = {
        "file_order": [],
        "reversed_file_order": [pl.Series(-rows)],
        "item_id": [interactions["item"].cast(pl.Int64, strict=False), interactions["item"]],
        "shuffle": [pl.Series(np.random.PCG64(protocol.seed).random_raw(len(rows)), dtype=pl.UInt64)],
    }
    by = [pl.Series(user), interactions["timestamp"], *by_tie[protocol.ties], pl.Series(rows)]
    keys = pl.DataFrame([series.alias(str(number)) for number, series in enumerate(by)])
    return keys.sort(keys.columns, nulls_last=True)[keys.columns[-1]].to_numpy()
