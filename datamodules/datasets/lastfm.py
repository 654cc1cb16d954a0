"""Last.fm, the listening histories of a thousand users."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.sources.fetch import optional_file, own_file
from datamodules.tables.cleaning import assemble, first_of_each, require
from datamodules.tables.delimited import finite, moments, read_delimited
from datamodules.tables.interactions import Interactions

_ADDRESS_1K = "http://ocelma.net/MusicRecommendationDataset/lastfm-1K.html"
_EVENTS, _USERS = "userid-timestamp-artid-artname-traid-traname.tsv", "userid-profile.tsv"
_FIELDS = ("user", "timestamp", "artist_id", "artist", "track_id", "track")


class LastFM1K(InstructionDataModule):
    """Last.fm 1K: 992 listeners, 19,150,868 plays with their times, 177,023 artists, profiles (2005-09).

    Source: http://ocelma.net/MusicRecommendationDataset/lastfm-1K.html (userid-timestamp-artid-artname-traid-traname.tsv,
    also gzipped, and userid-profile.tsv), put into the folder `lastfm-1k` by hand. Licence: non-commercial use. Citation:
    Celma 2010, doi:10.1007/978-3-642-13287-2. Where an id is empty, the name is the id. The file runs backwards in time,
    so equal times are best ordered by `protocol.ties: reversed_file_order`. A user may play an item many times. Rows with
    a wrong number of fields are refused by line.

    One real artist: "Deep Dish". (Counts and example as published:
    the real files have not been read here.)

    Args:
        level: what is recommended, artists or tracks.
        options: as every data set, see `InstructionDataModule`.
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "artist", "nouns": "artists", "consumed": "listened to"},
        "zh": {"noun": "歌手", "nouns": "歌手", "consumed": "听过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title", "profile")

    def __init__(self, level: Literal["artist", "track"] = "artist", **options: Any) -> None:
        super().__init__(**options)
        self.level = level

    @property
    def description(self) -> dict[str, str]:
        """Names the level too."""
        return {**super().description, "dataset": f"{type(self).__name__} {self.level}s"}

    def domain(self) -> pl.Expr:
        """What an item is called: the artist, or the track with its artist."""
        return pl.col("artist") if self.level == "artist" else pl.concat_str("track", pl.lit(" by "), "artist")

    def read(self) -> Interactions:
        """Reads the plays and, where they are there, the profiles."""
        plays = own_file("lastfm-1k", self.data_dir, (_EVENTS, f"{_EVENTS}.gz"), _ADDRESS_1K)
        table = read_delimited(plays, {name: name for name in _FIELDS}, separator="\t", names=_FIELDS)
        table = table.with_columns(title=self.domain())
        table = table.with_columns(item=pl.coalesce(f"{self.level}_id", "title"))
        events = require(table.select("user", "item", "timestamp", "line"), ("user", "item"), plays)
        events = moments(events, "timestamp", "%Y-%m-%dT%H:%M:%SZ", plays)
        items = first_of_each(table.select("item", "title", "line"), ("item",), "items", {})
        files, users, repairs = [plays, plays], None, dict[str, int]()
        if path := optional_file("lastfm-1k", self.data_dir, (_USERS,)):
            columns = {"#id": "user", "gender": "gender", "age": "age", "country": "country"}
            users = require(read_delimited(path, columns, separator="\t"), ("user",), path).drop("line")
            files.append(path)
        return assemble(events, items, files, untitled="drop", users=users, repairs=repairs, level=self.level)


_ADDRESS_2K = "https://grouplens.org/datasets/hetrec-2011/"
_TAGS = 5  # of an artist: those that most listeners gave


class LastFM2K(InstructionDataModule):
    """Last.fm of HetRec 2011: 1,892 listeners, 17,632 artists, 92,834 listening counts, free tags.

    Source: https://grouplens.org/datasets/hetrec-2011/ (hetrec2011-lastfm-2k.zip: user_artists.dat, artists.dat, and for
    `categories` user_taggedartists.dat, tags.dat), put into the folder `hetrec2011-lastfm-2k` by hand. Licence:
    non-commercial use with citation. Citation: Cantador et al. 2011, doi:10.1145/2043932.2044016. Counts become the column
    `plays`, not ratings. There are no timestamps: the file's order is taken as the order in time, although it is one of
    counts.

    One real artist: "Duran Duran". (Counts and example as published:
    the real files have not been read here.)
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "artist", "nouns": "artists", "consumed": "listened to"},
        "zh": {"noun": "歌手", "nouns": "歌手", "consumed": "听过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title",)

    def read(self) -> Interactions:
        """Reads the counts, the artists and, where they are there, the tags."""
        where = ("hetrec2011-lastfm-2k", self.data_dir)
        counts, artists = (own_file(*where, (name,), _ADDRESS_2K) for name in ("user_artists.dat", "artists.dat"))
        columns = {"userID": "user", "artistID": "item", "weight": "plays"}
        events = finite(read_delimited(counts, columns, separator="\t"), "plays", counts)
        events = require(events, ("user", "item"), counts)
        items = require(read_delimited(artists, {"id": "item", "name": "title"}, separator="\t"), ("item",), artists)
        given, names = (optional_file(*where, (name,)) for name in ("user_taggedartists.dat", "tags.dat"))
        files = [counts, artists]
        if given and names:
            tagged = read_delimited(given, {"artistID": "item", "tagID": "tag"}, separator="\t")
            words = read_delimited(names, {"tagID": "tag", "tagValue": "word"}, separator="\t", encoding="latin-1")
            ranked = tagged.join(words, on="tag").group_by("item", "word").len()
            ranked = (
                ranked.sort("len", "word", descending=[True, False]).group_by("item").agg(pl.col("word").head(_TAGS))
            )
            items = items.join(ranked.rename({"word": "categories"}), on="item", how="left", maintain_order="left")
            files += [given, names]
        return assemble(events, items, files, untitled="drop")
