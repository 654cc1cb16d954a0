"""The typed tables that every data set is read into, and their validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from datamodules.sources import InputError

INTERACTION_COLUMNS = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "timestamp": pl.Float64}
ITEM_COLUMNS = {"item": pl.String, "title": pl.String}


@dataclass(frozen=True)
class Interactions:
    """A data set as typed columns.

    Attributes:
        interactions: one row per event in file order: `user`, `item`, `rating` (null where the data has none),
            `timestamp` (seconds, any origin; a number, never a string).
        items: one row per item: `item`, `title`, further columns as the data has them.
        checksum: sha256 over the raw files, part of the protocol fingerprint.
        files: the raw files it was read from: the events' and the items', where each has one header line and then one
            line for each row of its table, so that messages can name the line.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    checksum: str
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Refuses tables that cannot be ranked on.

        Raises:
            InputError: a column is missing or of the wrong type, an id repeats, a title is empty, an event names
                an unknown item, or a timestamp is missing.
        """
        events, items = map(str, self.files) if len(self.files) == 2 else ("interactions", "items")
        _require_columns(self.interactions, INTERACTION_COLUMNS, f"{events}:1")
        _require_columns(self.items, ITEM_COLUMNS, f"{items}:1")
        if self.interactions.is_empty():
            raise InputError(f"{events}:1: there are no interactions")
        row = _first(self.items["item"].is_duplicated())
        if row is not None:
            raise InputError(f"{items}:{row + 2}: item id {self.items['item'][row]!r} stands more than once")
        title = self.items["title"]
        row = _first(title.is_null() | (title.str.strip_chars() == ""))
        if row is not None:
            raise InputError(f"{items}:{row + 2}: item {self.items['item'][row]!r} has no title")
        row = _first(~self.interactions["item"].is_in(self.items["item"].implode()).fill_null(False))
        if row is not None:
            raise InputError(f"{events}:{row + 2}: item {self.interactions['item'][row]!r} is not in {items}")
        timestamp = self.interactions["timestamp"]
        row = _first(timestamp.is_null() | timestamp.is_nan())
        if row is not None:
            raise InputError(f"{events}:{row + 2}: user {self.interactions['user'][row]!r} has no timestamp here")


def _first(wrong: pl.Series) -> int | None:
    rows = wrong.arg_true()
    return int(rows[0]) if len(rows) else None


def _require_columns(table: pl.DataFrame, columns: Mapping[str, type[pl.DataType]], what: str) -> None:
    for name, dtype in columns.items():
        if name not in table.columns:
            raise InputError(f"{what}: column {name!r} is missing; there are {', '.join(table.columns)}")
        if table.schema[name] != dtype:
            raise InputError(f"{what}: column {name!r} is {table.schema[name]}, must be {dtype}")


def read_atomic_file(path: Path, columns: dict[str, str]) -> pl.DataFrame:
    r"""Reads a RecBole atomic file: tab-separated, with a header of `name:type` fields.

    Args:
        path: the file, UTF-8 (a byte order mark and CRLF line ends are accepted).
        columns: which fields to keep and what to call them, `{"user_id": "user"}`.

    Returns:
        The columns in the given order; `float` fields as Float64, everything else as String.

    Raises:
        InputError: the file is not there or not UTF-8, a field is missing, or a row is malformed (named by line).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.inter"
        >>> _ = path.write_text("user_id:token\trating:float\n7\t4.5\n")
        >>> read_atomic_file(path, {"user_id": "user", "rating": "rating"}).rows()
        [('7', 4.5)]
    """
    lines = _read_lines(path)
    header = lines[0].split("\t")
    fields = [field.split(":")[0] for field in header]
    types = {field.split(":")[0]: field.split(":")[-1] for field in header}
    for field in columns:
        if field not in fields:
            raise InputError(f"{path}:1: column {field!r} is missing; there are {', '.join(fields)}")
    rows = [line.split("\t") for line in lines[1:]]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(fields):
            raise InputError(f"{path}:{number}: {len(row)} fields, the header has {len(fields)}")
    series = []
    for field, name in columns.items():
        place = fields.index(field)
        text = pl.Series(name, [row[place] for row in rows], dtype=pl.String)
        series.append(_to_float(text, path) if types[field] == "float" else text)
    return pl.DataFrame(series)


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8") from error
    # Only \n and \r\n end a line: a title may hold other separators that str.splitlines would break at.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and lines[-1] == "":
        lines.pop()
    if not lines:
        raise InputError(f"{path}: the file is empty")
    return lines


def _to_float(text: pl.Series, path: Path) -> pl.Series:
    value = text.cast(pl.Float64, strict=False)
    bad = (value.is_null() | value.is_nan() | value.is_infinite()).arg_true()
    if len(bad):
        raise InputError(f"{path}:{int(bad[0]) + 2}: {text.name} is {text[int(bad[0])]!r}, not a finite number")
    return value
