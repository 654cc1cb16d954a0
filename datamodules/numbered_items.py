"""Numbers in the place of item ids, as P5 and its successors hand them out, with and without the leak."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl

Numbering = Literal["own", "sequential", "sequential_training", "random"]
_HELD_OUT = 2  # events at each user's end, under leave-one-out


def numbered(
    events: pl.DataFrame, items: pl.DataFrame, numbering: Numbering, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items under numbers from 1, with `item 17` for a title, in the order of their numbers.

    Args:
        events: `user` and `item`, each user's in their order in time.
        items: `item` and `title`, further columns.
        numbering: `sequential` gives numbers along the users' whole sequences, as P5 does, so that what is held out
            often has the number after the largest in its history; `sequential_training` gives them along what training
            sees, and to the rest in random order; `random` gives them in random order.
        seed: of the random order.

    Returns:
        The events and the items under their numbers.

    Example:
        >>> events = pl.DataFrame({"user": ["u"] * 4, "item": ["d", "a", "c", "b"]})
        >>> items = pl.DataFrame({"item": ["a", "b", "c", "d"], "title": ["A", "B", "C", "D"]})
        >>> numbered(events, items, "sequential")[0]["item"].to_list()
        ['1', '2', '3', '4']
    """
    seen = events
    if numbering == "sequential_training":
        seen = events.filter(pl.int_range(pl.len(), 0, -1).over("user") > _HELD_OUT)
    order = [] if numbering == "random" else seen["item"].unique(maintain_order=True).to_list()
    known = set(order)
    rest = sorted(item for item in items["item"].to_list() if item not in known)
    order += [rest[place] for place in np.random.default_rng(seed).permutation(len(rest))]
    number = pl.DataFrame({"item": order, "number": range(1, len(order) + 1)})
    named = items.join(number, on="item", how="inner").sort("number")
    named = named.with_columns(item=pl.col("number").cast(pl.String), title=pl.format("item {}", "number"))
    code = events.join(number, on="item", how="left", maintain_order="left")
    return code.with_columns(item=pl.col("number").cast(pl.String)).drop("number"), named.drop("number")
