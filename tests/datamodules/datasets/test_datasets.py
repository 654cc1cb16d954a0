"""Every data set: its miniature is read exactly, damage is refused by file and line or counted, real files hold true."""

from __future__ import annotations

import inspect
import os
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import datamodules as sets
from datamodules.base import InstructionDataModule
from datamodules.contract.errors import InputError
from datamodules.datasets.amazon import Amazon2014, Amazon2018
from datamodules.datasets.lastfm import LastFM1K
from datamodules.datasets.movielens import MovieLensCSV
from datamodules.datasets.p5 import P5Sequences
from datamodules.datasets.recbole import RecBoleFiles
from datamodules.datasets.tabular import Tabular
from datamodules.instructions.templates import load_templates
from datamodules.protocol.apply import apply_protocol
from datamodules.protocol.rules import Protocol
from tests.datamodules.datasets.miniatures import ITEMS, MINIATURES, START, TITLES, USERS, events, put

PROTOCOL = Protocol(negatives=3)
DAY = 86_400.0


@pytest.fixture(params=sorted(MINIATURES))
def mini(request: pytest.FixtureRequest, tmp_path: Path) -> InstructionDataModule:
    return MINIATURES[request.param](tmp_path)


def number(text: str) -> int:
    """The number at the end of an id."""
    found = re.search(r"\d+$", text)
    assert found
    return int(found[0])


def test_every_data_set_has_a_miniature() -> None:
    cases = {"Banking77", "DialMed", "IntentionQA", "TALLRecBook", "TALLRecMovie"}  # in case_miniatures.py
    assert set(MINIATURES) == set(sets.__all__) - cases


def test_a_miniature_is_read_exactly(mini: InstructionDataModule) -> None:
    data = mini.read()

    by_id = dict(data.items.select("item", "title").iter_rows())
    assert [by_id[i] for i in sorted(by_id, key=lambda i: TITLES.index(by_id[i]))] == TITLES
    place = {item: TITLES.index(title) + 1 for item, title in by_id.items()}
    ordered = data.interactions.sort("timestamp", maintain_order=True)
    got = {u: [place[i] for i in ordered.filter(pl.col("user") == u)["item"]] for u in ordered["user"].unique()}
    wanted = {u: [i for v, i, _, _ in events() if v == u] for u in range(1, USERS + 1)}
    assert {number(u): items for u, items in got.items()} == wanted
    rated = {(u, i): r for u, i, r, _ in events()}
    for user, item, rating in data.interactions.select("user", "item", "rating").iter_rows():
        given = None if rating is None else rating + (mini.__class__.__name__ == "BookCrossing")
        assert given in (None, rated[number(user), place[item]])


def test_a_miniature_makes_cases_of_every_user(mini: InstructionDataModule) -> None:
    sequences = apply_protocol(mini.read(), PROTOCOL)

    assert (len(sequences.test), len(sequences.validation)) == (USERS, USERS)
    assert len(sequences.item_ids) == ITEMS


def test_the_same_files_give_the_same_table_and_sum_and_any_byte_another(mini: InstructionDataModule) -> None:
    first, again = mini.read(), mini.read()

    assert first.interactions.equals(again.interactions)
    assert first.checksum == again.checksum
    folder = mini.data_dir
    assert folder
    sums = {first.checksum}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        before = path.read_bytes()
        path.write_bytes(before + b"\n" if path.suffix != ".gz" else before + before)
        try:
            sums.add(mini.read().checksum)
        except InputError:  # such as a user that stands twice
            sums.add(path.name)
        path.write_bytes(before)
    assert len(sums) == 1 + len(files)


