"""Runs the cells of a grid on this machine, each as a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.grid.cells import Cell, changed_file
from benchmarks.grid.lease import Lease, host_name
from benchmarks.grid.ledger import Ledger, Stamp, can_continue
from benchmarks.grid.progress import Event, Running
from benchmarks.launchers.processes import Signals, describe_exit, failed_record
from benchmarks.paths import PYTHON, ROOT
from datamodules.contract.errors import InputError

__all__ = ["Summary", "run_local"]

_GUARD = Path(__file__).with_name("guard.py")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS")
_TICK = 1.0  # seconds between two progress lines, and between two looks at the cells of other runners


@dataclass(frozen=True)
class Summary:
    """What one runner did, by names of cells.

    Attributes:
        finished: Run here, with a result.
        failed: Run here, without.
        skipped: Done before, or by another runner meanwhile.
        changed: Not run, because a config was edited after the grid was read.
        interrupted: A signal ended the run, not this runner; it waits to be continued.
        left_running: Jobs that a scheduler goes on with after the runner's end.
        stopped_by: The signal that ended the runner early, else None.
    """

    finished: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    interrupted: tuple[str, ...] = ()
    left_running: tuple[str, ...] = ()
    stopped_by: int | None = None


def run_local(
    cells: Sequence[Cell],
    ledger: Ledger,
    *,
    processes: int = 1,
    gpus: Sequence[int | str] = (),
    prefix: Sequence[str] = (*PYTHON, "-m", "benchmarks"),
    retry_failed: bool = False,
    on_event: Callable[[Event], None] | None = None,
    grace: float = 30.0,
    wait_for_others: bool = True,
) -> Summary:
    """Runs every cell that is not done; returns when all are, here or by another runner on the same folder.

    A cell that fails does not stop the others. SIGINT and SIGTERM are passed on to the runs; a run that was
    stopped is continued next time from what it has saved. A second signal kills at once. Each of `processes` cells gets
    its share of the cores; with `wait_for_others`, cells that other runners hold and then lose are run, too.

    Raises:
        InputError: `processes` is not positive, or a record in the folder is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder)) as ledger:
        ...     cell = Cell("tiny", "tiny", (), ("instructrec", "raise SystemExit('no data')"), "")
        ...     summary = run_local([cell], ledger, prefix=(sys.executable, "-I", "-S", "-c"))
        ...     print(summary.failed, ledger.record("tiny")["error"])
        ('tiny',) exit code 1; no data
    """
    if processes < 1:
        raise InputError(f"--processes: at least 1, got {processes}")
    retry = {cell.name: ledger.stamp(cell.name) for cell in cells} if retry_failed else {}
    with Signals() as signals:
        setup = _Setup(processes, tuple(map(str, gpus)), tuple(prefix), grace, wait_for_others)
        return _Pool(cells, ledger, setup, retry, on_event or (lambda _: None)).run(signals)


@dataclass(frozen=True)
class _Setup:
    processes: int
    gpus: tuple[str, ...]
    prefix: tuple[str, ...]
    grace: float
    wait_for_others: bool


@dataclass(frozen=True)
class _Run:
    cell: Cell
    lease: Lease
    process: subprocess.Popen[bytes]
    slot: int
    start: float

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def kill(self) -> None:
        """Ends the run with all its processes: its guard does that when the pipe closes."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10.0)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class _Pool:
    def __init__(
        self,
        cells: Sequence[Cell],
        ledger: Ledger,
        setup: _Setup,
        retry: dict[str, Stamp | None],
        on_event: Callable[[Event], None],
    ) -> None:
        self.ledger = ledger
        self.setup = setup
        self.retry = retry
        self.tell = on_event
        self.waiting = deque(cells)
        self.elsewhere: list[Cell] = []  # held by other runners, which may die
        self.runs: list[_Run] = []
        kinds = ("finished", "failed", "skipped", "changed", "interrupted")
        self.ended: dict[str, list[str]] = {kind: [] for kind in kinds}

    def run(self, signals: Signals) -> Summary:
        next_tick = time.monotonic() + _TICK
        try:
            while not signals.received and (self.waiting or self.runs or self._waits_for_others()):
                self._start_next()
                self._reap(stopping=bool(signals.received))
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + _TICK
                    self._tick()
                    if self.setup.wait_for_others:
                        self.waiting += self.elsewhere
                        self.elsewhere = []
                if len(self.runs) == self.setup.processes or not self.waiting:
                    time.sleep(0.05)
            if signals.received:
                self._stop(signals)
        finally:  # after an error no run may be left without a runner
            for run in self.runs:
                run.kill()
                self.ledger.release(run.lease)
        stopped_by = signals.received[0] if signals.received else None
        return Summary(**{kind: tuple(names) for kind, names in self.ended.items()}, stopped_by=stopped_by)

    def _waits_for_others(self) -> bool:
        return self.setup.wait_for_others and bool(self.elsewhere)

    def _start_next(self) -> None:
        if not self.waiting or len(self.runs) == self.setup.processes:
            return
        cell = self.waiting.popleft()
        retry = self.retry.get(cell.name)
        lease = self.ledger.acquire(cell.name, retry=retry)
        if lease is not None and changed_file(cell) is not None:
            self.ledger.release(lease)
            self.ended["changed"].append(cell.name)
        elif lease is not None:
            self._start(cell, lease)
        elif self.ledger.is_done(cell.name, retry=retry):
            self.ended["skipped"].append(cell.name)
            self.tell(Event("skipped", cell))
        else:
            self.elsewhere.append(cell)

    def _start(self, cell: Cell, lease: Lease) -> None:
        slot = min(set(range(self.setup.processes)) - {run.slot for run in self.runs})
        left = can_continue(self.ledger.folder(cell.name))
        command = [*self.setup.prefix, *cell.command[1:], *(("--ckpt_path", "last") if left else ())]
        guard = [sys.executable, "-I", "-S", str(_GUARD), str(lease.guard.absolute()), host_name()]
        try:
            with (self.ledger.folder(cell.name) / "run.log").open("wb") as log:
                process = subprocess.Popen(
                    [*guard, *command],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env=self._environment(slot),
                    start_new_session=True,  # a Ctrl-C reaches the runs through this runner only, once
                )
        except BaseException:
            self.ledger.release(lease)
            raise
        self.runs.append(_Run(cell, lease, process, slot, time.monotonic()))
        self.tell(Event("started", cell))

    def _environment(self, slot: int) -> dict[str, str]:
        environment = dict(os.environ)
        threads = str(max(1, _cores() // self.setup.processes))
        for name in _THREADS:
            environment.setdefault(name, threads)
        environment.setdefault("WANDB_RUN_GROUP", self.ledger.group)
        if self.setup.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.setup.gpus[slot % len(self.setup.gpus)]
        return environment

    def _reap(self, *, stopping: bool) -> None:
        for run in list(self.runs):
            if self.ledger.is_lost(run.lease):
                run.kill()
                self.elsewhere.append(run.cell)
            elif run.process.poll() is None:
                continue
            else:
                self._settle(run, stopping=stopping)
            self.runs.remove(run)
            self.ledger.release(run.lease)
            if run.process.stdin is not None:
                run.process.stdin.close()

    def _settle(self, run: _Run, *, stopping: bool) -> None:
        status = reason = ""
        try:
            record = self.ledger.record(run.cell.name)
        except InputError as damage:  # this run's own fault: the others go on
            status, reason = "damaged", str(damage)
        else:
            if record is not None:
                status, reason = record["status"], str(record.get("error") or "")
        interrupted = not status and self.ledger.is_interrupted(run.cell.name)
        if interrupted or (stopping and status != "finished"):
            self.ledger.discard_record(run.lease)  # being interrupted is no result
            self.ended["interrupted"] += [] if stopping else [run.cell.name]
            self.tell(Event("stopped", run.cell, run.seconds()))
            return
        if status not in ("finished", "failed"):
            reason = reason or describe_exit(run.process.returncode, self._log_end(run.cell))
            ended = {"exit_code": run.process.returncode, "seconds": round(run.seconds(), 3)}
            self.ledger.write_record(run.lease, failed_record(run.cell, reason, **ended))
        kind: Literal["finished", "failed"] = "finished" if status == "finished" else "failed"
        self.ended[kind].append(run.cell.name)
        self.tell(Event(kind, run.cell, run.seconds(), reason))

    def _log_end(self, cell: Cell) -> bytes:
        with (self.ledger.folder(cell.name) / "run.log").open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 8192))
            return log.read()

    def _stop(self, signals: Signals) -> None:
        for run in self.runs:
            run.process.send_signal(signals.received[0])
        deadline = time.monotonic() + self.setup.grace
        while self.runs and time.monotonic() < deadline and len(signals.received) == 1:
            self._reap(stopping=True)
            time.sleep(0.05)
        for run in self.runs:
            run.kill()
        self._reap(stopping=True)

    def _tick(self) -> None:
        running = [Running(run.cell, self.ledger.folder(run.cell.name), run.seconds()) for run in self.runs]
        self.tell(Event("tick", running=tuple(running), elsewhere=len(self.elsewhere)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
