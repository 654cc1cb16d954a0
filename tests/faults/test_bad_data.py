"""A thousand damaged data files: each is refused by file and line, or read as the table that it still is; none hangs."""

from __future__ import annotations

import gzip
import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from datamodules.batching.predict_file import read_requests
from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.slates import SlateMaker
from datamodules.protocol.apply import apply_protocol
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Sequences
from tests.faults import tally

COUNT, SHORT = 1000, 100
SECONDS = 10.0
PROTOCOL = Protocol(negatives=5)
EVENTS, ITEMS = "ml-100k.inter", "ml-100k.item"

Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Damage:
    """A way to damage a file.

    Attributes:
        name: for messages.
        files: to which it may be done.
        mutate: the damage.
        refused: whether the file must be refused; None where it depends on the place.
        line: whether a line is to blame.
    """

    name: str
    files: tuple[str, ...]
    mutate: Mutate
    refused: bool | None = None
    line: bool = True


def edit(change: Callable[[list[list[bytes]], int, random.Random], None]) -> Mutate:
    """A change of the rows; it is given the number of one that is not the header."""

    def mutate(content: bytes, rng: random.Random) -> bytes:
        rows = [line.split(b"\t") for line in content.rstrip(b"\n").split(b"\n")]
        change(rows, rng.randrange(1, len(rows)), rng)
        return b"\n".join(b"\t".join(row) for row in rows) + b"\n"

    return mutate


def put(column: int, *values: bytes) -> Mutate:
    def change(rows: list[list[bytes]], at: int, rng: random.Random) -> None:
        rows[at][column] = rng.choice(values)

    return edit(change)


def insert(*values: bytes) -> Mutate:
    def mutate(content: bytes, rng: random.Random) -> bytes:
        place = rng.randrange(len(content) + 1)
        return content[:place] + rng.choice(values) + content[place:]

    return mutate


def flip(content: bytes, rng: random.Random) -> bytes:
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        made[rng.randrange(len(made))] = rng.randrange(256)
    return bytes(made)


def remove_column(rows: list[list[bytes]], at: int, rng: random.Random) -> None:
    column = rng.randrange(2)
    for row in rows:
        del row[column]


def repeat_id(rows: list[list[bytes]], at: int, rng: random.Random) -> None:
    rows.append([rows[at][0], b"Another", b"1999", b"Drama"])


def only_one_event(rows: list[list[bytes]], at: int, rng: random.Random) -> None:
    user = rows[at][0]
    rows[:] = [row for row in rows if row[0] != user or row is rows[at]]


def reorder(rows: list[list[bytes]], at: int, rng: random.Random) -> None:
    order = rng.sample(range(len(rows[0])), len(rows[0]))
    rows[:] = [[row[i] for i in order] for row in rows]


def rename(name: bytes) -> Mutate:
    def change(rows: list[list[bytes]], at: int, rng: random.Random) -> None:
        rows[0][rng.randrange(2)] = name

    return edit(change)