@pytest.mark.parametrize("name", sorted(MINIATURES))
def test_it_tells_source_licence_citation_an_example_and_has_words(name: str) -> None:
    made = getattr(sets, name)
    told = inspect.getdoc(made) or ""

    for needed in (
        "Source:",
        "Licence",
        "itation",
        "https://" if "http://" not in told else "http://",
        " real " if name != "Tabular" else "example",
    ):
        assert needed in told, needed
    assert set(made.words) == {template.language for template in load_templates().values()}
    assert {frozenset(words) for words in made.words.values()} == {frozenset({"noun", "nouns", "consumed"})}


def test_tables_name_the_part_that_was_read(tmp_path: Path) -> None:
    assert Amazon2018(category="Video_Games").description["dataset"] == "Amazon2018 Video_Games"
    assert MovieLensCSV(edition="ml-25m").description["dataset"] == "MovieLensCSV ml-25m"


def test_files_that_nobody_may_pass_on_are_asked_for(mini_data: Path) -> None:
    with pytest.raises(InputError) as error:
        Amazon2018(category="Toys").read()

    assert re.search(r"get it from https://\S+ and put Toys_5.json.gz or .* in .*/amazon-2018$", str(error.value))
    assert "\n" not in str(error.value)


# What is wrong, in which file of which data set, done how, and what is told of it.
Change = Callable[[bytes], bytes]
BAD: dict[str, tuple[str, str, Change, str]] = {
    "extra field": ("MovieLensCSV", "ratings.csv", lambda c: c.replace(b"2,2,2", b"2,2,2,2"), r"ratings.csv:3: 5 fields"),
    "short row": ("MovieLensCSV", "movies.csv", lambda c: c.replace(b'"Ran (1990)",Drama|War', b'"Ran (1990)"'), r"movies.csv:8: 2 fields"),
    "open quote": ("MovieLensCSV", "movies.csv", lambda c: c.replace(b'Fargo (1990)"', b"Fargo (1990)"), r"movies.csv:\d+: "),
    "latin-1": ("MovieLensCSV", "movies.csv", lambda c: c.decode().encode("latin-1"), r"movies.csv:7: not UTF-8"),
    "no item id": ("MovieLensCSV", "movies.csv", lambda c: c.replace(b"\n4,", b"\n,"), r"movies.csv:5: item is empty"),
    "no title": ("MovieLensCSV", "movies.csv", lambda c: c.replace(b'"Fargo (1990)"', b'" "'), r"movies.csv:5: item '4' has no title"),
    "nan rating": ("MovieLensCSV", "ratings.csv", lambda c: c.replace(b"2,2,2", b"2,2,NaN"), r"ratings.csv:3: rating is 'NaN', not a finite number"),
    "no rating": ("MovieLensCSV", "ratings.csv", lambda c: c.replace(b"2,2,2", b"2,2,"), r"ratings.csv:3: rating is '', not a finite number"),
    "written time": ("MovieLensCSV", "ratings.csv", lambda c: c.replace(b"2,2,2,", b"2,2,2,x"), r"ratings.csv:3: timestamp is 'x\d+'"),
    "unknown item": ("MovieLensCSV", "ratings.csv", lambda c: c.replace(b"2,2,2", b"2,77,2"), r"ratings.csv:3: item '77' is not in"),
    "column twice": ("MovieLensCSV", "ratings.csv", lambda c: c.replace(b"rating,", b"userId,"), r"ratings.csv:1: column '\w+' "),
    "header only": ("MovieLensCSV", "ratings.csv", lambda c: c.split(b"\r\n")[0], r"ratings.csv:1: there are no interactions"),
    "empty": ("MovieLensCSV", "ratings.csv", lambda c: b"", r"ratings.csv: the file is empty"),
    "cut gzip": ("Amazon2018", "Toys_5.json.gz", lambda c: c[:60], r"Toys_5.json.gz"),
    "no JSON": ("Tabular", "interactions.csv", lambda c: c.replace(b"2001-09-09", b"9 Sep 2001"), r"interactions.csv:2: timestamp is '9 Sep 2001', not like '%Y-%m-%d'"),
    "no such column": ("Tabular", "interactions.csv", lambda c: c.replace(b"sku", b"article"), r"interactions.csv:1: column 'sku' is missing; there are user, article"),
    "no user": ("Tabular", "interactions.csv", lambda c: c.replace(b"\n2,2,", b"\n,2,"), r"interactions.csv:3: user is empty"),
    "item twice": ("Tabular", "items.csv", lambda c: c.replace(b'"3"', b'"2"'), r"items.csv:3: item id '2' stands more than once"),
    "user twice": ("P5Sequences", "user_sequence.txt", lambda c: c.replace(b"U3 ", b"U1 "), r"user_sequence.txt:3: user 'U1' stands more than once"),
    "parts disagree": ("RecBoleFiles", "toy.valid.inter", lambda c: c.replace(b"7\n2", b"8\n2"), r"toy.valid.inter:2: user '1' has another item"),
    "strange candidate": ("RecBoleFiles", "toy.random", lambda c: c.replace(b"9", b"99"), r"the candidates of user '2' are not all in"),
    "candidates of nobody": ("RecBoleFiles", "toy.random", lambda c: b"8\t1 2\n", r"toy.random:1: user '8'"),
    "no impression": ("MIND", "MINDsmall_dev/behaviors.tsv", lambda c: c.replace(b"-0", b"-2", 1), r"behaviors.tsv:1: an impression is a list like"),
    "other clock": ("MIND", "MINDsmall_dev/behaviors.tsv", lambda c: c.replace(b" AM", b"", 1), r"behaviors.tsv:1: timestamp is"),
    "no name": ("LastFM1K", "userid-timestamp-artid-artname-traid-traname.tsv", lambda c: c.replace(b"user_000005", b"", 1), r"traname.tsv:2: user is empty"),
    "text instead of a count": ("LastFM2K", "user_artists.dat", lambda c: c.replace(b"\t200", b"\tmany", 1), r"user_artists.dat:3: plays is 'many'"),
    "half a line": ("MovieLens1M", "ratings.dat", lambda c: c[:-14], r"ratings.dat:30: \d fields, a row has 4"),
    "an extra separator": ("MovieLens1M", "movies.dat", lambda c: c.replace(b"Alien", b"Ali::en"), r"movies.dat:1: 4 fields, a row has 3"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_by_file_and_line(tmp_path: Path, kind: str) -> None:
    name, file, change, reason = BAD[kind]
    module = MINIATURES[name](tmp_path)
    before = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(change(before))
    assert (tmp_path / file).read_bytes() != before

    with pytest.raises(InputError) as error:
        module.read()

    assert re.search(reason, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


JSON_LINES = {
    "no JSON": ('{"reviewerID": ', "Toys_5.json:2: not a JSON object"),
    "a list": ("[1, 2]", "Toys_5.json:2: a list, not a JSON object"),
    "text for a number": ('{"reviewerID": "a", "asin": "B1", "overall": "5.0"}', "Toys_5.json:2: overall is '5.0'"),
    "NaN": ('{"reviewerID": "a", "asin": "B1", "overall": NaN}', "Toys_5.json:2: not a JSON object: NaN"),
    "no user": ('{"asin": "B1", "overall": 5}', "Toys_5.json:2: user is empty"),
    "no time": ('{"reviewerID": "a", "asin": "B1", "overall": 5}', "Toys_5.json:2: user 'a' has no timestamp"),
}


@pytest.mark.parametrize("kind", JSON_LINES)
def test_bad_json_lines_are_refused_by_line(tmp_path: Path, kind: str) -> None:
    line, reason = JSON_LINES[kind]
    module = MINIATURES["Amazon2018"](tmp_path)
    good = '{"reviewerID": "b", "asin": "B1", "overall": 5, "unixReviewTime": 7}\n'
    put(tmp_path, "Toys_5.json", good + line + "\n" + good)
    (tmp_path / "Toys_5.json.gz").unlink()

    with pytest.raises(InputError) as error:
        module.read()

    assert reason in str(error.value)


def test_line_ends_and_byte_order_marks_change_nothing(mini: InstructionDataModule) -> None:
    plain = mini.read()
    folder = mini.data_dir
    assert folder
    for path in folder.rglob("*.*"):
        if path.suffix not in (".gz", ".dat") and not path.name.startswith("BX"):
            raw = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") + b"\r\n"
            path.write_bytes(b"\xef\xbb\xbf" + raw)

    other = mini.read()

    assert other.interactions.equals(plain.interactions)
    assert other.items.equals(plain.items)


def untitled(folder: Path, **options: str) -> P5Sequences:
    MINIATURES["P5Sequences"](folder)
    path = folder / "item_generative_indexing_phase_0.txt"
    path.write_text(path.read_text().replace("B4 Fargo", "B4"))
    return P5Sequences(data_dir=folder, **options)  # type: ignore[arg-type]


def test_items_without_a_title_are_refused_left_out_or_shown_by_id_and_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"phase_0.txt:4: item 'B4' has no title"):
        untitled(tmp_path, untitled="refuse").read()
    dropped, shown = untitled(tmp_path, untitled="drop").read(), untitled(tmp_path).read()

    missing = sum(item == 4 for _, item, _, _ in events())
    assert (dropped.repairs["items without title left out"], len(dropped.items)) == (1, ITEMS - 1)
    assert dropped.repairs["events of items without title left out"] == missing > 0
    assert len(dropped.interactions) == 30 - missing
    assert shown.repairs["items shown by id"] == 1
    assert dict(shown.items.select("item", "title").iter_rows())["B4"] == "B4"
    assert dropped.checksum != shown.checksum  # other tables of the same files
    described = apply_protocol(dropped, PROTOCOL).description
    assert described["repairs"] == dropped.repairs


def test_repairs_are_counted(tmp_path: Path) -> None:
    def repairs(name: str) -> dict[str, int]:
        return MINIATURES[name](tmp_path / name).read().repairs

    assert repairs("Amazon2018") == {"duplicate events left out": 1, "duplicate items left out": 1}
    assert repairs("MovieLens1M") == {"items without any event left out": 1}
    assert repairs("P5Sequences")["users without any event left out"] == 1
    books = repairs("BookCrossing")
    assert books["books with a field missing left out"] == 1
    assert books["events of items without title left out"] == 1
    assert books["ratings of 0 read as no rating"] == sum(r == 1 for _, _, r, _ in events())
    assert repairs("MovieLensCSV") == {}


def test_negative_times_are_kept_and_counted_and_one_event_of_a_user_only_trains(tmp_path: Path) -> None:
    module = MINIATURES["MovieLensCSV"](tmp_path)
    path = tmp_path / "ratings.csv"
    path.write_text(path.read_text() + "77,1,4,-5\n")

    data = module.read()

    assert data.repairs == {"timestamps before 1970 kept": 1}
    sequences = apply_protocol(data, PROTOCOL)
    assert len(sequences.test) == USERS
    assert "77" in sequences.user_ids


def test_a_title_of_a_megabyte_is_read_whole(mini: InstructionDataModule) -> None:
    folder, long = mini.data_dir, "x" * (1 << 20)
    assert folder
    for path in folder.rglob("*.*"):
        if path.suffix != ".gz":
            path.write_bytes(path.read_bytes().replace(b"Fargo", long.encode()))

    titles = mini.read().items["title"].to_list()

    assert long in titles or "Fargo" in titles  # those of gzipped files


# --- facts of single data sets


def test_movielens_tags_become_the_query_of_the_same_users_event(tmp_path: Path) -> None:
    data = MINIATURES["MovieLensCSV"](tmp_path).read()

    assert data.interactions["query"].to_list() == ["dark, slow, space", *[None] * 29]


def test_published_splits_and_candidates_come_along(tmp_path: Path) -> None:
    data = MINIATURES["RecBoleFiles"](tmp_path).read()

    by_user = data.interactions.group_by("user", maintain_order=True).agg("split", pl.col("candidates").last())
    assert by_user["split"].to_list() == [["train"] * 3 + ["validation", "test"]] * USERS
    assert by_user["candidates"].to_list() == [["2", "3", "4"], ["1", "4", "9"], None, None, None, None]


def test_a_split_in_three_files_is_read_as_one(tmp_path: Path) -> None:
    head = "uid:token\titem_id:token\trating:float\ttimestamp:float\n"
    for part, rows in (("train", "1\ta\t4\t5\n"), ("valid", "1\tb\t4\t6\n"), ("test", "1\ta\t4\t7\n")):
        put(tmp_path, f"toy.{part}.inter", head + rows)
    put(tmp_path, "toy.item", "item_id:token\tname:token_seq\na\tAlien\nb\tBrazil\n")

    data = RecBoleFiles(folder="toy", fields={"user": "uid"}, data_dir=tmp_path).read()

    assert data.interactions.select("item", "timestamp", "split").rows() == [
        ("a", 5.0, "train"),
        ("b", 6.0, "validation"),
        ("a", 7.0, "test"),
    ]


def test_only_the_latest_events_are_kept_with_the_target_among_them(tmp_path: Path) -> None:
    MINIATURES["RecBoleFiles"](tmp_path)

    data = RecBoleFiles(folder="toy", latest=2, data_dir=tmp_path).read()

    assert data.interactions["split"].to_list() == ["validation", "test"] * USERS
    assert data.repairs["events before a user's latest 2 left out"] == 18


def test_impressions_are_the_candidates_of_their_clicks(tmp_path: Path) -> None:
    data = MINIATURES["MIND"](tmp_path).read()

    clicked = data.interactions.filter(pl.col("candidates").is_not_null())
    assert len(clicked) == 18
    assert all(item in offered and len(offered) == 2 for item, offered in clicked.select("item", "candidates").rows())
    first = data.interactions.filter(pl.col("user") == "U1").sort("timestamp")
    assert (first["timestamp"] - START).to_list() == [2 * DAY - 2, 2 * DAY - 1, 2 * DAY, 3 * DAY, 4 * DAY]
    assert first["split"].to_list() == ["train"] * 4 + ["test"]


def test_steam_texts_that_look_like_keys_are_no_keys(tmp_path: Path) -> None:
    data = MINIATURES["Steam"](tmp_path).read()

    assert set(data.interactions["user"]) == {f"Jörg {u}" for u in range(1, USERS + 1)}
    assert data.interactions["review"][0] == "It's \"1\", u'username': u'no'\n"


def test_tracks_instead_of_artists(tmp_path: Path) -> None:
    MINIATURES["LastFM1K"](tmp_path)

    data = LastFM1K(level="track", data_dir=tmp_path).read()

    assert "Song 4 by Fargo" in data.items["title"].to_list()


def written(table: pl.DataFrame, path: Path) -> None:
    match path.suffix:
        case ".csv":
            table.write_csv(path)
        case ".tsv":
            table.write_csv(path, separator="\t")
        case ".jsonl":
            table.write_ndjson(path)
        case _:
            table.write_parquet(path)


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_own_tables_of_every_format_are_equal(tmp_path: Path, form: str) -> None:
    rows = [(u, f"i{i}", float(r), t * 1000) for u, i, r, t in events()]
    table = pl.DataFrame(rows, schema=["user", "item", "rating", "timestamp"], orient="row")
    written(table, tmp_path / f"events.{form}")
    written(pl.DataFrame({"name": TITLES, "item": [f"i{i + 1}" for i in range(ITEMS)]}), tmp_path / f"items.{form}")
    module = Tabular(
        interactions_file=f"events.{form}",
        items_file=f"items.{form}",
        item_columns={"title": "name"},
        time="milliseconds",
        data_dir=tmp_path,
    )

    data = module.read()

    assert data.interactions.drop("line").rows() == [(str(u), f"i{i}", float(r), float(t)) for u, i, r, t in events()]
    assert data.items["title"].to_list() == TITLES


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"columns": {"product": "sku"}}, "data.columns has the key 'product'; the keys are user, item"),
        ({"item_columns": {"name": "x"}}, "data.item_columns has the key 'name'; the keys are item, title"),
        ({"wording": {"verb": "x"}}, "data.wording has the key 'verb'; the keys are noun, nouns, consumed"),
        ({"interactions_file": "events.xlsx"}, "events.xlsx: the formats are .csv, .tsv"),
        ({"interactions_file": "absent.csv"}, "put absent.csv in"),
        ({"interactions_file": "torn.parquet"}, "torn.parquet cannot be read: "),
    ],
)
def test_impossible_tables_are_refused(tmp_path: Path, options: dict[str, object], reason: str) -> None:
    MINIATURES["Tabular"](tmp_path)
    put(tmp_path, "events.xlsx", "x")
    put(tmp_path, "torn.parquet", "PAR1x")

    with pytest.raises(InputError) as error:
        Tabular(data_dir=tmp_path, **options).read()  # type: ignore[arg-type]

    assert reason in str(error.value)


