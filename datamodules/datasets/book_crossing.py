"""Book-Crossing."""

from __future__ import annotations

from typing import ClassVar

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.sources.fetch import own_file
from datamodules.tables.cleaning import assemble, first_of_each, require, without_markup
from datamodules.tables.delimited import finite, read_delimited
from datamodules.tables.interactions import Interactions

_ADDRESS = "http://www2.informatik.uni-freiburg.de/~cziegler/BX/"


class BookCrossing(InstructionDataModule):
    """Book-Crossing: 278,858 readers, 271,379 books, 1,149,780 ratings from 1 to 10 or implicit (2004).

    Source: http://www2.informatik.uni-freiburg.de/~cziegler/BX/ (BX-CSV-Dump.zip: BX-Book-Ratings.csv, BX-Books.csv,
    BX-Users.csv), put into the folder `book-crossing` by hand. Licence: none stated; research use with citation. Citation:
    Ziegler et al. 2005, doi:10.1145/1060745.1060754. The files are Latin-1 with semicolons. A rating of 0 means that the
    reader has the book, and is read as no rating. Ratings of books that are not in the catalogue, rows of books with a
    field missing and repeated ids are left out. All of it is counted. There are no timestamps: the file's order is
    taken as the order in time, which nobody claims it is.

    One real book: "Classical Mythology", Mark P. O. Morford, 2002. (Counts and example as published:
    the real files have not been read here.)
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "book", "nouns": "books", "consumed": "read"},
        "zh": {"noun": "书", "nouns": "书", "consumed": "读过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title", "rating", "profile")

    def read(self) -> Interactions:
        """Reads ratings, books and readers."""
        ratings, books, readers = (
            own_file("book-crossing", self.data_dir, (f"BX-{name}.csv",), _ADDRESS)
            for name in ("Book-Ratings", "Books", "Users")
        )
        repairs: dict[str, int] = {}
        columns = {"User-ID": "user", "ISBN": "item", "Book-Rating": "rating"}
        events = read_delimited(ratings, columns, separator=";", quoted=True, encoding="latin-1")
        events = finite(require(events, ("user", "item"), ratings), "rating", ratings)
        repairs["ratings of 0 read as no rating"] = int((events["rating"] == 0).sum())
        events = events.with_columns(rating=pl.when(pl.col("rating") != 0).then(pl.col("rating")))
        events = first_of_each(events, ("user", "item"), "events", repairs)
        columns = {"ISBN": "item", "Book-Title": "title", "Book-Author": "brand", "Year-Of-Publication": "year"}
        items = read_delimited(
            books,
            {**columns, "Image-URL-L": "last_field"},
            separator=";",
            quoted=True,
            encoding="latin-1",
            short_rows=True,
        )
        repairs["books with a field missing left out"] = items["last_field"].null_count()
        items = items.drop_nulls("last_field").drop("last_field")
        items = first_of_each(without_markup(items), ("item",), "items", repairs)
        columns = {"User-ID": "user", "Location": "location", "Age": "age"}
        users = read_delimited(readers, columns, separator=";", quoted=True, encoding="latin-1", short_rows=True)
        users = first_of_each(users.drop_nulls("user"), ("user",), "users", repairs)
        users = users.select("user", "location", pl.col("age").replace("NULL", None))
        return assemble(events, items, (ratings, books, readers), untitled="drop", repairs=repairs, users=users)
