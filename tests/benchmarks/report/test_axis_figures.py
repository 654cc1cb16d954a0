"""Curves over an axis, spreads over wordings and ranks over protocols: what is drawn of which runs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from scipy.stats import kendalltau

from benchmarks.analysis.axes import kendall, numeric_axes, ranks, template_spreads
from benchmarks.analysis.leaderboard import Table, build_tables
from benchmarks.analysis.runs import read_suite
from benchmarks.report.axis_figures import draw_axis_curves, draw_rank_stability, draw_template_spread
from benchmarks.report.figure_style import Picture
from benchmarks.report.write import write_report
from tests.benchmarks.report.grids import Grid


def write_cells(directory: Path, labels: dict[str, dict[str, Any]]) -> None:
    """The grid's list of cells, as a runner writes it."""
    cells = [{"name": name, "title": name, "labels": told, "command": ""} for name, told in labels.items()]
    (directory / "cells.json").write_text(json.dumps({"format": 1, "suite": "tiny", "cells": cells}))


def tables_of(directory: Path) -> list[Table]:
    return build_tables(read_suite(directory))[0]


def not_blank(picture: Picture | None) -> None:
    assert picture is not None
    pixels = imread(picture.path)[..., :3]
    assert pixels.std() > 0.03
    assert len(np.unique((pixels[::3, ::3] * 8).astype(int).reshape(-1, 3), axis=0)) > 8


@pytest.fixture(params=["data.protocol.shots", "shots"])
def shots(grid: Grid, request: pytest.FixtureRequest) -> Grid:
    """Two methods at three numbers of shots and two seeds: every number of shots is a protocol of its own.

    A suite's axis is an option, or has a name of its own and values with names, which stand alone in a run's.
    """
    axis, labels = str(request.param), {}
    for method, shot, seed in itertools.product(("lora", "prefix"), (16, 64, 256), (1, 2)):
        cell = f"{method}-{shot}-{seed}"
        rank = (9 if method == "lora" else 11) - np.log2(shot) * (0.9 if method == "lora" else 0.4)
        name = f"{shot}, {method}" if axis == "shots" else f"shots={shot}, {method}"
        grid.add(
            name,
            seed,
            rank,
            cell=cell,
            edit=lambda r, shot=shot: r["protocol"].update(fingerprint=f"{shot:064d}"),
        )
        labels[cell] = {"model": method, axis: str(shot), "seed_everything": str(seed)}
    write_cells(grid.directory, labels)
    return grid


def test_a_curve_has_a_point_for_each_value_and_averages_seeds(shots: Grid) -> None:
    tables = tables_of(shots.directory)
    assert len(tables) == 3
    (axis,) = numeric_axes(tables)
    assert (axis.name.rpartition(".")[2], axis.main, axis.protocols) == ("shots", "hr@5", 3)
    assert axis.lines.keys() == {"lora", "prefix"}
    for name, line in axis.lines.items():
        assert [point.x for point in line] == [16, 64, 256]
        for point in line:
            runs = [
                run
                for t in tables
                for row in t.rows
                for run in row.runs
                if run.cell.startswith(f"{name}-{int(point.x)}-")
            ]
            assert len(runs) == 2
            assert point.row.metrics["hr@5"] == pytest.approx(np.mean([run.metrics["hr@5"] for run in runs]))
            low, high = point.row.intervals["hr@5"]
            assert low < point.row.metrics["hr@5"] < high


def test_the_curve_is_drawn_and_on_the_page(shots: Grid) -> None:
    paths = write_report(shots.directory)
    not_blank(paths.figures["axes"])
    assert 'aria-label="HR@5 along ' in paths.html.read_text()
    assert "template_spread" not in paths.figures


def test_an_axis_of_names_or_of_one_number_is_no_curve(grid: Grid) -> None:
    grid.add("lora", cell="a")
    grid.add("prefix", cell="b")
    write_cells(grid.directory, {"a": {"model": "lora", "model.r": "8"}, "b": {"model": "prefix", "model.r": "8"}})
    tables, stale = tables_of(grid.directory), grid.directory / "axes.png"
    stale.write_bytes(b"of an earlier report")
    assert numeric_axes(tables) == []
    assert draw_axis_curves(tables, stale) is None
    assert not stale.exists()


def test_two_numeric_axes_are_two_panels_with_lines_of_the_other(grid: Grid) -> None:
    labels = {}
    for rank, share in itertools.product((4, 16), (0.25, 1.0)):
        cell = f"{rank}-{share}"
        grid.add(f"r={rank}, share={share}", 1, 5, cell=cell)
        labels[cell] = {"model.r": str(rank), "data.share": str(share)}
    write_cells(grid.directory, labels)
    tables = tables_of(grid.directory)
    found = {axis.name: axis.lines for axis in numeric_axes(tables)}
    assert found.keys() == {"model.r", "data.share"}
    assert [len(lines) for lines in found.values()] == [2, 2]
    not_blank(draw_axis_curves(tables, grid.directory / "axes.png"))


def test_spread_over_wordings_names_the_worst_and_the_best(grid: Grid) -> None:
    labels = {}
    for method, rank in (("lora", 3), ("prefix", 6)):
        for number in (1, 2, 3):
            cell = f"{method}-{number}"
            told = {"template": f"matching.en.{number}"}
            grid.add(
                f"template={number}, {method}",
                1,
                rank + number,
                cell=cell,
                edit=lambda r, told=told: r["config"].update(data={"init_args": told}),
            )
            labels[cell] = {"model": method, "template": str(number)}
    write_cells(grid.directory, labels)
    (table,) = tables_of(grid.directory)
    spreads = template_spreads(table)
    assert [spread.method for spread in spreads] == ["lora", "prefix"]
    for spread in spreads:
        expected = {
            f"matching.en.{run.cell[-1]}": run.metrics["hr@5"]
            for row in table.rows
            for run in row.runs
            if run.cell.startswith(spread.method)
        }
        assert spread.by_wording == pytest.approx(expected)
        assert spread.mean == pytest.approx(np.mean(list(expected.values())))
    not_blank(draw_template_spread([table], grid.directory / "spread.png"))


def test_ranks_are_compared_over_what_all_protocols_have(grid: Grid) -> None:
    labels = {}
    order = {4: ("lora", "prefix", "adapter"), 19: ("lora", "adapter", "prefix"), 99: ("adapter", "prefix", "lora")}
    for count, methods in order.items():
        for place, method in enumerate((*methods, *(["full"] if count == 4 else []))):
            cell = f"{method}-{count}"
            grid.add(
                f"{method}, negatives={count}",
                1,
                2.0 + 4 * place,
                cell=cell,
                edit=lambda r, count=count: r["protocol"].update(fingerprint=f"{count:064d}", num_candidates=count + 1),
            )
            labels[cell] = {"model": method, "data.protocol.negatives": str(count)}
    write_cells(grid.directory, labels)
    tables = tables_of(grid.directory)
    chosen, places = ranks(tables)
    counts = [(table.num_candidates or 0) - 1 for table in chosen]
    assert places.keys() == {"lora", "prefix", "adapter"}
    for name, found in places.items():
        assert dict(zip(counts, found, strict=True)) == {
            count: methods.index(name) + 1 for count, methods in order.items()
        }
    not_blank(draw_rank_stability(tables, grid.directory / "ranks.png"))


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_kendall_is_scipys(first: list[int], second: list[int]) -> None:
    assert kendall(first, second) == pytest.approx(kendalltau(first, second).statistic)
