"""Figures of rows: quality against cost, learning curves, and reliability of yes/no answers; a strip per protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.analysis.leaderboard import Table
from benchmarks.analysis.learning import learning_curve, levels
from benchmarks.analysis.reliability import Floats, calibration_error, reliability
from benchmarks.analysis.rows import Row
from benchmarks.analysis.runs import Run
from benchmarks.metric_names import fraction, higher_is_better, metric_label
from benchmarks.report.figure_style import (
    GREY,
    Picture,
    Style,
    draw_legend,
    handle,
    is_flat,
    literal,
    mark,
    parts_of,
    save,
    style_rows,
    tidy,
)
from benchmarks.report.tables import cost_text

Points = list[tuple[float, float]]
COST_TITLES = {
    "trainable_parameters": "trainable parameters",
    "peak_memory_bytes": "peak memory",
    "train_seconds": "training time",
    "latency_seconds": "latency: one user's candidates",
}


def draw_quality_cost(tables: Sequence[Table], path: Path) -> Picture | None:
    """Draws the main metric against what a method costs: parameters, memory, training time, serving latency.

    Each panel has its Pareto front. Untuned and reference rows are dashed lines across the panels. Bars are 95 %
    intervals.

    Example:
        >>> draw_quality_cost([], Path("unused.png")) is None
        True
    """
    drawn = [table for table in tables if any(table.main in row.metrics for row in table.rows)]
    if not drawn:
        path.unlink(missing_ok=True)
        return None
    figure = Figure(figsize=(11.5, 8.2 * len(drawn)), layout="constrained")
    for part, table in zip(parts_of(figure, drawn), drawn, strict=True):
        panels = part.subplots(2, 2, sharey=True)
        rows = [row for row in table.rows if table.main in row.metrics]
        styles = style_rows(table)
        for axes, cost in zip(panels.flat, COST_TITLES, strict=True):
            _quality_panel(axes, rows, table.main, cost, styles)
        better = "" if higher_is_better(table.main) else " (lower is better)"
        for left, right in panels:
            left.set_ylabel(metric_label(table.main) + better)
            _flat_lines((left, right), rows, table)
        legend = [handle(row.name, styles[row.name], line=False, rows=[row]) for row in rows if not is_flat(row)]
        draw_legend(part, legend, front=True)
    return save(figure, path, [_say_quality_cost(table) for table in drawn])


def _say_quality_cost(table: Table) -> str:
    texts = []
    for row in (row for row in table.rows if table.main in row.metrics):
        costs = [cost_text(cost, row.costs[cost]) for cost in COST_TITLES if row.costs.get(cost, 0) > 0]
        known = f" ({', '.join(costs)})" if costs and not is_flat(row) else ""
        texts.append(f"{row.name} {fraction(row.metrics[table.main], 3)}{known}")
    chance = f"; chance {fraction(table.chance[table.main], 3)}" if table.main in table.chance else ""
    return f"{metric_label(table.main)} against {', '.join(COST_TITLES.values())}; {table.title}: {'; '.join(texts)}{chance}."


def draw_learning_curves(tables: Sequence[Table], path: Path) -> Picture | None:
    """Draws validation metric against targets seen and training loss against the step; None where no run left a curve.

    Where no run counted targets the first panel is drawn against the step too; where some did, the others are left out of
    it. Classical rows are lines across the first.

    Example:
        >>> draw_learning_curves([], Path("unused.png")) is None
        True
    """
    drawn = [table for table in tables if any(run.curves for row in table.rows for run in row.runs)]
    if not drawn:
        path.unlink(missing_ok=True)
        return None
    figure, said = Figure(figsize=(11.5, 4.6 * len(drawn)), layout="constrained"), []
    for part, table in zip(parts_of(figure, drawn), drawn, strict=True):
        rows = [row for row in table.rows if any(run.curves for run in row.runs)]
        styles = style_rows(table)
        metric = validation_metric([run for row in rows for run in row.runs], table.main)
        panels = [(metric or "val", metric_label((metric or "val").removeprefix("val/")) + " on validation users")]
        panels.append(("train/loss", "training loss (running mean)"))
        for axes, (name, title) in zip(part.subplots(1, 2), panels, strict=True):
            _curve_panel(axes, rows, name, title, styles)
        _classical_lines(part.axes[0], table, metric)
        draw_legend(part, [handle(row.name, styles[row.name], line=True, rows=[row]) for row in rows])
        said.append(f"Learning curves; {table.title}: {'; '.join(_say_curves(row, metric) for row in rows)}.")
    return save(figure, path, said)


def _say_curves(row: Row, metric: str | None) -> str:
    texts = []
    for name in filter(None, [metric, "train/loss"]):
        curves = [sorted(run.curves[name]) for run in row.runs if run.curves.get(name)]
        if curves:
            begin, end = (np.mean([curve[at] for curve in curves], axis=0) for at in (0, -1))
            texts.append(f"{name} {begin[1]:.3g} at step {begin[0]:g}, {end[1]:.3g} at step {end[0]:g}")
    return f"{row.name} {', '.join(texts)}"


def validation_metric(runs: Sequence[Run], main: str) -> str | None:
    """The validation column to draw: the main metric's if any run has it, else the first by name.

    Example:
        >>> validation_metric([], "hr@5") is None
        True
    """
    names = sorted({name for run in runs for name in run.curves if name.startswith("val/")})
    return f"val/{main}" if f"val/{main}" in names else next(iter(names), None)


def running_mean(points: Points) -> Points:
    """Points averaged over a centred window of a twentieth of them; short curves are left as they are.

    Example:
        >>> running_mean([(0.0, 1.0), (1.0, 3.0)])
        [(0.0, 1.0), (1.0, 3.0)]
    """
    half = len(points) // 40
    if not half:
        return points
    total = np.concatenate(([0.0], np.cumsum([value for _, value in points])))
    places = np.arange(len(points))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(points))
    means = (total[high] - total[low]) / (high - low)
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def pareto_front(points: Points, higher: bool = True) -> Points:
    """The points that no other beats in both cost (lower) and quality, by rising cost.

    Example:
        >>> pareto_front([(1.0, 0.3), (2.0, 0.2), (3.0, 0.5)])
        [(1.0, 0.3), (3.0, 0.5)]
        >>> pareto_front([(1.0, 0.3), (2.0, 0.2), (3.0, 0.5)], higher=False)
        [(1.0, 0.3), (2.0, 0.2)]
    """
    sign = 1 if higher else -1
    front: Points = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * quality > sign * front[-1][1]:
            front.append((cost, quality))
    return front


def _quality_panel(axes: Any, rows: Sequence[Row], main: str, cost: str, styles: dict[str, Style]) -> None:
    points: Points = []
    for row in rows:
        if is_flat(row) or row.costs.get(cost, 0) <= 0:
            continue
        color, marker, _ = styles[row.name]
        x, y = row.costs[cost], row.metrics[main]
        low, high = row.intervals.get(main, (y, y))
        # A mean outside its bootstrap interval is possible for tiny samples; a bar has no negative length.
        bar = [[max(0.0, y - low)], [max(0.0, high - y)]]
        look = {"color": color, "marker": marker, "markersize": 8, "capsize": 3, "elinewidth": 1.2}
        mark([row], *axes.errorbar(x, y, yerr=bar, zorder=3, **look).get_children())
        points.append((x, y))
    front = pareto_front(points, higher_is_better(main))
    if front:
        axes.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=1, alpha=0.7, gid="rows")
    axes.set_xlabel(COST_TITLES[cost])
    _cost_axis(axes, cost, [x for x, _ in points])
    tidy(axes)


def _cost_axis(axes: Any, cost: str, values: Sequence[float]) -> None:
    axes.set_xscale("log")
    if values:
        pad = max(1.35, (max(values) / min(values)) ** 0.06)
        axes.set_xlim(min(values) / pad, max(values) * pad)
        decades = math.log10(max(values) / min(values) * pad * pad)
        plain = LogLocator(subs=(1.0,) if decades > 2.5 else (1.0, 2.0, 5.0))
        axes.xaxis.set_major_locator(LogLocator(base=2) if cost.endswith("_bytes") else plain)
    else:
        axes.text(0.5, 0.95, "no tuned row recorded it", transform=axes.transAxes, ha="center", va="top", color=GREY)
        axes.xaxis.set_major_locator(NullLocator())
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: cost_text(cost, value).replace(".0 ", " ")))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _flat_lines(panels: Sequence[Any], rows: Sequence[Row], table: Table) -> None:
    """Dashed lines of the rows without a training cost, and chance; their names right of the last panel."""
    lines = [(row.metrics[table.main], row.name, "--", [row]) for row in rows if is_flat(row)]
    lines += [(table.chance[table.main], "chance", ":", [])] if table.main in table.chance else []
    for axes in panels:
        for y, _, dash, of in lines:
            line = axes.axhline(y, color=GREY, linestyle=dash, linewidth=1.1, alpha=0.8, zorder=1)
            mark(of, line) if of else None
    last = panels[-1]
    low, high = last.get_ylim()
    heights = spread_apart([(y - low) / (high - low) for y, *_ in lines], 0.055)
    for (y, name, _, of), height in zip(lines, heights, strict=True):
        label = last.annotate(
            literal(f"{name} {fraction(y, 3)}"),
            xy=(1.0, (y - low) / (high - low)),
            xytext=(1.05, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color="#333333",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0},
        )
        mark(of, label, label.arrow_patch) if of else None


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as needed so that sorted neighbours are at least a gap apart.

    Example:
        >>> [round(h, 2) for h in spread_apart([0.5, 0.5, 0.9], 0.1)]
        [0.45, 0.55, 0.9]
    """
    groups: list[list[int]] = []
    centers: list[float] = []
    for place in sorted(range(len(heights)), key=lambda i: (heights[i], i)):
        groups.append([place])
        centers.append(heights[place])
        # A group that would touch the one below joins it; both then stand around their common mean.
        while len(groups) > 1 and centers[-1] - centers[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            upper = groups.pop()
            groups[-1] += upper
            centers.pop()
            centers[-1] = sum(heights[i] for i in groups[-1]) / len(groups[-1])
    moved = list(heights)
    for group, center in zip(groups, centers, strict=True):
        for order, place in enumerate(group):
            moved[place] = center + gap * (order - (len(group) - 1) / 2)
    return moved


def _curve_panel(axes: Any, rows: Sequence[Row], name: str, title: str, styles: dict[str, Style]) -> None:
    smooth: Callable[[Points], Points] = running_mean if name == "train/loss" else list
    empty = True
    by_targets = name != "train/loss" and any(learning_curve(run, name) for row in rows for run in row.runs)
    for row in rows:
        color, marker, dash = styles[row.name]
        for run in row.runs:
            points = learning_curve(run, name) if by_targets else smooth(sorted(run.curves.get(name, [])))
            if points:
                marks = {"marker": marker, "markersize": 4.5} if len(points) <= 30 else {}
                alpha = 0.9 if len(row.runs) == 1 else 0.65
                look = {"color": color, "linestyle": dash, "linewidth": 1.6, "alpha": alpha, **marks}
                mark([row], *axes.plot(*zip(*points, strict=True), **look))
                empty = False
    if empty:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=GREY)
    axes.set_xlabel("targets seen" if by_targets else "optimizer step")
    axes.set_xscale("log" if by_targets else "linear")
    axes.set_ylabel(title)
    tidy(axes)


