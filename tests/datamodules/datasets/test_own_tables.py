"""Tables as people's own tools write them: read as they were meant, or refused with what to do."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from datamodules.contract.errors import InputError
from datamodules.datasets.tabular import Tabular, read_any
from datamodules.protocol.rules import Protocol
from tests.datamodules.options import grouped

LARGE = 1_700_000_000_000_000_001
Write = Callable[[pl.DataFrame, Path], object]
WRITERS: dict[str, Write] = {
    "csv": pl.DataFrame.write_csv,
    "tsv": lambda table, path: table.write_csv(path, separator="\t"),
    "jsonl": pl.DataFrame.write_ndjson,
    "parquet": pl.DataFrame.write_parquet,
}
ALL = Protocol(candidates="full", exclude_seen=False)
every_format = pytest.mark.parametrize("suffix", WRITERS)


def events_of(folder: Path, suffix: str, times: list[int], **options: Any) -> pl.DataFrame:
    events = pl.DataFrame(
        {"user": ["u"] * len(times), "item": [f"i{n}" for n in range(len(times))], "timestamp": times}
    )
    WRITERS[suffix](events, folder / f"events.{suffix}")
    pl.DataFrame({"item": events["item"], "title": events["item"]}).write_csv(folder / "items.csv")
    data = Tabular(data_dir=folder, interactions_file=f"events.{suffix}", items_file="items.csv", **options)
    return data.read().interactions


@every_format
def test_times_that_floating_point_would_merge_are_refused(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        events_of(tmp_path, suffix, [LARGE + 1, LARGE, 5])
    assert f"timestamp {LARGE} and {LARGE + 1} are too large to be told apart" in str(told.value)
    assert "leave the column out" in str(told.value)


@every_format
@pytest.mark.parametrize(
    ("unit", "ticks"), [("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)]
)
def test_times_have_a_unit(suffix: str, unit: str, ticks: int, tmp_path: Path) -> None:
    times = [1_700_000_000 * ticks, 1_700_000_001 * ticks, 1_700_000_001 * ticks]  # ties are no merged neighbours
    read = events_of(tmp_path, suffix, times, time=unit)["timestamp"].to_list()
    assert read == [1_700_000_000.0, 1_700_000_001.0, 1_700_000_001.0]


@every_format
def test_lists_of_texts_are_lists_whatever_wrote_them(suffix: str, tmp_path: Path) -> None:
    lists = [["Video Games", "PC, Mac"], [], ['A "q"']]
    titles = ["[REC]", '["', "Up"]
    path = tmp_path / f"items.{suffix}"
    if suffix in ("csv", "tsv"):  # which has no lists: cells hold what the user joined
        table = pl.DataFrame({"item": ["a", "b", "c"], "title": titles, "categories": ["|".join(x) for x in lists]})
        WRITERS[suffix](table, path)
    else:
        WRITERS[suffix](pl.DataFrame({"item": ["a", "b", "c"], "title": titles, "categories": lists}), path)
    read = read_any(path, ("item", "title", "categories"), {})
    assert [text or "" for text in read["categories"]] == ["Video Games|PC, Mac", "", 'A "q"']
    assert read["title"].to_list() == titles


@every_format
def test_a_column_may_be_called_anything_but_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"users.{suffix}"
    WRITERS[suffix](pl.DataFrame({"user": ["u"], "last": ["l"], "first": ["f"], "0": ["zero"]}), path)
    known = ("user", "last", "first", "0") if suffix == "jsonl" else ("user",)  # its lines need not have the same keys
    read = read_any(path, known, {}, all_others=True)
    assert read.select("user", "last", "first", "0").rows() == [("u", "l", "f", "zero")]
    WRITERS[suffix](pl.DataFrame({"user": ["u"], "line": ["ours"]}), path)
    with pytest.raises(InputError, match="column 'line' has the name of a row's place"):
        read_any(path, ("user", "line") if suffix == "jsonl" else ("user",), {}, all_others=True)


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_pythons_own_writer_writes_is_read(quoting: Any, tmp_path: Path) -> None:
    rows = [["u", 'say "hi"'], ["v", "a, b"], ["w", "two\nlines"]]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file, quoting=quoting).writerows([["user", "item"], *rows])
    assert [list(row[:2]) for row in read_any(tmp_path / "a.csv", ("user", "item"), {}).rows()] == rows
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(dict(zip(["user", "item"], row, strict=True))) + "\n" for row in rows)
    )
    assert [list(row[:2]) for row in read_any(tmp_path / "a.jsonl", ("user", "item"), {}).rows()] == rows


def test_ratings_off_the_scale_are_no_answers(tiny_causal: Path, tmp_path: Path) -> None:
    rated = pl.DataFrame(
        {"user": ["u"] * 4, "item": ["a", "b", "c", "d"], "rating": [5, 4, 8, -1], "timestamp": range(4)}
    )
    rated.write_csv(tmp_path / "interactions.csv")
    pl.DataFrame({"item": ["a", "b", "c", "d"], "title": ["A", "B", "C", "D"]}).write_csv(tmp_path / "items.csv")
    data = Tabular(data_dir=tmp_path, backbone=str(tiny_causal), protocol=ALL, **grouped(task="rating"))
    with pytest.raises(
        InputError, match="task 'rating' answers 1 to 5, and 2 of the data's ratings are beyond, the first 8"
    ):
        data.setup()
    rated.with_columns(rating=pl.Series([5.0, 4.0, 0.5, 1.0])).write_csv(tmp_path / "interactions.csv")
    Tabular(data_dir=tmp_path, backbone=str(tiny_causal), protocol=ALL, **grouped(task="rating")).setup()