def test_own_words_stand_in_the_instructions(tmp_path: Path, tiny_causal: Path) -> None:
    MINIATURES["Tabular"](tmp_path)
    own = {"noun": "toy", "nouns": "toys", "consumed": "unwrapped"}
    module = Tabular(
        data_dir=tmp_path,
        columns={"item": "sku"},
        time="%Y-%m-%d",
        wording=own,
        backbone=str(tiny_causal),
        protocol=PROTOCOL,
    )
    module.setup()

    prompt = module.sample_prompt("test", 0)
    assert "toy" in prompt
    assert "unwrapped" in prompt
    assert "item" not in prompt


# --- damage, and processes that get in one another's way


def damaged(raw: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(raw))
    strange = chance.choice(
        (b"\0", b"\xff", b'"', b"\\", b"\t", b",", b"\r", b"\n", b"{", b"NaN", b"\xef\xbb\xbf", b"'")
    )
    return (
        raw[:place] + strange + raw[place:],
        raw[:place] + raw[place + chance.randrange(1, 9) :],
        raw[:place],
        raw[:place] + bytes([chance.randrange(256)]) + raw[place + 1 :],
        raw[: raw.find(b"\n", place)] + raw[place:],
    )[chance.randrange(5)]


def test_damage_is_refused_in_one_line_or_read_as_a_valid_table(mini: InstructionDataModule) -> None:
    folder = mini.data_dir
    assert folder
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    refused = 0
    for round_ in range(60):
        chance = random.Random(round_)
        path = files[round_ % len(files)]
        before = path.read_bytes()
        path.write_bytes(damaged(before, chance))
        try:
            data = mini.read()
            assert set(data.interactions["item"]) <= set(data.items["item"])
            assert data.interactions["timestamp"].is_finite().all()
            apply_protocol(data, Protocol(negatives=1))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 700
        path.write_bytes(before)
    assert refused


