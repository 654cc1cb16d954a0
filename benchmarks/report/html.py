"""The report as one HTML file without external resources: it can be mailed, archived and opened offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.analysis.leaderboard import Table, flatten
from benchmarks.analysis.rows import Row
from benchmarks.analysis.runs import GridResults, Problem, Run
from benchmarks.metric_names import metric_label
from benchmarks.report.figures import running_mean, validation_metric
from benchmarks.report.sections import Section
from benchmarks.report.tables import EMPTY, columns, cost_text, fraction, protocol_lines

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


def render_html(
    suite: GridResults,
    tables: Sequence[Table],
    problems: Sequence[Problem],
    figures: Sequence[Path | None],
    below: Sequence[Sequence[Section]] = (),
) -> str:
    """Renders the page; all text is escaped, because titles and prompts are data.

    Args:
        suite: for its name and description.
        tables: as built by `build_tables`.
        problems: the same.
        figures: PNG files to embed, None for one that was not drawn.
        below: sections that follow each table; shorter than `tables`, the rest has none.

    >>> page = render_html(GridResults("<i>", "", (), ()), [], [], [])
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
    pictures = [(path.stem.replace("_", " "), _embedded(path)) for path in figures if path is not None]
    return environment.get_template("report.html.j2").render(
        suite=suite,
        tables=[
            {
                "title": table.title,
                "protocol": protocol_lines(table),
                "columns": columns(table),
                "notes": table.notes,
                "sections": rest or (),
                "marks": [_mark(row, table) for row in table.rows],
                "runs": [_run_view(run, row, table) for row in table.rows for run in row.runs],
            }
            for table, rest in zip_longest(tables, below)
        ],
        problems=problems,
        pictures=pictures,
        finished=sum(len(row.runs) for table in tables for row in table.rows),
        failed=sum(problem.state != "note" for problem in problems),
        methods=len({row.name for table in tables for row in table.rows}),
        kinds=sorted({_mark(row, table)["kind"] for table in tables for row in table.rows}),
        backbones=sorted({_mark(row, table)["backbone"] for table in tables for row in table.rows}),
        titles=[table.title for table in tables],
        width=WIDTH,
        height=HEIGHT,
    )


def inline_curve(title: str, points: Sequence[tuple[float, float]]) -> Curve | None:
    """A curve scaled into its box, thinned to what can be seen; None for fewer than two points.

    Args:
        title: what is drawn.
        points: `(step, value)`, in any order.

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


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _mark(row: Row, table: Table) -> dict[str, str]:
    """What the page's filters choose by."""
    return {"kind": row.kind or EMPTY, "backbone": row.backbone or EMPTY, "table": table.title}


def _run_view(run: Run, row: Row, table: Table) -> dict[str, Any]:
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
        "cell": run.cell,
        "seed": EMPTY if run.seed is None else run.seed,
        "headline": f"{metric_label(main)} {EMPTY if measured is None else fraction(measured)}",
        "metrics": [(metric_label(key), fraction(value)) for key, value in sorted(run.metrics.items())],
        "costs": [
            (key.removesuffix("_bytes").replace("_", " "), cost_text(key, value))
            for key, value in sorted(run.costs.items())
        ],
        "guards": [(key.replace("_", " "), text, text == "False") for key, text in flatten(run.guards)],
        "environment": list(flatten(run.environment)),
        "config": _config_text(run.config),
        "curves": [curve for curve in curves if curve],
        "samples": [_sample_view(sample) for sample in run.samples],
    }


def _config_text(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True) if config else ""


def _sample_view(sample: Mapping[str, Any]) -> dict[str, Any]:
    answers = []
    for answer in sample.get("ranking") or []:
        score = answer.get("score")
        text = EMPTY if score is None else f"{score:.4g}" if isinstance(score, float) else str(score)
        answers.append((str(answer.get("title", EMPTY)), text, answer.get("relevant") is True))
    return {
        "user": str(sample.get("user", EMPTY)),
        "prompt": str(sample.get("prompt", "")),
        "answers": answers,
    }
