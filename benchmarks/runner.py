"""Runs or continues a grid from its suite file, and reports it."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.grid import MAX_CELLS, Cell, expand
from benchmarks.launchers import Launcher, Summary
from benchmarks.ledger import Ledger, State, write_atomic
from benchmarks.progress import GridProgress
from benchmarks.search import chosen_cells, print_search, run_studies
from benchmarks.studies import make_studies
from benchmarks.suite import Suite, load_suite

__all__ = ["run_benchmark"]

LOCAL = Launcher("local")


def run_benchmark(
    suite_path: Path,
    out: Path,
    *,
    launcher: Launcher = LOCAL,
    dry_run: bool = False,
    retry_failed: bool = False,
    max_cells: int = MAX_CELLS,
    plugins: Sequence[str] = (),
) -> int:
    r"""Run the cells of a suite that are not done yet, then write and print the leaderboard.

    Args:
        suite_path: The suite file.
        out: The results folder; the same folder continues a grid.
        launcher: Where the cells run, from `choose_launcher`.
        dry_run: Only print the commands, which cells are done, and what each is expected to take; write nothing.
        retry_failed: Run the cells that failed before once more.
        max_cells: Largest number of cells.
        plugins: Packages that the cells' configs may name beside our own.

    Returns:
        The exit status: 0, or 1 if a cell failed or the grid was stopped.

    Raises:
        InputError: The suite, the folder or an option is wrong.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "tiny.yaml")
        ...     _ = path.write_text("name: tiny\naxes: {seed_everything: [1]}\n")
        ...     status = run_benchmark(path, Path(folder, "out"), dry_run=True)  # doctest: +ELLIPSIS
        tiny: 1 cell: 1 waiting
        waiting   instructrec fit --seed_everything=1 --name=tiny --out .../out/runs/1-...
                  not predicted: no model is named
    """
    suite = load_suite(suite_path)
    grid = expand(suite, out, max_cells=max_cells, plugins=plugins)
    studies = make_studies(suite.search, grid, out)
    with Ledger(out.absolute()) as ledger:
        ledger.check_suite(suite.name)
        cells, unsearched = chosen_cells(grid, studies, out)
        states = {cell.name: "waiting" if cell.name in unsearched else ledger.state(cell.name) for cell in cells}
        _print_plan(suite, states, retry_failed=retry_failed)
        if dry_run:
            print_search(studies, unsearched)
            _print_cells(cells, states, ledger)
            return 0
        ledger.adopt_suite(suite.name, suite.text)
        if unsearched:
            summary = run_studies(studies, out, launcher, retry_failed=retry_failed)
            cells, unsearched = chosen_cells(grid, studies, out)
            if unsearched:
                return _search_stopped(suite, out, summary)
        _write_cells(suite, cells, ledger)
        progress = GridProgress(len(cells), sys.stderr, processes=launcher.processes or 1)
        try:
            summary = launcher.run(cells, ledger, retry_failed=retry_failed, on_event=progress)
        finally:
            progress.close()
        return _finish(suite, out, cells, ledger, summary)


def _print_plan(suite: Suite, states: dict[str, State], *, retry_failed: bool) -> None:
    counts = Counter(states.values())
    plan = ", ".join(
        f"{counts[state]} {state}" for state in ("finished", "failed", "running", "waiting") if counts[state]
    )
    print(f"{suite.name}: {len(states)} cell{'s' if len(states) > 1 else ''}: {plan}")
    if counts["failed"] and not retry_failed:
        print("failed cells are not run again without --retry-failed")


def _print_cells(cells: Sequence[Cell], states: dict[str, State], ledger: Ledger) -> None:
    """Every cell's command, and below it what it is expected to take."""
    from benchmarks.forecast import forecasts, rate_note

    done = {cell.name: ledger.record(cell.name) or {} for cell in cells if states[cell.name] == "finished"}
    told = forecasts({cell.name: cell.command for cell in cells}, done)
    for cell in cells:
        print(f"{states[cell.name]:<9} {shlex.join(cell.command)}")
        print(f"{'':<9} {told[cell.name]}")
    if any("trains" in line for line in told.values()):
        print(rate_note(corrected=bool(done)))


def _write_cells(suite: Suite, cells: Sequence[Cell], ledger: Ledger) -> None:
    """List the grid's cells in ``cells.json``: runs of an earlier version of the suite lie beside them."""
    rows = [
        {
            "name": cell.name,
            "title": cell.title,
            "labels": dict(cell.labels),
            "command": shlex.join(cell.command),
        }
        for cell in cells
    ]
    content = {"format": 1, "suite": suite.name, "cells": rows}
    write_atomic(ledger.root / "cells.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    runs = ledger.root / "runs"
    known = {cell.name for cell in cells}
    others = [folder.name for folder in runs.iterdir() if folder.name not in known] if runs.is_dir() else []
    if others:
        example = min(others)
        print(f"{len(others)} run folders in {runs} are of an earlier version of this suite, such as {example}")


def _search_stopped(suite: Suite, out: Path, summary: Summary) -> int:
    why = "stopped" if summary.stopped_by is None else f"stopped by signal {summary.stopped_by}"
    print(f"search {why}; finished trials are kept. Continue with: {_again(suite, out)}")
    if summary.changed:
        print("next: configs were edited meanwhile; trials of the configs as they are now are trials of a new search")
    return 1


def _again(suite: Suite, out: Path) -> str:
    return f"instructrec benchmark {shlex.quote(str(suite.path))} --out {shlex.quote(str(out))}"


def _finish(suite: Suite, out: Path, cells: Sequence[Cell], ledger: Ledger, summary: Summary) -> int:
    again = _again(suite, out)
    if summary.stopped_by is not None:
        print(f"stopped by signal {summary.stopped_by}; finished runs are kept. Continue with: {again}")
        if summary.left_running:
            print(f"{len(summary.left_running)} submitted jobs go on without this runner; scancel ends them")
        return 1
    failed = [cell for cell in cells if ledger.state(cell.name) == "failed"]
    if (out / "runs").is_dir():
        _print_report(out, ledger.group)
    for cell in failed:
        record = ledger.record(cell.name) or {}
        print(f"failed: {cell.title}: {record.get('error')} (see {ledger.folder(cell.name) / 'run.log'})")
    if failed:
        print(f"next: repair the cause, then {again} --retry-failed")
    if summary.changed:
        print(f"next: configs were edited meanwhile and {len(summary.changed)} cells did not run; {again}")
    if summary.interrupted:
        print(f"next: {len(summary.interrupted)} cells were interrupted and can be continued; {again}")
    if failed or summary.changed or summary.interrupted:
        return 1
    print(f"next: add a line to an axis of {suite.path} and run the same command: only new cells run")
    return 0


def _print_report(out: Path, group: str) -> None:
    from benchmarks.report import write_report  # draws figures, which takes a second to import
    from benchmarks.wandb_report import log_report, project_of

    report = write_report(out)
    print(report.text)
    if project := project_of(out):
        print(log_report(out, report, project=project, group=group))
    print(f"results: {report.markdown} and {report.html}")
