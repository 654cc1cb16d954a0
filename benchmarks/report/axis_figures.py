"""Figures of a grid's axes: the metric along a number, the spread over wordings, ranks over protocols."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.analysis.axes import (
    LOWER_IS_BETTER,
    Axis,
    Spread,
    kendall,
    method_of,
    numeric_axes,
    ranks,
    template_spreads,
)
from benchmarks.analysis.leaderboard import Table
from benchmarks.metric_names import fraction, metric_label
from benchmarks.report.figure_style import (
    GREY,
    Picture,
    Style,
    draw_legend,
    draw_title,
    handle,
    literal,
    mark,
    save,
    style_of,
    tidy,
)

_MOST_LINES = 14  # of a rank figure or a curve: more cannot be told apart


def draw_axis_curves(tables: Sequence[Table], path: Path) -> Picture | None:
    """Draws the main metric along each numeric axis of the grid, a line per method; None where no axis is a number.

    Bars are 95 % intervals over users, values averaged over seeds first; small dots are the seeds. Where the points of
    an axis have different protocols, the panel says so.

    Example:
        >>> draw_axis_curves([], Path("unused.png")) is None
        True
    """
    axes = [axis for axis in numeric_axes(tables) if len(axis.lines) <= _MOST_LINES]
    if not axes:
        path.unlink(missing_ok=True)
        return None
    figure = Figure(figsize=(9, 5.2 * len(axes)), layout="constrained")
    for part, axis in zip(figure.subfigures(len(axes), 1, squeeze=False)[:, 0], axes, strict=True):
        panel = part.subplots()
        styles = {name: style_of(place) for place, name in enumerate(axis.lines)}
        for name, style in styles.items():
            _draw_line(panel, axis, name, style)
        _number_axis(panel, sorted({point.x for line in axis.lines.values() for point in line}))
        panel.set(xlabel=axis.name, ylabel=metric_label(axis.main))
        warning = "; each value has its own protocol" if axis.protocols > 1 else ""
        draw_title(part, f"{metric_label(axis.main)} along {axis.name}{warning}")
        tidy(panel)
        rows = {name: [point.row for point in line] for name, line in axis.lines.items()}
        draw_legend(part, [handle(name, style, line=True, rows=rows[name]) for name, style in styles.items()])
    return save(figure, path, [_say_axis(axis) for axis in axes])


def _say_axis(axis: Axis) -> str:
    lines = (
        f"{name}: " + ", ".join(f"{fraction(point.row.metrics[axis.main], 3)} at {point.x:g}" for point in line)
        for name, line in axis.lines.items()
    )
    return f"{metric_label(axis.main)} along {axis.name}; {'; '.join(lines)}."


def _draw_line(panel: Any, axis: Axis, name: str, style: Style) -> None:
    color, marker, dash = style
    line = axis.lines[name]
    values = [point.row.metrics[axis.main] for point in line]
    ends = [point.row.intervals.get(axis.main, (y, y)) for point, y in zip(line, values, strict=True)]
    bars = [
        [max(0.0, y - low) for y, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, high - y) for y, (_, high) in zip(values, ends, strict=True)],
    ]
    # Lines at the same value would hide each other's bars.
    place = list(axis.lines).index(name) - (len(axis.lines) - 1) / 2
    shift = 1 + 0.012 * place if min(point.x for point in line) > 0 else 1
    x = [point.x * shift for point in line]
    look = {"color": color, "marker": marker, "linestyle": dash, "linewidth": 1.6, "markersize": 7}
    bars_drawn = panel.errorbar(x, values, yerr=bars, capsize=3, elinewidth=1.1, zorder=3, **look)
    mark([point.row for point in line], *bars_drawn.get_children())
    for at, point in zip(x, line, strict=True):
        seeds = [run.metrics[axis.main] for run in point.row.runs]
        if len(seeds) > 1:
            mark([point.row], panel.scatter([at] * len(seeds), seeds, s=9, color=color, alpha=0.5, zorder=2))


def _number_axis(panel: Any, values: Sequence[float]) -> None:
    """Ticks at the measured values; in logarithms where they span a decade."""
    if values[0] > 0 and values[-1] / values[0] >= 8:
        panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(list(values)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_template_spread(tables: Sequence[Table], path: Path) -> Picture | None:
    """Draws each method's mean over wordings, with the worst and the best named; None where no method has two.

    Example:
        >>> draw_template_spread([], Path("unused.png")) is None
        True
    """
    drawn = [(table, spreads) for table in tables if (spreads := template_spreads(table))]
    if not drawn:
        path.unlink(missing_ok=True)
        return None
    heights = [1.8 + 0.75 * len(spreads) for _, spreads in drawn]
    figure = Figure(figsize=(11.5, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (table, spreads) in zip(parts, drawn, strict=True):
        draw_title(part, table.title)
        panel = part.subplots()
        for place, spread in enumerate(spreads):
            before = set(panel.get_children())
            _draw_spread(panel, place, spread, table.main)
            rows = [row for row in table.rows if method_of(row.runs[0]) == spread.method]
            mark(rows, *(set(panel.get_children()) - before))
        panel.set_yticks(range(len(spreads)), [literal(spread.method) for spread in spreads])
        panel.set(ylim=(len(spreads) - 0.4, -0.6), xlabel=f"{metric_label(table.main)}: each wording, and their mean")
        values = [value for spread in spreads for value in spread.by_wording.values()]
        room = 0.4 * max(max(values) - min(values), 0.02)  # for the names beside the ends
        panel.set_xlim(min(values) - room, max(values) + room)
        tidy(panel)
    said = [f"Spread over wordings; {table.title}: {'; '.join(map(_say_spread, spreads))}." for table, spreads in drawn]
    return save(figure, path, said)


def _say_spread(spread: Spread) -> str:
    ends = (f"{text} {fraction(value, 3)}" for text, value in spread.by_wording.items())
    return f"{spread.method}: mean {fraction(spread.mean, 3)} of {', '.join(ends)}"


def _draw_spread(panel: Any, place: int, spread: Spread, main: str) -> None:
    color, marker, _ = style_of(place)
    values = sorted(spread.by_wording.items(), key=lambda item: (item[1], item[0]))
    panel.plot([values[0][1], values[-1][1]], [place, place], color=color, linewidth=2, alpha=0.5)
    panel.scatter([value for _, value in values], [place] * len(values), s=28, color=color, marker=marker, zorder=3)
    panel.plot([spread.mean] * 2, [place - 0.22, place + 0.22], color="#222222", linewidth=1.8, zorder=4)
    low, high = ("best", "worst") if main in LOWER_IS_BETTER else ("worst", "best")
    ends = ((values[0], low, "right", -8), (values[-1], high, "left", 8))
    for (text, value), word, side, offset in ends:
        panel.annotate(
            literal(f"{word} {text} {fraction(value, 3)}"),
            (value, place),
            xytext=(offset, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=8.5,
        )
    panel.annotate(
        f"mean {fraction(spread.mean, 3)}",
        (spread.mean, place - 0.22),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8.5,
    )


def draw_rank_stability(tables: Sequence[Table], path: Path) -> Picture | None:
    """Draws the place of each method under each protocol, and Kendall's tau of neighbouring protocols.

    None unless two protocols share three methods.

    Example:
        >>> draw_rank_stability([], Path("unused.png")) is None
        True
    """
    chosen, places = ranks(tables)
    if not places or len(places) > _MOST_LINES:
        path.unlink(missing_ok=True)
        return None
    order = sorted(range(len(chosen)), key=lambda place: (chosen[place].num_candidates or 0, chosen[place].fingerprint))
    chosen = [chosen[place] for place in order]
    places = {name: [found[place] for place in order] for name, found in places.items()}
    figure = Figure(figsize=(4.5 + 2.2 * len(chosen), 2 + 0.42 * len(places)), layout="constrained")
    panel = figure.subplots()
    for number, (name, found) in enumerate(places.items()):
        color, marker, dash = style_of(number)
        rows = [row for table in chosen for row in table.rows if method_of(row.runs[0]) == name]
        look: Any = {"color": color, "marker": marker, "linestyle": dash, "linewidth": 1.8, "markersize": 8}
        mark(rows, *panel.plot(range(len(found)), found, **look))
        for at, side, offset in ((0, "right", -10), (len(found) - 1, "left", 10)):
            where: Any = {"xytext": (offset, 0), "textcoords": "offset points", "ha": side, "va": "center"}
            mark(rows, panel.annotate(literal(name), (at, found[at]), fontsize=9, color=color, **where))
    for left in range(len(chosen) - 1):
        first, second = ([found[at] for found in places.values()] for at in (left, left + 1))
        panel.text(left + 0.5, 0.35, f"τ {kendall(first, second):+.2f}", ha="center", fontsize=9, color=GREY)
    panel.set_xticks(range(len(chosen)), _protocol_names(chosen))
    panel.set_yticks(range(1, len(places) + 1))
    panel.set(ylim=(len(places) + 0.6, 0.1), xlim=(-0.75, len(chosen) - 0.25), ylabel="place")
    tidy(panel)
    title = f"Places by {metric_label(chosen[0].main)} under each protocol"
    figure.suptitle(title, fontsize=11, color=GREY)
    order_of = (f"{name} {', '.join(map(str, found))}" for name, found in places.items())
    return save(figure, path, [f"{title}: {'; '.join(order_of)}."])


def _protocol_names(tables: Sequence[Table]) -> list[str]:
    """What tells the protocols apart, one line each, and the beginning of their fingerprints."""
    keys = list(dict.fromkeys(key for table in tables for key in table.description if not key.startswith("statistics")))
    differing = [key for key in keys if len({table.description.get(key) for table in tables}) > 1]
    differing = [key for key in differing if key != "fingerprint"]
    return [
        literal(
            "\n".join(
                [*(f"{key} {table.description.get(key, '–')}"[:34] for key in differing[:2]), table.fingerprint[:8]]
            )
        )
        for table in tables
    ]
