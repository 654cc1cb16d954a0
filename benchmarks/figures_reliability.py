"""Figure of yes/no tasks: how often the answer is yes where a model says so with a given probability."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figure_parts import GREY, Style, draw_legend, handle, parts_of, save, style_rows, tidy
from benchmarks.leaderboard import Table
from benchmarks.reliability import Floats, reliability
from benchmarks.rows import Row


def draw_reliability(tables: Sequence[Table], path: Path) -> Path | None:
    """Draws the share of Yes against its probability, and how the probabilities are spread, by row.

    Args:
        tables: one pair of panels for each with a yes/no task; the others are left out.
        path: the PNG file to write.

    Returns:
        The path, or None where no table has stored probabilities.

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
        draw_legend(part, [handle(row.name, styles[row.name], line=True) for row in rows])
    return save(figure, path)


def _draw_row(left: Any, right: Any, row: Row, style: Style) -> None:
    color, marker, dash = style
    probability, label = _pooled(row) or (np.empty(0), np.empty(0))
    total, confidence, positives = reliability(probability, label)
    held = total > 0
    sizes = 20 + 120 * total[held] / total.max()
    left.plot(confidence[held], positives[held], color=color, linestyle=dash, linewidth=1.2, alpha=0.8)
    left.scatter(confidence[held], positives[held], s=sizes, color=color, marker=marker, zorder=3)
    right.stairs(total / total.sum(), np.linspace(0, 1, len(total) + 1), color=color, linestyle=dash, linewidth=1.6)


def _pooled(row: Row) -> tuple[Floats, Floats] | None:
    """Probabilities and labels of all seeds."""
    kept = [(s.probability, s.label) for run in row.runs if (s := run.scores) is not None]
    pairs = [(p, y) for p, y in kept if p is not None and y is not None and len(y)]
    return (np.concatenate([p for p, _ in pairs]), np.concatenate([y for _, y in pairs])) if pairs else None
