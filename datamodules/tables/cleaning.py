"""From raw tables to `Interactions`: what real files lack is refused, or repaired by rule and counted."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from datamodules.contract.errors import InputError
from datamodules.contract.files import sha256_of
from datamodules.tables.interactions import Interactions

Untitled = Literal["refuse", "drop", "item_id"]


def assemble(
    events: pl.DataFrame,
    items: pl.DataFrame,
    files: Sequence[Path],
    *,
    untitled: Untitled = "refuse",
    repairs: dict[str, int] | None = None,
    users: pl.DataFrame | None = None,
    **options: Any,
) -> Interactions:
    """Joins events with a catalogue of exactly the items that they name.

    Args:
        events: `user`, `item`, further columns of `Interactions`; a missing `rating` is null, and a missing `timestamp`
            is the row's number, so that the file's order is the order in time.
        items: `item`, `title`, further columns.
        files: the raw ones; the events' first, the items' second.
        untitled: what to do about items without a title, or events whose item has no row: refuse the file, leave the
            items and their events out, or show the item's id as its title.
        repairs: what the reader has already changed, and how often.
        users: the profiles.
        options: settings of the reader that decide what is read; they enter the checksum.

    Raises:
        InputError: as `Interactions`.

    >>> events = pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"]})
    >>> items = pl.DataFrame({"item": ["a", "c"], "title": ["Alien", "Casablanca"]})
    >>> data = assemble(events, items, [], untitled="drop")
    >>> data.interactions.rows(), data.repairs["events of items without title left out"]
    ([('u', 'a', None, 0.0)], 1)
    """
    done = dict(repairs or {})
    if "rating" not in events.columns:
        events = events.with_columns(rating=pl.lit(None, dtype=pl.Float64))
    if "timestamp" not in events.columns:
        events = events.with_columns(timestamp=pl.int_range(pl.len()).cast(pl.Float64))
        done["events without timestamp, in the file's order"] = len(events)
    if untitled != "refuse":
        events, items = _repair_untitled(events, items, untitled, done)
    items = _only_named(events, items, done)
    if (early := int((events["timestamp"] < 0).sum())) > 0:
        done["timestamps before 1970 kept"] = early
    first = ["user", "item", "rating", "timestamp"]
    named = tuple(files[:2]) if len(files) >= 2 else (files[0], files[0]) if files else ()
    return Interactions(
        interactions=events.select(*first, pl.exclude(first)),
        items=items,
        checksum=checksum_of(files, **options, untitled=untitled),
        files=named,
        users=users,
        repairs={what: count for what, count in done.items() if count},
    )


def _repair_untitled(
    events: pl.DataFrame, items: pl.DataFrame, untitled: Untitled, done: dict[str, int]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    items = items.filter(pl.col("title").is_not_null() & (pl.col("title").str.strip_chars() != ""))
    known = events["item"].is_in(items["item"].implode())
    done["items without title left out" if untitled == "drop" else "items shown by id"] = int(
        events["item"].filter(~known).n_unique()
    )
    if untitled == "drop":
        done["events of items without title left out"] = int((~known).sum())
        if not known.any():
            raise InputError("no item of the interactions has a title; data.untitled=item_id shows ids instead")
        if "candidates" in events.columns:
            titled = pl.col("candidates").list.eval(pl.element().filter(pl.element().is_in(items["item"].implode())))
            events = events.with_columns(titled)
        return events.filter(known), items
    bare = _named(events).filter(~_named(events).is_in(items["item"].implode())).to_frame("item")
    bare = bare.with_columns(title=pl.col("item"))
    return events, pl.concat([items, bare], how="diagonal")


def _named(events: pl.DataFrame) -> pl.Series:
    """Items that an event or a published candidate list names, in the order of their first event."""
    named = events["item"].rename("item")
    if "candidates" in events.columns:
        offered = events["candidates"].drop_nulls().explode().drop_nulls()
        named = pl.concat([named, offered.rename("item")])
    return named.unique(maintain_order=True)


def _only_named(events: pl.DataFrame, items: pl.DataFrame, done: dict[str, int]) -> pl.DataFrame:
    kept = items.filter(pl.col("item").is_in(_named(events).implode()))
    done["items without any event left out"] = len(items) - len(kept)
    return kept


def first_of_each(table: pl.DataFrame, keys: Sequence[str], what: str, done: dict[str, int]) -> pl.DataFrame:
    """Keeps the first row of equal keys, and counts the others.

    >>> done = {}
    >>> first_of_each(pl.DataFrame({"item": ["a", "a"], "title": ["x", "y"]}), ["item"], "items", done).rows(), done
    ([('a', 'x')], {'duplicate items left out': 1})
    """
    kept = table.unique(keys, keep="first", maintain_order=True)
    done[f"duplicate {what} left out"] = len(table) - len(kept)
    return kept


TAGS = "a|abbr|b|big|br|center|div|em|font|h[1-6]|i|img|li|ol|p|script|small|span|strong|style|sub|sup|table|td|tr|u|ul"
"""Elements of HTML that scraped titles hold; other words in angle brackets are a title's own."""


def without_markup(items: pl.DataFrame, column: str = "title") -> pl.DataFrame:
    """Takes the text out of scraped HTML: entities decoded, tags left out; null where nothing else was there.

    >>> titles = ["Salt &amp; Pepper", "<span id='x'>Marble</span> &lt;i&gt;Run&lt;/i&gt;", "<b></b>", "<Untitled> 5 < 6", None]
    >>> without_markup(pl.DataFrame({"title": titles}))["title"].to_list()
    ['Salt & Pepper', 'Marble Run', None, '<Untitled> 5 < 6', None]
    """
    text = items[column]
    coded = text.filter(text.str.contains("&", literal=True)).unique()
    plain = {each: html.unescape(each) for each in coded}
    text = text.replace(plain) if plain else text
    tag = rf"(?i)</?(?:{TAGS})(?:\s[^<>]*)?/?>"
    bare = text.str.replace_all(tag, "").str.strip_chars()
    marked = text.str.contains(tag).fill_null(False)
    return items.with_columns(bare.replace("", None).zip_with(marked, text).alias(column))


def joined_text(value: object) -> str | None:
    """The text of a field that is a text, a list of texts, or absent.

    >>> joined_text(["Two", "parts"]), joined_text(None)
    ('Two parts', None)
    """
    if value is None:
        return None
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def require(table: pl.DataFrame, columns: Sequence[str], path: Path) -> pl.DataFrame:
    """Refuses a table whose ids are empty somewhere.

    Raises:
        InputError: a column is null at a line.

    >>> require(pl.DataFrame({"user": ["u"], "line": [2]}), ["user"], Path("a.csv")).height
    1
    """
    for column in columns:
        rows = (table[column].is_null() | (table[column] == "")).arg_true()
        if len(rows):
            raise InputError(f"{path}:{table['line'][int(rows[0])]}: {column} is empty")
    return table


def checksum_of(files: Sequence[Path], **options: Any) -> str:
    """sha256 over the files' bytes and the settings they are read with.

    >>> checksum_of([])[:8] == checksum_of([], category="Toys")[:8]
    False
    """
    total = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for path in files:
        total.update(bytes.fromhex(sha256_of(path)))
    return total.hexdigest()