def zipped(at: Path, *members: str) -> Amazon2014:
    """The 2014 reviews as a zip of one file."""
    MINIATURES["Amazon2014"](at)
    import gzip

    raw = gzip.decompress((at / "reviews_Toys_5.json.gz").read_bytes())
    (at / "reviews_Toys_5.json.gz").unlink()
    with zipfile.ZipFile(at / "Toys.zip", "w", zipfile.ZIP_DEFLATED) as bag:
        for member in members:
            bag.writestr(member, raw)
    return Amazon2014(category="Toys", data_dir=at)


def test_a_zip_is_read_through_the_verified_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(tmp_path / "cache"))
    module = zipped(tmp_path, "Toys.json")
    whole = module.read()
    kept = next((tmp_path / "cache").rglob("Toys.json"))
    kept.chmod(0o644)
    kept.write_bytes(kept.read_bytes()[:500])  # as a killed process would leave it

    again = module.read()

    assert again.interactions.equals(whole.interactions)
    assert again.checksum == whole.checksum


@pytest.mark.parametrize(
    ("members", "reason"),
    [(("../Toys.json",), "outside its folder"), (("a.json", "b.json"), "must hold one file; it holds 2")],
)
def test_a_strange_zip_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: tuple[str, ...], reason: str
) -> None:
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(tmp_path / "cache"))

    with pytest.raises(InputError, match=reason):
        zipped(tmp_path, *members).read()
    assert not (tmp_path.parent / "Toys.json").exists()


