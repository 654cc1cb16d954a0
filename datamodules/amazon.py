"""What the collections of Amazon reviews have in common: the domain's words, their options, and tables of JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.cleaning import Untitled, first_of_each, require, without_entities
from datamodules.object_lines import read_json_lines

Keys = Mapping[str, tuple[str, pl.DataType]]
"""From a key of the JSON objects to the column's name and type."""


class AmazonReviews(InstructionDataModule):
    """Amazon reviews of one category.

    Args:
        category: as in the file names, such as `Video_Games`.
        untitled: `drop` leaves items without a title out with their events, `item_id` shows the id, `refuse` stops.
        folder: below `INSTRUCTREC_DATA`; null is the collection's own, such as `amazon-2018`.
        **options: as every data set, see `InstructionDataModule`.
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "product", "nouns": "products", "consumed": "bought"},
        "zh": {"noun": "商品", "nouns": "商品", "consumed": "买过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title", "rating", "review", "categories")
    home: ClassVar[str]
    """Folder of the collection."""

    def __init__(
        self,
        category: str = "Video_Games",
        untitled: Untitled = "drop",
        folder: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.category, self.untitled, self.folder = category, untitled, folder or self.home

    @property
    def description(self) -> dict[str, str]:
        """Names the category too."""
        return {**super().description, "dataset": f"{type(self).__name__} {self.category}"}


def read_reviews(path: Path, keys: Keys, repairs: dict[str, int]) -> pl.DataFrame:
    """Events with a user and an item, each once; what is repeated is counted in `repairs`."""
    events = require(read_json_lines(path, dict(keys)), ("user", "item"), path)
    return first_of_each(events, ("user", "item", "timestamp"), "events", repairs)


def read_metadata(path: Path, keys: Keys, events: pl.DataFrame, repairs: dict[str, int]) -> pl.DataFrame:
    """The items of the events, each once, as plain text; what is repeated is counted in `repairs`."""
    items = read_json_lines(path, dict(keys)).filter(pl.col("item").is_in(events["item"].unique().implode()))
    items = items.with_columns(pl.col("description").list.join(" "))
    return without_entities(first_of_each(items, ("item",), "items", repairs))
