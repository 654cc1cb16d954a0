"""Figures of a perf run: speed-ups over peers, and where our step's time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.figure_parts import COLORS, GREY
from benchmarks.perf.profile import GROUPS


def draw_speed(results: dict[str, Any], path: Path) -> Path | None:
    """Draws each speed-up as a bar with the range of its turns, and its target as a line.

    Args:
        results: of the run.
        path: the PNG file to write.

    Returns:
        The path, or None where nothing was compared.
    """
    bars = [
        (f"{row['title']}\nagainst {peer}", factor)
        for row in results["comparisons"].values()
        if "error" not in row
        for peer, factor in row["speed_up"].items()
    ]
    if not bars:
        path.unlink(missing_ok=True)
        return None
    figure = Figure(figsize=(9.5, 0.62 * len(bars) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, (_, factor) in enumerate(bars):
        middle = factor["median"]
        spread = [[max(0.0, middle - factor["min"])], [max(0.0, factor["max"] - middle)]]
        color = COLORS[0] if middle >= factor["target"] else COLORS[1]
        axes.barh(place, middle, xerr=spread, color=color, height=0.62, error_kw={"ecolor": GREY, "capsize": 3})
        axes.plot([factor["target"]] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.6)
        axes.annotate(
            f"{middle:.1f}x",
            (max(middle, factor["max"]), place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1.0, color=GREY, linewidth=0.8)
    axes.margins(x=0.12)
    axes.set_xlim(left=min(0.9, *(0.9 * factor["min"] for _, factor in bars)))
    ticks = [t for t in (1, 2, 4, 8, 16, 32, 64) if t <= 2 * max(factor["max"] for _, factor in bars)]
    axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("work a second, ours to the peer's (black line: the target; orange: missed)")
    _tidy(axes)
    figure.savefig(path, dpi=150)
    return path


def draw_profile(results: dict[str, Any], path: Path) -> Path | None:
    """Draws each step's time as a multiple of the matrix work it cannot do without, split by kind of operator.

    Args:
        results: of the run.
        path: the PNG file to write.

    Returns:
        The path, or None where the limit was not measured.
    """
    limit = results.get("limit")
    if not limit or "error" in limit:
        path.unlink(missing_ok=True)
        return None
    steps = list(limit["steps"].values())
    figure = Figure(figsize=(9.5, 0.7 * len(steps) + 1.7), layout="constrained")
    axes = figure.subplots()
    colors = (*COLORS, "#BBBBBB")
    for place, step in enumerate(steps):
        total, left = sum(step["groups"].values()), 0.0
        for group, color in zip(GROUPS, colors, strict=True):
            width = step["groups"][group] / total * step["ratio"]
            axes.barh(place, width, left=left, color=color, height=0.62, label=group if place == 0 else None)
            left += width
        axes.annotate(f"{step['ratio']:.2f}", (left, place), xytext=(6, 0), textcoords="offset points", va="center")
    axes.axvline(1.0, color="black", linewidth=1.4)
    axes.set_yticks(range(len(steps)), [step["title"] for step in steps])
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("time, in multiples of the matrix work alone (1 = the machine's limit)")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    _tidy(axes)
    figure.savefig(path, dpi=150)
    return path


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