def test_processes_may_prepare_the_same_zip_at_once(tmp_path: Path) -> None:
    zipped(tmp_path, "Toys.json")
    script = (
        "import sys; from pathlib import Path; from datamodules.sources.fetch import own_file; "
        "from datamodules.tables.cleaning import checksum_of; "
        "print(checksum_of([own_file('x', Path(sys.argv[1]), ('Toys.zip',), '')]))"
    )
    environment = {
        **os.environ,
        "INSTRUCTREC_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    told = [process.communicate(timeout=120)[0] for process in running]

    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(set(told)) == 1
    assert len(told[0].strip()) == 64


# --- the real files


def real(name: str) -> Path:
    """A folder of real data that may not be passed on, and so is not with the tests."""
    root = os.environ.get("INSTRUCTREC_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"INSTRUCTREC_DATA holds no {name}; datamodules/README.md says where to get it")
    return Path(root) / name


def counts(module: InstructionDataModule) -> tuple[int, int, int]:
    data = module.read()
    return data.interactions["user"].n_unique(), len(data.items), len(data.interactions)


@pytest.mark.integration
def test_real_p5_beauty_has_the_published_counts() -> None:
    real("amazon_beauty_p5")
    module = P5Sequences()
    assert counts(module) == (22_363, 12_101, 198_502)
    assert module.read().repairs["items shown by id"] == 1


@pytest.mark.integration
def test_real_games_have_the_published_counts() -> None:
    real("amazon_video_games")
    games = {"folder": "amazon_video_games", "stem": "Games-6k"}
    assert counts(RecBoleFiles(**games)) == (50_546, 16_859, 440_264)  # type: ignore[arg-type]
    module = RecBoleFiles(**games, latest=20, candidates_file="Games-6k.random")  # type: ignore[arg-type]
    assert counts(module) == (50_546, 16_859, 410_907)
    offered = module.read().interactions["candidates"].drop_nulls()
    assert (len(offered), set(offered.list.len())) == (6_000, {100})


@pytest.mark.integration
def test_real_musical_instruments_have_the_published_counts() -> None:
    real("amazon_musical_instruments_5core")
    folder = "amazon_musical_instruments_5core"
    assert counts(Amazon2014(folder=folder, untitled="item_id")) == (1_429, 900, 10_261)
    with pytest.raises(InputError, match=r"meta_Musical_Instruments\.json\.gz .*untitled=item_id|untitled=item_id"):
        Amazon2014(folder=folder).read()


@pytest.mark.integration
def test_real_movielens_latest_small_has_the_counts_of_its_readme() -> None:
    folder = real("ml-latest-small")
    if "9125 movies" not in (folder / "README_grouplens.txt").read_text():
        pytest.skip("another edition than that of October 2016")
    data = MovieLensCSV().read()
    assert (data.interactions["user"].n_unique(), len(data.interactions)) == (671, 100_004)
    assert len(data.items) + data.repairs["items without any event left out"] == 9_125
    assert dict(data.items.select("item", "title").iter_rows())["858"] == "The Godfather"
