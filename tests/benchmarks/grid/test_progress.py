"""The line that moves."""

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.grid.cells import Cell
from benchmarks.grid.progress import (
    Event,
    GridProgress,
    Running,
    RunProgress,
    clock,
    estimate_left,
    read_progress,
)


def cell(name: str) -> Cell:
    return Cell(f"{name}-0", name, (), (), name)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def say(folder: Path, **content: object) -> None:
    (folder / "progress.json").write_text(json.dumps(content))


def test_the_line_says_where_the_run_is_and_how_long_the_rest_takes(tmp_path):
    now = Clock()
    show = GridProgress(8, io.StringIO(), now=now)
    for name in ("random", "popularity"):
        show(Event("finished", cell(name), seconds=2.0))
    say(tmp_path, phase="fit", done=40, total=120, message="loss 3.21", seconds_left=83.0)
    now.seconds = 250.0
    tick = Event("tick", running=(Running(cell("lora"), tmp_path, 31.0),))
    # 83 s left of this run, and five more of 31 + 83 s: 83 + 5 * 114 = 653 s
    assert show.line(tick) == (
        "[3/8] lora · fit 40/120 · loss 3.21 · 1:23 left in this run · grid 4:10 elapsed, about 10:53 left"
    )


def test_nothing_known_is_nothing_said(tmp_path):
    show = GridProgress(2, io.StringIO(), now=Clock())
    assert show.line(Event("tick", running=(Running(cell("a"), tmp_path, 1.0),))) == "[1/2] a · grid 0:00 elapsed"
    assert show.line(Event("tick", elsewhere=2)) == (
        "[1/2] waiting for 2 that another runner works on · grid 0:00 elapsed"
    )


def test_several_runs_share_the_line(tmp_path):
    say(tmp_path, phase="fit", done=4, total=12)
    runs = (Running(cell("a"), tmp_path, 1.0), Running(cell("b"), tmp_path / "none", 1.0))
    line = GridProgress(5, io.StringIO(), now=Clock()).line(Event("tick", running=runs))
    assert line.startswith("[1-2/5] a fit 4/12, b · grid")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", '{"phase": 3, "done": "x", "total": null, "message": ["a"], "seconds_left": -1}'],
)
def test_unreadable_progress_says_nothing(tmp_path, content):
    (tmp_path / "progress.json").write_text(content)
    assert read_progress(tmp_path) == RunProgress()


def test_what_a_run_says_cannot_move_the_cursor(tmp_path):
    say(tmp_path, message="a\x1b[2J\r\nb", seconds_left=float("inf"))
    assert read_progress(tmp_path) == RunProgress(message="a [2J b")


def test_a_run_without_an_end_shows_its_steps_alone(tmp_path):
    say(tmp_path, phase="fit", done=4, total=0)
    line = GridProgress(1, io.StringIO(), now=Clock()).line(Event("tick", running=(Running(cell("a"), tmp_path, 1),)))
    assert line.startswith("[1/1] a · fit 4 · grid")


def screen(written: str, columns: int = 60, lines: int = 12) -> list[str]:
    """What a terminal shows after reading this: enough of ECMA-48 for a drawing that is rewritten in place."""
    rows, row, column = [""] * lines, 0, 0
    for escape, number, command, control, text in re.findall(
        r"(\x1b\[\??([\d;]*)([A-Za-z]))|([\r\n])|([^\x1b\r\n]+)", written
    ):
        if text:
            line = rows[row].ljust(column)
            rows[row] = line[:column] + text + line[column + len(text) :]
            column += len(text)
            assert column <= columns
        elif control == "\r":
            column = 0
        elif control == "\n":
            row, column = row + 1, 0
        elif escape and command == "A":
            row -= int(number or 1)
        elif command == "K":
            rows[row] = "" if number == "2" else rows[row][:column]
    return [line.rstrip() for line in rows if line.strip()]


def test_a_terminal_is_drawn_in_place(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    say(tmp_path, phase="fit", done=4, total=8)
    tick = Event("tick", running=(Running(cell("a[b]"), tmp_path, 1.0), Running(cell("w" * 80), tmp_path / "x", 1.0)))
    terminal = Terminal()
    show = GridProgress(4, terminal, now=Clock())
    for _ in range(3):
        show(tick)
    first, second, third = screen(terminal.getvalue())
    assert first.startswith("a[b]")
    assert second.startswith("www")
    assert "0/4 cells" in third
    show(Event("failed", cell("a"), seconds=5, error="exit code 1;\nx"))
    show(tick)
    assert screen(terminal.getvalue())[0] == "[1/4] a failed in 0:05: exit code 1; x"
    assert "1/4 cells" in screen(terminal.getvalue())[3]
    show.close()
    assert screen(terminal.getvalue()) == ["[1/4] a failed in 0:05: exit code 1; x"]
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")  # the cursor is back


def test_a_log_gets_a_line_every_20_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes rich take everything for a terminal
    tick = Event("tick", running=(Running(cell("a" * 50), tmp_path, 1.0),))
    now, log = Clock(), io.StringIO()
    show = GridProgress(1, log, now=now)
    for second in range(61):
        now.seconds = float(second)
        show(tick)
    assert log.getvalue().count("\n") == 3
    assert "\r" not in log.getvalue()


def test_skipped_cells_count_but_are_not_announced():
    log = io.StringIO()
    show = GridProgress(3, log, now=Clock())
    show(Event("skipped", cell("a")))
    show(Event("started", cell("b")))
    show(Event("finished", cell("b"), seconds=3661))
    assert log.getvalue() == "[2/3] b finished in 1:01:01\n"


@given(st.integers(0, 10**6))
def test_the_clock_adds_up(seconds):
    parts = [int(part) for part in clock(seconds).split(":")]
    assert sum(part * 60**power for power, part in enumerate(reversed(parts))) == seconds


def test_the_estimate_ignores_quick_cells_and_trusts_the_runs():
    assert estimate_left([], [(5.0, None)], 3, 1) is None
    assert estimate_left([1.0, 1.0, 100.0], [], 2, 1) == 200.0
    assert estimate_left([1.0, 100.0], [], 4, 2) == 200.0
    assert estimate_left([], [(10.0, 30.0)], 1, 1) == 70.0
    assert estimate_left([100.0], [(150.0, None)], 0, 1) == 0.0
    assert estimate_left([100.0], [(0.0, None), (0.0, 20.0)], 0, 8) == 100.0  # not sooner than the longest run
