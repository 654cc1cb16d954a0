"""Amazon reviews, the collection of 2023."""

from __future__ import annotations

from typing import Any, ClassVar

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.cleaning import Untitled, assemble, first_of_each, require, without_entities
from datamodules.interactions import Interactions
from datamodules.object_lines import read_json_lines
from datamodules.own_files import own_file

_ADDRESS = "https://amazon-reviews-2023.github.io"


class Amazon2023(InstructionDataModule):
    """Amazon reviews 1996-2023, any category: ratings from 1 to 5, review texts, metadata joined.

    Source: https://amazon-reviews-2023.github.io (`<category>.jsonl.gz` and `meta_<category>.jsonl.gz`). Licence: none
    stated; research use with citation. Citation: Hou et al. 2024, arXiv 2403.03952. An item is a `parent_asin`, which the
    variants of a product share. Times are milliseconds. Repeated events are left out, and counted. Counts before any
    filter, as published for Video_Games: 2.8M users, 137.2K items, 4.6M ratings.

    One real item has the categories "Video Games", "PC", "Games". (Counts and example as published:
    the real files have not been read here.)

    Args:
        category: as in the file names, `Video_Games`.
        untitled: `drop` leaves items without a title out with their events, `item_id` shows the id, `refuse` stops.
        folder: below `INSTRUCTREC_DATA`.
        options: as every data set, see `InstructionDataModule`.
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "product", "nouns": "products", "consumed": "bought"},
        "zh": {"noun": "商品", "nouns": "商品", "consumed": "买过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title", "rating", "review", "categories")

    def __init__(
        self, category: str = "Video_Games", untitled: Untitled = "drop", folder: str = "amazon-2023", **options: Any
    ) -> None:
        super().__init__(**options)
        self.category, self.untitled, self.folder = category, untitled, folder

    @property
    def description(self) -> dict[str, str]:
        """Names the category too."""
        return {**super().description, "dataset": f"{type(self).__name__} {self.category}"}

    def read(self) -> Interactions:
        """Reads the reviews and, of the items in them, the metadata."""
        names = tuple(name.format(self.category) for name in ("{}.jsonl.gz", "{}.jsonl"))
        reviews = own_file(self.folder, self.data_dir, names, _ADDRESS)
        metadata = own_file(
            self.folder,
            self.data_dir,
            tuple(name.format(self.category) for name in ("meta_{}.jsonl.gz", "meta_{}.jsonl")),
            _ADDRESS,
        )
        text, number, texts = pl.String(), pl.Float64(), pl.List(pl.String)
        keys: dict[str, tuple[str, pl.DataType]] = {
            "user_id": ("user", text),
            "parent_asin": ("item", text),
            "rating": ("rating", number),
        }
        keys |= {"timestamp": ("timestamp", number), "text": ("review", text)}
        events = require(read_json_lines(reviews, keys), ("user", "item"), reviews)
        repairs: dict[str, int] = {}
        events = first_of_each(events, ("user", "item", "timestamp"), "events", repairs)
        keys = {"parent_asin": ("item", text), "title": ("title", text), "store": ("brand", text)}
        keys |= {"categories": ("categories", texts), "description": ("description", texts)}
        items = read_json_lines(metadata, keys)
        items = items.filter(pl.col("item").is_in(events["item"].unique().implode()))
        items = first_of_each(items.with_columns(pl.col("description").list.join(" ")), ("item",), "items", repairs)
        items = without_entities(items)
        events = events.with_columns(pl.col("timestamp") / 1000)
        return assemble(events, items, (reviews, metadata), untitled=self.untitled, repairs=repairs)
