"""Every planted leak is found by its own check, and clean sets raise nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2  # type: ignore[import-untyped]

from benchmarks.audit.checks import audit, chi_square_tail, label_collisions, target_in_prompts
from benchmarks.audit.probes import memorisation, memorisation_findings, renamed, run_probes
from datamodules.protocol.apply import apply_protocol
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Cases, Sequences
from datamodules.tables.interactions import Interactions

WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "flint",
    "grove",
    "heath",
    "indigo",
    "jade",
    "karst",
    "lunar",
    "maple",
    "north",
    "ochre",
    "prism",
    "quartz",
    "ridge",
]
ITEMS = 120


def clean_data(seed: int, users: int = 150, titles: list[str] | None = None) -> Interactions:
    """Random users and items with random ids, all times different."""
    chance = np.random.default_rng(seed)
    ids = [str(n) for n in chance.choice(10**6, size=ITEMS, replace=False).tolist()]
    titles = titles or [f"{WORDS[n % 18]} {WORDS[(n // 18 + 3 * n) % 18]} {n}x" for n in range(ITEMS)]
    events = [
        (f"u{user}", ids[item], float(chance.integers(1, 6)), float(time))
        for user in range(users)
        for item, time in zip(
            chance.permutation(ITEMS)[: 4 + user % 9].tolist(),
            np.sort(chance.random(4 + user % 9) * 1e6).tolist(),
            strict=False,
        )
    ]
    schema = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "timestamp": pl.Float64}
    return Interactions(
        pl.DataFrame(events, schema=schema, orient="row"), pl.DataFrame({"item": ids, "title": titles}), f"sum {seed}"
    )


def alarms(made: Sequences, protocol: Protocol) -> set[str]:
    return {finding.check for finding in [*audit(made, protocol), *run_probes(made, protocol)] if finding.alarms}


SPLITS = ("leave_one_out", "temporal", "ratio", "k_fold", "user_cold_start")


@pytest.mark.parametrize("seed", range(20))
def test_a_clean_set_raises_nothing(seed: int) -> None:
    protocol = Protocol(split=SPLITS[seed % 5], candidates="full" if seed % 7 == 6 else "uniform", seed=seed)  # type: ignore[arg-type]

    assert alarms(apply_protocol(clean_data(seed), protocol), protocol) == set()


def test_a_clean_set_of_cold_items_raises_nothing() -> None:
    protocol = Protocol(split="item_cold_start")

    assert alarms(apply_protocol(clean_data(1), protocol), protocol) == set()


def with_cases(made: Sequences, split: str, **changed: Any) -> Sequences:
    return replace(made, **{split: replace(getattr(made, split), **changed)})


def trained_on_test(made: Sequences) -> Sequences:
    return replace(made, train_end=made.start[1:].copy())


def copied_into_training(made: Sequences) -> Sequences:
    item, time = made.item.copy(), made.timestamp.copy()
    user = made.test.user[0]
    item[made.start[user]], time[made.start[user]] = item[made.test.target[0]], time[made.test.target[0]]
    return replace(made, item=item, timestamp=time)


def validation_from_the_future(made: Sequences) -> Sequences:
    time = made.timestamp.copy()
    time[made.validation.target[:5]] += 1e7
    return replace(made, timestamp=time)


def future_in_history(made: Sequences) -> Sequences:
    return with_cases(made, "validation", history_end=made.validation.target + 2)


def positive_twice(made: Sequences) -> Sequences:
    assert made.test.candidates is not None
    lists = made.test.candidates.copy()
    lists[3] = made.item[made.test.target[3]]
    return with_cases(made, "test", candidates=lists)


def own_item_offered(made: Sequences) -> Sequences:
    assert made.test.candidates is not None
    lists = made.test.candidates.copy()
    place = int(lists[3, 0] == made.item[made.test.target[3]])
    lists[3, place] = made.item[made.start[made.test.user[3]]]
    return with_cases(made, "test", candidates=lists)


def positive_first(made: Sequences) -> Sequences:
    assert made.test.candidates is not None
    true = made.item[made.test.target][:, None]
    order = np.argsort(made.test.candidates != true, axis=1, kind="stable")
    return with_cases(made, "test", candidates=np.take_along_axis(made.test.candidates, order, axis=1))


def sequential_ids(made: Sequences) -> Sequences:
    """Ids handed out along each user's sequence, as P5's first release did."""
    code: dict[int, int] = {}
    for item in made.item.tolist():
        code.setdefault(item, len(code))
    return replace(made, item_ids=[str(code.get(n, 10**6 + n)) for n in range(len(made.item_ids))])


def equal_titles(made: Sequences) -> Sequences:
    titles = list(made.titles)
    shown = made.item[made.test.target[0] - 1]
    titles[made.item[made.test.target[0]]] = titles[shown]
    return replace(made, titles=titles)


def twin_editions(made: Sequences) -> Sequences:
    titles = list(made.titles)
    titles[made.item[made.test.target[0]]] = "The " + titles[made.item[made.start[0]]].upper() + " (1999)"
    return replace(made, titles=titles)


def tied(made: Sequences) -> Sequences:
    statistics = made.description["statistics"] | {"users_with_ambiguous_last_item": 0.44}
    return replace(made, description=made.description | {"statistics": statistics})


LEAKS: dict[str, tuple[Callable[[Sequences], Sequences], str]] = {
    "trained on test": (trained_on_test, "test items in training prompts"),
    "copied into training": (copied_into_training, "test items in training prompts"),
    "validation from the future": (validation_from_the_future, "validation items in test history"),
    "future in history": (future_in_history, "future interactions"),
    "positive twice": (positive_twice, "positives among negatives"),
    "own item offered": (own_item_offered, "positives among negatives"),
    "positive first": (positive_first, "position of the positive"),
    "positive first, by probe": (positive_first, "probe: position only"),
    "sequential ids": (sequential_ids, "ids that encode order"),
    "equal titles": (equal_titles, "duplicate titles"),
    "equal titles in a prompt": (equal_titles, "target title in the history"),
    "twin editions": (twin_editions, "near-duplicate items across splits"),
    "tied": (tied, "tied timestamps"),
}


@pytest.fixture(scope="module")
def clean() -> Sequences:
    return apply_protocol(clean_data(0), Protocol())


@pytest.mark.parametrize("leak", LEAKS)
def test_a_planted_leak_is_found_by_its_check(leak: str, clean: Sequences) -> None:
    plant, check = LEAKS[leak]

    assert check in alarms(plant(clean), Protocol())


ORDER = {"probe: largest id plus one", "ids that encode order"}


def in_order_of_appearance(name: Callable[[int], str]) -> Sequences:
    """Users who share few items, so that most targets come right after their history, as in P5's first release."""
    rows = [(f"u{user}", name(5 * user + n), None, float(n)) for user in range(60) for n in range(5)]
    schema = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "timestamp": pl.Float64}
    items = pl.DataFrame({"item": [name(n) for n in range(300)], "title": [f"title {n}q" for n in range(300)]})
    return apply_protocol(Interactions(pl.DataFrame(rows, schema=schema, orient="row"), items, "sum"), Protocol())


