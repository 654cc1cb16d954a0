"""The MovieLens data sets that come as CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.cleaning import assemble, require
from datamodules.interactions import Interactions
from datamodules.movielens import MovieLens100K, movie_titles
from datamodules.raw_tables import finite, read_delimited
from datamodules.sources import UrlFile, locate

Edition = Literal["ml-latest-small", "ml-20m", "ml-25m", "ml-32m"]
_SHA256: dict[Edition, str] = {
    "ml-latest-small": "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
    "ml-20m": "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
    "ml-25m": "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
    "ml-32m": "e4a68655d7386b8f95f2f2424b2ff975dfdd15ffd59e0d864a14dca43e99d6ee",
}


class MovieLensCSV(InstructionDataModule):
    """MovieLens latest-small, 20M, 25M and 32M: half-star ratings, titles with year, genres, free tags.

    Source: GroupLens (https://grouplens.org/datasets/movielens/), fetched and compared with its sum; latest-small
    changes over the years: that of October 2016 has 671 users, 9,066 rated of 9,125 movies and 100,004 ratings, that of
    2018 has 610, 9,724 and 100,836; 25M has 162,541, 59,047 and 25,000,095. Licence: GroupLens terms: research use,
    acknowledge, no commercial use; redistribution under the same terms. Citation: Harper and Konstan 2015,
    doi:10.1145/2827872. Movies without a rating are left out, and counted; a tag becomes the `query` of the same user's
    rating of that movie.

    One real movie of latest-small: "Toy Story", 1995, Adventure, Animation, Children, Comedy, Fantasy.

    Args:
        edition: which of them; `INSTRUCTREC_DATA` is looked into for a folder of that name.
        options: as every data set, see `InstructionDataModule`.
    """

    words: ClassVar[dict[str, dict[str, str]]] = MovieLens100K.words
    provides: ClassVar[tuple[str, ...]] = ("title", "rating", "categories", "query")

    def __init__(self, edition: Edition = "ml-latest-small", **options: Any) -> None:
        super().__init__(**options)
        self.edition = edition

    @property
    def description(self) -> dict[str, str]:
        """Names the edition too."""
        return {**super().description, "dataset": f"{type(self).__name__} {self.edition}"}

    def read(self) -> Interactions:
        """Reads ratings.csv, movies.csv and, where it is there, tags.csv."""
        folder = self.data_dir or locate(self.edition, self._source(), ("ratings.csv", "movies.csv"))
        ratings, movies, tags = (folder / f"{name}.csv" for name in ("ratings", "movies", "tags"))
        events = read_delimited(
            ratings, {"userId": "user", "movieId": "item", "rating": "rating", "timestamp": "timestamp"}
        )
        for column in ("rating", "timestamp"):
            events = finite(events, column, ratings)
        events = require(events, ("user", "item"), ratings)
        items = read_delimited(movies, {"movieId": "item", "title": "title", "genres": "genres"}, quoted=True)
        items = movie_titles(require(items, ("item",), movies))
        files = [ratings, movies]
        if tags.is_file():
            events = _with_tags(events, tags)
            files.append(tags)
        return assemble(events, items, files)

    def _source(self) -> UrlFile:
        name = self.edition
        members = (f"{name}/ratings.csv", f"{name}/movies.csv", f"{name}/tags.csv")
        return UrlFile(f"https://files.grouplens.org/datasets/movielens/{name}.zip", _SHA256[name], members)


def _with_tags(events: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Adds `query`: the user's own tags of the movie, in file order."""
    table = read_delimited(path, {"userId": "user", "movieId": "item", "tag": "query"}, quoted=True)
    words = table.drop_nulls().group_by("user", "item").agg(pl.col("query").str.join(", "))
    return events.join(words, on=["user", "item"], how="left", maintain_order="left")
