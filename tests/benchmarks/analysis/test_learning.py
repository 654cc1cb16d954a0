"""Targets against quality, from the curves that real runs wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.analysis.leaderboard import build_tables
from benchmarks.analysis.learning import learning_curve, levels, reached, targets_to_reach
from benchmarks.analysis.runs import read_suite
from benchmarks.metric_names import fraction
from benchmarks.report.sections import targets_section


def test_curves_end_with_the_targets_that_the_run_counted(real_grid: Path) -> None:
    tuned = [run for run in read_suite(real_grid).runs if run.kind == "tuned"]
    assert tuned
    for run in tuned:
        metric = next(name for name in run.curves if name.startswith("val/hr"))
        curve = learning_curve(run, metric)
        targets, values = zip(*curve, strict=True)
        assert list(values) == [value for _, value in sorted(run.curves[metric])]
        assert list(targets) == sorted(set(targets))
        assert targets[-1] == run.costs["train_targets"]
        assert learning_curve(replace(run, curves={metric: run.curves[metric]}), metric) == []


def test_the_section_says_when_each_classical_row_was_reached(real_grid: Path) -> None:
    [table] = build_tables(read_suite(real_grid))[0]
    section = targets_section(table)
    assert section is not None
    known = levels(table)
    assert known
    assert list(section.columns)[1:] == [
        f"{name} ({fraction(value, 3)})" for name, value in sorted(known.items(), key=lambda p: -p[1])
    ]
    for row in table.rows:
        if row.kind == "tuned":
            [least] = reached(row, table, 0.0)
            [never] = reached(row, table, 2.0)
            assert least == learning_curve(row.runs[0], f"val/{table.main}")[0][0]
            assert never is None


@pytest.mark.parametrize(
    ("level", "higher", "expected"),
    [(0.5, True, 200.0), (0.2, True, 100.0), (0.8, True, None), (0.3, False, 100.0), (0.1, False, None)],
)
def test_a_level_is_reached_between_two_validations(level: float, higher: bool, expected: float | None) -> None:
    assert targets_to_reach([(100.0, 0.3), (300.0, 0.7), (400.0, 0.6)], level, higher) == expected
