"""MIND: news, with the lists of articles that were shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.contract.errors import InputError
from datamodules.sources.fetch import own_file
from datamodules.tables.cleaning import assemble, first_of_each, require
from datamodules.tables.delimited import moments, read_delimited
from datamodules.tables.interactions import Interactions


def clicks(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """One event for every click, with all that was shown as `candidates`.

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


_ADDRESS = "https://msnews.github.io"
_NEWS = ("item", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
_SHOWN = ("impression", "user", "timestamp", "history", "shown")


class MIND(InstructionDataModule):
    """Microsoft News: clicks on articles, each among the articles of its impression (six weeks of 2019).

    Source: https://msnews.github.io (MINDsmall_train.zip and MINDsmall_dev.zip, unpacked into folders of those names below
    `mind`; `large` alike). Licence: Microsoft Research licence, no commercial use. Citation: Wu et al. 2020,
    doi:10.18653/v1/2020.acl-main.331. MINDsmall has 50,000 users with 156,965 training and 73,152 dev impressions of 65,238
    articles. Every click of an impression is an event with the impression's articles as `candidates`; those of dev are the
    published `test`. The clicks before a user's first impression have no times: they are set one second apart, in
    their order, right before it. Tokenised titles are left as they are.

    One real article: category "lifestyle", "The Brands Queen Elizabeth, Prince Charles, and Prince Philip Swear By". (Counts and example as published:
    the real files have not been read here.)

    Args:
        size: `small` or `large`.
        options: as every data set, see `InstructionDataModule`.
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "article", "nouns": "articles", "consumed": "read"},
        "zh": {"noun": "新闻", "nouns": "新闻", "consumed": "读过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title", "categories")

    def __init__(self, size: Literal["small", "large"] = "small", **options: Any) -> None:
        super().__init__(**options)
        self.size = size

    @property
    def description(self) -> dict[str, str]:
        """Names the size too."""
        return {**super().description, "dataset": f"{type(self).__name__} {self.size}"}

    def read(self) -> Interactions:
        """Reads impressions and articles of both parts."""
        impressions, articles, behaviours, news = [], [], [], []
        for part, split in (("train", "train"), ("dev", "test")):
            folder = f"MIND{self.size}_{part}"
            path = own_file("mind", self.data_dir, (f"{folder}/behaviors.tsv",), _ADDRESS)
            table = read_delimited(path, {name: name for name in _SHOWN}, separator="\t", names=_SHOWN)
            table = moments(require(table, ("user", "shown"), path), "timestamp", "%m/%d/%Y %I:%M:%S %p", path)
            impressions.append(clicks(table.with_columns(split=pl.lit(split)), path))
            behaviours.append(table)
            listed = own_file("mind", self.data_dir, (f"{folder}/news.tsv",), _ADDRESS)
            columns = {"item": "item", "title": "title", "abstract": "description", "category": "categories"}
            articles.append(require(read_delimited(listed, columns, separator="\t", names=_NEWS), ("item",), listed))
            news += [path, listed]
        repairs: dict[str, int] = {}
        items = pl.concat(articles).unique("item", keep="first", maintain_order=True)
        items = items.with_columns(pl.concat_list("categories"))
        past = first_histories(pl.concat(behaviours))
        events = pl.concat([past, *impressions], how="diagonal")
        events = first_of_each(events, ("user", "item", "timestamp"), "events", repairs)
        return assemble(events, items, news, repairs=repairs, untitled="drop")
