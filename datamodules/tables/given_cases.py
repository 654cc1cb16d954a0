"""Data that is published as cases, each with its own history, request or candidates, instead of users' events."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from datamodules.tables.interactions import Interactions


@dataclass(frozen=True)
class GivenCase:
    """One published case.

    Attributes:
        user: id; every case is a user of its own.
        split: `train`, `validation` or `test`.
        target: id of the right item.
        history: ids of what is shown before it, oldest first; never a training target.
        ratings: of the history's items; empty where there are none.
        rating: of the target.
        query: what the user asks for.
        candidates: ids that the target is ranked among; empty where the data has no lists.
    """

    user: str
    split: str
    target: str
    history: tuple[str, ...] = ()
    ratings: tuple[float, ...] = ()
    rating: float | None = None
    query: str = ""
    candidates: tuple[str, ...] = ()


def interactions_of(
    cases: Sequence[GivenCase], titles: Mapping[str, str], files: Sequence[Path], repairs: dict[str, int] | None = None
) -> Interactions:
    """Writes cases as typed tables, for the published split and lists.

    The events of a history have the column `context`: shown before a target, they are none themselves.

    Args:
        cases: the cases, in the order of the files.
        titles: title by item id.
        files: that were read; their bytes make the checksum.
        repairs: what was changed, in words, and how often.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "cases.json"
        >>> _ = path.write_text("[]")
        >>> case = GivenCase("1", "test", "b", history=("a",), query="something funny")
        >>> made = interactions_of([case], {"a": "Alien", "b": "Big"}, [path])
        >>> made.interactions.select("item", "context", "query").rows()
        [('a', True, None), ('b', False, 'something funny')]
    """
    rows: list[tuple[Any, ...]] = []
    for case in cases:
        ratings = case.ratings or (None,) * len(case.history)
        for place, (item, rating) in enumerate(zip(case.history, ratings, strict=True)):
            # A history is part of what its case knows, so it counts as trained on, and is never asked for.
            rows.append((case.user, item, rating, float(place), "train", True, None, None))
        candidates = list(case.candidates) or None
        last = (case.user, case.target, case.rating, float(len(case.history)))
        rows.append((*last, case.split, False, case.query or None, candidates))
    schema: dict[str, Any] = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "timestamp": pl.Float64}
    schema |= {"split": pl.String, "context": pl.Boolean, "query": pl.String, "candidates": pl.List(pl.String)}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    empty = [name for name in ("query", "candidates") if table[name].null_count() == len(table)]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return Interactions(
        interactions=table.drop(empty),
        items=pl.DataFrame(
            {"item": list(titles), "title": list(titles.values())}, schema={"item": pl.String, "title": pl.String}
        ),
        checksum=digest.hexdigest(),
        repairs=repairs or {},
    )


def share_of(name: str) -> float:
    """A number from 0 to below 1 that depends on a name alone: what of unsplit data goes where.

    Example:
        >>> 0 <= share_of("FS_1") < 1, share_of("FS_1") == share_of("FS_1")
        (True, True)
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
