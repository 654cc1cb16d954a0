"""A grid's folder turned into tables, figures and one HTML page; every number comes from a run's files."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.analysis.beyond_accuracy import beyond
from benchmarks.analysis.leaderboard import build_tables
from benchmarks.analysis.pairs import compare_rows, conclude
from benchmarks.analysis.runs import read_suite
from benchmarks.report.latex import render_latex
from benchmarks.report.sections import cost_section, render_beyond_csv, render_sections, sections, targets_section
from benchmarks.report.tables import render_csv, render_markdown, summary_markdown
from datamodules.contract.errors import InputError
from datamodules.contract.files import write_atomic

if TYPE_CHECKING:
    from benchmarks.report.figure_style import Picture


@dataclass(frozen=True)
class ReportPaths:
    """What `write_report` wrote.

    Attributes:
        beyond: results beyond accuracy and by segment, one number a line.
        figures: by name, those for which there was something to draw.
        text: the markdown leaderboard.
        summary: its beginning, for another page: what was found, and the tables.
    """

    markdown: Path
    csv: Path
    latex: Path
    beyond: Path
    figures: dict[str, Picture]
    html: Path
    text: str
    summary: str


def write_report(directory: Path) -> ReportPaths:
    """Writes `leaderboard.md/.csv/.tex`, `beyond_accuracy.csv`, the figures and `report.html` into a grid's folder.

    Raises:
        InputError: the folder holds no runs, or its `suite.yaml` is not YAML.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "runs" / "lora").mkdir(parents=True)
        >>> print(write_report(folder).text.splitlines()[-1])
        - `lora`: unfinished, no record.json yet
    """
    # Imported here because matplotlib costs a second that a command line without a report need not wait for.
    from benchmarks.report.axis_figures import draw_axis_curves, draw_rank_stability, draw_template_spread
    from benchmarks.report.figures import draw_learning_curves, draw_quality_cost, draw_reliability
    from benchmarks.report.html import TableView, render_html

    results = read_suite(directory)
    tables, problems = build_tables(results)
    found, pairs = [beyond(table) for table in tables], [compare_rows(table) for table in tables]
    below = [
        [*filter(None, [cost_section(table), targets_section(table)]), *sections(table, made)]
        for table, made in zip(tables, found, strict=True)
    ]
    (directory / "figures").mkdir(exist_ok=True)
    drawers = {
        "axes": draw_axis_curves,
        "template_spread": draw_template_spread,
        "rank_stability": draw_rank_stability,
        "quality_cost": draw_quality_cost,
        "learning_curves": draw_learning_curves,
        "reliability": draw_reliability,
    }
    drawn = {name: draw(tables, directory / "figures" / f"{name}.png") for name, draw in drawers.items()}
    figures = {name: picture for name, picture in drawn.items() if picture is not None}
    sentence, table_csv, latex = conclude(tables, pairs), render_csv(tables), render_latex(tables)
    paths = ReportPaths(
        markdown=directory / "leaderboard.md",
        csv=directory / "leaderboard.csv",
        latex=directory / "leaderboard.tex",
        beyond=directory / "beyond_accuracy.csv",
        figures=figures,
        html=directory / "report.html",
        text=render_markdown(
            results,
            tables,
            problems,
            sentence,
            [(picture.path.relative_to(directory).as_posix(), picture.alt) for picture in figures.values()],
            [render_sections(made) for made in below],
        ),
        summary=summary_markdown(results, tables, sentence, problems),
    )
    write_atomic(paths.markdown, paths.text)
    write_atomic(paths.csv, table_csv)
    write_atomic(paths.beyond, render_beyond_csv(tables, found))
    write_atomic(paths.latex, latex)
    views = [TableView(table, more, found) for table, more, found in zip(tables, below, pairs, strict=True)]
    files = {"leaderboard.csv": table_csv, "leaderboard.tex": latex}
    write_atomic(paths.html, render_html(results, views, problems, sentence, list(figures.values()), files))
    return paths


def replace_between_markers(path: Path, marker: str, text: str) -> None:
    """Replaces what stands between `<!-- marker:begin -->` and `<!-- marker:end -->`.

    Raises:
        InputError: the file or a marker is missing, or a marker stands there more than once.

    Example:
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


def project_of(directory: Path) -> str | None:
    """The W&B project that the runs of a grid were logged to; None where none was.

    Example:
        >>> import tempfile
        >>> project_of(Path(tempfile.mkdtemp())) is None
        True
    """
    for folder in sorted(directory.glob("runs/*/wandb")):
        try:
            loggers = json.loads((folder.parent / "record.json").read_bytes())["config"]["trainer"]["logger"]
            named = [one["init_args"] for one in loggers if str(one["class_path"]).endswith("WandbLogger")]
        except (OSError, ValueError, KeyError, TypeError):  # a cell that has no record yet, or another logger
            continue
        if named:
            return str(named[0].get("project") or "instructrec")
    return None


def log_report(directory: Path, paths: ReportPaths, *, project: str, group: str) -> str:
    """Logs the leaderboard as a table, the page, and all files as the next version of one artifact.

    The same run is continued each time.

    Without an account it is written beside the grid, as the runs are; `WANDB_MODE=online` sends it.

    Returns:
        One line that says where it is, or why it is nowhere: the files on the disk do not depend on it.
    """
    import wandb

    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    if os.environ["WANDB_MODE"] == "disabled":
        return "W&B: the report was not logged: WANDB_MODE is disabled"
    # Copies of the files wait there to be sent: beside the grid, and not in the user's home.
    os.environ.setdefault("WANDB_DATA_DIR", str(directory.absolute() / "wandb"))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"report-{group}")[:128]
    settings: dict[str, Any] = {"project": project, "group": group, "job_type": "report", "name": name}
    mark = hashlib.sha256(f"{project} {group} {directory.absolute()}".encode()).hexdigest()[:16]
    try:
        with wandb.init(**settings, id=f"report-{mark}", dir=str(directory), resume="allow") as run:
            artifact = wandb.Artifact(name, type="report", description=f"tables and figures of {group}")
            for path in _files(paths):
                artifact.add_file(str(path), name=path.relative_to(directory).as_posix())
            run.log_artifact(artifact)
            page = wandb.Html(paths.html.read_text(encoding="utf-8"), inject=False, data_is_not_path=True)
            run.log({"leaderboard": _wandb_table(paths.csv), "report": page})
            where = Path(run.dir).parent
    except (wandb.Error, OSError, ValueError) as error:
        return f"W&B: the report was not logged: {' '.join(str(error).split())[:200]}"
    return f"W&B: the report is an artifact of group {group!r}, project {project!r}: {where}"


def _wandb_table(path: Path) -> Any:
    """The leaderboard's CSV as W&B's table; a column is of numbers where it holds nothing else."""
    import wandb

    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    columns = [_numbers(column) or column for column in zip(*lines, strict=True)]
    return wandb.Table(columns=header, data=[list(row) for row in zip(*columns, strict=True)])


def _numbers(column: Sequence[str]) -> list[float | None] | None:
    try:
        return [float(text) if text else None for text in column]
    except ValueError:
        return None


def _files(paths: ReportPaths) -> list[Path]:
    named = (getattr(paths, field.name) for field in dataclasses.fields(paths))
    return [*(path for path in named if isinstance(path, Path)), *(picture.path for picture in paths.figures.values())]
