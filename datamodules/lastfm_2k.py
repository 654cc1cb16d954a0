"""Last.fm, the HetRec 2011 collection."""

from __future__ import annotations

from typing import ClassVar

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.cleaning import assemble, require
from datamodules.interactions import Interactions
from datamodules.own_files import optional_file, own_file
from datamodules.raw_tables import finite, read_delimited

_ADDRESS = "https://grouplens.org/datasets/hetrec-2011/"
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
        counts, artists = (own_file(*where, (name,), _ADDRESS) for name in ("user_artists.dat", "artists.dat"))
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
