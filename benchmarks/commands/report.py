"""`instructrec report DIR`: tables, figures and the page of a grid's folder."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks.commands import LineParser


def run_command(arguments: list[str]) -> int:
    """Runs `report`."""
    options = _parser().parse_args(arguments)
    # Imported here because matplotlib costs a second that `--help` need not wait for.
    from benchmarks.report.write import replace_between_markers, write_report

    report = write_report(options.directory)
    print(report.text)
    if options.wandb:
        from benchmarks.grid.ledger import Ledger
        from benchmarks.report.write import log_report, project_of

        project, group = project_of(options.directory) or "instructrec", Ledger(options.directory.absolute()).group
        print(log_report(options.directory, report, project=project, group=group))
    if options.readme:
        # Inside another page the table's headings come one level down from that page's sections.
        text = re.sub(r"(?m)^#+ ", "### ", notes_once(report.summary))
        replace_between_markers(options.readme, "leaderboard", text)
    if options.publish:
        from benchmarks.report.publish import publish_runs

        published = publish_runs(options.directory, options.publish)
        count = f"{len(published)} finished runs"
        print(f"published: {count} in {options.publish}, a grid's folder to report or go on with")
    print(f"report: {options.directory / 'report.html'}")
    return 0


def notes_once(text: str) -> str:
    r"""Leaves out notes below a table that stand, word for word, below an earlier one.

    Example:
        >>> notes_once("a\n- one\n\nb\n- one\n- two")
        'a\n- one\n\nb\n- two'
    """
    lines = text.splitlines()
    return "\n".join(line for n, line in enumerate(lines) if not (line.startswith("- ") and line in lines[:n]))


def _parser() -> argparse.ArgumentParser:
    parser = LineParser(prog="instructrec report")
    parser.add_argument("directory", type=Path, help="folder of a grid, as benchmark wrote it")
    parser.add_argument("--wandb", action="store_true", help="log tables, figures and page to W&B, as benchmark does")
    parser.add_argument(
        "--publish",
        type=Path,
        metavar="FOLDER",
        help="copy finished runs there, without prompts, titles, ids and paths",
    )
    parser.add_argument(
        "--readme", type=Path, help="put what was found and the table between this file's leaderboard markers"
    )
    return parser