@pytest.mark.parametrize("name", [str, lambda n: f"i{n:05d}"], ids=["numbers", "numbers behind a word"])
def test_sequential_ids_are_found_by_the_probe_as_well(name: Callable[[int], str]) -> None:
    assert alarms(in_order_of_appearance(name), Protocol()) == ORDER


def test_ids_that_are_no_numbers_tell_no_order() -> None:
    """As TALLRec's, whose ids are titles: their order in the catalogue is our own numbering of first appearance."""
    made = in_order_of_appearance(lambda n: f"{WORDS[n % 18]} {n} {WORDS[n // 18]}")

    assert made.item[made.test.target[0]] == made.item[made.test.target[0] - 1] + 1
    assert alarms(made, Protocol()) == set()
    assert "not numbers" in next(finding.told for finding in audit(made, Protocol()) if finding.check in ORDER)


def test_training_after_test_is_a_leak_of_a_temporal_split_only() -> None:
    protocol = Protocol(split="temporal")
    made = apply_protocol(clean_data(0), protocol)
    time = made.timestamp.copy()
    time[made.start[0]] = 1e9

    assert "training after test" in alarms(replace(made, timestamp=time), protocol)
    assert "training after test" not in alarms(replace(made, timestamp=time), Protocol())


def test_users_in_two_splits_are_a_leak_where_users_are_split() -> None:
    protocol = Protocol(split="k_fold")
    made = apply_protocol(clean_data(0), protocol)
    end = made.train_end.copy()
    end[made.test.user[0]] += 1

    assert "users in two splits" in alarms(replace(made, train_end=end), protocol)


