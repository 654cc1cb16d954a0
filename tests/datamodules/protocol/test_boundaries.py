"""Where a rule turns: the event at a cut, the shortest history, the last item that fits, the draw that hardly ever comes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from datamodules.contract.errors import InputError
from datamodules.protocol import candidates
from datamodules.protocol.apply import _fingerprint, apply_protocol
from datamodules.protocol.candidates import CaseRequest, published_lists
from datamodules.protocol.events import Events, coded, ordered_events
from datamodules.protocol.hard_negatives import BM25, nearest, words
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Sequences
from datamodules.protocol.splits import TEST, TRAIN, VALIDATION, choose_shots, parts_of
from tests.datamodules.protocol.tables import Event, crowd, table


def events_of(rows: list[Event], items: int = 20, **columns: list[Any]) -> Events:
    data = table(rows, items, **columns)
    return ordered_events(data, Protocol(), coded(data))


def parts(times: list[float], **rules: Any) -> list[int]:
    rows: list[Event] = [("u", f"i{n}", None, time) for n, time in enumerate(times)]
    return parts_of(events_of(rows), Protocol(**rules)).tolist()


# --- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("validation", "test", "expected"),
    [
        (0.1, 0.2, [TRAIN, TRAIN]),  # rounded to no event
        (0.1, 0.8, [TRAIN, TEST]),  # 1.6 rounds to both, and one is kept for training
        (0.45, 0.5, [TRAIN, TEST]),  # the test part leaves validation nothing
        (0.7, 0.2, [TRAIN, VALIDATION]),
    ],
)
def test_a_ratio_split_of_two_events_keeps_one_for_training(
    validation: float, test: float, expected: list[int]
) -> None:
    assert parts([1.0, 2.0], split="ratio", validation_share=validation, test_share=test) == expected
    assert parts([1.0], split="ratio", validation_share=validation, test_share=test) == [TRAIN]


def test_an_event_at_a_cut_belongs_to_the_later_part() -> None:
    rules = {"split": "temporal", "validation_share": 0.2, "test_share": 0.2}
    assert parts([float(n) for n in range(10)], **rules) == 6 * [TRAIN] + 2 * [VALIDATION] + 2 * [TEST]
    tied = [0.0, 1.0, 2.0, 3.0, 6.0, 6.0, 6.0, 8.0, 8.0, 8.0]  # the cuts fall inside ties, which stay together
    assert parts(tied, **rules) == 4 * [TRAIN] + 3 * [VALIDATION] + 3 * [TEST]


@pytest.mark.parametrize("times", [[0.0] * 7 + [1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] + [6.0] * 4])
def test_a_part_that_ties_would_leave_empty_is_refused(times: list[float]) -> None:
    with pytest.raises(InputError, match="leaves a part empty"):
        parts(times, split="temporal", validation_share=0.2, test_share=0.2)


def test_as_many_shots_as_there_are_examples_are_all_of_them() -> None:
    start, end, liked = np.array([0, 3, 5]), np.array([3, 5]), np.array([True, False, True, True, False])

    def chosen(**rules: Any) -> list[int]:
        places = choose_shots(start, end, liked, Protocol(**rules))
        assert places is not None
        return places.tolist()

    assert chosen(shots=3) == [1, 2, 4]
    assert len(chosen(train_share=0.1)) == 1  # never none
    with pytest.raises(InputError, match="protocol.shots is 4, and there are only 3 training examples"):
        chosen(shots=4)


# --- ties and the order in time -------------------------------------------------------------------------------------


def test_one_users_last_and_anothers_first_event_at_one_time_stay_apart() -> None:
    rows: list[Event] = [("a", "i0", None, 0.0), ("b", "i1", None, 0.0), ("a", "i2", None, 2.0), ("b", "i3", None, 2.0)]
    assert events_of(rows).item.tolist() == [0, 2, 1, 3]


def test_parts_of_a_second_count() -> None:
    rows: list[Event] = [("a", "i0", None, 0.7), ("a", "i1", None, 0.2), ("a", "i2", None, -0.4), ("a", "i3", None, -3)]
    assert events_of(rows).item.tolist() == [3, 2, 1, 0]


# --- fingerprint ----------------------------------------------------------------------------------------------------


def test_every_part_of_every_case_is_in_the_fingerprint() -> None:
    data, protocol = crowd(), Protocol(negatives=9)
    made = apply_protocol(data, protocol)
    events = ordered_events(data, protocol, coded(data))
    assert made.test.candidates is not None

    def changed(column: np.ndarray, to: int) -> np.ndarray:
        return np.concatenate((column[:-1], [to]))

    lists = made.test.candidates.copy()
    lists[-1] = lists[-1][::-1]
    last = int(made.test.target[-1])
    cases = {
        "as it is": made.test,
        "target": replace(made.test, target=changed(made.test.target, last - 1)),
        "user": replace(made.test, user=changed(made.test.user, 0)),
        "order of candidates": replace(made.test, candidates=lists),
        "no candidates": replace(made.test, candidates=None),
        "history_end": replace(made.test, history_end=made.test.target),
        "another history_end": replace(made.test, history_end=changed(made.test.target, last - 1)),
    }
    prints = {name: _fingerprint(data, protocol, made.validation, test, events, None) for name, test in cases.items()}
    prints["validation"] = _fingerprint(data, protocol, cases["history_end"], made.test, events, None)
    prints["shots"] = _fingerprint(data, protocol, made.validation, made.test, events, np.array([1]))
    prints["other shots"] = _fingerprint(data, protocol, made.validation, made.test, events, np.array([2]))

    assert prints["as it is"] == made.fingerprint
    assert len(set(prints.values())) == len(prints)


# --- candidates -----------------------------------------------------------------------------------------------------


def drawn(made: Sequences) -> list[list[list[int]]]:
    return [cases.candidates.tolist() for cases in (made.validation, made.test) if cases.candidates is not None]


@pytest.mark.parametrize(
    ("items", "rules"),
    [
        (60, {"negatives": 45}),  # most users need more draws than are made at once
        (60, {"negatives": 9, "exclude_seen": False}),
        (60, {"negatives": 9, "candidates": "popularity"}),
        (5000, {"negatives": 4}),  # of a large catalogue fewer are made at once
        (5000, {"negatives": 1}),  # and never more than one block has
        (5000, {"negatives": 2}),
    ],
)
def test_many_users_are_drawn_for_as_each_alone(
    items: int, rules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The columns of many users, in blocks of any size and with marks that meet, hold what one generator a user gives."""
    data = crowd(items=items)
    expected = drawn(apply_protocol(data, Protocol(**rules)))
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "_ROWS", 7)
        patch.setattr(candidates, "_MARKS", 16)
        assert drawn(apply_protocol(data, Protocol(**rules))) == expected
    monkeypatch.setattr(candidates, "_draw_rows", lambda digests, own, true, n, *_: np.full((len(true), n + 1), -1))
    assert drawn(apply_protocol(data, Protocol(**rules))) == expected


