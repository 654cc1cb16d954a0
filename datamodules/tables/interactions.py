"""The typed tables that every data set is read into, and their validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from datamodules.contract.errors import InputError

Dtype = pl.DataType | type[pl.DataType]
INTERACTION_COLUMNS: dict[str, Dtype] = {
    "user": pl.String,
    "item": pl.String,
    "rating": pl.Float64,
    "timestamp": pl.Float64,
}
ITEM_COLUMNS: dict[str, Dtype] = {"item": pl.String, "title": pl.String}
OPTIONAL_INTERACTION_COLUMNS: dict[str, Dtype] = {
    "review": pl.String,
    "query": pl.String,
    "split": pl.String,
    "candidates": pl.List(pl.String),
    "line": pl.Int64,
}
OPTIONAL_ITEM_COLUMNS: dict[str, Dtype] = {
    "categories": pl.List(pl.String),
    "description": pl.String,
    "brand": pl.String,
    "year": pl.String,
    "line": pl.Int64,
}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Interactions:
    """A data set as typed columns.

    Attributes:
        interactions: one row per event in file order: `user`, `item`, `rating` (null where the data has none),
            `timestamp` (seconds, any origin; a number, never a string; where the data has none, the file's order is
            the order in time). It may have `review` and `query` (text of the event), `split` (the published one:
            `train`, `validation` or `test`), `candidates` (published item ids that the event is ranked among) and
            `line` (of the file).
        items: one row per item: `item`, `title`. It may have `categories`, `description`, `brand`, `year`, `line`, and
            further columns as the data has them.
        checksum: sha256 over the raw files and how they are read, part of the protocol fingerprint.
        files: the raw files it was read from: the events' and the items', so that messages can name the line: that of
            the column `line`, else the row's own after one header line.
        users: one row per user: `user` and the profile's columns, where the data has them.
        repairs: what was changed while it was read, in words, and how often; part of the protocol's description.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    checksum: str
    files: tuple[Path, ...] = ()
    users: pl.DataFrame | None = None
    repairs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses tables that cannot be ranked on.

        Raises:
            InputError: a column is missing or of the wrong type, an id repeats, a title is empty, an event names
                an unknown item, split or candidate, or a timestamp is missing.
        """
        events, items = map(str, self.files) if len(self.files) == 2 else ("interactions", "items")
        _require_columns(self.interactions, INTERACTION_COLUMNS, OPTIONAL_INTERACTION_COLUMNS, f"{events}:1")
        _require_columns(self.items, ITEM_COLUMNS, OPTIONAL_ITEM_COLUMNS, f"{items}:1")
        if self.interactions.is_empty():
            raise InputError(f"{events}:1: there are no interactions")
        self._check_items(items)
        known = self.items["item"].implode()
        self._refuse_event(
            ~self.interactions["item"].is_in(known).fill_null(False), events, f"item {{item!r}} is not in {items}"
        )
        self._refuse_event(self.interactions["user"].is_null(), events, "there is no user")
        time = self.interactions["timestamp"]
        self._refuse_event(time.is_null() | time.is_nan(), events, "user {user!r} has no timestamp here")
        if "split" in self.interactions.columns:
            unknown = ~self.interactions["split"].is_in(SPLITS).fill_null(False)
            self._refuse_event(unknown, events, f"split {{split!r}} is none of {', '.join(SPLITS)}")
        if "candidates" in self.interactions.columns:
            listed = self.interactions["candidates"]
            strange = listed.list.eval(~pl.element().is_in(known)).list.any()
            self._refuse_event(
                strange.fill_null(False), events, f"the candidates of user {{user!r}} are not all in {items}"
            )
        if self.users is not None:
            _require_columns(self.users, {"user": pl.String}, {}, "users")
            row = _first(self.users["user"].is_null() | self.users["user"].is_duplicated())
            if row is not None:
                raise InputError(f"users: user id {self.users['user'][row]!r} stands more than once")

    @property
    def about(self) -> tuple[pl.DataFrame, pl.DataFrame | None]:
        """Items with their categories, where there are any, and the users' profiles: what results are told apart by."""
        return self.items.select(pl.selectors.by_name("item", "categories", require_all=False)), self.users

    def _check_items(self, items: str) -> None:
        row = _first(self.items["item"].is_duplicated())
        if row is not None:
            raise InputError(
                f"{items}:{_line(self.items, row)}: item id {self.items['item'][row]!r} stands more than once"
            )
        title = self.items["title"]
        row = _first(title.is_null() | (title.str.strip_chars() == ""))
        if row is not None:
            raise InputError(f"{items}:{_line(self.items, row)}: item {self.items['item'][row]!r} has no title")

    def _refuse_event(self, wrong: pl.Series, events: str, reason: str) -> None:
        row = _first(wrong)
        if row is not None:
            told = reason.format(**self.interactions.row(row, named=True))
            raise InputError(f"{events}:{_line(self.interactions, row)}: {told}")


def _line(table: pl.DataFrame, row: int) -> int:
    """The file's line of a row: the table's own column, else counted after one header line."""
    return int(table["line"][row]) if "line" in table.columns else row + 2


def _first(wrong: pl.Series) -> int | None:
    rows = wrong.arg_true()
    return int(rows[0]) if len(rows) else None


def _require_columns(
    table: pl.DataFrame, columns: Mapping[str, Dtype], optional: Mapping[str, Dtype], what: str
) -> None:
    for name in columns:
        if name not in table.columns:
            raise InputError(f"{what}: column {name!r} is missing; there are {', '.join(table.columns)}")
    for name, dtype in {**columns, **optional}.items():
        if name in table.columns and table.schema[name] != dtype:
            raise InputError(f"{what}: column {name!r} is {table.schema[name]}, must be {dtype}")
