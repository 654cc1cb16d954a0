"""Steam: reviews of games."""

from __future__ import annotations

from typing import ClassVar

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.sources.fetch import own_file
from datamodules.tables.cleaning import assemble, first_of_each, joined_text, require, without_markup
from datamodules.tables.delimited import moments
from datamodules.tables.interactions import Interactions
from datamodules.tables.json_lines import read_flat_literals, read_literal_lines

_ADDRESS = "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data"


class Steam(InstructionDataModule):
    """Steam: 2,567,538 players, 32,135 games, 7,793,069 reviews with texts and dates (2010-18).

    Source: https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data (steam_reviews.json.gz and steam_games.json.gz, which
    are Python dictionaries, not JSON), put into the folder `steam` by hand. Licence: none stated; research use with
    citation. Citation: Kang and McAuley 2018, arXiv 1808.09781. Players are told apart by name, as there. Games without
    a title and repeated reviews are left out, and counted. Times are days, so ties are many. There are no ratings.

    One real game: "Lost Summoner Kitty", with the tags Strategy, Action, Indie, Casual, Simulation. (Counts and example as published:
    the real files have not been read here.)
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "game", "nouns": "games", "consumed": "played"},
        "zh": {"noun": "游戏", "nouns": "游戏", "consumed": "玩过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title", "review", "categories")

    def read(self) -> Interactions:
        """Reads the reviews and, of the games in them, the catalogue."""
        reviews, games = (
            own_file("steam", self.data_dir, (f"{name}.json.gz", f"{name}.json"), _ADDRESS)
            for name in ("steam_reviews", "steam_games")
        )
        keys = {"username": "user", "product_id": "item", "date": "timestamp", "text": "review"}
        events = require(read_flat_literals(reviews, keys), ("user", "item"), reviews)
        events = moments(events, "timestamp", "%Y-%m-%d", reviews)
        repairs: dict[str, int] = {}
        events = first_of_each(events, ("user", "item", "timestamp", "review"), "events", repairs)
        rows = []
        for line, game in read_literal_lines(games, "id", set(events["item"])):
            title = joined_text(game.get("app_name") or game.get("title"))
            tags = [str(tag) for tag in game.get("tags") or ()]
            rows.append((str(game["id"]), title, tags, joined_text(game.get("developer")), line))
        text = pl.String()
        schema = {"item": text, "title": text, "categories": pl.List(text), "brand": text, "line": pl.Int64()}
        items = pl.DataFrame(rows, schema=schema, orient="row")
        items = first_of_each(without_markup(items), ("item",), "items", repairs)
        return assemble(events, items, (reviews, games), untitled="drop", repairs=repairs)