def _classical_lines(axes: Any, table: Table, metric: str | None) -> None:
    """Dashed lines where classical rows stand on validation users."""
    if metric != f"val/{table.main}":
        return
    for name, level in levels(table).items():
        line = axes.axhline(level, color=GREY, linestyle="--", linewidth=1.0, alpha=0.7, zorder=1)
        label = axes.annotate(literal(f"{name} {fraction(level, 3)}"), (1.0, level), xycoords=("axes fraction", "data"))
        label.set(ha="right", va="bottom", fontsize=7.5, color=GREY)
        mark([row for row in table.rows if row.name == name], line, label)


def draw_reliability(tables: Sequence[Table], path: Path) -> Picture | None:
    """Draws the share of Yes against its probability, and how the probabilities are spread, by row; None without any.

    Example:
        >>> draw_reliability([], Path("unused.png")) is None
        True
    """
    drawn = [(table, rows) for table in tables if (rows := [row for row in table.rows if _pooled(row)])]
    if not drawn:
        path.unlink(missing_ok=True)
        return None
    figure = Figure(figsize=(11.5, 4.9 * len(drawn)), layout="constrained")
    for part, (table, rows) in zip(parts_of(figure, [table for table, _ in drawn]), drawn, strict=True):
        left, right = part.subplots(1, 2)
        styles = style_rows(table)
        left.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.1)
        for row in rows:
            _draw_row(left, right, row, styles[row.name])
        left.set(xlabel="probability of Yes", ylabel="share of Yes", xlim=(0, 1), ylim=(0, 1))
        right.set(xlabel="probability of Yes", ylabel="share of cases", xlim=(0, 1))
        tidy(left)
        tidy(right)
        draw_legend(part, [handle(row.name, styles[row.name], line=True, rows=[row]) for row in rows])
    said = [f"Reliability; {table.title}: {'; '.join(map(_say_reliability, rows))}." for table, rows in drawn]
    return save(figure, path, said)


