"""What the collections of Amazon reviews have in common: the domain's words, their options, and tables of JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.sources.fetch import optional_file, own_file
from datamodules.tables.cleaning import Untitled, assemble, first_of_each, joined_text, require, without_markup
from datamodules.tables.interactions import Interactions
from datamodules.tables.json_lines import read_json_lines, read_literal_lines

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
    return without_markup(first_of_each(items, ("item",), "items", repairs))


_ADDRESS_2014 = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"


class Amazon2014(AmazonReviews):
    """Amazon reviews 1996-2014, any category: ratings from 1 to 5, review texts, metadata joined.

    Source: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html (`reviews_<category>_5.json.gz`, the 5-core, and
    `meta_<category>.json.gz`). Licence: none stated; research use with citation. Citation: McAuley et al. 2015,
    doi:10.1145/2766462.2767755. Musical_Instruments has 1,429 users, 900 items and 10,261 reviews; nothing is filtered but
    items without title (see `untitled`) and repeated events, which are counted. Times are days, so ties are many.

    One real review of item B0002E1G5C: summary "good".

    Args:
        category: as in the file names, `Musical_Instruments`.
        five_core: the 5-core of the reviews, else all.
        **options: of `AmazonReviews`.
    """

    home: ClassVar[str] = "amazon-2014"

    def __init__(self, category: str = "Musical_Instruments", five_core: bool = True, **options: Any) -> None:
        super().__init__(category, **options)
        self.five_core = five_core

    def read(self) -> Interactions:
        """Reads the reviews and, of the items in them, the metadata."""
        stems = [f"reviews_{self.category}_5", f"{self.category}_5"] if self.five_core else [f"reviews_{self.category}"]
        choices = tuple(stem + end for stem in (*stems, self.category) for end in (".json.gz", ".json", ".zip"))
        reviews = own_file(self.folder, self.data_dir, choices, _ADDRESS_2014)
        text, number = pl.String(), pl.Float64()
        keys = {"reviewerID": ("user", text), "asin": ("item", text), "overall": ("rating", number)}
        keys |= {"unixReviewTime": ("timestamp", number), "reviewText": ("review", text)}
        repairs: dict[str, int] = {}
        events = read_reviews(reviews, keys, repairs)
        meta = (f"meta_{self.category}.json.gz", f"meta_{self.category}.json")
        path = optional_file(self.folder, self.data_dir, meta)
        if path is None and self.untitled != "item_id":
            path = own_file(self.folder, self.data_dir, meta, f"{_ADDRESS_2014} (or set data.untitled=item_id)")
        rows = []
        for line, row in read_literal_lines(path, "asin", set(events["item"])) if path else ():
            categories = [str(name) for names in row.get("categories") or () for name in names]
            told = {"item": str(row["asin"]), "title": joined_text(row.get("title")), "categories": categories}
            rows.append(
                {
                    **told,
                    "description": joined_text(row.get("description")),
                    "brand": joined_text(row.get("brand")),
                    "line": line,
                }
            )
        schema: dict[str, Any] = {
            "item": text,
            "title": text,
            "categories": pl.List(text),
            "description": text,
            "brand": text,
            "line": pl.Int64,
        }
        items = first_of_each(without_markup(pl.DataFrame(rows, schema=schema)), ("item",), "items", repairs)
        files = (reviews, path) if path else (reviews,)
        return assemble(events, items, files, untitled=self.untitled, repairs=repairs)


_ADDRESS_2018 = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"


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
        reviews = own_file(self.folder, self.data_dir, names, _ADDRESS_2018)
        metadata = own_file(
            self.folder,
            self.data_dir,
            tuple(name.format(self.category) for name in ("meta_{}.json.gz", "meta_{}.json")),
            _ADDRESS_2018,
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


_ADDRESS_2023 = "https://amazon-reviews-2023.github.io"


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
        reviews = own_file(self.folder, self.data_dir, names, _ADDRESS_2023)
        metadata = own_file(
            self.folder,
            self.data_dir,
            tuple(name.format(self.category) for name in ("meta_{}.jsonl.gz", "meta_{}.jsonl")),
            _ADDRESS_2023,
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
