"""MovieLens data sets."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.sources.fetch import locate
from datamodules.sources.kinds import PackageArchive, UrlFile
from datamodules.tables.cleaning import assemble, require
from datamodules.tables.delimited import finite, read_atomic_file, read_delimited
from datamodules.tables.interactions import Interactions

_ARTICLE = re.compile(r"^(.*), (The|A|An|Le|La|Les|Il|El|Los|Das|Der|Die|L')$")


def movie_titles(items: pl.DataFrame) -> pl.DataFrame:
    """Takes "Godfather, The (1972)" with genres "Crime|Drama" apart into `title`, `year` and `categories`.

    >>> movie_titles(pl.DataFrame({"title": ["Godfather, The (1972)"], "genres": ["Crime|Drama"]})).rows()
    [('The Godfather', '1972', ['Crime', 'Drama'])]
    """
    parts = pl.col("title").str.extract_groups(r"(?s)^\s*(?P<name>.*?)\s*(?:\((?P<year>\d{4})[^()]*\))?\s*$")
    items = items.with_columns(parts.alias("parts")).unnest("parts")
    titles = [title and _ARTICLE.sub(r"\2 \1", title) for title in items["name"]]
    genres = pl.when(pl.col("genres") != "(no genres listed)").then(pl.col("genres").str.split("|"))
    return items.select(
        pl.exclude("title", "name", "year", "genres"),
        pl.Series("title", titles, dtype=pl.String),
        pl.col("year"),
        genres.alias("categories"),
    )


class MovieLens100K(InstructionDataModule):
    """MovieLens 100K: 943 users, 1,682 movies, 100,000 ratings from 1 to 5 (1997-98).

    Source: GroupLens (https://grouplens.org/datasets/movielens/100k/), here as the RecBole atomic files inside the
    package recbole 1.2.1, in the order of `u.data`. Licence: GroupLens terms: research use, acknowledge, no commercial
    use, no redistribution. Citation: Harper and Konstan 2015, doi:10.1145/2827872. Nothing is filtered: leave-one-out
    gives 943 validation and 943 test cases.

    One real case, `matching.en.1`: "Movies a user watched, oldest first: Kolya; The Devil's Own; ... Which movie comes
    next?"
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "movie", "nouns": "movies", "consumed": "watched"},
        "zh": {"noun": "电影", "nouns": "电影", "consumed": "看过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title", "rating", "categories")
    source: ClassVar[PackageArchive] = PackageArchive(
        package="recbole",
        version="1.2.1",
        filename="recbole-1.2.1-py3-none-any.whl",
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        members=(
            "recbole/dataset_example/ml-100k/ml-100k.inter",
            "recbole/dataset_example/ml-100k/ml-100k.item",
            "recbole/dataset_example/ml-100k/ml-100k.user",
        ),
    )

    def read(self) -> Interactions:
        """Reads the interactions, titles and profiles; "Godfather, The" becomes "The Godfather"."""
        names = ("ml-100k.inter", "ml-100k.item")
        folder = self.data_dir or locate("ml-100k", self.source, names)
        events_file, items_file = (folder / name for name in names)
        events = read_atomic_file(
            events_file,
            {"user_id": "user", "item_id": "item", "rating": "rating", "timestamp": "timestamp"},
        )
        fields = {"item_id": "item", "movie_title": "title", "release_year": "year", "class": "categories"}
        items = read_atomic_file(items_file, fields).with_columns(pl.col("categories").str.split(" "))
        titles = [title and _ARTICLE.sub(r"\2 \1", title) for title in items["title"]]
        checksum = hashlib.sha256(events_file.read_bytes() + items_file.read_bytes()).hexdigest()
        return Interactions(
            interactions=events,
            items=items.with_columns(pl.Series("title", titles, dtype=pl.String)),
            checksum=checksum,
            files=(events_file, items_file),
            users=_profiles(folder / "ml-100k.user"),
        )


def _profiles(file: Path) -> pl.DataFrame | None:
    """Age, gender and occupation by user; a folder of one's own may lack the file."""
    fields = {"user_id": "user", "age": "age", "gender": "gender", "occupation": "occupation"}
    return read_atomic_file(file, fields) if file.is_file() else None


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