BOTH, E, T = (EVENTS, ITEMS), (EVENTS,), (ITEMS,)
DAMAGES = [
    Damage("not UTF-8", BOTH, insert(b"\xff", b"\xc3(", b"\xe2\x82", b"\xf8\x88\x80\x80\x80", b"\xed\xa0\x80"), True),
    Damage("byte order mark", BOTH, lambda c, r: b"\xef\xbb\xbf" + c, False),
    Damage("UTF-16", BOTH, lambda c, r: c.decode().encode("utf-16"), True),
    Damage("CRLF", BOTH, lambda c, r: c.replace(b"\n", b"\r\n"), False),
    Damage("CR alone", BOTH, lambda c, r: c.replace(b"\n", b"\r"), True),
    Damage("mixed line ends", BOTH, insert(b"\r", b"\r\n"), None),
    Damage("blank line", BOTH, edit(lambda rows, at, r: rows.insert(at, [b""])), True),
    Damage("NUL bytes", BOTH, insert(b"\0", b"\0" * 50), None),
    Damage("flipped bytes", BOTH, flip, None),
    Damage("truncated", BOTH, lambda c, r: c[: r.randrange(len(c))], None),
    Damage("empty", BOTH, lambda c, r: b"", True, line=False),
    Damage("line ends only", BOTH, lambda c, r: b"\n\n\n", True, line=False),
    Damage("header only", BOTH, lambda c, r: c.split(b"\n")[0] + b"\n", True),
    Damage("no header", BOTH, lambda c, r: c.partition(b"\n")[2], True),
    Damage("gzip", BOTH, lambda c, r: gzip.compress(c, mtime=0), False),
    Damage("the other file", BOTH, lambda c, r: b"a:token\tb:token\n1\t2\n", True),
    Damage("missing column", BOTH, edit(remove_column), True),
    Damage("missing field", BOTH, edit(lambda rows, at, r: rows[at].pop()), True),
    Damage("extra field", BOTH, edit(lambda rows, at, r: rows[at].append(b"x")), True),
    Damage("extra column", BOTH, edit(lambda rows, at, r: [row.append(b"x:float" if row is rows[0] else b"1") for row in rows] and None), False),
    Damage("columns reordered", BOTH, edit(reorder), False),
    Damage("renamed column", BOTH, rename(b"userid:token"), True),
    Damage("repeated column", E, rename(b"rating:float"), True),
    Damage("duplicate item id", T, edit(repeat_id), True),
    Damage("no item id", T, put(0, b""), None),
    Damage("no title", T, put(1, b"", b" ", b"\xc2\xa0"), True),
    Damage("a title of 1 MB", T, put(1, b"x" * (1 << 20), b"word " * 200_000), False),
    Damage("a title of controls", T, put(1, b"\xe2\x80\xae\xe2\x80\xa8<|im_end|>"), None),
    Damage("duplicate event", E, edit(lambda rows, at, r: rows.append(rows[at])), None),
    Damage("a user of one event", E, edit(only_one_event), None),
    Damage("unknown item", E, put(1, b"99999", b"", b"-1", b"1.0"), True),
    Damage("no user", E, put(0, b""), None),
    Damage("a user id of 1 MB", E, put(0, b"u" * (1 << 20)), None),
    Damage("rating not finite", E, put(2, b"nan", b"inf", b"-inf", b"NaN", b"1e999"), True),
    Damage("rating not a number", E, put(2, b"", b"five", b"4,5", b"0x5", b"\xd9\xa3", b"4 5"), True),
    Damage("extreme rating", E, put(2, b"-3", b"0", b"1e300", b"5e-324"), None),
    Damage("negative time", E, put(3, b"-1", b"-1e300"), None),
    Damage("absent time", E, put(3, b""), True),
    Damage("time as text", E, put(3, b"yesterday", b"1998-01-01", b"12:00"), True),
    Damage("time not finite", E, put(3, b"nan", b"inf", b"-inf"), True),
    Damage("extreme time", E, put(3, b"1e308", b"99999999999999999999"), None),
]  # fmt: skip


def usable(sequences: Sequences) -> bool:
    """What was read holds together: cases point at events, candidates are items, slates can be made."""
    maker = SlateMaker(sequences, PROTOCOL, 3, 5, 0)
    for cases in (sequences.validation, sequences.test):
        for case in range(len(cases)):
            slate = maker.evaluation(cases, case)
            if (slate.candidates == slate.target).sum() != 1 or len(slate.history) == 0:
                return False
    return bool(np.all(np.diff(sequences.start) > 0)) and all(title.strip() for title in sequences.titles)


def attempt(damage: Damage, file: str, source: Path, folder: Path, rng: random.Random) -> str | None:
    """Reads a damaged copy; what went wrong with it, if anything."""
    for name in (EVENTS, ITEMS):
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / file).write_bytes(damage.mutate((source / file).read_bytes(), rng))
    begin, told = time.monotonic(), None
    try:
        read = MovieLens100K(data_dir=folder, needs=ModelNeeds("interactions"), protocol=PROTOCOL).read()
        sequences = apply_protocol(read, PROTOCOL)
        if not usable(sequences):
            return "what was read does not hold together"
    except InputError as error:
        told = str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if time.monotonic() - begin > SECONDS:
        return f"it took {time.monotonic() - begin:.0f} s"
    if damage.refused is not None and damage.refused != (told is not None):
        return f"refused: {told is not None}, {told}"
    if told is not None and ("\n" in told or len(told) > 600):
        return f"no short line: {told[:200]!r}"
    whole = "no user has the three interactions"  # of all lines together
    if (
        told is not None
        and damage.line
        and not told.startswith(whole)
        and not re.search(r"ml-100k\.(inter|item):\d+: ", told)
    ):
        return f"no file:line in {told!r}"
    return None


def read_damaged(count: int, source: Path, folder: Path) -> list[str]:
    problems = []
    kinds = [(damage, file) for damage in DAMAGES for file in damage.files]
    for number in range(count):
        damage, file = kinds[number % len(kinds)]
        wrong = attempt(damage, file, source, folder, random.Random(number))
        if wrong:
            problems.append(f"{number} {damage.name} in {file}: {wrong}")
    return problems


def test_damaged_data_files_are_refused_by_line_or_read(mini_data: Path, tmp_path: Path) -> None:
    problems = read_damaged(SHORT, mini_data / "ml-100k", tmp_path)
    assert not problems, "\n".join(problems)


