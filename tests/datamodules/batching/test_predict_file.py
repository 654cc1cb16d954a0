"""Files of new users: what is well formed is read, every other line is named with what is wrong in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batching.predict_file import Request, read_requests
from datamodules.contract.errors import InputError

IDS = ["10", "20", "30", "Heat", "50"]
TITLES = ["Alien", "Heat", "Fargo", "The Godfather", "Fargo"]


def read(path: Path, *lines: Any) -> list[Request]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text, encoding="utf-8")
    return read_requests(path, IDS, TITLES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.jsonl"


def test_ids_and_titles_name_items_in_order(path: Path) -> None:
    [request] = read(path, {"user": "u1", "history": ["30", "Alien", 20], "candidates": ["The Godfather", "10"]})

    assert request.user == "u1"
    assert request.history.tolist() == [2, 0, 1]
    assert request.candidates.tolist() == [3, 0]


def test_ids_win_over_titles_and_the_first_of_equal_titles_is_meant(path: Path) -> None:
    [request] = read(path, {"history": ["Heat", "Fargo"]})

    assert request.history.tolist() == [3, 2]


def test_candidates_default_to_the_catalogue_without_the_history(path: Path) -> None:
    one, other = read(path, {"history": ["10", "Fargo", "10"]}, {"history": ["20"], "candidates": None})

    assert one.candidates.tolist() == [1, 3, 4]
    assert other.candidates.tolist() == [0, 2, 3, 4]


def test_users_default_to_their_line(path: Path) -> None:
    requests = read(path, {"history": ["10"]}, "", "  ", {"user": 7, "history": ["10"]}, {"history": ["20"]})

    assert [request.user for request in requests] == ["1", "7", "5"]


def test_byte_order_mark_and_line_ends_are_accepted(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbf{"history": ["10"]}\r\n{"history": ["20"]}\r\n')

    assert [request.history.tolist() for request in read_requests(path, IDS, TITLES)] == [[0], [1]]


GOOD = {"history": ["10"]}
BAD: dict[str, tuple[Any, str]] = {
    "not JSON": ("{history: 10}", "not JSON"),
    "cut off": ('{"history": ["10"', "not JSON"),
    "nested without end": ("[" * 100_000, "not JSON"),
    "a list": (["10"], 'must be an object with a list "history"'),
    "a number": ("7", 'must be an object with a list "history"'),
    "no history": ({"user": "u"}, 'must be an object with a list "history"'),
    "history of one word": ({"history": "10"}, 'must be an object with a list "history"'),
    "empty history": ({"history": []}, "history is empty"),
    "empty candidates": ({"history": ["10"], "candidates": []}, "candidates is empty"),
    "nothing left to rank": ({"history": IDS}, "candidates is empty"),
    "candidates of one word": ({"history": ["10"], "candidates": "10"}, "candidates must be a list"),
    "unknown key": (
        {"history": ["10"], "candidate": ["20"]},
        "unknown key 'candidate'; there are user, history, candidates",
    ),
    "unknown title": (
        {"history": ["The Godfathr"]},
        "history names 'The Godfathr', not in the catalogue; the nearest is 'The Godfather'",
    ),
    "unknown candidate": (
        {"history": ["10"], "candidates": ["Fargoo"]},
        "candidates names 'Fargoo', not in the catalogue; the nearest is 'Fargo'",
    ),
    "a candidate twice": (
        {"history": ["10"], "candidates": ["20", "30", "20"]},
        "candidates name '20' and again '20', which is the same item",
    ),
    "a candidate by id and by title": (
        {"history": ["10"], "candidates": ["30", "Fargo"]},
        "candidates name '30' and again 'Fargo', which is the same item; where items share a title, name them by id",
    ),
    "unknown id": ({"history": [31]}, "history names '31', not in the catalogue; the nearest is '30'"),
    "an item that is none": ({"history": [None]}, "history names 'None', not in the catalogue"),
    "an item that is a list": ({"history": [["10"]]}, "not in the catalogue"),
    "a very long title": ({"history": ["x" * 200_000]}, "not in the catalogue"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_named_with_what_is_wrong(path: Path, kind: str) -> None:
    line, reason = BAD[kind]

    with pytest.raises(InputError) as error:
        read(path, GOOD, "", line, GOOD)

    assert str(error.value).startswith(f"{path}:3: ")
    assert reason in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 250
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_utf8_are_named_by_line(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbf{"history": ["10"]}\n\xff\n')

    with pytest.raises(InputError, match=r"users\.jsonl:2: not UTF-8"):
        read_requests(path, IDS, TITLES)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_users_is_refused(path: Path, content: str) -> None:
    path.write_text(content)

    with pytest.raises(InputError, match="holds no users"):
        read_requests(path, IDS, TITLES)


def test_a_file_that_is_not_there_is_refused(path: Path, tmp_path: Path) -> None:
    for wrong in (path, tmp_path):
        with pytest.raises(InputError, match=f"cannot read {wrong}: "):
            read_requests(wrong, IDS, TITLES)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(IDS + TITLES),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
ROWS = st.dictionaries(st.sampled_from(["user", "history", "candidates", "other"]), VALUES, max_size=4)


@settings(max_examples=150, deadline=None)
@given(row=ROWS, cut=st.one_of(st.none(), st.integers(0, 40)))
def test_any_line_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any], cut: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    try:
        requests = read(path, json.dumps(row)[:cut])
    except InputError as error:
        assert str(path) in str(error)
        return

    [request] = requests
    assert len(request.history) > 0
    assert len(request.candidates) > 0
    assert set(request.history.tolist()) | set(request.candidates.tolist()) <= set(range(5))
