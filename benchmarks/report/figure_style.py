"""What all figures share: colours, markers, legends, and a file that depends on its inputs alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.analysis.leaderboard import Table
from benchmarks.analysis.rows import Row

Style = tuple[str, str, str]
"""Colour, marker and dash."""
# Okabe and Ito's colours, told apart with any common colour blindness; its yellow is too pale on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # 9 and 7 have no common factor: 63 distinct pairs
DASHES = ("-", "--", "-.", ":")
GREY = "#5f6670"


def parts_of(figure: Figure, tables: Sequence[Table]) -> list[Any]:
    """A strip of the figure for each table, with its title.

    >>> parts_of(Figure(), [])
    []
    """
    parts = list(figure.subfigures(len(tables), 1, squeeze=False)[:, 0]) if tables else []
    for part, table in zip(parts, tables, strict=True):
        part.suptitle(table.title, fontsize=11, color=GREY, x=0.01, ha="left")
    return parts


def is_flat(row: Row) -> bool:
    """Whether a row trains nothing of a language model, so that it is a line across the panels."""
    return row.kind in ("untuned", "reference")


def style_rows(table: Table) -> dict[str, Style]:
    """Colour, marker and dash by method; by name, so that all figures agree and new ranks keep them."""
    rows = sorted(table.rows, key=lambda row: (is_flat(row), row.name))
    return {row.name: style_of(place) for place, row in enumerate(rows)}


def style_of(place: int) -> Style:
    """Colour, marker and dash of the line with a number from 0.

    >>> style_of(0)
    ('#0072B2', 'o', '-')
    """
    return COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)], DASHES[place // len(COLORS) % len(DASHES)]


def handle(name: str, style: Style, line: bool) -> Line2D:
    """A method's entry in the legend.

    >>> handle("lora", style_of(0), line=True).get_label()
    'lora'
    """
    color, marker, dash = style
    return Line2D([], [], color=color, marker=marker, linestyle=dash if line else "", label=name)


def draw_legend(part: Any, handles: list[Line2D], front: bool = False) -> None:
    """A legend below a strip, in as many columns as its names leave room for."""
    if front and handles:
        handles = [*handles, Line2D([], [], color=GREY, linewidth=1, label="Pareto front")]
    if handles:
        columns = max(1, min(6, len(handles), 110 // (max(len(str(h.get_label())) for h in handles) + 6)))
        part.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def tidy(axes: Any) -> None:
    """A light grid, and no frame where nothing is read off."""
    axes.grid(True, which="major", color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def save(figure: Figure, path: Path) -> Path:
    """Writes the PNG; without the "Software" entry it depends on its inputs, not on matplotlib's version."""
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path
