"""What the report claims first, and the pairs behind it, against tests made here from the same users' values."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.analysis.leaderboard import Table, build_tables
from benchmarks.analysis.pairs import MOST_ROWS, Pair, compare_rows, conclude
from benchmarks.analysis.rows import Row
from benchmarks.analysis.runs import read_suite
from benchmarks.analysis.significance import holm, paired_bootstrap
from tests.benchmarks.report.grids import Grid

ZERO_SHOT, POPULARITY = {"kind": "untuned"}, {"kind": "reference", "backbone": None, "learning_rate": None}


def tables_of(grid: Grid) -> list[Table]:
    return build_tables(read_suite(grid.directory))[0]


def sentence(grid: Grid) -> str:
    tables = tables_of(grid)
    return conclude(tables, [compare_rows(table) for table in tables])


def row(name: str, values: np.ndarray, kind: str = "tuned", metric: str = "hr@5") -> Row:
    cases = np.array([f"u{i:03d}" for i in range(len(values))])
    run: Any = type("Run", (), {"config": {}})()
    mean = {metric: float(values.mean())}
    return Row(name, kind, "smollm2", (run,), mean, {}, None, len(values), cases, {metric: values}, {})


def table_of(rows: list[Row], metric: str = "hr@5") -> Table:
    return Table("ab", "Movies", "ranking", 20, {}, (metric,), metric, {}, tuple(rows), ())


def test_every_pair_is_the_paired_bootstrap_corrected_over_all_pairs(grid: Grid) -> None:
    for name, rank in (("lora", 2), ("prefix", 6), ("adapter", 2.1)):
        grid.add(name, rank=rank)
    grid.add("zero_shot", rank=12, **ZERO_SHOT)
    (table,) = tables_of(grid)
    found = compare_rows(table)
    keys = list(combinations(range(4), 2))
    values = [row.values["hr@5"] for row in table.rows]
    expected = [paired_bootstrap(values[i], values[j]) for i, j in keys]
    corrected = holm([pair.p_value for pair in expected])
    assert len(found) == 12
    for (i, j), pair, p in zip(keys, expected, corrected, strict=True):
        there, back = found[i, j], found[j, i]
        assert (there.difference, there.low, there.high, there.p) == (pair.difference, pair.low, pair.high, p)
        assert (back.difference, back.low, back.high, back.p) == (-pair.difference, -pair.high, -pair.low, p)
        assert there.outcome == ("tie" if p >= 0.05 else "win")  # rows stand in falling order
        assert back.outcome == {"win": "lose", "tie": "tie"}[there.outcome]
    assert {pair.outcome for pair in found.values()} == {"win", "tie", "lose"}


def test_tuning_wins_and_a_baseline_stays_out_of_reach(grid: Grid) -> None:
    grid.add("lora", rank=5)
    grid.add("adapter", rank=4.5)
    grid.add("zero_shot", rank=14, **ZERO_SHOT)
    grid.add("item_knn", rank=1.3, **POPULARITY)
    (table,) = tables_of(grid)
    best = next(row for row in table.rows if row.kind == "tuned")
    base = next(row for row in table.rows if row.kind == "untuned")
    pair = paired_bootstrap(best.values["hr@5"], base.values["hr@5"])
    shown = f"{pair.difference:.2f} [{pair.low:.2f}, {pair.high:.2f}]".replace("0.", ".")
    knn = f"{table.rows[0].metrics['hr@5']:.2f}".replace("0.", ".")
    assert sentence(grid) == (
        f"{best.name} beats the untuned model by {shown} HR@5; no tuned row reaches item_knn ({knn}), over 200 users and one seed."
    )


def test_one_tuned_row_within_reach_is_enough_not_to_say_none(grid: Grid) -> None:
    grid.add("lora", rank=2)
    grid.add("prefix", rank=9)
    grid.add("zero_shot", rank=14, **ZERO_SHOT)
    grid.add("item_knn", rank=1.9, **POPULARITY)
    told = sentence(grid)
    assert told.startswith("lora beats the untuned model by ")
    assert "; it cannot be told from item_knn (" in told
    assert "no tuned row" not in told


def test_tuning_beats_the_best_baseline(grid: Grid) -> None:
    for seed in (1, 2):
        grid.add("lora", seed, rank=1.3)
        grid.add("zero_shot", seed, rank=12, **ZERO_SHOT)
        grid.add("popularity", seed, rank=7, **POPULARITY)
        grid.add("random", seed, rank=14, **POPULARITY)
    told = sentence(grid)
    assert "; it beats popularity (." in told
    assert told.endswith(", over 200 users and 2 seeds.")


def test_tuning_that_harms_is_said_to(grid: Grid) -> None:
    grid.add("lora", rank=14)
    grid.add("zero_shot", rank=2, **ZERO_SHOT)
    assert sentence(grid).startswith("lora falls behind the untuned model by .")
    assert sentence(grid).endswith("; no baseline stands beside it, over 200 users and one seed.")


def test_a_tie_shows_its_interval_and_claims_nothing(grid: Grid) -> None:
    grid.add("lora", rank=5)
    grid.add("zero_shot", rank=5.1, **ZERO_SHOT)
    told = sentence(grid)
    assert told.startswith("lora cannot be told from the untuned model by HR@5 (")
    assert "beats" not in told
    assert "falls" not in told


@pytest.mark.parametrize("users", [6, 19])
def test_few_users_cannot_tell_whatever_they_show(grid: Grid, users: int) -> None:
    grid.add("lora", rank=1, users=users)
    grid.add("zero_shot", rank=19, users=users, **ZERO_SHOT)
    grid.add("popularity", rank=19, users=users, **POPULARITY)
    told = sentence(grid)
    assert told.startswith(
        f"lora cannot be told from the untuned model with {users} users; it cannot be told from popular"
    )
    assert "beats" not in told


def test_without_tuned_rows_or_untuned_ones(grid: Grid) -> None:
    grid.add("popularity", rank=3, **POPULARITY)
    grid.add("random", rank=14, **POPULARITY)
    assert sentence(grid).startswith("No row is tuned; popularity (.")
    assert sentence(grid).endswith(" comes first of 2 by HR@5.")
    grid.add("lora", rank=3)
    assert "is the best tuned row by HR@5, without an untuned row to compare; it " in sentence(grid)


def test_demonstrations_make_no_untuned_model_and_other_users_no_test(grid: Grid) -> None:
    grid.add("lora", rank=3)
    grid.add("few_shot", rank=3, edit=lambda r: r["config"]["model"]["init_args"].update(shots=3), **ZERO_SHOT)
    assert "without an untuned row" in sentence(grid)
    grid.add("zero_shot", rank=12, users=150, **ZERO_SHOT)
    assert "has no stored values of the same users as the untuned model for a test" in sentence(grid)


def test_popularity_matched_candidates_have_their_clause_and_strangers_none(grid: Grid) -> None:
    def matched(record: dict[str, Any]) -> None:
        record["protocol"]["fingerprint"] = "c" * 64
        record["protocol"]["description"]["candidates"] = "popularity, 1 + 19, seed 42"

    def stranger(record: dict[str, Any]) -> None:
        record["protocol"]["fingerprint"] = "d" * 64
        record["protocol"]["description"]["split"] = "by ratio"

    for rank, edit, cell in ((3, None, "u"), (9, matched, "p"), (2, stranger, "s")):
        grid.add("lora", rank=rank, edit=edit, cell=f"lora-{cell}")
        grid.add("zero_shot", rank=14, edit=edit, cell=f"zero-{cell}", **ZERO_SHOT)  # type: ignore[arg-type]
    grid.add("popularity", rank=9, cell="popularity-u", **POPULARITY)
    told = sentence(grid)
    assert told.startswith("In the largest of 3 tables lora beats the untuned model by ")
    assert told.count("; among popularity-matched candidates lora ") == 1
    assert told.count("untuned model") == 2


@pytest.mark.parametrize(("rank", "told"), [(2.0, "explains: above it"), (9.0, "among popularity-matched candidates.")])
def test_it_says_whether_popularity_explains_what_was_learnt(grid: Grid, rank: float, told: str) -> None:
    def matched(record: dict[str, Any]) -> None:
        record["protocol"]["fingerprint"] = "c" * 64
        record["protocol"]["description"]["candidates"] = "popularity, 1 + 19, seed 42"

    for own, popular, edit, cell in ((2.0, 6.0, None, "u"), (rank, 10.0, matched, "p")):
        grid.add("lora", rank=own, edit=edit, cell=f"lora-{cell}")
        grid.add("zero_shot", rank=14, edit=edit, cell=f"zero-{cell}", **ZERO_SHOT)
        grid.add("popularity", rank=popular, edit=edit, cell=f"popularity-{cell}", **POPULARITY)
    found = sentence(grid)
    assert found.startswith("Among uniform candidates lora beats the untuned model by ")
    assert found.count(", over 200 users and one seed") == 1
    assert told in found
    tables = tables_of(grid)
    pairs = [compare_rows(table) for table in tables]
    wins = [
        found[names.index("lora"), names.index("popularity")].outcome == "win"
        for found, names in zip(pairs, ([row.name for row in table.rows] for table in tables), strict=True)
    ]
    assert wins == [True, rank == 2.0]
    assert ("may explain" in found) != all(wins)


def test_above_popularity_but_not_above_chance_is_not_better(grid: Grid) -> None:
    """Among popularity-matched candidates popularity may be worse than chance, and so is no bar."""

    def matched(record: dict[str, Any]) -> None:
        record["protocol"]["fingerprint"] = "c" * 64
        record["protocol"]["description"]["candidates"] = "popularity, 1 + 19, seed 42"

    for own, popular, edit, cell in ((2.0, 6.0, None, "u"), (17.0, 300.0, matched, "p")):
        grid.add("lora", rank=own, edit=edit, cell=f"lora-{cell}")
        grid.add("popularity", rank=popular, edit=edit, cell=f"popularity-{cell}", **POPULARITY)
    table = next(table for table in tables_of(grid) if table.fingerprint[0] == "c")
    lora = next(at for at, row in enumerate(table.rows) if row.name == "lora")
    assert compare_rows(table)[lora, 1 - lora].outcome == "win"
    assert table.rows[lora].intervals["hr@5"][0] < table.chance["hr@5"]
    assert "popularity may explain what lora has learnt: it is not shown to be above it among popular" in sentence(grid)


def test_less_is_better_of_an_error() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 60)
    rows = [row("lora", 0.5 + noise, metric="mae"), row("zero_shot", 0.8 + noise[::-1], "untuned", "mae")]
    table = table_of(rows, "mae")
    pairs = compare_rows(table)
    assert pairs[0, 1].outcome == "win"
    assert pairs[0, 1].difference == pytest.approx(-0.3)
    assert conclude([table], [pairs]).startswith("lora beats the untuned model by .30 [.2")


def test_a_long_table_is_compared_in_part_and_corrected_in_whole() -> None:
    rng = np.random.default_rng(0)
    rows = [row(f"t{i}", (rng.random(200) < 0.6 - i / 100).astype(float)) for i in range(40)]
    rows.append(row("zero_shot", np.zeros(200), "untuned"))
    rows.append(row("popularity", (rng.random(200) < 0.1).astype(float), "reference"))
    pairs = compare_rows(table_of(rows))
    assert {i for i, _ in pairs} == {*range(MOST_ROWS - 2), 40, 41}
    assert pairs[0, 40].outcome == "win"
    raw = paired_bootstrap(rows[0].values["hr@5"], rows[40].values["hr@5"], resamples=40 * 41 * 42 // 2).p_value
    assert pairs[0, 40].p == pytest.approx(raw * 41 * 42 / 2, rel=0.1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.floats(-0.5, 0.5))
def test_no_sentence_claims_what_its_pair_does_not(seed: int, users: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    rows = [row("lora", (rng.random(users) < 0.5 + shift).astype(float))]
    rows += [row("zero_shot", (rng.random(users) < 0.5).astype(float), "untuned")]
    table = table_of(rows)
    pairs = compare_rows(table)
    told, pair = conclude([table], [pairs]), pairs[0, 1]
    assert ("beats" in told) == (pair.outcome == "win")
    assert ("falls behind" in told) == (pair.outcome == "lose")
    if pair.outcome in ("win", "lose"):
        assert users >= 20
        assert pair.p < 0.05
        assert not pair.low <= 0 <= pair.high
    assert isinstance(pair, Pair)
