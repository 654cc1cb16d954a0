"""What all figures share: colours, markers, legends, and files that depend on their inputs alone."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
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

    Example:
        >>> parts_of(Figure(), [])
        []
    """
    parts = list(figure.subfigures(len(tables), 1, squeeze=False)[:, 0]) if tables else []
    for part, table in zip(parts, tables, strict=True):
        draw_title(part, table.title)
    return parts


def draw_title(part: Any, text: str) -> None:
    """The title of a strip."""
    part.suptitle(literal(text), fontsize=11, color=GREY, x=0.01, ha="left")


def literal(text: str) -> str:
    r"""Text in which matplotlib reads no formula.

    Example:
        >>> print(literal("5 $ or 6 $"))
        5 \$ or 6 \$
    """
    return text.replace("$", r"\$")


def is_flat(row: Row) -> bool:
    """Whether a row trains nothing of a language model, so that it is a line across the panels."""
    return row.kind in ("untuned", "reference")


def style_rows(table: Table) -> dict[str, Style]:
    """Colour, marker and dash by method; by name, so that all figures agree and new ranks keep them."""
    rows = sorted(table.rows, key=lambda row: (is_flat(row), row.name))
    return {row.name: style_of(place) for place, row in enumerate(rows)}


def style_of(place: int) -> Style:
    """Colour, marker and dash of the line with a number from 0.

    Example:
        >>> style_of(0)
        ('#0072B2', 'o', '-')
    """
    return COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)], DASHES[place // len(COLORS) % len(DASHES)]


def handle(name: str, style: Style, line: bool, rows: Iterable[Row] = ()) -> Line2D:
    """A method's entry in the legend; it belongs to rows of a table.

    Example:
        >>> handle("lora", style_of(0), line=True).get_label()
        'lora'
    """
    color, marker, dash = style
    return Line2D([], [], color=color, marker=marker, linestyle=dash if line else "", label=name, gid=rows_id(rows))


def rows_id(rows: Iterable[Row]) -> str:
    """What marks the parts of a figure that belong to rows, so that the page can hide them; none says "all"."""
    return "-".join(["rows", *dict.fromkeys(row_key(row) for row in rows)])


def row_key(row: Row) -> str:
    """Eight digits that a row has in every figure and table: those of its runs."""
    return f"{zlib.crc32(' '.join(sorted(run.cell + run.rule for run in row.runs)).encode()):08x}"


def mark(rows: Iterable[Row], *artists: Any) -> None:
    """Says to which rows parts of a figure belong."""
    for artist in artists:
        artist.set_gid(rows_id(rows))


def draw_legend(part: Any, handles: list[Line2D], front: bool = False) -> None:
    """A legend below a strip, in as many columns as its names leave room for."""
    if front and handles:
        handles = [*handles, Line2D([], [], color=GREY, linewidth=1, label="Pareto front", gid="rows")]
    if handles:
        names = [str(each.get_label()) for each in handles]
        columns = max(1, min(6, len(handles), 110 // (max(map(len, names)) + 6)))
        labels = [literal(name) for name in names]
        legend = part.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        for given, drawn, text in zip(handles, legend.legend_handles, legend.get_texts(), strict=True):
            drawn.set_gid(given.get_gid())
            text.set_gid(given.get_gid())


def tidy(axes: Any) -> None:
    """A light grid, and no frame where nothing is read off."""
    axes.grid(True, which="major", color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        path: its PNG file.
        alt: what it shows, with numbers, for those who do not see it.
        svg: the same for the page: without a background, and with `data-rows` on what belongs to rows of a table.
    """

    path: Path
    alt: str
    svg: str

    @property
    def title(self) -> str:
        """By its file's name."""
        return self.path.stem.replace("_", " ")


def save(figure: Figure, path: Path, said: Sequence[str]) -> Picture:
    """Writes the PNG and draws the SVG; without the "Software" entry they depend on their inputs, not on versions."""
    figure.savefig(path, dpi=150, metadata={"Software": None})
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"(?s)<(metadata|style).*?</\1>", "", svg[svg.index("<svg") :])
    svg = re.sub(r' (width|height)="[^"]*"', "", svg, count=2)  # as wide as the page
    svg = re.sub(
        r' id="rows((?:-[0-9a-f]{8})*)"', lambda found: f' data-rows="{found[1].replace("-", " ").strip()}"', svg
    )
    svg = re.sub(r' id="(?!\w*[0-9a-f]{10})[^"]*"', "", svg)  # of groups that nothing refers to: figures share a page
    return Picture(path, " ".join(said), svg)
