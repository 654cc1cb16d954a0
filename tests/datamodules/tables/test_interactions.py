"""Reading and validation: what is well formed is read exactly, everything else is one line that names the place."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.contract.errors import InputError
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.apply import apply_protocol
from datamodules.protocol.rules import Protocol
from datamodules.tables.delimited import read_atomic_file
from datamodules.tables.interactions import Interactions

INTER = "ml-100k.inter"
ITEM = "ml-100k.item"
EVENTS = """user_id:token\titem_id:token\trating:float\ttimestamp:float
1\t10\t4\t100
1\t20\t3.5\t101
1\t30\t5\t102
2\t10\t1\t200
"""
ITEMS = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
10\tAlien\t1979\tHorror
20\tHeat\t1995\tCrime Drama
30\tGodfather, The\t1972\tCrime
40\tFargo\t1996\tCrime
50\tUp\t2009\tAnimation
"""
COLUMNS = {"user_id": "user", "item_id": "item", "rating": "rating", "timestamp": "timestamp"}


def read(folder: Path, events: bytes | str = EVENTS, items: bytes | str = ITEMS) -> Interactions:
    """The two files, through the real reader of a data set."""
    for name, content in ((INTER, events), (ITEM, items)):
        folder.joinpath(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return MovieLens100K(data_dir=folder).read()


def test_well_formed_files_are_read_in_file_order(tmp_path: Path) -> None:
    data = read(tmp_path)

    assert data.interactions.rows() == [
        ("1", "10", 4.0, 100.0),
        ("1", "20", 3.5, 101.0),
        ("1", "30", 5.0, 102.0),
        ("2", "10", 1.0, 200.0),
    ]
    assert data.items["item"].to_list() == ["10", "20", "30", "40", "50"]
    assert data.items["title"].to_list() == ["Alien", "Heat", "The Godfather", "Fargo", "Up"]


@pytest.mark.parametrize("encode", ["bom", "crlf", "both", "no last line end", "blank lines at the end"])
def test_byte_order_mark_and_line_ends_change_nothing(tmp_path: Path, encode: str) -> None:
    def written(text: str) -> bytes:
        text = text.removesuffix("\n") if encode == "no last line end" else text
        text += "\n\n" if encode == "blank lines at the end" else ""
        raw = (text.replace("\n", "\r\n") if encode in ("crlf", "both") else text).encode()
        return b"\xef\xbb\xbf" + raw if encode in ("bom", "both") else raw

    plain = read(tmp_path)
    other = read(tmp_path, written(EVENTS), written(ITEMS))

    assert other.interactions.equals(plain.interactions)
    assert other.items.equals(plain.items)


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    items = ITEMS.replace("Alien", "Al\u2028i\x0ben\x85")

    assert read(tmp_path, items=items).items["title"][0] == "Al\u2028i\x0ben\x85"


def test_columns_may_stand_in_any_order_beside_others(tmp_path: Path) -> None:
    path = tmp_path / "a.inter"
    path.write_text("timestamp:float\tsource:token\tuser_id:token\n7\tweb\tu\n")

    assert read_atomic_file(path, {"user_id": "user", "timestamp": "timestamp"}).rows() == [("u", 7.0)]


BAD_EVENTS: dict[str, tuple[bytes | str, int, str]] = {
    "missing column": (EVENTS.replace("item_id", "product"), 1, "column 'item_id' is missing"),
    "short row": (EVENTS.replace("1\t20\t3.5\t101", "1\t20\t3.5"), 3, "3 fields, the header has 4"),
    "long row": (EVENTS.replace("5\t102", "5\t102\t9"), 4, "5 fields, the header has 4"),
    "blank row": (EVENTS.replace("2\t10", "\n2\t10"), 5, "1 fields"),
    "rating in words": (EVENTS.replace("3.5", "good"), 3, "rating is 'good', not a finite number"),
    "no rating": (EVENTS.replace("3.5", ""), 3, "rating is '', not a finite number"),
    "rating not a number": (EVENTS.replace("3.5", "NaN"), 3, "rating is 'NaN', not a finite number"),
    "endless rating": (EVENTS.replace("3.5", "inf"), 3, "rating is 'inf', not a finite number"),
    "timestamp in words": (EVENTS.replace("\t200", "\t1997-09-20"), 5, "timestamp is '1997-09-20'"),
    "rating declared as text": (
        EVENTS.replace("rating:float", "rating:token"),
        1,
        "column 'rating' is String",
    ),
    "unknown item": (EVENTS.replace("1\t30", "1\t31"), 4, "item '31' is not in"),
    "header only": (EVENTS.split("\n")[0], 1, "no interactions"),
    "not UTF-8": (EVENTS.encode().replace(b"3.5", b"\xff"), 3, "not UTF-8"),
    "not UTF-8 after a byte order mark": (
        b"\xef\xbb\xbf" + EVENTS.encode().replace(b"3.5", b"\xff"),
        3,
        "not UTF-8",
    ),
    "UTF-16": (EVENTS.encode("utf-16"), 1, "not UTF-8"),
}
BAD_ITEMS: dict[str, tuple[bytes | str, int, str]] = {
    "missing column": (ITEMS.replace("movie_title", "name"), 1, "column 'movie_title' is missing"),
    "short row": (ITEMS.replace("20\tHeat\t1995\tCrime Drama", "20\tHeat"), 3, "2 fields, the header has 4"),
    "duplicate item id": (ITEMS.replace("40\tFargo", "20\tFargo"), 3, "item id '20' stands more than once"),
    "empty title": (ITEMS.replace("Fargo", ""), 5, "item '40' has no title"),
    "blank title": (ITEMS.replace("Fargo", " \u00a0 "), 5, "item '40' has no title"),
    "not UTF-8": (ITEMS.replace("Fargo", "Café").encode("latin-1"), 5, "not UTF-8"),
}


@pytest.mark.parametrize("kind", BAD_EVENTS)
def test_a_bad_events_file_is_refused_by_line(tmp_path: Path, kind: str) -> None:
    events, line, reason = BAD_EVENTS[kind]

    with pytest.raises(InputError) as error:
        read(tmp_path, events=events)

    assert str(error.value).startswith(f"{tmp_path / INTER}:{line}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", BAD_ITEMS)
def test_a_bad_items_file_is_refused_by_line(tmp_path: Path, kind: str) -> None:
    items, line, reason = BAD_ITEMS[kind]

    with pytest.raises(InputError) as error:
        read(tmp_path, items=items)

    assert str(error.value).startswith(f"{tmp_path / ITEM}:{line}: ")
    assert reason in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"ml-100k\.inter: the file is empty"):
        read(tmp_path, events=content)