def test_the_first_user_who_leaves_too_few_items_is_named_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_ROWS", 2)
    rows: list[Event] = [(f"u{u}", f"i{n}", None, float(n)) for u in range(6) for n in range(3 + (u >= 3))]
    with pytest.raises(InputError, match="user 'u3' leaves 2 items to draw from, protocol.negatives is 3"):
        apply_protocol(table(rows, 6), Protocol(negatives=3))


def test_published_lists_are_shuffled_by_user_and_seed() -> None:
    offered = [f"i{n}" for n in range(12)]
    rows: list[Event] = [(f"u{u}", f"i{u % 12}", None, 0.0) for u in range(200)]
    events = events_of(rows, 12, candidates=[offered] * 200)
    request = CaseRequest(np.arange(200), np.arange(200), np.arange(200), "1")
    lists = published_lists(request, events, seed=1)
    few = CaseRequest(*(column[5:] for column in (request.user, request.target, request.shown)), "1")

    assert (np.sort(lists, axis=1) == np.arange(12)).all()
    places = Counter((lists == np.arange(200)[:, None] % 12).argmax(axis=1).tolist())
    assert len(places) == 12
    assert max(places.values()) < 40  # 17 of 200 is even
    assert (published_lists(few, events, seed=1) == lists[5:]).all()
    assert (published_lists(request, events, seed=2) != lists).any()


# --- hard negatives -------------------------------------------------------------------------------------------------

SERIES = [f"{series} {word}" for series in ("Star", "Moon", "Fire", "River") for word in ("One", "Two", "Six", "Ten")]


def test_bm25_is_the_formula_of_its_paper() -> None:
    titles = ["Star Wars", "Star Star Trek", "The Long and Winding Star", "Casablanca", "Wars of Roses"]
    counts = [Counter(words(title)) for title in titles]
    mean = sum(sum(count.values()) for count in counts) / len(titles)
    query = Counter(words(titles[0]) + words(titles[1]))

    def expected(count: Counter[str]) -> float:
        total = 0.0
        for word, times in query.items():
            n = sum(word in other for other in counts)
            rare = math.log(1 + (len(titles) - n + 0.5) / (n + 0.5))
            total += times * rare * count[word] * 2.2 / (count[word] + 1.2 * (0.25 + 0.75 * sum(count.values()) / mean))
        return total

    assert BM25(titles).scores(np.array([0, 1])).tolist() == pytest.approx([expected(count) for count in counts])


def ranked(read: list[int], titles: list[str], **rules: Any) -> list[str]:
    rows: list[Event] = [("u", f"i{n}", None, float(time)) for time, n in enumerate([*read, 15])]
    events = events_of(rows, len(titles))
    last = len(read)
    request = CaseRequest(np.array([0]), np.array([last]), np.array([last]), "1")
    return [titles[i] for i in nearest(request, events, Protocol(**rules), BM25(titles))[0].tolist()]


def test_no_more_of_the_history_than_a_prompt_shows_decides_the_hard_negatives() -> None:
    fire = {"Fire Two", "Fire Six", "Fire Ten", "Moon One", "River One"}  # a word of Fire One
    assert set(ranked([0, 8], SERIES, history=1, negatives=5)) == fire
    assert set(ranked([0, 8], SERIES, history=2, negatives=5)[:2]) == {"Moon One", "River One"}  # two words of both


def test_seen_items_are_hard_negatives_where_the_protocol_says_so() -> None:
    assert ranked([0], SERIES, negatives=1, exclude_seen=False) == [SERIES[0]]
    assert ranked([0], SERIES, negatives=1) != [SERIES[0]]
    with pytest.raises(InputError, match="leaves 14 items to draw from, protocol.negatives is 15"):
        ranked([0], SERIES, negatives=15)
    assert len(ranked([0], SERIES, negatives=14)) == 14
    assert len(ranked([0], SERIES, negatives=15, exclude_seen=False)) == 15


def test_hard_negatives_of_equal_scores_stand_in_an_order_of_the_seed() -> None:
    titles = [f"word{n}" for n in range(16)]
    orders = {tuple(ranked([0], titles, negatives=14, seed=seed)) for seed in range(5)}

    assert len(orders) == 5
    assert all(sorted(order) == sorted(titles[1:15]) for order in orders)
