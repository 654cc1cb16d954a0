"""Which events train, validate and test: one named rule each, as a part code of every event.

# U users, E events of all users (user by user, in time order), S cases
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from datamodules.contract.errors import InputError
from datamodules.protocol.events import Events
from datamodules.protocol.pcg64 import generator
from datamodules.protocol.rules import Protocol

Ints = NDArray[np.int64]
Parts = NDArray[np.int8]

TRAIN, VALIDATION, TEST = 0, 1, 2
PUBLISHED = {
    "train": TRAIN,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
}


def parts_of(events: Events, protocol: Protocol) -> Parts:
    """`[E]` the part of each event: `TRAIN`, `VALIDATION` or `TEST`.

    Raises:
        InputError: the data cannot be split by this rule.
    """
    if protocol.split == "leave_one_out":
        parts = _leave_one_out(events)
    elif protocol.split == "temporal":
        parts = _temporal(events.timestamp, protocol.validation_share, protocol.test_share)
    elif protocol.split == "ratio":
        parts = _ratio(events, protocol.validation_share, protocol.test_share)
    elif protocol.split == "published":
        parts = _published(events)
    elif protocol.split == "item_cold_start":
        parts = _groups(events.item_ids, protocol, "items")[events.item]
    else:
        parts = _groups(events.user_ids, protocol, "users")[events.owner]
    if protocol.fit_on_validation:
        parts = np.where(parts == VALIDATION, np.int8(TRAIN), parts)
    return parts


def hash_order(names: Sequence[str], seed: int) -> Ints:
    """Places of the names in an order that depends on the seed and each name alone.

    Example:
        >>> names = ["ann", "bob", "cleo"]
        >>> few = [names[i] for i in hash_order(names, 1)]
        >>> few == [n for n in ([*names, "dan"][i] for i in hash_order([*names, "dan"], 1)) if n != "dan"]
        True
    """
    keys = [hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in names]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def case_places(events: Events, parts: Parts, part: int, protocol: Protocol) -> Ints:
    """Places of the events of a part that are evaluated, before a sample of users is taken.

    Args:
        events: all events, in the order of `Sequences`.
        parts: `[E]` their parts in that order.
        part: `VALIDATION` or `TEST`.
        protocol: says whether every event of the part is a case.
    """
    places = np.flatnonzero(parts == part)
    owner = np.searchsorted(events.start, places, side="right") - 1
    if protocol.split in ("k_fold", "user_cold_start"):  # everything before the last event is shown
        keep = places == events.start[owner + 1] - 1
    elif protocol.targets == "next" and protocol.split != "published":
        keep = np.r_[True, owner[1:] != owner[:-1]][: len(places)]
    else:
        keep = np.ones(len(places), dtype=bool)
    chosen: Ints = places[keep]
    return chosen


def _leave_one_out(events: Events) -> Parts:
    counts = np.diff(events.start)
    parts = np.zeros(len(events.item), dtype=np.int8)
    last = events.start[1:][counts >= 3] - 1
    if len(last) == 0:
        raise InputError("no user has the three interactions that leave-one-out needs")
    parts[last], parts[last - 1] = TEST, VALIDATION
    return parts


def _temporal(time: NDArray[np.float64], validation: float, test: float) -> Parts:
    if np.isnan(time).any():
        raise InputError(
            "protocol.split temporal needs a timestamp for every interaction; use leave_one_out, ratio or k_fold"
        )
    ordered = np.sort(time)
    cuts = [ordered[int(np.floor(len(time) * (1 - share)))] for share in (validation + test, test)]
    parts = np.zeros(len(time), dtype=np.int8)
    parts[time >= cuts[0]] = VALIDATION
    parts[time >= cuts[1]] = TEST
    if not ordered[0] < cuts[0] < cuts[1]:
        raise InputError(
            f"protocol.split temporal cuts at times {cuts[0]:g} and {cuts[1]:g} and leaves a part empty: too many"
            " interactions share a timestamp; change protocol.validation_share or test_share, or use leave_one_out"
        )
    if time[parts == TRAIN].max() > time[parts == TEST].min():
        raise RuntimeError("an interaction of the training part is later than one of the test part")
    return parts


def _ratio(events: Events, validation: float, test: float) -> Parts:
    counts = np.diff(events.start)
    # One event at the least is kept for training, and a part may be empty for a short history.
    tests = np.minimum(np.round(counts * test).astype(np.int64), counts - 1)
    validations = np.minimum(np.round(counts * validation).astype(np.int64), counts - 1 - tests)
    left = np.repeat(events.start[1:], counts) - np.arange(len(events.item))  # 1 for the last event
    tests, validations = np.repeat(tests, counts), np.repeat(validations, counts)
    return np.where(left <= tests, TEST, np.where(left <= tests + validations, VALIDATION, TRAIN)).astype(np.int8)


def _published(events: Events) -> Parts:
    if "split" not in events.table.columns:
        raise InputError(
            "protocol.split published needs a column `split` in the interactions, which this data has not; use"
            " leave_one_out or temporal"
        )
    names = events.table["split"]
    for name in names.unique().to_list():
        if name not in PUBLISHED:
            near = difflib.get_close_matches(str(name), PUBLISHED, n=1, cutoff=0)[0]
            raise InputError(f"column `split` holds {name!r}; the nearest known part is {near!r}")
    return names.replace_strict(PUBLISHED, return_dtype=pl.Int8).to_numpy()


def _groups(names: Sequence[str], protocol: Protocol, what: str) -> Parts:
    """`[len(names)]` users or items dealt out to the parts as wholes."""
    order, count = hash_order(names, protocol.seed), len(names)
    groups = np.zeros(count, dtype=np.int8)
    if protocol.split == "k_fold":
        fold = np.arange(count) % protocol.folds
        groups[order[fold == protocol.fold]] = TEST
        groups[order[fold == (protocol.fold + 1) % protocol.folds]] = VALIDATION
    else:
        tests, validations = round(count * protocol.test_share), round(count * protocol.validation_share)
        groups[order[:tests]] = TEST
        groups[order[tests : tests + validations]] = VALIDATION
    if any((groups == part).sum() == 0 for part in (TRAIN, VALIDATION, TEST)):
        raise InputError(f"protocol.split {protocol.split} leaves a part without {what}: there are only {count}")
    return groups


def choose_shots(
    start: Ints, train_end: Ints, liked: NDArray[np.bool_], protocol: Protocol, context: NDArray[np.bool_] | None = None
) -> Ints | None:
    """Places of the training targets that are kept, ascending; None keeps all.

    Within each label the targets stand in a random order that depends on the seed; the i-th of n has the quantile
    (i + 1/2) / n, and targets are taken by quantile. So every sample has the labels in the proportion of all (to within
    one), and the sample of 16 is inside that of 64.

    Args:
        start: `[U + 1]` where each user's events begin.
        train_end: `[U]` where each user's training events end.
        liked: `[E]` the label of each event.
        protocol: `shots`, `train_share` and `seed` are used.
        context: `[E]` events that are shown and never asked for; None where there are no such events.

    Raises:
        InputError: there are fewer training examples than asked for.

    Example:
        >>> liked = np.array([True, False] * 5)
        >>> few = choose_shots(np.array([0, 10]), np.array([10]), liked, Protocol(shots=4))
        >>> int(liked[few].sum()), set(few) <= set(choose_shots(np.array([0, 10]), np.array([10]), liked, Protocol(shots=8)))
        (2, True)
    """
    if protocol.shots is None and protocol.train_share is None and context is None:
        return None
    owner = np.repeat(np.arange(len(train_end)), np.diff(start))
    place = np.arange(len(owner))
    # A user's first event is asked for only where data of single cases says so: a request alone is a prompt.
    asked = place > start[owner] if context is None else ~context
    target = place[asked & (place < train_end[owner])]
    wanted = protocol.shots
    if protocol.train_share is not None:
        wanted = max(1, round(protocol.train_share * len(target)))
    if wanted is None:
        return target
    if protocol.shots is not None and protocol.shots > len(target):
        raise InputError(f"protocol.shots is {protocol.shots}, and there are only {len(target)} training examples")
    key = generator(protocol.seed, "shots").random_raw(len(owner))[target]
    quantile = np.empty(len(target))
    for label in (False, True):
        mine = np.flatnonzero(liked[target] == label)
        order = mine[np.argsort(key[mine], kind="stable")]
        quantile[order] = (np.arange(len(order)) + 0.5) / max(1, len(order))
    return np.sort(target[np.lexsort((key, quantile))[:wanted]])
