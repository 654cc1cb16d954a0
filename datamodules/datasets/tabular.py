"""A user's own tables: CSV, TSV, Parquet or JSON lines, with a mapping of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.contract.errors import InputError
from datamodules.sources.fetch import optional_file, own_file
from datamodules.tables.cleaning import Untitled, assemble, require
from datamodules.tables.delimited import finite, header_of, moments, read_delimited, refuse_line
from datamodules.tables.interactions import Interactions
from datamodules.tables.json_lines import read_json_lines

EVENTS = ("user", "item", "rating", "timestamp", "review", "query", "split")
ITEMS = ("item", "title", "categories", "description", "brand", "year")
_NEEDED = {EVENTS: ("user", "item"), ITEMS: ("item", "title")}


def read_any(path: Path, known: Sequence[str], mapping: Mapping[str, str], all_others: bool = False) -> pl.DataFrame:
    r"""Reads a table by the end of its name.

    Args:
        path: a `.csv`, `.tsv`, `.jsonl` or `.ndjson`, also with `.gz`, or a `.parquet`.
        known: our names of the columns; the first must be there, and `title` of items.
        mapping: our names and the file's, where they differ; what it names must be there.
        all_others: take all other columns too, under their own names.

    Returns:
        The columns as String and `line`, which in a Parquet file counts the rows from 1.

    Raises:
        InputError: the format is another, the file is malformed, or a column is missing.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "events.csv"
    >>> _ = path.write_text("user,sku\nu,7\n")
    >>> read_any(path, EVENTS, {"item": "sku"}).rows()
    [('u', '7', 2)]
    """
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if suffix not in ("csv", "tsv", "jsonl", "ndjson", "parquet"):
        raise InputError(f"{path}: the formats are .csv, .tsv, .jsonl, .ndjson and .parquet")
    separator = "\t" if suffix == "tsv" else ","
    there: list[str] | None
    if suffix == "parquet":
        there = list(_parquet(path).collect_schema())
    else:
        there = header_of(path, path, separator, quoted=True) if suffix in ("csv", "tsv") else None
    needed = (*_NEEDED.get(tuple(known), tuple(known)), *mapping)
    wanted = {mapping.get(ours, ours): ours for ours in known if there is None or ours in needed or ours in there}
    if all_others and there is not None:
        wanted |= {name: name for name in there if name and name not in wanted}
    if suffix in ("csv", "tsv"):
        return read_delimited(path, wanted, separator=separator, quoted=True)
    if suffix == "parquet":
        refuse_line(wanted.values(), path)
        for name in wanted:
            if name not in (there or ()):
                raise InputError(f"{path}: column {name!r} is missing; there are {', '.join(there or ())[:300]}")
        return _as_text(
            _parquet(path).select(pl.col(name).alias(ours) for name, ours in wanted.items()).collect(), path
        )
    refuse_line(wanted.values(), path)
    table = read_json_lines(path, {name: (ours, pl.String()) for name, ours in wanted.items()})
    table = table.with_columns(_joined(pl.col(ours)) for ours in wanted.values())
    # A key that no line has is a column that is not there.
    absent = [ours for ours in wanted.values() if ours not in needed and table[ours].null_count() == len(table)]
    return table.drop(absent)


def _parquet(path: Path) -> pl.LazyFrame:
    try:
        table = pl.scan_parquet(path, glob=False)
        table.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return table


def _joined(text: pl.Expr) -> pl.Expr:
    """Lists of texts, as JSON writes them, joined by bars; other text as it is."""
    is_list = text.str.contains(r'(?s)^\[\s*"(?:[^"\\]|\\.)*"(?:\s*,\s*"(?:[^"\\]|\\.)*")*\s*\]$|^\[\s*\]$')
    lists = pl.when(is_list).then(text).str.json_decode(pl.List(pl.String)).list.join("|")
    return pl.when(is_list).then(lists.replace("", None)).otherwise(text).alias(text.meta.output_name())


def _as_text(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Numbers as they are written, points in time as seconds, lists joined by bars."""
    columns = []
    for name, dtype in table.schema.items():
        column = pl.col(name)
        if dtype.is_nested() and dtype != pl.List(pl.String):
            raise InputError(f"{path}: column {name!r} is {dtype}, neither text, number nor time")
        if dtype == pl.List(pl.String):
            column = column.list.join("|")
        elif dtype.is_temporal():
            column = column.cast(pl.Datetime("ms")).dt.timestamp("ms") / 1000
        columns.append(column.cast(pl.String))
    return table.select(columns).with_columns(line=pl.int_range(pl.len(), dtype=pl.Int64) + 1)


TICKS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
"""Of a second, in whose number times are written."""

GENERIC: dict[str, dict[str, str]] = {
    "en": {"noun": "item", "nouns": "items", "consumed": "chose"},
    "zh": {"noun": "物品", "nouns": "物品", "consumed": "选择过"},
}


def worded(wording: Mapping[str, str] | None) -> dict[str, dict[str, str]]:
    """The generic words by language, with the user's own in place of them.

    Raises:
        InputError: it has another key.

    >>> worded({"nouns": "games"})["en"]
    {'noun': 'item', 'nouns': 'games', 'consumed': 'chose'}
    """
    own = dict(wording or {})
    for key in own:
        if key not in GENERIC["en"]:
            raise InputError(f"data.wording has the key {key!r}; the keys are {', '.join(GENERIC['en'])}")
    return {language: {**words, **own} for language, words in GENERIC.items()}


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
        time: `seconds`, `milliseconds`, `microseconds` or `nanoseconds` since 1970, or the pattern of written dates,
            `%Y-%m-%d %H:%M:%S`; without timestamps the file's order is the order in time.
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
        if self.time not in TICKS:
            return moments(events, "timestamp", self.time, path)
        return finite(events, "timestamp", path).with_columns(pl.col("timestamp") / TICKS[self.time])
