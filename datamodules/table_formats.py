"""Tables of any usual format as text columns under our names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from datamodules.object_lines import read_json_lines
from datamodules.raw_tables import header_of, read_delimited
from datamodules.sources import InputError

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
        for name in wanted:
            if name not in (there or ()):
                raise InputError(f"{path}: column {name!r} is missing; there are {', '.join(there or ())[:300]}")
        return _as_text(
            _parquet(path).select(pl.col(name).alias(ours) for name, ours in wanted.items()).collect(), path
        )
    table = read_json_lines(path, {name: (ours, pl.String()) for name, ours in wanted.items()})
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