def _say_reliability(row: Row) -> str:
    probability, label = _pooled(row) or (np.empty(0), np.empty(0))
    error = fraction(calibration_error(probability, label), 3)
    return f"{row.name}: expected calibration error {error} over {len(label):,} answers, {label.mean():.0%} of them Yes"


def _draw_row(left: Any, right: Any, row: Row, style: Style) -> None:
    color, marker, dash = style
    probability, label = _pooled(row) or (np.empty(0), np.empty(0))
    total, confidence, positives = reliability(probability, label)
    filled = total > 0
    sizes = 20 + 120 * total[filled] / total.max()
    (line,) = left.plot(confidence[filled], positives[filled], color=color, linestyle=dash, linewidth=1.2, alpha=0.8)
    points = left.scatter(confidence[filled], positives[filled], s=sizes, color=color, marker=marker, zorder=3)
    edges = np.linspace(0, 1, len(total) + 1)
    mark([row], line, points, right.stairs(total / total.sum(), edges, color=color, linestyle=dash, linewidth=1.6))


def _pooled(row: Row) -> tuple[Floats, Floats] | None:
    """Probabilities and labels of all seeds."""
    kept = [(s.probability, s.label) for run in row.runs if (s := run.scores) is not None]
    pairs = [(p, y) for p, y in kept if p is not None and y is not None and len(y)]
    return (np.concatenate([p for p, _ in pairs]), np.concatenate([y for _, y in pairs])) if pairs else None
