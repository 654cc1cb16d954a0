"""The report as one HTML file without external resources: it can be mailed, archived and opened offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.analysis.leaderboard import Table, flatten
from benchmarks.analysis.pairs import Pair
from benchmarks.analysis.rows import Row
from benchmarks.analysis.runs import GridResults, Problem, Run
from benchmarks.analysis.samples import Answer, disagreements
from benchmarks.metric_names import fraction, metric_label
from benchmarks.report.figure_style import Picture, row_key
from benchmarks.report.figures import running_mean, validation_metric
from benchmarks.report.publish import without_paths
from benchmarks.report.sections import Section
from benchmarks.report.tables import EMPTY, columns, cost_text, p_text, protocol_lines

WIDTH, HEIGHT = 320, 120  # of an inline curve, in its own units
MOST_POINTS = 240  # of an inline curve: more than it has pixels


@dataclass(frozen=True)
class Curve:
    """One inline curve: a polyline in a box of `WIDTH` by `HEIGHT`, and the ends of its axes as text."""

    title: str
    points: str
    low: str
    high: str
    last_step: str


@dataclass(frozen=True)
class TableView:
    """A table as the page shows it, with the smaller ones below it and every pair of its rows."""

    table: Table
    below: Sequence[Section] = ()
    pairs: Mapping[tuple[int, int], Pair] = field(default_factory=dict)


def render_html(
    results: GridResults,
    views: Sequence[TableView],
    problems: Sequence[Problem],
    sentence: str,
    pictures: Sequence[Picture] = (),
    files: Mapping[str, str] | None = None,
) -> str:
    """Renders the page; all text is escaped, because titles and prompts are data.

    Example:
        >>> page = render_html(GridResults("<i>", "", (), ()), [], [], "<i>")
        >>> "<title>&lt;i&gt;" in page, "<i>" in page
        (True, False)
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # by name alone, .j2 would not be escaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["values_by_row"] = lambda body: list(zip(*body.values(), strict=True))
    rows = [(view.table, row) for view in views for row in view.table.rows]
    marks = [_mark(row, table) for table, row in rows]
    return environment.get_template("report.html.j2").render(
        results=results,
        sentence=sentence[:1].upper() + sentence[1:],
        tables=[_table_view(view) for view in views],
        problems=problems,
        pictures=pictures,
        files={name: _data_url(text) for name, text in (files or {}).items()},
        finished=sum(len(row.runs) for _, row in rows),
        failed=sum(problem.state != "note" for problem in problems),
        methods=len({row.name for _, row in rows}),
        kinds=sorted({mark["kind"] for mark in marks}),
        backbones=sorted({mark["backbone"] for mark in marks}),
        titles=[view.table.title for view in views],
        configs=[
            {"id": _run_id(row, seed), "name": f"{row.name}, {run.cell}", "row": row_key(row), "config": _settings(run)}
            for _, row in rows
            for seed, run in enumerate(row.runs)
        ],
        width=WIDTH,
        height=HEIGHT,
    )


def _table_view(view: TableView) -> dict[str, Any]:
    table = view.table
    return {
        "title": table.title,
        "protocol": protocol_lines(table),
        "columns": columns(table),
        "notes": table.notes,
        "sections": view.below,
        "marks": [_mark(row, table) for row in table.rows],
        "metric": metric_label(table.compared),
        "matrix": _matrix(view) if any(pair.users for pair in view.pairs.values()) else [],
        "runs": [_run_view(run, row, table, seed) for row in table.rows for seed, run in enumerate(row.runs)],
        "samples": [
            {
                "user": found.user,
                "prompt": found.prompt,
                "truth": found.truth,
                "answers": [_answer_view(answer, table) for answer in found.answers],
            }
            for found in disagreements(table)
        ],
    }


def _matrix(view: TableView) -> list[dict[str, Any]]:
    """A line for each row that was compared, with a cell for each other: its outcome, and the test in words."""
    rows, metric = view.table.rows, metric_label(view.table.compared)
    shown = sorted({first for first, _ in view.pairs})
    tests = sum(pair.users > 0 for pair in view.pairs.values()) // 2

    def words(first: int, second: int) -> str:
        pair, names = view.pairs[first, second], f"{rows[first].name} against {rows[second].name}"
        if not pair.users:
            return f"{names}: not tested, they store no values of the same users."
        value, low, high = (fraction(number, signed=True) for number in (pair.difference, pair.low, pair.high))
        of = f"{p_text(pair.p)} by Holm over {tests} tests, {pair.users:,} users"
        few = "; too few users to tell" if pair.outcome == "untested" else ""
        return f"{names}: {pair.outcome}. {metric} {value} [{low}, {high}], {of}{few}."

    return [
        {
            "key": row_key(rows[first]),
            "number": first + 1,
            "name": rows[first].name,
            "cells": [
                None
                if first == second
                else (row_key(rows[second]), view.pairs[first, second].outcome, words(first, second), rows[second].name)
                for second in shown
            ],
        }
        for first in shown
    ]


