"""Tables that the tests of the protocol share."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from datamodules.tables.interactions import Interactions

Event = tuple[str, str, float | None, float]


def table(events: list[Event], items: int, **columns: list[Any]) -> Interactions:
    schema = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "timestamp": pl.Float64}
    frame = pl.DataFrame(events, schema=schema, orient="row")
    catalogue = [f"i{n}" for n in range(items)]
    titles = [f"Title {n}" for n in range(items)]
    return Interactions(
        frame.with_columns(**{name: pl.Series(column) for name, column in columns.items()}),
        pl.DataFrame({"item": catalogue, "title": titles}),
        "sum",
    )


def crowd(users: int = 40, items: int = 60, seed: int = 0) -> Interactions:
    """Users with 2 to 12 different items; all times differ, and users overlap in time."""
    chance = np.random.default_rng(seed)
    events: list[Event] = []
    for user in range(users):
        count = 2 + int(chance.integers(11))
        times = np.sort(chance.choice(100_000, size=count, replace=False)) + user / 100
        chosen = chance.permutation(items)[:count]
        events += [
            (f"u{user}", f"i{i}", float(chance.integers(1, 6)), float(t))
            for i, t in zip(chosen.tolist(), times.tolist(), strict=True)
        ]
    order = chance.permutation(len(events))
    return table([events[n] for n in order.tolist()], items)


OTHER_SETTINGS: dict[str, Any] = {
    "ties": "item_id",
    "candidates": "full",
    "negatives": 18,
    "exclude_seen": False,
    "history": 9,
    "like_threshold": 3.0,
    "test_users": 5,
    "validation_users": 5,
    "fit_on_validation": True,
    "seed": 43,
    "split": "ratio",
    "validation_share": 0.2,
    "test_share": 0.2,
    "folds": 4,
    "fold": 1,
    "targets": "all",
    "shots": 16,
    "history_order": "shuffled",
    "user_core": 2,
    "item_core": 2,
    "min_rating": 2.0,
    "train_share": 0.5,
}
