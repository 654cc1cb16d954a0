"""Training windows, slates, sampled negatives and the order of batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from datamodules.batching.loaders import WindowSampler
from datamodules.contract.errors import InputError
from datamodules.instructions.slates import SlateMaker, make_windows
from datamodules.protocol.apply import apply_protocol
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Sequences
from datamodules.tables.interactions import Interactions

ITEMS = 60


def sequences_of(lengths: list[int], protocol: Protocol = Protocol(negatives=5)) -> Sequences:  # noqa: B008  # frozen
    """Users with so many events; ratings alternate 5, 1, 5, ..."""
    rows = [
        (f"u{user}", str((user * 11 + n * 3) % ITEMS), float(5 - n % 2 * 4), float(n))
        for user, length in enumerate(lengths)
        for n in range(length)
    ]
    schema = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "timestamp": pl.Float64}
    items = {"item": [str(n) for n in range(ITEMS)], "title": [f"Title {n}" for n in range(ITEMS)]}
    data = Interactions(pl.DataFrame(rows, schema=schema, orient="row"), pl.DataFrame(items), checksum="sum")
    return apply_protocol(data, protocol)


LENGTHS = st.lists(st.integers(1, 15), min_size=1, max_size=6).map(lambda lengths: [*lengths, 3])


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 8))
def test_each_training_event_but_a_users_first_is_the_target_of_one_window(lengths: list[int], targets: int) -> None:
    sequences = sequences_of(lengths)
    windows = make_windows(sequences, targets)

    covered: Counter[int] = Counter()
    for user, first, last in zip(windows.user, windows.first, windows.last, strict=True):
        assert 1 <= last - first <= targets
        assert sequences.start[user] < first < last <= sequences.train_end[user]
        covered.update(range(first, last))
    expected = {
        place for user in range(len(lengths)) for place in range(sequences.start[user] + 1, sequences.train_end[user])
    }
    assert set(covered) == expected
    assert set(covered.values()) <= {1}
    assert len(windows) == len(windows.user) == len(windows.first)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 8), st.integers(0, 4))
def test_slates_of_a_window_share_one_growing_history(lengths: list[int], targets: int, extra: int) -> None:
    protocol = Protocol(negatives=5, history=targets + extra)
    sequences = sequences_of(lengths, protocol)
    maker = SlateMaker(sequences, protocol, negatives=0, targets=targets, seed=0)

    for window in range(len(maker.windows)):
        user = int(maker.windows.user[window])
        events = sequences.item[sequences.start[user] : sequences.train_end[user]]
        slates = maker.training(window, epoch=0)
        first = int(maker.windows.first[window] - sequences.start[user])
        assert [slate.target for slate in slates] == events[first : first + len(slates)].tolist()
        begin = first - len(slates[0].history)
        for number, slate in enumerate(slates):
            assert slate.history.tolist() == events[begin : first + number].tolist()
            assert 1 <= len(slate.history) <= protocol.history
            assert slate.candidates.tolist() == [slate.target]
            assert (slate.case, slate.user) == (-1, f"u{user}")
        # As much as the protocol allows, in a user's last and shorter window too.
        assert len(slates[-1].history) == min(protocol.history, first + len(slates) - 1)


def test_every_window_in_the_middle_of_a_long_user_shows_the_whole_history_to_its_last_target() -> None:
    protocol = Protocol(history=10, negatives=5)
    maker = SlateMaker(sequences_of([40], protocol), protocol, negatives=0, targets=5, seed=0)

    shown = [[len(slate.history) for slate in maker.training(w, 0)] for w in range(len(maker.windows))]

    assert shown[:4] == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [6, 7, 8, 9, 10], [6, 7, 8, 9, 10]]
    assert shown[-1] == [9, 10]  # a shorter window begins later: its last target sees all the protocol allows too


def test_slates_know_what_the_user_liked() -> None:
    protocol = Protocol(negatives=5, like_threshold=4.0)
    sequences = sequences_of([6], protocol)
    maker = SlateMaker(sequences, protocol, negatives=0, targets=5, seed=0)

    test = maker.evaluation(sequences.test, 0)
    assert test.liked.tolist() == [True, False, True, False, True]
    assert test.target_liked is False
    assert maker.evaluation(sequences.validation, 0).target_liked is True
    assert [slate.target_liked for slate in maker.training(0, 0)] == [False, True, False]


def test_an_evaluation_slate_is_the_frozen_case() -> None:
    protocol = Protocol(negatives=5, history=4)
    sequences = sequences_of([12, 3, 9], protocol)
    maker = SlateMaker(sequences, protocol, negatives=3, targets=2, seed=0)
    for cases in (sequences.validation, sequences.test):
        assert cases.candidates is not None
        for case in range(len(cases)):
            slate = maker.evaluation(cases, case)
            user, place = int(cases.user[case]), int(cases.target[case])
            assert slate.case == case
            assert slate.user == sequences.user_ids[user]
            assert slate.target == sequences.item[place]
            assert slate.candidates.tolist() == cases.candidates[case].tolist()
            shown = min(4, place - int(sequences.start[user]))
            assert slate.history.tolist() == sequences.item[place - shown : place].tolist()


def test_the_full_catalogue_leaves_out_the_history_when_told_to() -> None:
    for exclude_seen in (True, False):
        protocol = Protocol(candidates="full", exclude_seen=exclude_seen, history=2)
        sequences = sequences_of([10], protocol)
        slate = SlateMaker(sequences, protocol, 0, 1, 0).evaluation(sequences.test, 0)
        seen = set(sequences.item[:9].tolist())  # also what the prompt no longer shows
        assert set(slate.candidates.tolist()) == set(range(ITEMS)) - (seen if exclude_seen else set())
        assert slate.target in slate.candidates


def test_a_shorter_history_loses_the_oldest() -> None:
    protocol = Protocol(negatives=5)
    sequences = sequences_of([8], protocol)
    slate = SlateMaker(sequences, protocol, 0, 5, 0).evaluation(sequences.test, 0)

    shorter = slate.without_oldest(3)

    assert shorter.history.tolist() == slate.history[3:].tolist()
    assert shorter.liked.tolist() == slate.liked[3:].tolist()
    assert replace(shorter, history=slate.history, liked=slate.liked, begin=slate.begin) == slate
    assert shorter.begin == slate.begin + 3


# --- negatives ------------------------------------------------------------------------------------------------------


def drawn(maker: SlateMaker, epoch: int) -> list[list[int]]:
    return [slate.candidates.tolist() for w in range(len(maker.windows)) for slate in maker.training(w, epoch)]


def test_training_negatives_are_distinct_and_none_of_the_users_training_items() -> None:
    protocol = Protocol(negatives=5)
    sequences = sequences_of([20, 12, 3, 2], protocol)
    maker = SlateMaker(sequences, protocol, negatives=9, targets=5, seed=3)

    held_out_offered = 0
    for epoch in range(20):
        for window in range(len(maker.windows)):
            user = int(maker.windows.user[window])
            own = set(sequences.item[sequences.start[user] : sequences.train_end[user]].tolist())
            later = set(sequences.item[sequences.train_end[user] : sequences.start[user + 1]].tolist()) - own
            for slate in maker.training(window, epoch):
                offered = slate.candidates.tolist()
                assert len(offered) == len(set(offered)) == 10
                assert offered.count(slate.target) == 1
                assert not set(offered) - {slate.target} & own or set(offered) & own == {slate.target}
                held_out_offered += len(set(offered) & later)

    assert held_out_offered > 0  # never drawing them would tell the model what is held out


def test_negatives_are_a_function_of_seed_epoch_and_place() -> None:
    protocol = Protocol(negatives=5)
    sequences = sequences_of([20, 12], protocol)

    def maker(seed: int, targets: int = 5) -> SlateMaker:
        return SlateMaker(sequences, protocol, negatives=4, targets=targets, seed=seed)

    one = maker(0)
    later = drawn(one, 7)  # what was drawn before must not matter
    assert drawn(one, 0) == drawn(maker(0), 0)
    assert drawn(maker(0), 7) == later
    assert drawn(maker(0, targets=2), 0) == drawn(one, 0)
    for other in (later, drawn(maker(1), 0)):
        assert np.mean([set(a) == set(b) for a, b in zip(drawn(one, 0), other, strict=True)]) < 0.2


def test_the_target_stands_at_every_place_among_training_candidates() -> None:
    protocol = Protocol(negatives=5)
    sequences = sequences_of([20, 12], protocol)
    maker = SlateMaker(sequences, protocol, negatives=3, targets=5, seed=0)
    places = Counter(
        slate.candidates.tolist().index(slate.target)
        for epoch in range(20)
        for window in range(len(maker.windows))
        for slate in maker.training(window, epoch)
    )

    total = sum(places.values())
    assert set(places) == {0, 1, 2, 3}
    assert all(abs(count / total - 0.25) < 0.08 for count in places.values())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"targets": 0}, "data.targets_per_window is 0, must be 1 to 10"),
        ({"targets": 11}, "data.targets_per_window is 11, must be 1 to 10"),
        ({"negatives": ITEMS}, f"data.train_negatives is {ITEMS}, must be 0 to {ITEMS - 1}"),
        ({"negatives": -1}, "data.train_negatives is -1, must be 0 to"),
        ({"seed": -1}, "data.seed is -1, must be at least 0"),
    ],
)
def test_impossible_numbers_are_refused(changed: dict[str, int], reason: str) -> None:
    protocol = Protocol(negatives=5)
    numbers = {"negatives": 0, "targets": 5, "seed": 0} | changed

    with pytest.raises(InputError, match=reason):
        SlateMaker(sequences_of([5], protocol), protocol, **numbers)


def test_a_user_who_leaves_too_few_items_is_named() -> None:
    protocol = Protocol(negatives=5)
    maker = SlateMaker(sequences_of([5, 30], protocol), protocol, negatives=ITEMS - 10, targets=5, seed=0)

    assert len(maker.training(0, 0)[0].candidates) == ITEMS - 9
    with pytest.raises(InputError, match="user 'u1' leaves too few items for data.train_negatives"):
        maker.training(len(maker.windows) - 1, 0)


# --- order of batches -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), max_size=120), st.integers(1, 7), st.integers(0, 3))
def test_every_window_comes_once_an_epoch(sizes: list[int], batch_size: int, epoch: int) -> None:
    sampler = WindowSampler(np.array(sizes, dtype=np.int64), batch_size, seed=0)
    sampler.set_epoch(epoch)

    batches = list(sampler)

    assert sorted(window for batch in batches for _, window in batch) == list(range(len(sizes)))
    assert {number for batch in batches for number, _ in batch} <= {epoch}
    assert len(batches) == len(sampler)
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def order(seed: int, epoch: int, **changed: Any) -> list[int]:
    sampler = WindowSampler(np.arange(300) % 5, 4, seed, **changed)
    sampler.set_epoch(epoch)
    return [window for batch in sampler for _, window in batch]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    sampler = WindowSampler(np.arange(300) % 5, 4, 0)
    list(sampler)  # a pass over it must not change the next
    assert [window for batch in sampler for _, window in batch] == order(0, 0)


def test_windows_of_like_length_share_a_batch() -> None:
    sizes = np.arange(400) % 5
    spread = [np.ptp(sizes[[window for _, window in batch]]) for batch in WindowSampler(sizes, 4, 0)]

    assert np.mean(spread) < 0.2  # batches at random would spread over about 3


def test_batches_do_not_come_by_length() -> None:
    sizes = np.arange(200) % 5
    first = [sizes[batch[0][1]] for batch in WindowSampler(sizes, 4, 0)]

    steps = np.abs(np.diff(first))
    assert np.mean(steps) > 1  # sorted by length they would rise by 4 in 49 steps


def test_lightning_tells_the_sampler_the_epoch() -> None:
    """It looks at `sampler` and `batch_sampler.sampler` only; an order that never changes would go unseen."""
    from lightning.fabric.utilities.data import _set_sampler_epoch

    sampler = WindowSampler(np.arange(40), 3, 0)
    loader: DataLoader[Any] = DataLoader([], batch_sampler=sampler)
    first = list(sampler)
    _set_sampler_epoch(loader, 5)
    assert sampler.epoch == 5
    assert {epoch for batch in sampler for epoch, _ in batch} == {5}
    assert [w for batch in first for _, w in batch] != [w for batch in sampler for _, w in batch]


@given(st.integers(1, 60), st.integers(1, 7), st.integers(0, 5), st.integers(1, 3), st.data())
def test_a_continued_sampler_yields_what_is_left(
    windows: int, batch_size: int, epoch: int, processes: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, processes - 1))
    sizes = np.arange(windows) % 5
    whole = WindowSampler(sizes, batch_size, 0, rank, processes)
    whole.set_epoch(epoch)
    batches = list(whole)
    done = data.draw(st.integers(0, len(batches)))
    continued = WindowSampler(sizes, batch_size, 0, rank, processes, start=(epoch, done))
    assert list(continued) == batches[done:]
    assert len(continued) == len(whole)
    for later in (epoch + 1, epoch + 2):
        whole.set_epoch(later)
        continued.set_epoch(later)
        assert list(continued) == list(whole)


def test_targets_of_a_window_may_share_the_history_before_the_first() -> None:
    protocol = Protocol(negatives=5, history=4)
    sequences = sequences_of([12, 9, 5], protocol)
    growing = SlateMaker(sequences, protocol, negatives=0, targets=3, seed=0)
    shared = SlateMaker(sequences, protocol, negatives=0, targets=3, seed=0, shared=True)
    seen = 0
    for window in range(len(shared.windows)):
        one, other = shared.training(window, 0), growing.training(window, 0)
        assert [(s.target, s.target_liked, s.candidates.tolist()) for s in one] == [
            (s.target, s.target_liked, s.candidates.tolist()) for s in other
        ]
        first = int(shared.windows.first[window])
        begin = max(int(sequences.start[shared.windows.user[window]]), first - protocol.history)
        assert {tuple(s.history.tolist()) for s in one} == {tuple(sequences.item[begin:first].tolist())}
        assert all(len(s.liked) == len(s.history) for s in one)
        seen += len(one) > 1 and len(other[-1].history) > len(one[-1].history)
    assert seen
