"""The protocol against plain Python: split, ties, candidates, samples, fingerprint; and ML-100K's published numbers."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare  # type: ignore[import-untyped]

import datamodules
from datamodules.contract.errors import InputError
from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.slates import make_windows
from datamodules.protocol.apply import apply_protocol
from datamodules.protocol.rules import Protocol, Ties
from datamodules.protocol.sequences import Cases, Sequences
from datamodules.tables.interactions import Interactions
from tests.datamodules.protocol.tables import OTHER_SETTINGS

Event = tuple[str, str, float | None, float]
CATALOGUE = ["9", "10", "2", "02", "b", "a", "A1", "x y", *(str(n) for n in range(100, 120))]


def table(events: list[Event], catalogue: list[str] = CATALOGUE, checksum: str = "sum") -> Interactions:
    schema = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "timestamp": pl.Float64}
    return Interactions(
        interactions=pl.DataFrame(events, schema=schema, orient="row"),
        items=pl.DataFrame({"item": catalogue, "title": [f"Title {item}" for item in catalogue]}),
        checksum=checksum,
    )


def miniature(users: int = 12, checksum: str = "sum") -> Interactions:
    """Made by arithmetic alone, so that no library can change it; every two events of a user share a timestamp."""
    rows = [(n, (n * n * 7 + n) % 97, n % users) for n in range(users * 8)]
    rows.sort(key=lambda row: (row[1], row[0]))
    events: list[Event] = [
        (f"u{user}", str((n // users * 5 + user * 3) % 40 + 1), float(n % 5 + 1), float(n // users // 2))
        for n, _, user in rows
    ]
    return table(events, [str(n + 1) for n in range(40)], checksum)


def user_events(made: Sequences, user: int) -> list[str]:
    return [made.item_ids[i] for i in made.item[made.start[user] : made.start[user + 1]]]


def cases_by_user(made: Sequences, cases: Cases) -> dict[str, tuple[str, list[str]]]:
    """User id -> (true item id, candidate ids in order)."""
    assert cases.candidates is not None
    return {
        made.user_ids[u]: (made.item_ids[made.item[t]], [made.item_ids[c] for c in row])
        for u, t, row in zip(cases.user, cases.target, cases.candidates, strict=True)
    }


# --- split and ties -------------------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["u", "v", "w"]),
        st.sampled_from(CATALOGUE[:8]),
        st.one_of(st.none(), st.sampled_from([1.0, 4.0])),
        st.sampled_from([1.0, 2.0, 10.0]),
    ),
    min_size=1,
    max_size=24,
)


def oracle_key(ties: Ties, row: int, event: Event) -> tuple[Any, ...]:
    _, item, _, time = event
    number = int(item) if re.fullmatch(r"\d+", item) else None
    return {
        "file_order": (time, row),
        "reversed_file_order": (time, -row),
        "item_id": (time, number is None, number or 0, item, row),
        "shuffle": (time,),
    }[ties]


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.sampled_from(["file_order", "reversed_file_order", "item_id"]), st.booleans())
def test_leave_one_out_agrees_with_plain_python(events: list[Event], ties: Ties, fit_on_validation: bool) -> None:
    protocol = Protocol(ties=ties, negatives=2, fit_on_validation=fit_on_validation)
    expected: dict[str, list[Event]] = {}
    for event in events:
        expected.setdefault(event[0], [])
    for user in expected:
        keyed = [(oracle_key(ties, row, event), event) for row, event in enumerate(events) if event[0] == user]
        expected[user] = [event for _, event in sorted(keyed, key=lambda pair: pair[0])]
    eligible = [user for user, own in expected.items() if len(own) >= 3]
    if not eligible:
        with pytest.raises(InputError, match="no user has the three interactions"):
            apply_protocol(table(events), protocol)
        return

    made = apply_protocol(table(events), protocol)

    assert made.user_ids == list(expected)
    assert made.item_ids == CATALOGUE
    assert made.titles == [f"Title {item}" for item in CATALOGUE]
    for code, user in enumerate(made.user_ids):
        own = expected[user]
        assert user_events(made, code) == [item for _, item, _, _ in own]
        ratings = made.rating[made.start[code] : made.start[code + 1]]
        assert [None if np.isnan(r) else float(r) for r in ratings] == [rating for _, _, rating, _ in own]
        held_out = 0 if len(own) < 3 else 1 if fit_on_validation else 2
        assert made.train_end[code] - made.start[code] == len(own) - held_out
    for cases, back in ((made.test, 1), (made.validation, 2)):
        split = [] if back == 2 and fit_on_validation else eligible
        assert [made.user_ids[u] for u in cases.user] == split
        assert (cases.target == made.start[cases.user + 1] - back).all()


def test_shuffled_ties_keep_time_and_depend_on_the_seed_alone() -> None:
    events: list[Event] = [("u", item, None, float(n // 6)) for n, item in enumerate(CATALOGUE[:18])]
    orders = set()
    for seed in range(5):
        protocol = Protocol(ties="shuffle", negatives=2, seed=seed)
        order = user_events(apply_protocol(table(events), protocol), 0)
        assert order == user_events(apply_protocol(table(events), protocol), 0)
        for block in range(0, 18, 6):
            assert sorted(order[block : block + 6]) == sorted(CATALOGUE[block : block + 6])
        orders.add(tuple(order))
    assert len(orders) == 5


def test_timestamps_are_compared_as_numbers() -> None:
    events: list[Event] = [("u", "9", None, 100.0), ("u", "10", None, 20.0), ("u", "a", None, 3.0)]

    assert user_events(apply_protocol(table(events), Protocol(negatives=2)), 0) == ["a", "10", "9"]


def test_training_never_sees_a_held_out_event() -> None:
    for fit_on_validation in (False, True):
        made = apply_protocol(miniature(), Protocol(fit_on_validation=fit_on_validation))
        windows = make_windows(made, targets=3)
        seen = {place for first, last in zip(windows.first, windows.last, strict=True) for place in range(first, last)}

        assert seen
        assert not seen & set(made.test.target.tolist())
        validation = made.start[made.test.user + 1] - 2
        assert (set(validation.tolist()) <= seen) == fit_on_validation
        assert fit_on_validation or not seen & set(validation.tolist())


def test_without_validation_there_are_no_validation_cases() -> None:
    made = apply_protocol(miniature(), Protocol(fit_on_validation=True))

    assert len(made.validation) == 0
    assert len(made.test) == 12
    assert made.description["trained_on"] == "all but the test items"


# --- candidates -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd() -> Sequences:
    """3,000 users with five events each, over 60 items."""
    chance = random.Random(0)
    catalogue = [str(n) for n in range(60)]
    events: list[Event] = [
        (f"user-{user}", item, None, float(time))
        for user in range(3000)
        for time, item in enumerate(chance.sample(catalogue, 5))
    ]
    return apply_protocol(table(events, catalogue), Protocol(negatives=19))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_candidates_hold_the_true_item_once_and_none_of_the_users(crowd: Sequences, split: str) -> None:
    cases: Cases = getattr(crowd, split)
    assert cases.candidates is not None
    assert cases.candidates.shape == (3000, 20)
    for user, target, row in zip(cases.user, cases.target, cases.candidates, strict=True):
        true = crowd.item[target]
        own = set(crowd.item[crowd.start[user] : crowd.start[user + 1]].tolist())
        assert len(set(row.tolist())) == 20
        assert (row == true).sum() == 1
        assert not (set(row.tolist()) - {int(true)}) & own


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_place_of_the_true_item_is_uniform(crowd: Sequences, split: str) -> None:
    cases: Cases = getattr(crowd, split)
    assert cases.candidates is not None
    places = np.argmax(cases.candidates == crowd.item[cases.target][:, None], axis=1)

    assert chisquare(np.bincount(places, minlength=20)).pvalue > 0.001


def test_every_item_is_drawn_as_a_negative_alike(crowd: Sequences) -> None:
    candidates = crowd.test.candidates
    assert candidates is not None
    true = crowd.item[crowd.test.target]
    drawn = np.bincount(candidates[candidates != true[:, None]], minlength=60)
    expected = np.zeros(60)
    for user in crowd.test.user:
        rest = np.ones(60)
        rest[crowd.item[crowd.start[user] : crowd.start[user + 1]]] = 0
        expected += rest * 19 / rest.sum()

    assert chisquare(drawn, expected).pvalue > 0.001


def test_validation_and_test_candidates_are_drawn_apart(crowd: Sequences) -> None:
    one, other = cases_by_user(crowd, crowd.validation), cases_by_user(crowd, crowd.test)

    assert np.mean([set(one[user][1]) == set(other[user][1]) for user in one]) < 0.01


def test_seen_items_may_be_candidates_when_the_protocol_says_so() -> None:
    made = apply_protocol(miniature(), Protocol(exclude_seen=False, negatives=30))
    own_offered = 0
    for user, (true, offered) in cases_by_user(made, made.test).items():
        own = set(user_events(made, made.user_ids.index(user)))
        assert len(set(offered)) == 31
        assert offered.count(true) == 1
        own_offered += len(set(offered) & own - {true})

    assert own_offered > 0


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_the_full_catalogue_is_ranked_without_what_came_before(exclude_seen: bool) -> None:
    events: list[Event] = [("u", item, None, float(n)) for n, item in enumerate(["9", "a", "9", "b", "a", "9"])]
    made = apply_protocol(table(events), Protocol(candidates="full", exclude_seen=exclude_seen))

    for cases, history, true in ((made.test, {"9", "a", "b"}, "9"), (made.validation, {"9", "a", "b"}, "a")):
        assert cases.candidates is None
        offered = [made.item_ids[i] for i in made.candidate_items(cases, 0, exclude_seen)]
        unwanted = history - {true} if exclude_seen else set()
        assert offered == [item for item in CATALOGUE if item not in unwanted]


# --- independence ---------------------------------------------------------------------------------------------------


def test_neither_order_of_users_nor_of_rows_changes_a_case() -> None:
    data = miniature()
    untied = data.interactions.with_columns(timestamp=pl.int_range(pl.len()).cast(pl.Float64))
    one = apply_protocol(replace(data, interactions=untied), Protocol())
    expected = cases_by_user(one, one.test), cases_by_user(one, one.validation)
    for seed in range(3):
        shuffled = replace(data, interactions=untied.sample(fraction=1, shuffle=True, seed=seed))
        other = apply_protocol(shuffled, Protocol())
        assert other.user_ids != one.user_ids
        assert (cases_by_user(other, other.test), cases_by_user(other, other.validation)) == expected


def test_other_users_do_not_change_a_users_case() -> None:
    data = miniature()
    one = apply_protocol(data, Protocol())
    fewer = apply_protocol(
        replace(data, interactions=data.interactions.filter(pl.col("user").is_in(["u3", "u7"]))), Protocol()
    )

    assert cases_by_user(fewer, fewer.test).items() <= cases_by_user(one, one.test).items()
    assert len(fewer.test) == 2


def test_sampled_users_have_the_cases_of_the_full_run_and_samples_are_nested() -> None:
    full = apply_protocol(miniature(30), Protocol())
    everyone = cases_by_user(full, full.test)
    before: set[str] = set()
    for count in (1, 4, 9, 29, 30, 500):
        made = apply_protocol(miniature(30), Protocol(test_users=count, validation_users=count))
        sample = cases_by_user(made, made.test)
        assert len(sample) == min(count, 30)
        assert sample.items() <= everyone.items()
        assert set(cases_by_user(made, made.validation)) == set(sample)
        assert before <= set(sample)
        before = set(sample)
        assert (made.train_end == full.train_end).all()


def test_the_sample_of_users_depends_on_the_seed() -> None:
    samples = {
        frozenset(apply_protocol(miniature(30), Protocol(test_users=5, seed=seed)).test.user.tolist())
        for seed in range(6)
    }

    assert len(samples) > 3


def test_the_number_of_polars_threads_changes_nothing(data_root: Path) -> None:
    code = """if True:
    import sys, pathlib, polars
    from datamodules.tables.delimited import read_atomic_file
    from datamodules.tables.interactions import Interactions
    from datamodules.protocol.apply import apply_protocol
    from datamodules.protocol.rules import Protocol
    folder = pathlib.Path(sys.argv[1])
    events = {"user_id": "user", "item_id": "item", "rating": "rating", "timestamp": "timestamp"}
    data = Interactions(
        read_atomic_file(folder / "ml-100k.inter", events),
        read_atomic_file(folder / "ml-100k.item", {"item_id": "item", "movie_title": "title"}),
        checksum="sum",
    )
    print(polars.thread_pool_size())
    for ties in ("file_order", "item_id", "shuffle"):
        print(apply_protocol(data, Protocol(ties=ties)).fingerprint)
    """
    answers = []
    for threads in ("1", "4"):
        process = subprocess.run(
            [sys.executable, "-c", code, str(data_root / "ml-100k")],
            env=os.environ | {"POLARS_MAX_THREADS": threads},
            cwd=Path(datamodules.__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        size, *fingerprints = process.stdout.split()
        assert size == threads
        assert len(fingerprints) == 3
        answers.append(fingerprints)

    assert answers[0] == answers[1]


# --- fingerprint ----------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_each_setting() -> None:
    assert set(OTHER_SETTINGS) == {field.name for field in fields(Protocol)} - {"also"}
    made = [Protocol(), *(replace(Protocol(), **{name: value}) for name, value in OTHER_SETTINGS.items())]

    prints = [apply_protocol(miniature(), protocol).fingerprint for protocol in made]

    assert len(set(prints)) == len(made)
    assert [apply_protocol(miniature(), protocol).fingerprint for protocol in made] == prints
    assert apply_protocol(miniature(), Protocol(also=("popularity",))).fingerprint == prints[0]  # it adds lists beside


def test_the_fingerprint_changes_with_the_data() -> None:
    data = miniature()
    other_case = data.interactions.with_columns(
        item=pl.when(pl.int_range(pl.len()) == pl.len() - 1).then(pl.lit("40")).otherwise("item")
    )
    renamed = data.interactions.with_columns(pl.col("user").replace({"u1": "someone"}))
    made = [
        data,
        miniature(checksum="other"),
        replace(data, interactions=other_case),
        replace(data, interactions=renamed),
    ]

    assert len({apply_protocol(each, Protocol()).fingerprint for each in made}) == 4


GOLDEN = {
    "file_order": "02e3a3f6b41c68a7fc7a48dabfe1c86ceb9a257d51664285c708e4a2ba41e3dd",
    "reversed_file_order": "08d721055cee9ce18a679bde9b2d511c4925078d21485963962270eece0fc7ad",
    "item_id": "eeb63646594cbdbc3c41c22822333f99a63bf1fb5621c4e0aecf2c661977824e",
    "shuffle": "11f41bdb44c1e67eacf30991c69d0d3f97bc61f3f1549b2942365ee5573a9eee",
}


@pytest.mark.parametrize("ties", GOLDEN)
def test_the_fingerprint_is_what_it_was(ties: Ties) -> None:
    """Frozen values: if one moves, cases moved (or numpy or polars did), and PROTOCOL_VERSION must be raised."""
    made = apply_protocol(miniature(), Protocol(ties=ties, test_users=10, negatives=9, history=5))

    assert made.fingerprint == GOLDEN[ties]


# --- refusals and statistics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["negatives", "history", "test_users", "validation_users"])
@pytest.mark.parametrize("value", [0, -3])
def test_counts_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"protocol\.{name} is {value}, must be at least 1"):
        Protocol(**{name: value})  # type: ignore[arg-type]


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match=r"protocol\.seed is -1, must be at least 0"):
        Protocol(seed=-1)


@pytest.mark.parametrize(("exclude_seen", "fits"), [(True, 32), (False, 39)])
def test_too_few_items_are_refused(exclude_seen: bool, fits: int) -> None:
    data = miniature()
    assert all(len(set(user_events(apply_protocol(data, Protocol()), user))) == 8 for user in range(12))

    made = apply_protocol(data, Protocol(negatives=fits, exclude_seen=exclude_seen))
    assert made.test.candidates is not None
    assert made.test.candidates.shape == (12, fits + 1)
    with pytest.raises(InputError, match=rf"leaves {fits} items to draw from, protocol.negatives is {fits + 1}"):
        apply_protocol(data, Protocol(negatives=fits + 1, exclude_seen=exclude_seen))


def test_statistics_count_users_items_ties_and_ambiguous_last_items() -> None:
    events: list[Event] = [
        ("one", "9", None, 1.0),
        ("two", "9", None, 1.0),
        ("two", "10", None, 2.0),
        ("two", "a", None, 2.0),
        ("three", "9", None, 1.0),
        ("three", "10", None, 1.0),
        ("three", "a", None, 3.0),
        ("three", "b", None, 4.0),
    ]
    description = apply_protocol(table(events), Protocol(negatives=4, test_users=1)).description

    assert description["statistics"] == {
        "users": 3,
        "items": len(CATALOGUE),
        "interactions": 8,
        "test_users": 1,
        "eligible_users": 2,
        "tied_interactions": 0.5,
        "users_with_ambiguous_last_item": pytest.approx(1 / 3),
    }
    assert description["candidates"] == "uniform, 1 + 4, seed 42"
    assert description["timestamp_ties"] == "file_order"


# --- acceptance: popularity on ML-100K ------------------------------------------------------------------------------

# (ties, train on validation items, filter seen): HR@5, HR@10, NDCG@10, each an expectation over score ties.
POPULARITY: dict[tuple[Ties, bool, bool], tuple[float, float, float]] = {
    ("file_order", True, True): (0.0583, 0.0859, 0.0444),
    ("file_order", True, False): (0.0255, 0.0498, 0.0225),
    ("file_order", False, True): (0.0583, 0.0848, 0.0441),
    ("item_id", True, True): (0.0339, 0.0498, 0.0254),
    ("item_id", True, False): (0.0159, 0.0286, 0.0121),
    ("item_id", False, True): (0.0329, 0.0498, 0.0252),
    ("reversed_file_order", True, True): (0.0541, 0.0838, 0.0424),
    ("reversed_file_order", True, False): (0.0265, 0.0498, 0.0241),
    ("reversed_file_order", False, True): (0.0530, 0.0854, 0.0425),
}


@pytest.fixture(scope="module")
def ml_100k() -> Interactions:
    return MovieLens100K().read()


def popularity_scores(made: Sequences, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`[U, I]` counts over training events, which item is true, and which are candidates."""
    training = np.concatenate([np.arange(a, b) for a, b in zip(made.start[:-1], made.train_end, strict=True)])
    counts = np.bincount(made.item[training], minlength=len(made.item_ids)).astype(float)
    mask = np.zeros((len(made.test), len(counts)), dtype=bool)
    for case in range(len(made.test)):
        mask[case, made.candidate_items(made.test, case, exclude_seen)] = True
    relevance = np.arange(len(counts)) == made.item[made.test.target][:, None]
    return np.broadcast_to(counts, mask.shape), relevance, mask


