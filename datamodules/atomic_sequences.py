"""The forms of events in RecBole's atomic files: single events, published splits of them, and sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from datamodules.cleaning import require
from datamodules.interactions import read_atomic_file
from datamodules.raw_tables import header_of, read_delimited
from datamodules.sources import InputError

_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def atomic_fields(path: Path) -> list[str]:
    r"""Names of the fields, without their types.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.inter"
    >>> _ = path.write_text("user_id:token\titem_id:token\n")
    >>> atomic_fields(path)
    ['user_id', 'item_id']
    """
    return [each.split(":")[0] for each in header_of(path, path, "\t", quoted=False)]


def read_events(files: Sequence[Path], fields: Mapping[str, str]) -> pl.DataFrame:
    r"""Reads events from one file of all, or from those of a published split, or of one's sequences.

    Args:
        files: one file, or `.train.inter` (absent for sequences), `.valid.inter`, `.test.inter`.
        fields: the fields' names and ours, `{"user_id": "user"}`; only those of `user` and `item` must be there.

    Returns:
        `user`, `item`, what else is there, `line`, and for a split `split`.

    Raises:
        InputError: a file is malformed, or the parts contradict one another.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.inter"
    >>> _ = path.write_text("user_id:token\titem_id:token\n7\t4\n")
    >>> read_events([path], {"user_id": "user", "item_id": "item"}).rows()
    [('7', '4', 2)]
    """
    listed = next(f"{name}_list" for name, ours in fields.items() if ours == "item")
    if len(files) > 1 and listed in atomic_fields(files[-1]):
        return _from_sequences(files[-2], files[-1], dict(fields), listed)
    tables = []
    for path in files:
        there = atomic_fields(path)
        wanted = {name: ours for name, ours in fields.items() if name in there or ours in ("user", "item")}
        table = require(read_atomic_file(path, wanted, lines=True), ("user", "item"), path)
        if len(files) > 1:
            table = table.with_columns(split=pl.lit(_SPLITS[path.name.split(".")[-2]]))
        tables.append(table)
    return pl.concat(tables)


def _from_sequences(valid: Path, test: Path, fields: dict[str, str], listed: str) -> pl.DataFrame:
    """A user's test history and target are the whole sequence; the validation event is the last of that history."""
    wanted = {name: ours for name, ours in fields.items() if ours in ("user", "item")} | {listed: "history"}
    whole, before = (
        require(read_atomic_file(path, wanted, lines=True), ("user", "item"), path) for path in (test, valid)
    )
    for path, table in ((test, whole), (valid, before)):
        twice = table.filter(pl.col("user").is_duplicated())
        if len(twice):
            raise InputError(f"{path}:{twice['line'][1]}: user {twice['user'][1]!r} stands more than once")
    whole = whole.with_columns(pl.col("history").fill_null("").str.extract_all(r"\S+"))
    joined = before.join(whole.select("user", pl.col("history").list.last().alias("seen")), on="user", how="left")
    wrong = joined.filter(pl.col("item").ne_missing(pl.col("seen")))
    if len(wrong):
        raise InputError(
            f"{valid}:{wrong['line'][0]}: user {wrong['user'][0]!r} has another item here than before the last in {test}"
        )
    past = whole.select(
        "user", pl.col("history").alias("item"), "line", last=False, order=pl.int_range(pl.len())
    ).explode("item")
    final = whole.select("user", "item", "line", last=True, order=pl.int_range(pl.len()))
    events = pl.concat([past.drop_nulls("item"), final]).sort("order", "last", maintain_order=True)
    back = pl.int_range(pl.len(), 0, -1).over("user")
    validated = pl.col("user").is_in(before["user"].implode()) & (back == 2)
    split = pl.when("last").then(pl.lit("test")).when(validated).then(pl.lit("validation")).otherwise(pl.lit("train"))
    return events.select("user", "item", "line", split=split)


def latest_events(events: pl.DataFrame, count: int) -> tuple[pl.DataFrame, dict[str, int]]:
    """Keeps each user's latest events, and says how many it left out.

    >>> latest_events(pl.DataFrame({"user": ["u", "v", "u"], "item": ["a", "b", "c"]}), 1)[0]["item"].to_list()
    ['b', 'c']
    """
    ordered = events.sort("timestamp", maintain_order=True) if "timestamp" in events.columns else events
    kept = ordered.filter(pl.int_range(pl.len(), 0, -1).over("user") <= count)
    return kept, {f"events before a user's latest {count} left out": len(events) - len(kept)}


def read_candidates(path: Path, events: pl.DataFrame) -> pl.DataFrame:
    r"""Adds `candidates` to users' test events: published lists, which need not hold the event's own item.

    Args:
        path: lines of `user<TAB>item item ...`.
        events: with `split`.

    Raises:
        InputError: a line is malformed, names a user twice or without a test event, or there is no published split.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.random"
    >>> _ = path.write_text("u\ta b\n")
    >>> events = pl.DataFrame({"user": ["u"], "item": ["a"], "split": ["test"]})
    >>> read_candidates(path, events)["candidates"].to_list()
    [['a', 'b']]
    """
    if "split" not in events.columns:
        raise InputError(f"{path}: candidates need a published split, and the events have none")
    lists = read_delimited(path, {"user": "user", "items": "candidates"}, separator="\t", names=("user", "items"))
    lists = require(lists, ("user", "candidates"), path)
    tested = events.filter(pl.col("split") == "test")["user"]
    wrong = lists.filter(pl.col("user").is_duplicated() | ~pl.col("user").is_in(tested.implode()))
    if len(wrong):
        raise InputError(f"{path}:{wrong['line'][0]}: user {wrong['user'][0]!r} stands twice or has no test event")
    lists = lists.select("user", pl.col("candidates").str.split(" "), split=pl.lit("test"))
    return events.join(lists, on=["user", "split"], how="left", maintain_order="left")