@pytest.mark.faults
def test_a_thousand_damaged_data_files(mini_data: Path, tmp_path: Path) -> None:
    problems = read_damaged(COUNT, mini_data / "ml-100k", tmp_path)
    tally.add("damaged data files refused by file and line, or read whole; no traceback", COUNT, COUNT - len(problems))
    assert not problems, "\n".join(problems)


REQUESTS = (
    b'{"user": "new-1", "history": ["1", "2", "3"]}\n'
    b'{"history": ["Night"], "candidates": ["4", "8", "9"]}\n'
    b'{"user": 7, "history": [1, 5, 12], "candidates": null}\n'
)


def damaged_request(number: int, rng: random.Random) -> bytes:
    lines: list[bytes] = REQUESTS.splitlines()
    at = rng.randrange(len(lines))
    values: list[object] = [
        None,
        1,
        [],
        {},
        [[]],
        [{}],
        ["no such film"],
        "1",
        [None],
        [True],
        [1.5],
        ["1"] * 5000,
        -1,
        [""],
    ]
    match number % 8:
        case 0:
            return flip(REQUESTS, rng)
        case 1:
            return REQUESTS[: rng.randrange(len(REQUESTS))]
        case 2:
            return insert(b"\xff", b"\0", b"\xef\xbb\xbf", b"\r", b"[" * 3000, b'"', b"NaN", b"1e999")(REQUESTS, rng)
        case 3:
            row = json.loads(lines[at]) | {rng.choice(("user", "history", "candidates", "extra")): rng.choice(values)}
            lines[at] = json.dumps(row).encode()
        case 4:
            lines[at] = json.dumps(rng.choice(values)).encode()
        case 5:
            lines[at] = b'{"history": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
        case 6:
            lines[at] = json.dumps({"user": "x" * (1 << 20), "history": [rng.choice(("1", "y" * (1 << 20)))]}).encode()
        case _:
            lines[at] = b'{"history": ["1"], "history": ["2"], "user": ' + b"9" * 6000 + b"}"
    return b"\n".join(lines)


def read_bad_requests(count: int, source: Path, folder: Path) -> list[str]:
    data = MovieLens100K(data_dir=source, needs=ModelNeeds("interactions"), protocol=PROTOCOL)
    data.setup()
    items, titles = data.sequences.item_ids, data.sequences.titles
    path, problems = folder / "users.jsonl", []
    for number in range(count):
        path.write_bytes(damaged_request(number, random.Random(number)))
        begin = time.monotonic()
        try:
            for request in read_requests(path, items, titles):
                assert len(request.history) > 0
                assert len(request.candidates) > 0
                assert max(*request.history, *request.candidates) < len(items)
        except InputError as error:
            if not re.search(r"users\.jsonl(:\d+: | holds no users)", str(error)) or len(str(error)) > 600:
                problems.append(f"{number}: no short line with file:line: {str(error)[:200]!r}")
        except Exception as error:
            problems.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
        if time.monotonic() - begin > SECONDS:
            problems.append(f"{number}: it took {time.monotonic() - begin:.0f} s")
    return problems


def test_damaged_requests_are_refused_by_line_or_read(mini_data: Path, tmp_path: Path) -> None:
    problems = read_bad_requests(SHORT, mini_data / "ml-100k", tmp_path)
    assert not problems, "\n".join(problems)


@pytest.mark.faults
def test_a_thousand_damaged_request_files(mini_data: Path, tmp_path: Path) -> None:
    problems = read_bad_requests(COUNT, mini_data / "ml-100k", tmp_path)
    tally.add(
        "damaged request files refused by file and line, or read whole; no traceback", COUNT, COUNT - len(problems)
    )
    assert not problems, "\n".join(problems)


def test_a_title_of_a_megabyte_is_refused_when_it_is_shown(mini_data: Path, tiny_causal: Path, tmp_path: Path) -> None:
    """Reading takes it; a prompt or an answer that cannot fit the context names the user, and soon."""
    damage = next(damage for damage in DAMAGES if damage.name == "a title of 1 MB")
    source = mini_data / "ml-100k"
    (tmp_path / EVENTS).write_bytes((source / EVENTS).read_bytes())
    (tmp_path / ITEMS).write_bytes(damage.mutate((source / ITEMS).read_bytes(), random.Random(1)))
    data = MovieLens100K(data_dir=tmp_path, backbone=str(tiny_causal), protocol=PROTOCOL)
    data.setup()
    begin = time.process_time()
    with pytest.raises(InputError, match=r"user '\d+'"):
        for _ in data.test_dataloader():
            pass
    assert time.process_time() - begin < SECONDS
