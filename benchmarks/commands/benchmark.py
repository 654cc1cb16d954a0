"""Runs or continues a grid from its suite file, and reports it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cli.names import suite_named
from benchmarks.commands import LineParser
from benchmarks.grid.cells import MAX_CELLS, Cell, expand
from benchmarks.grid.ledger import Ledger, State
from benchmarks.grid.progress import GridProgress
from benchmarks.grid.studies import Study, make_studies, propose, result_of, searched, trial_cell
from benchmarks.grid.suite import Suite, load_suite
from benchmarks.launchers import Launcher
from benchmarks.launchers.local import Summary
from datamodules.contract.errors import InputError
from datamodules.contract.files import write_atomic


def run_studies(studies: Sequence[Study], out: Path, launcher: Launcher, *, retry_failed: bool = False) -> Summary:
    """Runs the trials that are not done, the next of every study at a time; a trial is a cell of its own.

    Raises:
        InputError: The first trials of a study all failed for wrong input, which all its trials share.

    Example:
        >>> run_studies([], Path("nowhere"), Launcher("local")).stopped_by is None
        True
    """
    summary = Summary()
    if not studies:
        return summary
    trials, parallel = studies[0].search.trials, studies[0].search.parallel
    with Ledger((out / "search").absolute()) as ledger:
        for first in range(0, trials, parallel):
            places = range(first, min(first + parallel, trials))
            cells = [_next(study, ledger, place) for place in places for study in studies]
            waiting = [cell for cell in cells if retry_failed or ledger.record(cell.name) is None]
            if waiting:
                print(
                    f"search: trials {first + 1} to {places[-1] + 1} of {trials}, for {len(studies)} rows", flush=True
                )
                summary = _run_cells(launcher, waiting, ledger, retry_failed)
            if summary.stopped_by is not None or summary.interrupted or summary.changed:
                return summary
            if first == 0:
                _refuse_wrong_input(cells, ledger)
    return summary


def chosen_cells(cells: Sequence[Cell], studies: Sequence[Study], out: Path) -> tuple[list[Cell], set[str]]:
    """The grid's cells with what finished studies have chosen.

    Returns:
        All cells in order, and the names of those whose study has not ended: they have their values from the suite.

    Raises:
        InputError: A study has ended without any value.
    """
    made: dict[str, Cell] = {}
    open_cells: set[str] = set()
    with Ledger((out / "search").absolute()) as ledger:
        for study in studies:
            result = result_of(study, ledger)
            if result is None:
                open_cells |= {cell.name for cell in study.cells}
            else:
                made |= {old.name: new for old, new in zip(study.cells, searched(study, result), strict=True)}
    return [made.get(cell.name, cell) for cell in cells], open_cells


def print_search(studies: Sequence[Study], open_cells: set[str]) -> None:
    """Says what is searched, a line for each study."""
    for study in studies:
        state = "waiting" if study.cells[0].name in open_cells else "finished"
        space = "; ".join(f"{name} in {text}" for name, text in study.described().items())
        trials = f"{study.search.trials} trials ({study.search.sampler}, {study.search.metric})"
        print(f"{state:<9} search of {study.title}: {trials} of {space}")


def _run_cells(launcher: Launcher, cells: Sequence[Cell], ledger: Ledger, retry_failed: bool) -> Summary:
    progress = GridProgress(len(cells), sys.stderr, processes=launcher.processes or 1)
    try:
        return launcher.run(cells, ledger, retry_failed=retry_failed, on_event=progress)
    finally:
        progress.close()


def _next(study: Study, ledger: Ledger, place: int) -> Cell:
    propose(study, ledger, place)
    return trial_cell(study, place)


def _refuse_wrong_input(cells: Sequence[Cell], ledger: Ledger) -> None:
    records = [(cell, ledger.record(cell.name) or {}) for cell in cells]
    for cell, record in records:
        if record.get("exit_code") == 2:
            log = ledger.folder(cell.name) / "run.log"
            raise InputError(f"search: {cell.title}: {record['error']} (see {log}); repair it, then --retry-failed")


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
    r"""Runs the cells of a suite that are not done yet, then writes and prints the leaderboard.

    A dry run only prints the commands, which cells are done, and what each is expected to take. Returns 1 if a cell
    failed or the grid was stopped.

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
        summary = _run_cells(launcher, cells, ledger, retry_failed)
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
    from benchmarks.grid.forecast import forecasts, rate_note

    done = {cell.name: ledger.record(cell.name) or {} for cell in cells if states[cell.name] == "finished"}
    predictions = forecasts({cell.name: cell.command for cell in cells}, done)
    for cell in cells:
        print(f"{states[cell.name]:<9} {shlex.join(cell.command)}")
        print(f"{'':<9} {predictions[cell.name]}")
    if any("trains" in line for line in predictions.values()):
        print(rate_note(corrected=bool(done)))


def _write_cells(suite: Suite, cells: Sequence[Cell], ledger: Ledger) -> None:
    """Lists the grid's cells in `cells.json`: runs of an earlier version of the suite lie beside them."""
    rows = [
        {"name": cell.name, "title": cell.title, "labels": dict(cell.labels), "command": shlex.join(cell.command)}
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
    from benchmarks.report.write import (
        log_report,
        project_of,
        write_report,  # draws figures, which takes a second to import
    )

    report = write_report(out)
    print(report.text)
    if project := project_of(out):
        print(log_report(out, report, project=project, group=group))
    print(f"results: {report.markdown} and {report.html}")


def run_command(arguments: list[str]) -> int:
    """Runs `benchmark`; returns 1 where a cell failed or the grid was stopped."""
    from benchmarks.launchers import choose_launcher

    options = _parser().parse_args(arguments)
    suite = suite_named(options.suite)
    return run_benchmark(
        suite,
        options.out or Path("results", suite.stem),
        launcher=choose_launcher(
            options.launcher, processes=options.processes, gpus=options.gpus, options=options.launcher_option
        ),
        dry_run=options.dry_run,
        retry_failed=options.retry_failed,
        max_cells=options.max_cells,
        plugins=options.allow_import,
    )


def _parser() -> argparse.ArgumentParser:
    parser = LineParser(prog="instructrec benchmark")
    parser.add_argument(
        "suite", help="the grid, axes of configs and overrides: a name (instructrec ls suites) or a YAML"
    )
    parser.add_argument("--out", type=Path, help="folder of the results, by default results/SUITE; the same continues")
    parser.add_argument("--launcher", default="local", help="where the cells run: local, ray or slurm (default: local)")
    parser.add_argument(
        "--launcher-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="ray: address, num_cpus, num_gpus, memory (GiB); slurm: timeout_min, mem_gb, gpus_per_node, partition, ...",
    )
    parser.add_argument(
        "--processes", type=int, help="cells that run at a time (default: 1; with ray and slurm as many as they take)"
    )
    parser.add_argument("--gpus", nargs="*", default=(), help="local: GPUs dealt out to the processes, by number")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the cells' commands, states, predicted memory and time; write nothing",
    )
    parser.add_argument("--retry-failed", action="store_true", help="run failed cells once more")
    parser.add_argument("--max-cells", type=int, default=10_000, help="refuse a larger grid")
    parser.add_argument(
        "--allow-import", action="append", default=[], metavar="PACKAGE", help="configs may name its classes (plug-in)"
    )
    return parser
