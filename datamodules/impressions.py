"""Lists of what was shown, and what was clicked of them.

# One row is one impression: `user`, `timestamp`, `history` (ids before it), `shown` (ids with -1 clicked, -0 not).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from datamodules.sources import InputError


def clicks(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """One event for every click, with all that was shown as `candidates`.

    Args:
        table: impressions, with `split` and `line`.
        path: of the file, for messages.

    Raises:
        InputError: something shown is not marked as clicked or not.

    >>> row = {"user": "u", "timestamp": 5.0, "shown": "a-0 b-1", "split": "test", "line": 1}
    >>> clicks(pl.DataFrame([row]), Path("behaviors.tsv")).select("item", "candidates").rows()
    [('b', ['a', 'b'])]
    """
    well = table["shown"].str.contains(r"^\s*\S+-[01](?:\s+\S+-[01])*\s*$")
    wrong = table.filter(~well)
    if len(wrong):
        raise InputError(
            f"{path}:{wrong['line'][0]}: an impression is a list like 'N1-0 N2-1', not {wrong['shown'][0][:80]!r}"
        )
    shown = pl.col("shown").str.extract_all(r"\S+")
    table = table.select("user", "timestamp", "split", "line", shown)
    table = table.with_columns(
        candidates=pl.col("shown").list.eval(pl.element().str.head(-2)),
        item=pl.col("shown").list.eval(pl.element().filter(pl.element().str.ends_with("-1")).str.head(-2)),
    )
    return table.drop("shown").explode("item").drop_nulls("item")


def first_histories(table: pl.DataFrame) -> pl.DataFrame:
    """The clicks before each user's first impression, one second apart, the last of them one second before it.

    >>> row = {"user": "u", "timestamp": 5.0, "history": "a b", "line": 1}
    >>> first_histories(pl.DataFrame([row])).select("item", "timestamp").rows()
    [('a', 3.0), ('b', 4.0)]
    """
    first = table.filter(pl.int_range(pl.len()).over("user", order_by="timestamp") == 0)
    lists = pl.col("history").fill_null("").str.extract_all(r"\S+")
    first = first.select("user", "timestamp", lists.alias("item"), "line", split=pl.lit("train"))
    places = first.with_columns(back=pl.int_ranges(pl.col("item").list.len(), 0, -1)).explode("item", "back")
    return places.drop_nulls("item").with_columns(pl.col("timestamp") - pl.col("back")).drop("back")