@pytest.mark.parametrize("kind", ["absent", "folder"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.inter"
    if kind == "folder":
        path.mkdir()

    with pytest.raises(InputError, match=r"cannot read .*a\.inter: "):
        read_atomic_file(path, COLUMNS)


def tables(changed: dict[str, pl.Expr] | None = None) -> Interactions:
    events = {"user": ["u"], "item": ["i"], "rating": [None], "timestamp": [1.0]}
    schema = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "timestamp": pl.Float64}
    interactions = pl.DataFrame(events, schema=schema).with_columns(**(changed or {}))
    return Interactions(interactions, pl.DataFrame({"item": ["i"], "title": ["Alien"]}), checksum="0")


def test_ratings_may_be_absent() -> None:
    assert tables().interactions["rating"].to_list() == [None]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("timestamp", pl.lit("1"), "column 'timestamp' is String, must be Float64"),
        ("timestamp", pl.lit(None, dtype=pl.Float64), "user 'u' has no timestamp"),
        ("timestamp", pl.lit(float("nan")), "user 'u' has no timestamp"),
        ("item", pl.lit(None, dtype=pl.String), "item None is not in items"),
        ("item", pl.lit(3), "column 'item' is Int32, must be String"),
    ],
)
def test_tables_of_any_origin_are_checked(column: str, value: pl.Expr, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        tables({column: value})


EXTRA = {"review": ["good"], "query": ["space"], "split": ["test"], "candidates": [["i"]], "line": [9]}


def test_optional_columns_and_profiles_are_kept() -> None:
    events = tables().interactions.with_columns(**{k: pl.Series(v) for k, v in EXTRA.items()})
    items = pl.DataFrame({"item": ["i"], "title": ["Alien"], "categories": [["Horror"]], "year": ["1979"]})
    users = pl.DataFrame({"user": ["u"], "age": ["30"]})

    data = Interactions(events, items, checksum="0", users=users, repairs={"duplicate events left out": 2})

    assert data.interactions.row(0, named=True)["candidates"] == ["i"]
    assert (data.users is users, data.repairs) == (True, {"duplicate events left out": 2})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"split": "dev"}, "a.csv:9: split 'dev' is none of train, validation, test"),
        ({"split": None}, "a.csv:9: split None is none of"),
        ({"candidates": ["i", "j"]}, "a.csv:9: the candidates of user 'u' are not all in b.csv"),
        ({"review": 3}, "a.csv:1: column 'review' is Int"),
    ],
)
def test_optional_columns_are_checked_by_line(changed: dict[str, object], reason: str) -> None:
    columns = {name: pl.Series([changed[name]] if name in changed else value) for name, value in EXTRA.items()}
    columns["split"] = columns["split"].cast(pl.String)
    items = pl.DataFrame({"item": ["i"], "title": ["Alien"]})

    with pytest.raises(InputError) as error:
        Interactions(
            tables().interactions.with_columns(**columns), items, checksum="0", files=(Path("a.csv"), Path("b.csv"))
        )

    assert str(error.value).startswith(reason)


