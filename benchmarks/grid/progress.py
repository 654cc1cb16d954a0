"""Live progress over a grid: where each run is, and how long the rest will take; and of loops that are no training."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO, TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from benchmarks.grid.cells import Cell

__all__ = [
    "Event",
    "GridProgress",
    "RunProgress",
    "Running",
    "clock",
    "estimate_left",
    "read_progress",
]


@dataclass(frozen=True)
class Running:
    """A cell that runs now, for how long, and its folder, with `progress.json`."""

    cell: Cell
    folder: Path
    seconds: float


@dataclass(frozen=True)
class Event:
    """What a launcher tells about the grid.

    Attributes:
        kind: `skipped` for a cell that was done already or that another runner did; `stopped` for one that a signal
            interrupted; `tick`, about once a second, for the whole grid.
        cell: The cell, None for a tick.
        seconds: How long the cell ran.
        error: Why it failed.
        running: The cells that run now, for a tick.
        elsewhere: Number of cells that other runners work on, for a tick.
    """

    kind: Literal["skipped", "started", "finished", "failed", "stopped", "tick"]
    cell: Cell | None = None
    seconds: float = 0.0
    error: str = ""
    running: tuple[Running, ...] = ()
    elsewhere: int = 0


@dataclass(frozen=True)
class RunProgress:
    """What a run says about itself in `progress.json`; missing stays None.

    Attributes:
        phase: `prepare`, `fit`, `validate` or `test`.
        done: Steps done in the phase.
        total: Steps of the phase.
        message: A few words, such as `loss 3.21`.
        seconds_left: Until the end of the run, by its own estimate.
    """

    phase: str = ""
    done: int | None = None
    total: int | None = None
    message: str = ""
    seconds_left: float | None = None


def read_progress(folder: Path) -> RunProgress:
    """Reads what a run says about itself; a file that is missing or unreadable says nothing.

    Example:
        >>> read_progress(Path("nowhere"))
        RunProgress(phase='', done=None, total=None, message='', seconds_left=None)
    """
    try:
        content = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # progress is for the eye: nothing depends on it
        return RunProgress()
    if not isinstance(content, dict):
        return RunProgress()
    done, total, left = (content.get(key) for key in ("done", "total", "seconds_left"))
    return RunProgress(
        phase=_line(content.get("phase")),
        done=done if isinstance(done, int) else None,
        total=total if isinstance(total, int) and total > 0 else None,  # 0: the run does not know it
        message=_line(content.get("message")),
        seconds_left=float(left) if isinstance(left, int | float) and 0 <= left < float("inf") else None,
    )


def clock(seconds: float) -> str:
    """Writes a duration as minutes and seconds, from an hour on with hours.

    Example:
        >>> clock(83.4), clock(3600)
        ('1:23', '1:00:00')
    """
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def estimate_left(
    measured: Sequence[float], running: Sequence[tuple[float, float | None]], waiting: int, processes: int
) -> float | None:
    """Estimates the seconds until the grid is done; None before anything is known.

    A grid mixes cells of seconds (popularity) with cells of many minutes (a tuned language model), and the
    short ones tend to come first. So a cell yet to run counts as the mean of the *slow* cells measured so
    far, those of at least half the longest time; a running cell's own estimate is a measurement too. The
    result is rather too long than too short, and improves as cells finish.

    Example:
        >>> estimate_left([2.0, 100.0, 120.0], [(30.0, None)], waiting=2, processes=1)
        300.0
    """
    samples = [*measured, *(elapsed + left for elapsed, left in running if left is not None)]
    if not samples:
        return None
    slow = [sample for sample in samples if sample >= max(samples) / 2]
    typical = sum(slow) / len(slow)
    rest = [max(0.0, typical - elapsed) if left is None else left for elapsed, left in running]
    return max((sum(rest) + waiting * typical) / processes, *rest, 0.0)


class GridProgress:
    """Shows the events of a launcher: a line for each finished cell, and below it what runs now.

    On a terminal that is drawn in place, with bars; elsewhere it is one line, written again every 20 seconds.

    Example:
        >>> import sys
        >>> show = GridProgress(2, sys.stdout)
        >>> cell = Cell("lora-0123abcd", "lora", (), (), "")
        >>> show(Event("finished", cell, seconds=83.0))
        [1/2] lora finished in 1:23
    """

    def __init__(
        self,
        total: int,
        stream: TextIO,
        *,
        processes: int = 1,
        every: float = 20.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self._stream = stream
        self._processes = processes
        self._every = every
        self._now = now
        self._start = now()
        self._last_line = self._start
        self._done = 0
        self._measured: list[float] = []
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        if event.kind == "tick":
            self._tick(event)
            return
        if event.kind in ("skipped", "finished", "failed"):
            self._done += 1
        if event.kind == "finished":
            self._measured.append(event.seconds)
        if event.cell is not None and event.kind in ("finished", "failed", "stopped"):
            reason = f": {_line(event.error)}" if event.error else ""
            count = f"[{self._done}/{self.total}]"
            self._write(f"{count} {event.cell.title} {event.kind} in {clock(event.seconds)}{reason}")

    def close(self) -> None:
        """Takes away what is drawn in place."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self, event: Event) -> str:
        """What runs now, on one line."""
        runs = [(run, read_progress(run.folder)) for run in event.running]
        first, last = self._done + 1, self._done + max(1, len(runs))
        parts = [f"[{first if first == last else f'{first}-{last}'}/{self.total}]"]
        if len(runs) == 1:
            parts[0] += f" {runs[0][0].cell.title}"
            parts += _details(runs[0][1])
        elif runs:
            parts[0] += " " + ", ".join(" ".join([run.cell.title, *_details(progress)[:1]]) for run, progress in runs)
        elif event.elsewhere:
            parts[0] += f" waiting for {event.elsewhere} that another runner works on"
        return " · ".join([*parts, self._times(event)])

    def _times(self, event: Event) -> str:
        waiting = self.total - self._done - len(event.running) - event.elsewhere
        times = [(run.seconds, read_progress(run.folder).seconds_left) for run in event.running]
        left = estimate_left(self._measured, times, max(0, waiting), self._processes)
        grid = f"grid {clock(self._now() - self._start)} elapsed"
        return grid if left is None else f"{grid}, about {clock(left)} left"

    def _tick(self, event: Event) -> None:
        if self._stream.isatty() and not self._console.is_dumb_terminal:
            if self._live is None:
                self._live = Live(
                    console=self._console,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
                self._console.show_cursor()  # a runner that is killed could not bring it back
            self._live.update(self._drawing(event), refresh=True)
        elif self._now() - self._last_line >= self._every:
            self._last_line = self._now()
            self._write(self.line(event))

    def _drawing(self, event: Event) -> Table:
        rows = Table.grid(padding=(0, 1))
        for _ in range(3):
            rows.add_column(no_wrap=True)
        for run in event.running:
            progress = read_progress(run.folder)
            bar = ProgressBar(progress.total, progress.done or 0, width=20) if progress.total else ""
            rows.add_row(Text(run.cell.title), bar, Text(" · ".join(_details(progress))))
        others = f", {event.elsewhere} by another runner" if event.elsewhere else ""
        done = Text(f"{self._done}/{self.total} cells{others}")
        rows.add_row(done, ProgressBar(self.total, self._done, width=20), Text(self._times(event)))
        return rows

    def _write(self, text: str) -> None:
        if self._live is not None:
            self._console.print(Text(text), soft_wrap=True)  # above what is drawn
            return
        self._stream.write(f"{text}\n")
        self._stream.flush()


def _details(progress: RunProgress) -> list[str]:
    steps = (
        ""
        if progress.done is None
        else f"{progress.done}"
        if progress.total is None
        else f"{progress.done}/{progress.total}"
    )
    left = "" if progress.seconds_left is None else f"{clock(progress.seconds_left)} left in this run"
    return [part for part in (f"{progress.phase} {steps}".strip(), progress.message, left) if part]


def _line(text: object) -> str:
    """Makes text one printable line: what a run writes must not move the terminal's cursor."""
    if not isinstance(text, str):
        return ""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


T = TypeVar("T")


def counted(rows: Iterable[T], total: int, what: str, every: float = 10.0) -> Iterator[T]:
    """The rows, with a line on stderr each time so many seconds have passed.

    Example:
        >>> list(counted("ab", 2, "letters"))
        ['a', 'b']
    """
    began = written = time.monotonic()
    for done, row in enumerate(rows):
        now = time.monotonic()
        if done and now - written >= every:
            written = now
            left = (now - began) / done * (total - done)
            print(f"{what} {done:,}/{total:,}, {left:.0f} s left", file=sys.stderr, flush=True)
        yield row
