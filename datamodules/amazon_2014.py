"""Amazon reviews, the collection of 2014."""

from __future__ import annotations

from typing import Any, ClassVar

import polars as pl

from datamodules.amazon import AmazonReviews, read_reviews
from datamodules.cleaning import assemble, first_of_each, joined_text, without_entities
from datamodules.interactions import Interactions
from datamodules.object_lines import read_literal_lines
from datamodules.own_files import optional_file, own_file

_ADDRESS = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"


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
        reviews = own_file(self.folder, self.data_dir, choices, _ADDRESS)
        text, number = pl.String(), pl.Float64()
        keys = {"reviewerID": ("user", text), "asin": ("item", text), "overall": ("rating", number)}
        keys |= {"unixReviewTime": ("timestamp", number), "reviewText": ("review", text)}
        repairs: dict[str, int] = {}
        events = read_reviews(reviews, keys, repairs)
        meta = (f"meta_{self.category}.json.gz", f"meta_{self.category}.json")
        path = optional_file(self.folder, self.data_dir, meta)
        if path is None and self.untitled != "item_id":
            path = own_file(self.folder, self.data_dir, meta, f"{_ADDRESS} (or set data.untitled=item_id)")
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
        items = first_of_each(without_entities(pl.DataFrame(rows, schema=schema)), ("item",), "items", repairs)
        files = (reviews, path) if path else (reviews,)
        return assemble(events, items, files, untitled=self.untitled, repairs=repairs)