def test_real_ties_are_counted() -> None:
    data = clean_data(0)
    rounded = replace(data, interactions=data.interactions.with_columns((pl.col("timestamp") / 4e5).floor()))

    assert "tied timestamps" in alarms(apply_protocol(rounded, Protocol()), Protocol())


def test_the_answer_in_a_prompt_is_found_beside_the_titles_it_shows() -> None:
    shown = [["Alien", "Up"], ["Alien"], ["Aliens"], ["Heat"]]
    prompts = ["Seen: Alien; Up. Next?", "Seen: Alien. Next is Heat?", "Seen: Aliens.", "Seen: Heat."]
    found = target_in_prompts(prompts, shown, ["Heat", "Heat", "Alien", "Heat"])

    assert (found.count, found.verdict) == (1, "leak")
    assert target_in_prompts(prompts[:1], shown[:1], ["Heat"]).verdict == "ok"


def test_labels_that_collide_are_found() -> None:
    assert label_collisions(["Yes", "No"], ["Heat", "Nobody", "Yesterday"]).verdict == "ok"
    assert label_collisions(["Yes", "No"], ["No Country for Old Men", "No"]).count == 2
    assert label_collisions(["Yes", "yes "], ["Heat"]).verdict == "leak"
    assert label_collisions(["Like", "Likely"], [], encode=lambda text: [1]).verdict == "leak"
    assert label_collisions([], ["No"]).verdict == "ok"


@pytest.mark.parametrize("freedom", [1, 9, 19, 99])
def test_the_tail_of_chi_square_is_near_scipys(freedom: int) -> None:
    for p in (0.5, 0.05, 1e-3, 1e-5):
        assert chi_square_tail(float(chi2.isf(p, freedom)), freedom) == pytest.approx(
            p, rel=1.5 if freedom == 1 else 0.4
        )


# --- memorisation ---------------------------------------------------------------------------------------------------


def test_memorisation_is_one_for_a_dummy_with_the_list_and_about_nought_for_a_random_one() -> None:
    titles = [f"{WORDS[n % 18]} {WORDS[n // 18]} saga {n}" for n in range(200)]
    known = set(titles)

    def by_heart(start: str, ends: Any) -> list[float]:
        return [float(f"{start} {end}" in known) for end in ends]

    chance = np.random.default_rng(0)
    assert memorisation(titles, by_heart) == 1
    assert memorisation(renamed(titles), by_heart) < 0.1
    assert abs(memorisation(titles, lambda start, ends: chance.random(len(ends)).tolist())) < 0.08
    assert memorisation(titles, lambda start, ends: [0.0] * len(ends)) == pytest.approx(0, abs=1e-9)
    assert memorisation_findings(titles, by_heart, "dummy")[0].verdict == "warning"
    random = memorisation_findings(titles, lambda start, ends: chance.random(len(ends)).tolist(), "dummy")
    assert random[0].verdict == "ok"


def test_renamed_titles_keep_no_title() -> None:
    titles = [f"{word} end{n}" for n, word in enumerate(WORDS)]

    assert len(renamed(titles)) == len(titles)
    assert not set(renamed(titles)) & set(titles)


def test_cases_without_a_history_end_show_all_before_the_target() -> None:
    cases = Cases(user=np.array([0]), target=np.array([4]), candidates=None)

    assert cases.shown.tolist() == [4]