def _answer_view(answer: Answer, table: Table) -> dict[str, Any]:
    row = table.rows[answer.row]
    rank = f"below the first {answer.stored}" if answer.rank is None else str(answer.rank)
    return {"key": row_key(row), "name": row.name, "rank": rank, "titles": answer.titles}


def inline_curve(title: str, points: Sequence[tuple[float, float]]) -> Curve | None:
    """A curve scaled into its box, thinned to what can be seen; None for fewer than two points.

    Example:
        >>> inline_curve("loss", [(0, 2.0), (10, 1.0)])
        Curve(title='loss', points='0.0,0.0 320.0,120.0', low='1', high='2', last_step='10')
    """
    ordered = sorted(points)
    if len(ordered) < 2:
        return None
    stride = -(-len(ordered) // MOST_POINTS)
    ordered = ordered[:-1:stride] + ordered[-1:]
    steps, values = zip(*ordered, strict=True)
    low, high, first = min(values), max(values), steps[0]
    across, up = (steps[-1] - first) or 1, (high - low) or 1
    line = (f"{(s - first) / across * WIDTH:.1f},{(high - v) / up * HEIGHT:.1f}" for s, v in ordered)
    return Curve(title, " ".join(line), f"{low:.4g}", f"{high:.4g}", f"{steps[-1]:,.0f}")


def _settings(run: Run) -> dict[str, str]:
    """What a run was set to by dotted key, but for what every run has of its own: its name and its places."""
    named = {key: value for key, value in run.config.items() if key not in ("name", "out", "config")}
    config = without_paths(named, Path(run.config.get("out") or run.folder))
    return {key.replace(".init_args", ""): text for key, text in flatten(config)}


def _data_url(text: str) -> str:
    return "data:text/plain;charset=utf-8;base64," + base64.b64encode(text.encode()).decode("ascii")


def _run_id(row: Row, seed: int) -> str:
    return f"run-{row_key(row)}-{seed}"


def _mark(row: Row, table: Table) -> dict[str, str]:
    """What the page's filters choose by."""
    filters = {"kind": row.kind or EMPTY, "backbone": row.backbone or EMPTY, "table": table.title}
    return filters | {"key": row_key(row), "run": _run_id(row, 0)}


def _run_view(run: Run, row: Row, table: Table, seed: int) -> dict[str, Any]:
    """A run's details as lines of text."""
    main = table.main
    metric = validation_metric([run], main)
    curves = (
        [inline_curve(f"{metric_label(metric.removeprefix('val/'))} on validation", run.curves[metric])]
        if metric
        else []
    )
    curves.append(inline_curve("training loss", running_mean(sorted(run.curves.get("train/loss", [])))))
    measured = run.metrics.get(main)
    return {
        "name": row.name,
        "mark": _mark(row, table),
        "id": _run_id(row, seed),
        "cell": run.cell,
        "folder": f"runs/{quote(run.cell)}/",
        "command": run.command,
        "seed": EMPTY if run.seed is None else run.seed,
        "headline": f"{metric_label(main)} {EMPTY if measured is None else fraction(measured)}",
        "metrics": [(metric_label(key), fraction(value)) for key, value in sorted(run.metrics.items())],
        "costs": [
            (key.removesuffix("_bytes").replace("_", " "), cost_text(key, value))
            for key, value in sorted(run.costs.items())
        ],
        "guards": [(key.replace("_", " "), text, text == "False") for key, text in flatten(run.guards)],
        "environment": list(flatten(run.environment)),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
        "curves": [curve for curve in curves if curve],
        "samples": [_sample_view(sample) for sample in run.samples],
    }


def _sample_view(sample: Mapping[str, Any]) -> dict[str, Any]:
    answers = []
    for answer in sample.get("ranking") or []:
        score = answer.get("score")
        text = EMPTY if score is None else f"{score:.4g}" if isinstance(score, float) else str(score)
        answers.append((str(answer.get("title", EMPTY)), text, answer.get("relevant") is True))
    return {"user": str(sample.get("user", EMPTY)), "prompt": str(sample.get("prompt", "")), "answers": answers}
