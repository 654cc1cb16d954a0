"""Runs the studies of a grid, round by round, through the launcher that runs its cells."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.grid import Cell
from benchmarks.launchers import Launcher, Summary
from benchmarks.ledger import Ledger
from benchmarks.progress import GridProgress
from benchmarks.studies import Study, propose, result_of, searched, trial_cell
from datamodules.sources import InputError

__all__ = ["chosen_cells", "print_search", "run_studies"]


def run_studies(studies: Sequence[Study], out: Path, launcher: Launcher, *, retry_failed: bool = False) -> Summary:
    """Run the trials that are not done, the next of every study at a time; a trial is a cell of its own.

    Args:
        studies: From `make_studies`.
        out: The results folder; trials run below its ``search``.
        launcher: Where the cells run.
        retry_failed: Run the trials that failed before once more.

    Returns:
        What the launcher said: with ``stopped_by``, ``interrupted`` or ``changed`` the search has not ended.

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
                progress = GridProgress(len(waiting), sys.stderr, processes=launcher.processes or 1)
                try:
                    summary = launcher.run(waiting, ledger, retry_failed=retry_failed, on_event=progress)
                finally:
                    progress.close()
            if summary.stopped_by is not None or summary.interrupted or summary.changed:
                return summary
            if first == 0:
                _refuse_wrong_input(cells, ledger)
    return summary


def chosen_cells(cells: Sequence[Cell], studies: Sequence[Study], out: Path) -> tuple[list[Cell], set[str]]:
    """The grid's cells with what finished studies have chosen.

    Args:
        cells: Before the search.
        studies: From `make_studies`.
        out: The results folder.

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
    """Say what is searched, a line for each study.

    Args:
        studies: From `make_studies`.
        open_cells: From `chosen_cells`.
    """
    for study in studies:
        state = "waiting" if study.cells[0].name in open_cells else "finished"
        space = "; ".join(f"{name} in {text}" for name, text in study.described().items())
        told = f"{study.search.trials} trials ({study.search.sampler}, {study.search.metric})"
        print(f"{state:<9} search of {study.title}: {told} of {space}")


def _next(study: Study, ledger: Ledger, place: int) -> Cell:
    propose(study, ledger, place)
    return trial_cell(study, place)


def _refuse_wrong_input(cells: Sequence[Cell], ledger: Ledger) -> None:
    records = [(cell, ledger.record(cell.name) or {}) for cell in cells]
    for cell, record in records:
        if record.get("exit_code") == 2:
            log = ledger.folder(cell.name) / "run.log"
            raise InputError(f"search: {cell.title}: {record['error']} (see {log}); repair it, then --retry-failed")
