"""How cases are made from interactions: filter, timestamp ties, split, candidates, history; all of it fingerprinted.

# U users, E events of all users, S cases of a split, C candidates
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from datamodules.contract.errors import InputError, say
from datamodules.protocol.candidates import CaseRequest, by_weight, draw, published_lists, shuffled_lists, uniform
from datamodules.protocol.events import Events, filtered, ordered_events, say_counts
from datamodules.protocol.hard_negatives import BM25, TwoTower, nearest, title_embeddings
from datamodules.protocol.pcg64 import generator
from datamodules.protocol.rules import Protocol, Ties
from datamodules.protocol.sequences import Cases, Sequences
from datamodules.protocol.splits import TEST, TRAIN, VALIDATION, Parts, case_places, choose_shots, hash_order, parts_of
from datamodules.sources.arrays import Arrays, cached_arrays
from datamodules.tables.interactions import Interactions

__all__ = ["PROTOCOL_VERSION", "Cases", "Protocol", "Sequences", "Ties", "apply_protocol"]

Ints = NDArray[np.int64]
PROTOCOL_VERSION = 1  # raise it when the same settings give other cases
_LINES = 20_000  # cases hashed at once

_SPLIT_NAMES = {
    "leave_one_out": "leave-one-out by time",
    "temporal": "one cut in time for all users",
    "ratio": "the last shares of each user's events",
    "k_fold": "users in folds",
    "published": "as published with the data",
    "user_cold_start": "users that training never saw",
    "item_cold_start": "items that training never saw",
}


def apply_protocol(data: Interactions, protocol: Protocol, *, quiet: bool = False) -> Sequences:
    """Filters, orders every user's events, splits them and draws the candidates.

    Under leave-one-out the last event of a user is the test case, the one before it the validation case; users with
    fewer than three events only train. Candidates depend on the protocol's seed and the user's id alone, so neither the
    number of processes nor a sample of users changes them.

    Raises:
        InputError: the data has not what the rules need: events to test on, a column, enough items.
    """
    data, counts, codes = filtered(data, protocol)
    if counts and not quiet:
        say(say_counts(counts))
    events = ordered_events(data, protocol, codes)
    statistics = _statistics(events, len(data.items))  # of the order in time
    parts = parts_of(events, protocol)
    events, parts, shown = _arranged(events, parts, protocol)
    owner = events.owner
    train_end = events.start[:-1] + np.bincount(owner[parts == TRAIN], minlength=len(events.user_ids))
    validation, _ = _cases(events, parts, shown, VALIDATION, protocol, data)
    test, eligible = _cases(events, parts, shown, TEST, protocol, data)
    if eligible == 0:
        raise InputError(
            f"no user has an interaction in the test part of protocol.split {protocol.split} with another one before it"
        )
    rating = events.table["rating"].fill_null(np.nan).to_numpy()
    context = events.table["context"].to_numpy() if "context" in events.table.columns else None
    shots = choose_shots(events.start, train_end, rating >= protocol.like_threshold, protocol, context)
    statistics |= {"test_users": len(_distinct(test.user)), "eligible_users": eligible}
    titles = dict(zip(data.items["item"], data.items["title"], strict=True))
    return Sequences(
        user_ids=events.user_ids,
        item_ids=events.item_ids,
        titles=[titles[i] for i in events.item_ids],
        item=events.item,
        rating=rating,
        start=events.start,
        train_end=train_end,
        validation=validation,
        test=test,
        description=_describe(protocol, statistics, parts, counts, test, shots, data.repairs),
        fingerprint=_fingerprint(data, protocol, validation, test, events, shots),
        timestamp=events.timestamp,
        shots=shots,
        history=protocol.history,
        row=events.table["row"].to_numpy().astype(np.int64) if "row" in events.table.columns else np.empty(0, np.int64),
    )


def _arranged(events: Events, parts: Parts, protocol: Protocol) -> tuple[Events, Parts, Ints]:
    """Brings each user's training events to the front; where they are already, nothing moves.

    Returns:
        Events and parts in their final order, and `[E]` one past the last event that may be shown before each: itself,
        but where something later in time stands before it, the training events that are earlier.
    """
    owner, time = events.owner, np.arange(len(parts))
    moved = bool(((parts[1:] < parts[:-1]) & (owner[1:] == owner[:-1])).any())
    if moved:
        order = np.lexsort((time, parts, owner))
        events, parts, time = events.reordered(order), parts[order], time[order]
    shown = np.arange(len(parts))
    if moved:
        latest = np.r_[-1, np.maximum.accumulate(time)[:-1]]
        late = np.flatnonzero(latest > time)
        trained = np.flatnonzero(parts == TRAIN)  # ascending in time: users are, and training events of a user are
        earlier = np.searchsorted(time[trained], time[late]) - np.searchsorted(trained, events.start[owner[late]])
        shown[late] = events.start[owner[late]] + earlier
    if protocol.history_order == "shuffled":
        if (shown[parts != TRAIN] != np.flatnonzero(parts != TRAIN)).any():
            raise InputError(
                "protocol.history_order shuffled needs held-out events that come last; protocol.split"
                f" {protocol.split} has others"
            )
        key = generator(protocol.seed, "history").random_raw(len(parts))
        # What only test users' prompts show loses its order as well, all but the event to be told.
        last = np.zeros(len(parts), dtype=bool)
        last[events.start[1:] - 1] = True
        context = (protocol.split in ("k_fold", "user_cold_start")) & (parts != TRAIN) & ~last
        key = np.where((parts == TRAIN) | context, key, np.uint64(0))
        events = events.reordered(np.lexsort((np.arange(len(parts)), key, parts + (last & (parts != TRAIN)), owner)))
    return events, parts, shown


def _cases(
    events: Events, parts: Parts, shown: Ints, part: int, protocol: Protocol, data: Interactions
) -> tuple[Cases, int]:
    """The frozen cases of a part, and how many users have one before a sample is taken."""
    places = case_places(events, parts, part, protocol)
    owner = np.searchsorted(events.start, places, side="right") - 1
    keep = shown[places] > events.start[owner]  # a prompt without a history asks for nothing, unless it is a request
    if "query" in events.table.columns:
        keep |= events.table["query"].is_not_null().to_numpy()[places]
    places, owner = places[keep], owner[keep]
    users = _distinct(owner)
    count = protocol.test_users if part == TEST else protocol.validation_users
    if count is not None and count < len(users):
        first = users[hash_order([events.user_ids[u] for u in users.tolist()], protocol.seed)[:count]]
        chosen = np.isin(owner, first)
        places, owner = places[chosen], owner[chosen]
    wanted = CaseRequest(user=owner, target=places, shown=shown[places], name="1" if part == TEST else "2")
    candidates = _candidates(wanted, events, parts, protocol, data)
    late = (wanted.shown != places).any()
    return Cases(user=owner, target=places, candidates=candidates, history_end=wanted.shown if late else None), len(
        users
    )


def _distinct(ascending: Ints) -> Ints:
    """Each of ascending numbers once; `numpy.unique` would hash or sort them first."""
    distinct: Ints = ascending[np.r_[True, ascending[1:] != ascending[:-1]][: len(ascending)]]
    return distinct


def _candidates(
    wanted: CaseRequest, events: Events, parts: Parts, protocol: Protocol, data: Interactions
) -> Ints | None:
    items = len(events.item_ids)
    if protocol.candidates == "full":
        return None
    if protocol.candidates == "published":
        return published_lists(wanted, events, protocol.seed)
    if protocol.candidates == "uniform":
        return draw(wanted, events, protocol, uniform(items))
    if protocol.candidates == "popularity":
        weight = np.bincount(events.item[parts == TRAIN], minlength=items)  # held-out events must not tell
        return draw(wanted, events, protocol, by_weight(weight), weight)
    titles = data.items["title"].to_list()
    retriever = BM25(titles) if protocol.candidates == "bm25" else TwoTower(title_embeddings(titles))
    return shuffled_lists(wanted, events, protocol.seed, nearest(wanted, events, protocol, retriever))


def _statistics(events: Events, items: int) -> dict[str, Any]:
    time, owner = events.timestamp, events.owner
    like_before = (time[1:] == time[:-1]) & (owner[1:] == owner[:-1])
    tied = np.r_[False, like_before] | np.r_[like_before, False]
    several = np.diff(events.start) >= 2
    last = events.start[1:][several] - 1
    return {
        "users": len(events.user_ids),
        "items": items,
        "interactions": len(events.item),
        "tied_interactions": int(tied.sum()) / len(events.item),
        "users_with_ambiguous_last_item": int((time[last] == time[last - 1]).sum()) / max(1, len(events.user_ids)),
    }


def _describe(
    protocol: Protocol,
    statistics: dict[str, Any],
    parts: Parts,
    counts: dict[str, Any],
    test: Cases,
    shots: Ints | None,
    repairs: dict[str, int],
) -> dict[str, Any]:
    sampled = f"{protocol.candidates}, 1 + {protocol.negatives}, seed {protocol.seed}"
    named = {"full": "full catalogue", "published": "as published with the data"}
    if protocol.split != "leave_one_out":
        names = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}
        statistics["interactions_by_part"] = {name: int((parts == part).sum()) for part, name in names.items()}
        statistics["test_cases"] = len(test)
    if counts:
        statistics["filter"] = counts
    if shots is not None:
        statistics["training_examples"] = len(shots)
    return {
        "split": _SPLIT_NAMES[protocol.split]
        + (f", fold {protocol.fold + 1} of {protocol.folds}" if protocol.split == "k_fold" else ""),
        "candidates": named.get(protocol.candidates, sampled),
        "exclude_seen": protocol.exclude_seen,
        "timestamp_ties": protocol.ties,
        "score_ties": "expected value over a random order of equal scores",
        "history": protocol.history,
        "trained_on": "all but the test items" if protocol.fit_on_validation else "all but validation and test items",
        "statistics": statistics,
        **({"repairs": dict(repairs)} if repairs else {}),
    } | ({"history_order": "shuffled"} if protocol.history_order == "shuffled" else {})


def _fingerprint(
    data: Interactions, protocol: Protocol, validation: Cases, test: Cases, events: Events, shots: Ints | None
) -> str:
    """Hashes what makes the numbers: the data, the settings, and every case by original ids."""
    digest = hashlib.sha256()
    settings = {"version": PROTOCOL_VERSION, "data": data.checksum, "protocol": protocol.settings()}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    users = pl.Series([json.dumps(user) for user in events.user_ids], dtype=pl.String)
    items = pl.Series([json.dumps(item) for item in events.item_ids], dtype=pl.String)

    def lines(cases: Cases, begin: int) -> bytes:
        rows = slice(begin, begin + _LINES)
        columns = [cases.user[rows], events.item[cases.target[rows]]]
        columns += [] if cases.candidates is None else list(cases.candidates[rows].T)
        texts = [(items if n else users).gather(pl.Series(np.maximum(c, 0))) for n, c in enumerate(columns)]
        # A list that ended has nulls, which are left out.
        texts = [
            text.set(pl.Series(c < 0), None) if (c < 0).any() else text for text, c in zip(texts, columns, strict=True)
        ]
        made = pl.select(pl.concat_str(texts, separator=", ", ignore_nulls=True).str.join("]["))
        return f"[{made.item()}]".encode()

    for cases in (validation, test):
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
            for text in threads.map(partial(lines, cases), range(0, len(cases), _LINES)):
                digest.update(text)
        if cases.history_end is not None:
            digest.update((cases.history_end - events.start[cases.user]).astype("<i8").tobytes())
    if shots is not None:
        digest.update(shots.astype("<i8").tobytes())
    return digest.hexdigest()


SMALL = 1_000_000
"""Data with fewer interactions is not kept: applying the protocol takes less than a second."""


def frozen_sequences(data: Interactions, protocol: Protocol, *, least: int = SMALL, quiet: bool = False) -> Sequences:
    """What `apply_protocol` gives, from the cache where it holds it.

    The file begins with its own sha256, which is compared on every use; it is keyed by the tables' content, the settings
    and the protocol's version, so other data or rules never find it.

    Example:
        >>> import os, tempfile, polars as pl
        >>> from unittest.mock import patch
        >>> events = {"user": ["a"] * 4, "item": list("xyzx"), "rating": [5.0] * 4, "timestamp": [1.0, 2.0, 3.0, 4.0]}
        >>> data = Interactions(pl.DataFrame(events), pl.DataFrame({"item": [*"xyz"], "title": [*"XYZ"]}), "sum")
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, INSTRUCTREC_CACHE=folder):
        ...     made = [frozen_sequences(data, Protocol(candidates="full"), least=1) for _ in range(2)]
        ...     made[0].fingerprint == made[1].fingerprint == apply_protocol(data, Protocol(candidates="full")).fingerprint
        True
    """
    if len(data.interactions) < least:
        return apply_protocol(data, protocol, quiet=quiet)
    key = {
        "version": str(PROTOCOL_VERSION),
        "data": data.checksum,
        "tables": _digest(data),
        "protocol": json.dumps(protocol.settings(), sort_keys=True),
    }
    return _unpacked(
        cached_arrays("protocol", key, lambda: _packed(apply_protocol(data, protocol, quiet=quiet))).arrays
    )


def further_sequences(data: Interactions, protocol: Protocol, main: Sequences) -> dict[str, Sequences]:
    """The same cases under the further rules of `protocol.also`: each as a run of that rule has them."""
    further: dict[str, Sequences] = {}
    for rule in protocol.also:
        other = frozen_sequences(data, replace(protocol, candidates=rule, also=()), quiet=True)
        if not all(np.array_equal(getattr(other.test, name), getattr(main.test, name)) for name in ("user", "target")):
            raise RuntimeError(f"the test cases under {rule} are not those under {protocol.candidates}")
        lists = {name: getattr(other, name) for name in ("validation", "test", "description", "fingerprint")}
        further[rule] = replace(main, **lists)  # one copy of the events
    return further


def _digest(data: Interactions) -> str:
    """Of the tables' content: the raw files' sum does not tell how they were read."""
    digest = hashlib.sha256()
    for table in (data.interactions, data.items):
        digest.update(json.dumps([[name, str(of)] for name, of in table.schema.items()]).encode())
        digest.update(table.hash_rows(seed=0).to_numpy().tobytes())
    return digest.hexdigest()


def _packed(made: Sequences) -> Arrays:
    texts = {"user_ids": made.user_ids, "item_ids": made.item_ids, "titles": made.titles}
    told = {"description": made.description, "fingerprint": made.fingerprint, "history": made.history}
    arrays: Arrays = {name: _bytes(value) for name, value in (texts | {"told": told}).items()}
    arrays |= {name: getattr(made, name) for name in ("item", "rating", "start", "train_end", "timestamp", "row")}
    if made.shots is not None:
        arrays["shots"] = made.shots
    for split in ("validation", "test"):
        cases: Cases = getattr(made, split)
        columns = {name: getattr(cases, name) for name in ("user", "target", "candidates", "history_end")}
        arrays |= {f"{split}.{name}": column for name, column in columns.items() if column is not None}
    return arrays


def _bytes(value: Sequence[str] | dict[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def _unpacked(arrays: Arrays) -> Sequences:
    texts: dict[str, Any] = {
        name: json.loads(arrays[name].tobytes()) for name in ("user_ids", "item_ids", "titles", "told")
    }
    told = texts.pop("told")
    kept: dict[str, Any] = {name: arrays[name] for name in ("item", "rating", "start", "train_end", "timestamp", "row")}
    for split in ("validation", "test"):
        names = ("user", "target", "candidates", "history_end")
        columns: dict[str, Any] = {name: arrays.get(f"{split}.{name}") for name in names}
        kept[split] = Cases(**columns)
    return Sequences(**texts, **told, **kept, shots=arrays.get("shots"))
