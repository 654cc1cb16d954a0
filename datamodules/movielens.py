"""MovieLens data sets."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import ClassVar

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.interactions import Interactions, read_atomic_file
from datamodules.sources import PackageArchive, locate

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
