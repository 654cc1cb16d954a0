"""Every data set in miniature: the published layout of its files, with the same six users and nine items."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datamodules as sets
from datamodules.base import InstructionDataModule

USERS, ITEMS = 6, 9
TITLES = ["Alien", 'The "Best", Ever', "Heat & Dust", "Fargo", "Up; Down", "Amélie's", "Ran", "Brazil", "Solaris"]
DAY = 86_400
START = 1_000_000_000 // DAY * DAY


def events() -> list[tuple[int, int, int, int]]:
    """(user, item, rating 1 to 5, time in seconds): each user takes five items, one a day, all users interleaved."""
    rows = []
    for step in range(5):
        for user in range(USERS):
            rows.append((user + 1, (user + 2 * step) % ITEMS + 1, (user + step) % 5 + 1, START + step * DAY))
    return rows


def date(seconds: int, pattern: str) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime(pattern)


def put(folder: Path, name: str, text: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = text if isinstance(text, bytes) else text.encode(encoding)
    path.write_bytes(gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw)
    return path


def lines(rows: list[str], end: str = "\n") -> str:
    return end.join(rows) + end


def quoted(*fields: object, mark: str = ",", escape: str = '""') -> str:
    return mark.join('"' + str(field).replace('"', escape) + '"' for field in fields)


def movielens_100k(at: Path) -> InstructionDataModule:
    rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    put(at, "ml-100k.inter", lines(rows + ["\t".join(map(str, row)) for row in events()]))
    rows = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    put(at, "ml-100k.item", lines(rows + [f"{i}\t{title}\t1990\tDrama" for i, title in enumerate(TITLES, 1)]))
    return sets.MovieLens100K(data_dir=at)


def movielens_1m(at: Path) -> InstructionDataModule:
    put(at, "ratings.dat", lines(["::".join(map(str, row)) for row in events()]))
    movies = [f"{i}::{title} (1990)::Drama|War" for i, title in enumerate(TITLES, 1)]
    put(at, "movies.dat", lines([*movies, "10::Unrated, The (1991)::Drama"]), "latin-1")
    put(at, "users.dat", lines([f"{u}::F::25::{u}::0210{u}" for u in range(1, USERS + 1)]))
    return sets.MovieLens1M(data_dir=at)


def movielens_csv(at: Path) -> InstructionDataModule:
    rows = [",".join(map(str, row)) for row in events()]
    put(at, "ratings.csv", lines(["userId,movieId,rating,timestamp", *rows], "\r\n"))
    movies = [f"{i},{quoted(f'{title} (1990)')},Drama|War" for i, title in enumerate(TITLES, 1)]
    put(at, "movies.csv", lines(["movieId,title,genres", *movies], "\r\n"))
    put(at, "tags.csv", lines(["userId,movieId,tag,timestamp", '1,1,"dark, slow",1', "1,1,space,2"], "\r\n"))
    return sets.MovieLensCSV(data_dir=at)


def amazon_2014(at: Path) -> InstructionDataModule:
    rows = [
        {"reviewerID": f"U{u}", "asin": f"B{i}", "reviewerName": 'A "B"', "helpful": [0, 1]}
        | {
            "reviewText": f"It's {r}",
            "overall": float(r),
            "summary": "s",
            "unixReviewTime": t,
            "reviewTime": "01 1, 2001",
        }
        for u, i, r, t in events()
    ]
    put(at, "reviews_Toys_5.json.gz", lines([json.dumps(row) for row in rows]))
    meta = [
        {"asin": f"B{i}", "title": title.replace("&", "&amp;"), "categories": [["Toys", "Games"]], "brand": "LEGO"}
        for i, title in enumerate(TITLES, 1)
    ]
    put(at, "meta_Toys.json.gz", lines([repr(row) for row in [*meta, {"asin": "B99", "title": "Unread"}]]))
    return sets.Amazon2014(category="Toys", data_dir=at)


def amazon_2018(at: Path) -> InstructionDataModule:
    rows = [
        {"overall": float(r), "verified": True, "reviewerID": f"U{u}", "asin": f"B{i}", "style": {"Format:": "x"}}
        | {"reviewText": f"text {r}", "unixReviewTime": t, "vote": "3"}
        for u, i, r, t in events()
    ]
    put(at, "Toys_5.json.gz", lines([json.dumps(row) for row in [*rows, rows[0]]]))
    meta = [
        {"category": ["Toys", "Games"], "description": ["One", "two"], "title": title, "brand": "LEGO", "asin": f"B{i}"}
        for i, title in enumerate(TITLES, 1)
    ]
    put(at, "meta_Toys.json.gz", lines([json.dumps(row) for row in [*meta, meta[0]]]))
    return sets.Amazon2018(category="Toys", data_dir=at)


def amazon_2023(at: Path) -> InstructionDataModule:
    rows = [
        {"rating": float(r), "title": "t", "text": f"text {r}", "images": [], "asin": f"V{i}", "parent_asin": f"B{i}"}
        | {"user_id": f"U{u}", "timestamp": t * 1000 + 7, "helpful_vote": 0, "verified_purchase": True}
        for u, i, r, t in events()
    ]
    put(at, "Toys.jsonl.gz", lines([json.dumps(row) for row in rows]))
    meta = [
        {"main_category": "Toys", "title": title, "description": ["One"], "store": "LEGO", "categories": ["Toys"]}
        | {"details": {"Color": "red"}, "parent_asin": f"B{i}", "price": None}
        for i, title in enumerate(TITLES, 1)
    ]
    put(at, "meta_Toys.jsonl.gz", lines([json.dumps(row) for row in meta]))
    return sets.Amazon2023(category="Toys", data_dir=at)


def p5_sequences(at: Path) -> InstructionDataModule:
    rows = [f"U{u} " + " ".join(f"B{i}" for v, i, _, _ in events() if v == u) for u in range(1, USERS + 1)]
    put(at, "user_sequence.txt", lines([*rows, "U99"]))
    put(at, "item_generative_indexing_phase_0.txt", lines([f"B{i} {title}" for i, title in enumerate(TITLES, 1)]))
    return sets.P5Sequences(data_dir=at)


def recbole_files(at: Path) -> InstructionDataModule:
    """The published split as sequences, with candidate lists, as LLMRank has it."""
    head = "user_id:token\titem_id_list:token_seq\titem_id:token"
    sequences = {u: [str(i) for v, i, _, _ in events() if v == u] for u in range(1, USERS + 1)}
    for part, back in (("valid", 2), ("test", 1)):
        rows = [f"{u}\t{' '.join(past[:-back])}\t{past[-back]}" for u, past in sequences.items()]
        put(at, f"toy.{part}.inter", lines([head, *rows]))
    put(at, "toy.item", lines(["item_id:token\ttitle:token_seq", *(f"{i}\t{t}" for i, t in enumerate(TITLES, 1))]))
    put(at, "toy.random", lines(["1\t2 3 4", "2\t1 4 9"]))
    return sets.RecBoleFiles(folder="toy", candidates_file="toy.random", data_dir=at)


def book_crossing(at: Path) -> InstructionDataModule:
    rows = [quoted(u, f"00{i}", r - 1, mark=";") for u, i, r, _ in events()]
    put(
        at, "BX-Book-Ratings.csv", lines(['"User-ID";"ISBN";"Book-Rating"', *rows, quoted(1, "X", 7, mark=";")], "\r\n")
    )
    names = ["ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher"]
    head = quoted(*names, "Image-URL-S", "Image-URL-M", "Image-URL-L", mark=";")
    books = [
        quoted(f"00{i}", t.replace("&", "&amp;"), "A", 1990, "P", "s", "m", "l", mark=";", escape='\\"')
        for i, t in enumerate(TITLES, 1)
    ]
    short = r'"0099";"DK Readers (Level 4)\";Michael Teitelbaum";"2000";"DK";"s";"m";"l"'
    put(at, "BX-Books.csv", lines([head, *books, short], "\r\n"), "latin-1")
    users = [f'"{u}";"lyon, rhône, france";NULL' for u in range(1, USERS + 1)]
    put(at, "BX-Users.csv", lines(['"User-ID";"Location";"Age"', *users], "\r\n"), "latin-1")
    return sets.BookCrossing(data_dir=at)


def steam(at: Path) -> InstructionDataModule:
    rows = []
    for u, i, r, t in events():
        row: dict[str, Any] = {"username": f"Jörg {u}", "hours": 1.5, "products": 3, "product_id": f"70{i}"}
        row |= {"date": date(t, "%Y-%m-%d"), "text": f"It's \"{r}\", u'username': u'no'\n", "early_access": False}
        rows.append("{" + ", ".join(f"u'{key}': {python2(value)}" for key, value in row.items()) + "}")
    put(at, "steam_reviews.json.gz", lines(rows))
    games = []
    for i, title in enumerate(TITLES, 1):
        game = {"app_name": title, "tags": ["Indie", "Action"], "developer": "Kotoshiro", "id": f"70{i}"}
        games.append("{" + ", ".join(f"u'{key}': {python2(value)}" for key, value in game.items()) + "}")
    put(at, "steam_games.json.gz", lines(games))
    return sets.Steam(data_dir=at)


def python2(value: Any) -> str:
    """As Python 2 printed it."""
    if isinstance(value, list):
        return f"[{', '.join(map(python2, value))}]"
    return f"u{value!a}" if isinstance(value, str) else repr(value)


def lastfm_2k(at: Path) -> InstructionDataModule:
    rows = [f"{u}\t{i}\t{100 * r}" for u, i, r, _ in events()]
    put(at, "user_artists.dat", lines(["userID\tartistID\tweight", *rows], "\r\n"))
    artists = [f"{i}\t{title}\thttp://l/{i}\t" for i, title in enumerate(TITLES, 1)]
    put(at, "artists.dat", lines(["id\tname\turl\tpictureURL", *artists]))
    put(at, "tags.dat", lines(["tagID\ttagValue", "1\tmétal", "2\tpop"], "\r\n"), "latin-1")
    head = "userID\tartistID\ttagID\tday\tmonth\tyear"
    put(
        at, "user_taggedartists.dat", lines([head, "1\t1\t2\t1\t4\t2009", "2\t1\t1\t1\t4\t2009", "3\t1\t1\t1\t4\t2009"])
    )
    return sets.LastFM2K(data_dir=at)


def lastfm_1k(at: Path) -> InstructionDataModule:
    rows = [
        f"user_00000{u}\t{date(t, '%Y-%m-%dT%H:%M:%SZ')}\t{f'a{i}' if i > 1 else ''}\t{TITLES[i - 1]}\t\tSong {i}"
        for u, i, _, t in reversed(events())
    ]
    put(at, "userid-timestamp-artid-artname-traid-traname.tsv", lines(rows))
    head = "#id\tgender\tage\tcountry\tregistered"
    put(
        at,
        "userid-profile.tsv",
        lines([head, *(f"user_00000{u}\tm\t\tJapan\tAug 13, 2006" for u in range(1, USERS + 1))]),
    )
    return sets.LastFM1K(data_dir=at)


def mind(at: Path) -> InstructionDataModule:
    news = [f"N{i}\tlifestyle\troyals\t{title}\tAbstract\thttps://x\t[]\t[]" for i, title in enumerate(TITLES, 1)]
    for part, steps in (("train", (2, 3)), ("dev", (4,))):
        rows = []
        for number, (u, i, _, t) in enumerate(events()):
            if number // USERS in steps:
                past = " ".join(f"N{j}" for v, j, _, at_time in events() if v == u and at_time < START + 2 * DAY)
                other = i % ITEMS + 1
                rows.append(f"{number}\tU{u}\t{date(t, '%m/%d/%Y %I:%M:%S %p')}\t{past}\tN{other}-0 N{i}-1")
        put(at, f"MINDsmall_{part}/behaviors.tsv", lines(rows))
        put(at, f"MINDsmall_{part}/news.tsv", lines(news))
    return sets.MIND(data_dir=at)


def tabular(at: Path) -> InstructionDataModule:
    rows = [f"{u},{i},{r},{date(t, '%Y-%m-%d')}" for u, i, r, t in events()]
    put(at, "interactions.csv", lines(["user,sku,rating,timestamp", *rows]))
    items = [quoted(i, t, "toys|games") for i, t in enumerate(TITLES, 1)]
    put(at, "items.csv", lines(["item,title,categories", *items]))
    put(at, "users.csv", lines(["user,age", *(f"{u},3{u}" for u in range(1, USERS + 1))]))
    columns = {"item": "sku"}
    return sets.Tabular(data_dir=at, users_file="users.csv", columns=columns, time="%Y-%m-%d")


MINIATURES: dict[str, Callable[[Path], InstructionDataModule]] = {
    "Amazon2014": amazon_2014,
    "Amazon2018": amazon_2018,
    "Amazon2023": amazon_2023,
    "BookCrossing": book_crossing,
    "LastFM1K": lastfm_1k,
    "LastFM2K": lastfm_2k,
    "MIND": mind,
    "MovieLens100K": movielens_100k,
    "MovieLens1M": movielens_1m,
    "MovieLensCSV": movielens_csv,
    "P5Sequences": p5_sequences,
    "RecBoleFiles": recbole_files,
    "Steam": steam,
    "Tabular": tabular,
}
