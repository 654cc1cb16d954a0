"""A grid's folder turned into tables, figures and one HTML page; every number comes from a run's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.beyond_accuracy import beyond
from benchmarks.cost_section import cost_section
from benchmarks.latex import render_latex
from benchmarks.leaderboard import build_tables
from benchmarks.ledger import write_atomic
from benchmarks.records import read_suite
from benchmarks.sections import render_beyond_csv, render_sections, sections
from benchmarks.tables import render_csv, render_markdown
from datamodules.sources import InputError


@dataclass(frozen=True)
class ReportPaths:
    """What `write_report` wrote; a figure is None where nothing can be drawn.

    Attributes:
        beyond: results beyond accuracy and by segment, one number a line.
        text: the markdown leaderboard.
    """

    markdown: Path
    csv: Path
    latex: Path
    beyond: Path
    quality_cost: Path | None
    learning_curves: Path | None
    reliability: Path | None
    axes: Path | None
    template_spread: Path | None
    rank_stability: Path | None
    html: Path
    text: str


def write_report(directory: Path) -> ReportPaths:
    """Writes `leaderboard.md/.csv/.tex`, `beyond_accuracy.csv`, the figures and `report.html` into a grid's folder.

    Args:
        directory: the folder given to `instructrec benchmark --out`.

    Raises:
        InputError: the folder holds no runs, or its `suite.yaml` is not YAML.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "runs" / "lora").mkdir(parents=True)
    >>> print(write_report(folder).text.splitlines()[-1])
    - `lora`: unfinished, no record.json yet
    """
    # Imported here because matplotlib costs a second that a command line without a report need not wait for.
    from benchmarks.axis_figures import draw_axis_curves, draw_rank_stability, draw_template_spread
    from benchmarks.figures import draw_learning_curves, draw_quality_cost
    from benchmarks.figures_reliability import draw_reliability
    from benchmarks.html_report import render_html

    suite = read_suite(directory)
    tables, problems = build_tables(suite)
    found = [beyond(table) for table in tables]
    below = [
        [*filter(None, [cost_section(table)]), *sections(table, made)]
        for table, made in zip(tables, found, strict=True)
    ]
    text = render_markdown(suite, tables, problems, [render_sections(made) for made in below])
    (directory / "figures").mkdir(exist_ok=True)
    paths = ReportPaths(
        markdown=directory / "leaderboard.md",
        csv=directory / "leaderboard.csv",
        latex=directory / "leaderboard.tex",
        beyond=directory / "beyond_accuracy.csv",
        quality_cost=draw_quality_cost(tables, directory / "figures" / "quality_cost.png"),
        learning_curves=draw_learning_curves(tables, directory / "figures" / "learning_curves.png"),
        reliability=draw_reliability(tables, directory / "figures" / "reliability.png"),
        axes=draw_axis_curves(tables, directory / "figures" / "axes.png"),
        template_spread=draw_template_spread(tables, directory / "figures" / "template_spread.png"),
        rank_stability=draw_rank_stability(tables, directory / "figures" / "rank_stability.png"),
        html=directory / "report.html",
        text=text,
    )
    pictures = [paths.axes, paths.template_spread, paths.rank_stability, paths.quality_cost, paths.learning_curves]
    pictures.append(paths.reliability)
    write_atomic(paths.markdown, text)
    write_atomic(paths.csv, render_csv(tables))
    write_atomic(paths.beyond, render_beyond_csv(tables, found))
    write_atomic(paths.latex, render_latex(tables))
    write_atomic(paths.html, render_html(suite, tables, problems, pictures, below))
    return paths


def replace_between_markers(path: Path, marker: str, text: str) -> None:
    """Replaces what stands between `<!-- marker:begin -->` and `<!-- marker:end -->`.

    Args:
        path: a text file with both markers once.
        marker: their name.
        text: the new content, without the markers.

    Raises:
        InputError: the file or a marker is missing, or a marker stands there more than once.

    >>> import tempfile
    >>> page = Path(tempfile.mkdtemp()) / "README.md"
    >>> _ = page.write_text("<!-- table:begin -->old<!-- table:end -->")
    >>> replace_between_markers(page, "table", "new")
    >>> page.read_text().split()
    ['<!--', 'table:begin', '-->', 'new', '<!--', 'table:end', '-->']
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    page = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    for mark in (begin, end):
        if page.count(mark) != 1:
            raise InputError(f"{path} holds {mark!r} {page.count(mark)} times, must hold it once")
    head, rest = page.split(begin)
    if end not in rest:
        raise InputError(f"{path}: {end!r} stands before {begin!r}")
    write_atomic(path, f"{head}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}")
