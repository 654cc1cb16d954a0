"""Amazon reviews, the collection of 2018."""

from __future__ import annotations

from typing import ClassVar

import polars as pl

from datamodules.amazon import AmazonReviews, read_metadata, read_reviews
from datamodules.cleaning import assemble
from datamodules.interactions import Interactions
from datamodules.own_files import own_file

_ADDRESS = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"


class Amazon2018(AmazonReviews):
    """Amazon reviews 1996-2018, any category: ratings from 1 to 5, review texts, metadata joined.

    Source: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/ (`<category>_5.json.gz`, the 5-core, else
    `<category>.json.gz`, and `meta_<category>.json.gz`). Licence: none stated; research use with citation. Citation: Ni et
    al. 2019, doi:10.18653/v1/D19-1018. Repeated reviews and metadata are left out, and counted; a title that is a piece
    of the shop's script counts as none. Times are days, so ties are many. InstructRec's and LLMRank's Games (50,546 users,
    16,859 items) come from it; `RecBoleFiles` reads their own files.

    One real item: "Fire Emblem: The Sacred Stones". (Counts and example as published:
    the real files have not been read here.)
    """

    home: ClassVar[str] = "amazon-2018"

    def read(self) -> Interactions:
        """Reads the reviews and, of the items in them, the metadata."""
        names = tuple(name.format(self.category) for name in ("{}_5.json.gz", "{}_5.json", "{}.json.gz", "{}.json"))
        reviews = own_file(self.folder, self.data_dir, names, _ADDRESS)
        metadata = own_file(
            self.folder,
            self.data_dir,
            tuple(name.format(self.category) for name in ("meta_{}.json.gz", "meta_{}.json")),
            _ADDRESS,
        )
        text, number, texts = pl.String(), pl.Float64(), pl.List(pl.String)
        keys: dict[str, tuple[str, pl.DataType]] = {
            "reviewerID": ("user", text),
            "asin": ("item", text),
            "overall": ("rating", number),
        }
        keys |= {"unixReviewTime": ("timestamp", number), "reviewText": ("review", text)}
        repairs: dict[str, int] = {}
        events = read_reviews(reviews, keys, repairs)
        keys = {"asin": ("item", text), "title": ("title", text), "brand": ("brand", text)}
        keys |= {"category": ("categories", texts), "description": ("description", texts)}
        items = read_metadata(metadata, keys, events, repairs)
        scraped = pl.col("title").str.contains("getTime", literal=True)
        items = items.with_columns(title=pl.when(scraped).then(None).otherwise(pl.col("title")))
        return assemble(events, items, (reviews, metadata), untitled=self.untitled, repairs=repairs)