def expected_metrics(scores: np.ndarray, relevance: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """Closed form for one true item: g items score higher, t score alike (itself included); its rank is g + 1..g + t."""
    true = (scores * relevance).sum(axis=1, keepdims=True)
    above = ((scores > true) & mask).sum(axis=1)
    alike = ((scores == true) & mask).sum(axis=1)
    gain = np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(2, 12)))))  # summed over ranks 1..n

    def hits(k: int) -> float:
        return float(np.mean(np.clip((k - above) / alike, 0, 1)))

    ndcg = (gain[np.minimum(above + alike, 10)] - gain[np.minimum(above, 10)]) / alike
    return hits(5), hits(10), float(np.mean(ndcg))


@pytest.mark.integration
@pytest.mark.parametrize("cell", POPULARITY, ids=lambda cell: "-".join(map(str, cell)))
def test_popularity_on_ml_100k_is_as_published(cell: tuple[Ties, bool, bool], ml_100k: Interactions) -> None:
    ties, fit_on_validation, exclude_seen = cell
    protocol = Protocol(candidates="full", ties=ties, exclude_seen=exclude_seen, fit_on_validation=fit_on_validation)

    made = apply_protocol(ml_100k, protocol)
    scores, relevance, mask = popularity_scores(made, exclude_seen)

    assert len(made.test) == 943
    assert tuple(round(value, 4) for value in expected_metrics(scores, relevance, mask)) == POPULARITY[cell]
    ours = _framework_metrics(scores, relevance, mask)
    assert ours == pytest.approx(expected_metrics(scores, relevance, mask), abs=1e-9)


def _framework_metrics(scores: np.ndarray, relevance: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    import torch

    from recmodels.metrics import ranking as metrics

    score, gain, offered = (torch.from_numpy(np.array(each)) for each in (scores, relevance.astype(float), mask))
    return (
        float(metrics.hit_rate(score, gain, 5, offered).double().mean()),
        float(metrics.hit_rate(score, gain, 10, offered).double().mean()),
        float(metrics.ndcg(score, gain, 10, offered).double().mean()),
    )


@pytest.mark.integration
def test_statistics_of_ml_100k(ml_100k: Interactions) -> None:
    statistics = apply_protocol(ml_100k, Protocol()).description["statistics"]

    assert (statistics["users"], statistics["items"], statistics["interactions"]) == (943, 1682, 100_000)
    assert statistics["eligible_users"] == statistics["test_users"] == 943
    assert statistics["tied_interactions"] == pytest.approx(0.758, abs=5e-4)
    assert statistics["users_with_ambiguous_last_item"] == 415 / 943
    assert Counter(ml_100k.interactions["rating"]).keys() == {1.0, 2.0, 3.0, 4.0, 5.0}