def test_a_profile_that_stands_twice_is_refused() -> None:
    data = tables()

    with pytest.raises(InputError, match="users: user id 'u' stands more than once"):
        Interactions(data.interactions, data.items, checksum="0", users=pl.DataFrame({"user": ["u", "u"]}))


MUTATIONS = ("drop", "insert", "replace", "double line", "drop line", "swap", "cut", "drop field")
STRANGE = (
    b"\t",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b'"',
    b"NaN",
    b"-",
    b"1e999",
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
    b"9",
    b":",
)


def mutate(raw: bytes, kind: str, chance: random.Random) -> bytes:
    place = chance.randrange(len(raw) + 1)
    lines = raw.split(b"\n")
    line = chance.randrange(len(lines))
    if kind == "drop":
        return raw[:place] + raw[place + 1 :]
    if kind == "insert":
        return raw[:place] + chance.choice(STRANGE) + raw[place:]
    if kind == "replace":
        return raw[:place] + chance.choice(STRANGE) + raw[place + 1 :]
    if kind == "cut":
        return raw[:place]
    if kind == "double line":
        lines.insert(line, lines[line])
    elif kind == "drop line":
        del lines[line]
    elif kind == "swap":
        other = chance.randrange(len(lines))
        lines[line], lines[other] = lines[other], lines[line]
    else:
        fields = lines[line].split(b"\t")
        del fields[chance.randrange(len(fields))]
        lines[line] = b"\t".join(fields)
    return b"\n".join(lines)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(MUTATIONS)), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
)
def test_damaged_files_are_refused_or_read_as_a_valid_table(
    damage: list[tuple[bool, str]], chance: random.Random
) -> None:
    events, items = EVENTS.encode(), ITEMS.encode()
    for to_events, kind in damage:
        if to_events:
            events = mutate(events, kind, chance)
        else:
            items = mutate(items, kind, chance)

    with tempfile.TemporaryDirectory() as folder:
        try:
            data = read(Path(folder), events, items)
            apply_protocol(data, Protocol(negatives=1))
        except InputError as error:
            assert "\n" not in str(error)
            return

    assert data.items["item"].is_unique().all()
    assert all(title.strip() for title in data.items["title"])
    assert set(data.interactions["item"]) <= set(data.items["item"])
    for column in ("rating", "timestamp"):
        assert data.interactions[column].is_finite().all()
    assert len(data.interactions) == sum(bool(line.rstrip(b"\r")) for line in events.split(b"\n")) - 1
