"""MovieLens 1M."""

from __future__ import annotations

from typing import ClassVar

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.cleaning import assemble
from datamodules.interactions import Interactions
from datamodules.movielens import MovieLens100K, movie_titles
from datamodules.raw_tables import finite, read_delimited
from datamodules.sources import UrlFile, locate

_AGES = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "over 55"}


class MovieLens1M(InstructionDataModule):
    """MovieLens 1M: 6,040 users with profiles, 3,706 rated of 3,883 movies, 1,000,209 ratings from 1 to 5 (2000-03).

    Source: GroupLens (https://grouplens.org/datasets/movielens/1m/), fetched and compared with its sum. Licence:
    GroupLens terms: research use, acknowledge, no commercial use, no redistribution. Citation: Harper and Konstan 2015,
    doi:10.1145/2827872. Movies without a rating are left out, and counted. The files are Latin-1 with `::` between fields.

    One real movie: "One Flew Over the Cuckoo's Nest", 1975, Drama. (Counts and example as published:
    the real files have not been read here.)
    """

    words: ClassVar[dict[str, dict[str, str]]] = MovieLens100K.words
    source: ClassVar[UrlFile] = UrlFile(
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        ("ml-1m/ratings.dat", "ml-1m/movies.dat", "ml-1m/users.dat"),
    )
    provides: ClassVar[tuple[str, ...]] = ("title", "rating", "categories", "profile")

    def read(self) -> Interactions:
        """Reads ratings.dat, movies.dat and users.dat."""
        names = ("ratings.dat", "movies.dat", "users.dat")
        folder = self.data_dir or locate("ml-1m", self.source, names)
        ratings, movies, people = (folder / name for name in names)

        def columns(*wanted: str) -> dict[str, str]:
            return {name: name for name in wanted}

        fields: tuple[str, ...] = ("user", "item", "rating", "timestamp")
        events = read_delimited(ratings, columns(*fields), separator="::", names=fields, encoding="latin-1")
        for column in ("rating", "timestamp"):
            events = finite(events, column, ratings)
        fields = ("item", "title", "genres")
        items = read_delimited(movies, columns(*fields), separator="::", names=fields, encoding="latin-1")
        fields = ("user", "gender", "age", "occupation", "zip_code")
        users = read_delimited(people, columns(*fields[:4]), separator="::", names=fields, encoding="latin-1")
        users = users.drop("line").with_columns(
            pl.col("age").replace(_AGES), pl.col("gender").replace({"F": "female", "M": "male"})
        )
        return assemble(events, movie_titles(items), (ratings, movies, people), users=users)
