"""Preferences and intentions in words: by plain rules, and never of what a case must not know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from datamodules.contract.errors import InputError
from datamodules.instructions.preferences import Explicit, explicit_texts, read_notes, shortened
from datamodules.instructions.slates import Slate, SlateMaker
from datamodules.protocol.apply import apply_protocol
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Sequences
from datamodules.tables.interactions import Interactions

GENRES = [["Drama"], ["Comedy", "Drama"], ["War"], ["Comedy"], [], ["Horror", ""], ["War", "Sci-Fi"], ["Western"]]
PROTOCOL = Protocol(negatives=1, history=4)


@pytest.fixture
def data() -> Interactions:
    """Two users with seven events each, in no order of the file; every text says whose and about what it is."""
    rows = [
        (u, i, float(1 + (i + n) % 5), float(t)) for n, u in enumerate(("ann", "bob")) for t, i in enumerate(range(7))
    ]
    rows = [rows[n] for n in np.random.default_rng(0).permutation(len(rows))]
    events = pl.DataFrame(rows, schema=["user", "number", "rating", "timestamp"], orient="row").with_columns(
        pl.col("number").cast(pl.String).alias("item"),
        pl.format("review of {} by {}.", "number", "user").alias("review"),
        pl.when(pl.col("number") == 6).then(pl.format("wish of {}", "user")).alias("query"),
    )
    items = pl.DataFrame(
        {"item": [str(n) for n in range(8)], "title": [f"Film {n}" for n in range(8)], "categories": GENRES}
    )
    users = pl.DataFrame({"user": ["bob", "ann"], "age": ["30", None], "job": ["cook", "pilot"]})
    return Interactions(events.drop("number").with_row_index("row"), items, "sum", users=users)


def texts_of(data: Interactions, preference: str = "", intention: str = "", **more: Any) -> tuple[Explicit, Sequences]:
    sequences = apply_protocol(data, PROTOCOL)
    options: dict[str, Any] = {"separator": ", ", "limit": 100} | more
    return explicit_texts(data, sequences, preference_rule=preference, intention_rule=intention, **options), sequences


def slates_of(sequences: Sequences) -> list[Slate]:
    maker = SlateMaker(sequences, PROTOCOL, 1, 3, 0)
    tests = [maker.evaluation(sequences.test, case) for case in range(len(sequences.test))]
    return tests + [slate for window in range(len(maker.windows)) for slate in maker.training(window, 0)]


def test_categories_are_those_of_what_was_liked(data: Interactions) -> None:
    explicit, sequences = texts_of(data, preference="categories")
    slate = slates_of(sequences)[0]
    liked = replace(slate, history=np.array([0, 1, 2, 3]), liked=np.array([True, True, False, True]))

    # Comedy twice and latest, Drama twice; War was not liked.
    assert explicit.preference(liked) == "Comedy, Drama"
    nothing = replace(liked, liked=np.zeros(4, bool))
    assert explicit.preference(nothing) == "Comedy, Drama, War"
    assert explicit.preference(replace(liked, history=np.array([], int), liked=np.array([], bool))) == ""


@pytest.mark.parametrize("rule", ["categories", "review", "profile"])
def test_a_preference_never_depends_on_the_target_or_what_comes_later(data: Interactions, rule: str) -> None:
    explicit, sequences = texts_of(data, preference=rule)
    slates = slates_of(sequences)
    before = [explicit.preference(slate) for slate in slates]
    later = data.interactions.with_columns(
        pl.when(pl.col("timestamp") >= 5).then(pl.lit("spoilt")).otherwise(pl.col("review")).alias("review")
    )
    spoilt, _ = texts_of(replace(data, interactions=later), preference=rule)

    shown_early = [
        slate.begin + len(slate.history) - sequences.start[0 if slate.user == sequences.user_ids[0] else 1] <= 5
        for slate in slates
    ]
    assert any(shown_early)
    for slate, text, early in zip(slates, before, shown_early, strict=True):
        assert f"review of {slate.target}" not in text
        if early:
            assert spoilt.preference(slate) == text


def test_reviews_and_profiles_are_the_users_own(data: Interactions) -> None:
    reviews, sequences = texts_of(data, preference="review")
    profiles, _ = texts_of(data, preference="profile")
    for slate in slates_of(sequences):
        assert reviews.preference(slate) == f"review of {slate.history[-1]} by {slate.user}"
        assert profiles.preference(slate) == {"bob": "age 30, job cook", "ann": "job pilot"}[slate.user]


def test_intentions_are_of_the_event_itself(data: Interactions) -> None:
    review, sequences = texts_of(data, intention="target_review")
    query, _ = texts_of(data, intention="query")
    genres, _ = texts_of(data, intention="target_categories")
    for slate in slates_of(sequences):
        assert review.intention(slate) == f"review of {slate.target} by {slate.user}"
        assert query.intention(slate) == (f"wish of {slate.user}" if slate.target == 6 else "")
        assert genres.intention(slate) == ", ".join(name for name in GENRES[slate.target] if name)


def test_a_search_by_preference_tells_the_preference(data: Interactions) -> None:
    explicit, sequences = texts_of(data, preference="review")
    slate = slates_of(sequences)[0]

    assert explicit.intention(slate, by_preference=True) == explicit.preference(slate) != ""
    assert explicit.intention(slate) == ""


def test_annotations_are_found_by_user_and_target(data: Interactions, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text(
        '{"user": "ann", "item": "6", "preference": "old films"}\n{"user": "ann", "item": "6", "intention": "a laugh"}\n'
    )
    explicit, sequences = texts_of(data, preference="annotation", intention="annotation", notes=read_notes(file))
    told = {(s.user, s.target): (explicit.preference(s), explicit.intention(s)) for s in slates_of(sequences)}

    assert told.pop(("ann", 6)) == ("old films", "a laugh")
    assert set(told.values()) == {("", "")}
    assert explicit.digest


@pytest.mark.parametrize("line", ["{", "[]", '{"user": 1}', "7"])
def test_a_malformed_annotation_is_named_by_line(line: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text('{"user": "a", "item": "b"}\n' + line)
    with pytest.raises(InputError, match=r"notes\.jsonl:2: needs"):
        read_notes(file)


def test_a_promise_that_tables_do_not_keep_is_refused(data: Interactions) -> None:
    bare = replace(data, interactions=data.interactions.drop("review"), users=None)
    with pytest.raises(InputError, match="have no column 'review'"):
        texts_of(bare, preference="review")
    with pytest.raises(InputError, match="no table of users"):
        texts_of(bare, preference="profile")


def test_long_texts_are_cut_between_words() -> None:
    assert shortened("one two three", 100) == "one two three"
    assert shortened("one two three", 8) == "one two"
    assert shortened("a" * 50, 10) == "a" * 10
    assert shortened("line\nbreak \u202e here.", 100) == "line break here"
