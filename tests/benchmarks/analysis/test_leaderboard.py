"""Rows of a leaderboard: who is compared with whom, in which order, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.analysis.leaderboard import Table, build_tables
from benchmarks.analysis.runs import read_suite
from benchmarks.analysis.significance import holm, paired_bootstrap
from tests.benchmarks.report.grids import Grid, per_user


def table_of(grid: Grid) -> Table:
    (table,) = build_tables(read_suite(grid.directory))[0]
    return table


def shots(count: int) -> Any:
    return lambda record: record["config"]["model"]["init_args"].update(shots=count)


@pytest.mark.parametrize("rank", [2, 16])
def test_a_row_with_shots_gets_a_difference_and_is_never_the_base(grid: Grid, rank: float) -> None:
    """Demonstrations are a way to adapt the model: better or worse than none, they are compared with it."""
    grid.add("lora", rank=4)
    grid.add("few_shot", rank=rank, kind="untuned", edit=shots(3))
    grid.add("zero_shot", rank=12, kind="untuned", edit=shots(0))
    rows = {row.name: row for row in table_of(grid).rows}
    values = {name: row.values["hr@5"] for name, row in rows.items()}
    pairs = {name: paired_bootstrap(values[name], values["zero_shot"]) for name in ("few_shot", "lora")}
    corrected = dict(zip(pairs, holm([pair.p_value for pair in pairs.values()]), strict=True))
    assert rows["zero_shot"].difference is None
    for name, pair in pairs.items():
        found = rows[name].difference
        assert found is not None
        assert (found.base, found.value, found.p) == ("zero_shot", pair.difference, corrected[name])


def test_rows_with_shots_alone_leave_nothing_to_compare_with(grid: Grid) -> None:
    grid.add("lora", rank=4)
    grid.add("few_shot", rank=12, kind="untuned", edit=shots(3))
    assert [row.difference for row in table_of(grid).rows] == [None, None]


def test_of_two_untuned_rows_the_better_one_is_the_base(grid: Grid) -> None:
    grid.add("lora", rank=4)
    grid.add("short prompt", rank=14, kind="untuned")
    grid.add("zero_shot", rank=8, kind="untuned")
    (difference,) = [row.difference for row in table_of(grid).rows if row.difference]
    assert difference.base == "zero_shot"


def test_a_row_without_the_main_metric_comes_last_and_equal_rows_by_name(grid: Grid) -> None:
    def without(record: dict[str, Any]) -> None:
        del record["metrics"]["test/hr@5"]

    grid.add("unmeasured", rank=1, edit=without)
    same = per_user("same", 5, 200)
    for name in ("b", "a"):
        folder = grid.add(name, rank=5)
        np.savez(folder / "scores.npz", user=np.array([f"u{i}" for i in range(200)]), **same)
        record = (folder / "record.json").read_text()
        for metric, column in same.items():
            before = per_user(f"{name}1", 5, 200)[metric].mean()
            record = record.replace(f'"test/{metric}": {float(before)}', f'"test/{metric}": {float(column.mean())}')
        (folder / "record.json").write_text(record)
    assert [row.name for row in table_of(grid).rows] == ["a", "b", "unmeasured"]


def test_the_cutoff_is_five_where_there_is_one_and_else_the_least(grid: Grid) -> None:
    grid.add("lora", rank=4)
    assert table_of(grid).headline == ("hr@5", "ndcg@5", "mrr")
    for path in grid.directory.glob("runs/*/record.json"):
        path.write_text(path.read_text().replace("test/hr@5", "test/hr@20"))
    for path in grid.directory.glob("runs/*/scores.npz"):
        path.unlink()
    assert table_of(grid).headline == ("hr@10", "ndcg@10", "mrr")


@pytest.mark.parametrize(("ties", "noted"), [(0.01, False), (0.011, True)])
def test_ties_are_noted_above_one_in_a_hundred(grid: Grid, ties: float, noted: bool) -> None:
    grid.add("lora", rank=4, edit=lambda record: record["metrics"].update({"test/tie_rate": ties}))
    assert any("Tied scores" in note for note in table_of(grid).notes) == noted


def test_a_pair_of_users_is_needed_for_a_difference(grid: Grid) -> None:
    grid.add("lora", rank=4, users=1)
    grid.add("zero_shot", rank=12, users=1, kind="untuned")
    assert [row.difference for row in table_of(grid).rows] == [None, None]


def test_another_page_shows_what_was_found_and_the_table(grid: Grid, tmp_path: Path) -> None:
    grid.add("lora", rank=4)
    page = tmp_path / "pages" / "README.md"
    page.parent.mkdir()
    page.write_text("<!-- leaderboard:begin --><!-- leaderboard:end -->")
    assert main(["report", str(grid.directory), "--readme", str(page)]) == 0
    assert "| lora |" in page.read_text()
    assert page.read_text().index("**") < page.read_text().index("| lora |")
    assert "](figures" not in page.read_text()
    assert "](figures" in (grid.directory / "leaderboard.md").read_text()


def test_unequal_numbers_of_candidates_share_no_table(grid: Grid) -> None:
    """Records may be edited by hand: an equal fingerprint does not make ranks among 20 and among 100 comparable."""
    grid.add("lora")
    grid.add("prefix", edit=lambda record: record["protocol"].update(num_candidates=100))
    tables = build_tables(read_suite(grid.directory))[0]
    assert sorted((table.num_candidates, [row.name for row in table.rows]) for table in tables) == [
        (20, ["lora"]),
        (100, ["prefix"]),
    ]


def test_chance_among_fewer_candidates_than_the_cutoff_is_certain(grid: Grid) -> None:
    grid.add("lora", edit=lambda record: record["protocol"].update(num_candidates=3))
    assert table_of(grid).chance["hr@5"] == pytest.approx(1)


def test_users_of_one_case_each_are_not_noted(grid: Grid) -> None:
    grid.add("lora")
    assert not any("several cases" in note for note in table_of(grid).notes)


def test_without_a_backbone_there_is_no_untuned_model(grid: Grid) -> None:
    grid.add("lora", rank=4, backbone=None)
    grid.add("zero_shot", rank=12, backbone=None, kind="untuned")
    assert [row.difference for row in table_of(grid).rows] == [None, None]


@pytest.mark.parametrize("search", [True, False])
def test_a_search_recorded_with_one_seed_is_the_row_s(grid: Grid, search: bool) -> None:
    grid.add("lora", 1, rank=2, search=search)
    grid.add("lora", 2, rank=2)
    grid.add("zero_shot", rank=12, kind="untuned")
    assert table_of(grid).rows[0].best == search


def test_other_methods_rates_are_no_search(grid: Grid) -> None:
    """Two rates under one name are a search that anyone can see; one rate of each of two methods is none."""
    for seed in (1, 2):
        grid.add("lora", seed, rank=2, learning_rate=1e-3)
        grid.add("prefix", seed, rank=9, learning_rate=1e-2)
    assert "no learning-rate search is recorded for lora, prefix" in table_of(grid).notes[0]
    for seed in (1, 2):
        cell = f"model=lora,lr=1,seed_everything={seed}-{seed}0abcdef"
        grid.add("lora", seed, rank=12, learning_rate=1e-1, cell=cell)
    assert "no learning-rate search is recorded for prefix." in table_of(grid).notes[0]
