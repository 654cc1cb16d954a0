"""Amazon reviews, the collection of 2023."""

from __future__ import annotations

from typing import ClassVar

import polars as pl

from datamodules.amazon import AmazonReviews, read_metadata, read_reviews
from datamodules.cleaning import assemble
from datamodules.interactions import Interactions
from datamodules.own_files import own_file

_ADDRESS = "https://amazon-reviews-2023.github.io"


class Amazon2023(AmazonReviews):
    """Amazon reviews 1996-2023, any category: ratings from 1 to 5, review texts, metadata joined.

    Source: https://amazon-reviews-2023.github.io (`<category>.jsonl.gz` and `meta_<category>.jsonl.gz`). Licence: none
    stated; research use with citation. Citation: Hou et al. 2024, arXiv 2403.03952. An item is a `parent_asin`, which the
    variants of a product share. Times are milliseconds. Repeated events are left out, and counted. Counts before any
    filter, as published for Video_Games: 2.8M users, 137.2K items, 4.6M ratings.

    One real item has the categories "Video Games", "PC", "Games". (Counts and example as published:
    the real files have not been read here.)
    """

    home: ClassVar[str] = "amazon-2023"

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
        repairs: dict[str, int] = {}
        events = read_reviews(reviews, keys, repairs)
        keys = {"parent_asin": ("item", text), "title": ("title", text), "store": ("brand", text)}
        keys |= {"categories": ("categories", texts), "description": ("description", texts)}
        items = read_metadata(metadata, keys, events, repairs)
        events = events.with_columns(pl.col("timestamp") / 1000)
        return assemble(events, items, (reviews, metadata), untitled=self.untitled, repairs=repairs)
