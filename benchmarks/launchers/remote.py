"""Runs the cells of a grid as jobs of a scheduler, which decides where and when.

Each job is a runner of its own (`benchmarks.launchers.one_cell`), so what is done, held or failed is read from the
results folder and never from the scheduler, whose word counts only where a job has left no record.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.grid.cells import Cell, changed_file
from benchmarks.grid.ledger import Ledger, Stamp
from benchmarks.grid.progress import Event, Running
from benchmarks.launchers.local import Summary
from benchmarks.launchers.one_cell import command_for
from benchmarks.launchers.processes import Signals, failed_record
from datamodules.contract.errors import InputError

__all__ = ["Job", "Scheduler", "run_remote"]

_TRIES = 3  # a node that goes away is no fault of the cell; a job that dies three times is
_TICK = 1.0
_IN_FLIGHT = 1000  # jobs submitted at a time where the user sets no number


class Job(Protocol):
    """A cell that a scheduler was given."""

    def ended(self) -> str | None:
        """Returns None while the job waits or runs, else what the scheduler says of its end, `""` if nothing."""

    def cancel(self, *, force: bool = False) -> None:
        """Asks the job to end in order, or kills it."""


class Scheduler(Protocol):
    """Whoever has the machines.

    Attributes:
        jobs_survive: Jobs go on when the runner ends; they are then left alone, and found again.
        answers_late: What it says of a job may be minutes old, so that a record ends the wait for it.
    """

    jobs_survive: bool
    answers_late: bool

    def submit(self, cell: Cell, command: Sequence[str]) -> Job:
        """Gives a cell to the scheduler."""


@dataclass
class _Submitted:
    cell: Cell
    job: Job
    since: float

    def seconds(self) -> float:
        return time.monotonic() - self.since


def run_remote(
    cells: Sequence[Cell],
    ledger: Ledger,
    scheduler: Scheduler,
    *,
    prefix: Sequence[str],
    processes: int | None = None,
    retry_failed: bool = False,
    on_event: Callable[[Event], None] | None = None,
    grace: float = 30.0,
) -> Summary:
    """Runs every cell that is not done; returns when all are, here or by another runner on the same folder.

    Raises:
        InputError: `processes` is not positive, or a record in the folder is damaged.
    """
    if processes is not None and processes < 1:
        raise InputError(f"--processes: at least 1, got {processes}")
    retry = {cell.name: ledger.stamp(cell.name) for cell in cells} if retry_failed else {}
    with Signals() as signals:
        setup = _Setup(processes or _IN_FLIGHT, tuple(prefix), grace)
        return _Jobs(cells, ledger, scheduler, setup, retry, on_event or (lambda _: None)).run(signals)


@dataclass(frozen=True)
class _Setup:
    processes: int
    prefix: tuple[str, ...]
    grace: float


class _Jobs:
    def __init__(
        self,
        cells: Sequence[Cell],
        ledger: Ledger,
        scheduler: Scheduler,
        setup: _Setup,
        retry: dict[str, Stamp | None],
        on_event: Callable[[Event], None],
    ) -> None:
        self.ledger = ledger
        self.scheduler = scheduler
        self.setup = setup
        self.retry = retry
        self.tell = on_event
        self.waiting = deque(cells)
        self.elsewhere: list[Cell] = []
        self.jobs: list[_Submitted] = []
        self.tries: Counter[str] = Counter()
        kinds = ("finished", "failed", "skipped", "changed", "interrupted", "left_running")
        self.ended: dict[str, list[str]] = {kind: [] for kind in kinds}

    def run(self, signals: Signals) -> Summary:
        next_tick = 0.0
        try:
            while not signals.received and (self.waiting or self.elsewhere or self.jobs):
                while self.waiting and len(self.jobs) < self.setup.processes and not signals.received:
                    self._submit_next()
                self._reap()
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + _TICK
                    self._tick()
                    self.waiting += self.elsewhere
                    self.elsewhere = []
                time.sleep(0.1)
            if signals.received:
                self._stop(signals)
        except BaseException:
            for submitted in self.jobs if not self.scheduler.jobs_survive else []:
                submitted.job.cancel(force=True)
            raise
        stopped_by = signals.received[0] if signals.received else None
        return Summary(**{kind: tuple(names) for kind, names in self.ended.items()}, stopped_by=stopped_by)

    def _submit_next(self) -> None:
        cell = self.waiting.popleft()
        if self._is_done(cell):
            self.ended["skipped"].append(cell.name)
            self.tell(Event("skipped", cell))
        elif changed_file(cell) is not None:
            self.ended["changed"].append(cell.name)
        elif self.ledger.is_held(cell.name):
            self.elsewhere.append(cell)
        else:
            command = command_for(
                cell,
                self.ledger.root,
                prefix=self.setup.prefix,
                retry=self.retry.get(cell.name),
                grace=self.setup.grace,
            )
            self.jobs.append(_Submitted(cell, self.scheduler.submit(cell, command), time.monotonic()))
            self.tell(Event("started", cell))

    def _is_done(self, cell: Cell) -> bool:
        return self.ledger.is_done(cell.name, retry=self.retry.get(cell.name))

    def _reap(self, *, stopping: bool = False) -> None:
        for submitted in list(self.jobs):
            reason = submitted.job.ended()
            if reason is None and not (self.scheduler.answers_late and self._has_let_go(submitted.cell)):
                continue
            self.jobs.remove(submitted)
            self._settle(submitted, reason or "", stopping=stopping)

    def _has_let_go(self, cell: Cell) -> bool:
        """While the cell is held its record may be in the making, or about to be corrected."""
        return not self.ledger.is_held(cell.name) and self._is_done(cell)

    def _settle(self, submitted: _Submitted, reason: str, *, stopping: bool) -> None:
        name = submitted.cell.name
        if self._is_done(submitted.cell):
            record = self.ledger.record(name) or {}
            kind = "finished" if record.get("status") == "finished" else "failed"
            self._end(kind, submitted, str(record.get("error") or "") if kind == "failed" else "")
        elif stopping:
            self.tell(Event("stopped", submitted.cell, submitted.seconds()))
        elif changed_file(submitted.cell) is not None:
            self.ended["changed"].append(name)
        elif self.ledger.is_held(name):
            self.elsewhere.append(submitted.cell)
        else:
            self._try_again(submitted, reason)

    def _try_again(self, submitted: _Submitted, reason: str) -> None:
        """A job has ended without a record: its node went away, it was preempted, or its runner cannot run there."""
        name = submitted.cell.name
        self.tries[name] += 1
        if self.tries[name] < _TRIES:
            self.waiting.append(submitted.cell)
        elif self.ledger.is_interrupted(name):
            self.ended["interrupted"].append(name)
            self.tell(Event("stopped", submitted.cell, submitted.seconds()))
        elif (lease := self.ledger.acquire(name, retry=self.retry.get(name))) is None:
            self.elsewhere.append(submitted.cell)
        else:
            error = f"{_TRIES} jobs ended without a record; {reason or 'the scheduler says nothing'}"
            self.ledger.write_record(lease, failed_record(submitted.cell, error, host=os.uname().nodename))
            self._end("failed", submitted, error)

    def _end(self, kind: Any, submitted: _Submitted, error: str) -> None:
        self.ended[kind].append(submitted.cell.name)
        self.tell(Event(kind, submitted.cell, submitted.seconds(), error))

    def _stop(self, signals: Signals) -> None:
        if self.scheduler.jobs_survive:
            self._reap()
            self.ended["left_running"] += [submitted.cell.name for submitted in self.jobs]
            return
        for submitted in self.jobs:
            submitted.job.cancel()
        deadline = time.monotonic() + self.setup.grace + 10.0
        while self.jobs and time.monotonic() < deadline and len(signals.received) == 1:
            self._reap(stopping=True)
            time.sleep(0.1)
        for submitted in self.jobs:
            submitted.job.cancel(force=True)

    def _tick(self) -> None:
        running = [
            Running(submitted.cell, self.ledger.folder(submitted.cell.name), submitted.seconds())
            for submitted in self.jobs
            if self.ledger.is_held(submitted.cell.name)
        ]
        self.tell(Event("tick", running=tuple(running), elsewhere=len(self.elsewhere)))
