"""A user's own tables: CSV, TSV, Parquet or JSON lines, with a mapping of columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.cleaning import Untitled, assemble, require
from datamodules.interactions import Interactions
from datamodules.own_files import optional_file, own_file
from datamodules.raw_tables import finite, moments
from datamodules.sources import InputError
from datamodules.table_formats import EVENTS, ITEMS, read_any
from datamodules.wording import GENERIC, worded


class Tabular(InstructionDataModule):
    """Interactions and items in tables of the user's own: `.csv`, `.tsv`, `.jsonl`, `.parquet`, the text ones also gzipped.

    Source: your own; where to put them: https://docs.pola.rs/user-guide/io/ tells how to write such files. Licence and
    citation: yours. Nothing is filtered but items without any event, which are counted.

    One example: `instructrec fit -c configs/data/tabular.yaml --data.data_dir shop --data.columns "{item: sku}"` reads
    shop/interactions.csv with the columns user, sku, rating, timestamp, and shop/items.csv with item, title.

    Args:
        interactions_file: in `data_dir`, or below `INSTRUCTREC_DATA` in the folder `tabular`.
        items_file: beside it.
        users_file: beside it; its column `user` and all others are profiles; null has none.
        columns: our names of the events' columns (user, item, rating, timestamp, review, query, split) and the file's;
            those not named have our names; only user and item must be there.
        item_columns: the same for the items' (item, title, categories, description, brand, year); item and title must be.
        time: `seconds`, `milliseconds`, or the pattern of written dates, `%Y-%m-%d %H:%M:%S`; without timestamps the
            file's order is the order in time.
        list_separator: between categories.
        untitled: `drop` leaves items without a title out with their events, `item_id` shows the id, `refuse` stops.
        wording: the domain's words, such as `{noun: book, nouns: books, consumed: read}`.
        options: as every data set, see `InstructionDataModule`.
    """

    words: ClassVar[dict[str, dict[str, str]]] = GENERIC
    provides: ClassVar[tuple[str, ...]] = ("title", "rating", "review", "query", "categories", "profile")  # it may

    def __init__(
        self,
        interactions_file: str = "interactions.csv",
        items_file: str = "items.csv",
        users_file: str | None = None,
        columns: dict[str, str] | None = None,
        item_columns: dict[str, str] | None = None,
        time: str = "seconds",
        list_separator: str = "|",
        untitled: Untitled = "refuse",
        wording: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.words = worded(wording)  # type: ignore[misc]  # one class of many domains
        super().__init__(**options)
        self.names = (interactions_file, items_file, users_file)
        self.columns, self.item_columns, self.time = columns or {}, item_columns or {}, time
        self.list_separator, self.untitled = list_separator, untitled
        for argument, mapping, known in (("columns", self.columns, EVENTS), ("item_columns", self.item_columns, ITEMS)):
            for ours in set(mapping) - set(known):
                raise InputError(f"data.{argument} has the key {ours!r}; the keys are {', '.join(known)}")

    def read(self) -> Interactions:
        """Reads the tables by their formats."""
        events_file, items_file = (
            own_file("tabular", self.data_dir, (name,), "your own records") for name in self.names[:2]
        )
        events = require(read_any(events_file, EVENTS, self.columns), ("user", "item"), events_file)
        if "rating" in events.columns:
            events = finite(events, "rating", events_file, optional=True)
        if "timestamp" in events.columns:
            events = self._timed(events, events_file)
        items = require(read_any(items_file, ITEMS, self.item_columns), ("item",), items_file)
        if "categories" in items.columns:
            items = items.with_columns(pl.col("categories").str.split(self.list_separator))
        files = [events_file, items_file]
        users = None
        if self.names[2] and (path := optional_file("tabular", self.data_dir, (self.names[2],))):
            users = require(read_any(path, ("user",), {}, all_others=True), ("user",), path).drop("line")
            files.append(path)
        options: dict[str, Any] = {"columns": self.columns, "item_columns": self.item_columns, "time": self.time}
        return assemble(events, items, files, untitled=self.untitled, users=users, **options)

    def _timed(self, events: pl.DataFrame, path: Path) -> pl.DataFrame:
        if self.time not in ("seconds", "milliseconds"):
            return moments(events, "timestamp", self.time, path)
        return finite(events, "timestamp", path).with_columns(
            pl.col("timestamp") / (1000 if self.time == "milliseconds" else 1)
        )
