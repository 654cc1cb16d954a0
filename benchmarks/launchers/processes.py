"""What a runner hears of processes: signals of its own, and how a run without a record has ended."""

from __future__ import annotations

import re
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from benchmarks.grid.cells import Cell


class Signals:
    """Collects SIGINT and SIGTERM while it is entered; outside the main thread they cannot be caught.

    Attributes:
        received: The signals, in order.

    Example:
        >>> with Signals() as signals:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     [signal.Signals(number).name for number in signals.received]
        ['SIGTERM']
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)


_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def describe_exit(code: int, log: bytes) -> str:
    r"""Says in one line why a run ended without a record.

    Example:
        >>> describe_exit(-9, b"step 3\n")
        'killed (exit code 137), most often for lack of memory; step 3'
    """
    status = code if code >= 0 else 128 - code
    text = _ESCAPES.sub("", log.decode("utf-8", errors="replace"))
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    last = "".join(letter for letter in lines[-1] if letter.isprintable())[:300] if lines else "it printed nothing"
    if status == 128 + signal.SIGKILL:
        return f"killed (exit code {status}), most often for lack of memory; {last}"
    return f"exit code {status}; {last}" if status else f"ended without a record; {last}"


def failed_record(cell: Cell, error: str, **more: Any) -> dict[str, Any]:
    """The record of a cell whose run could not write one.

    Example:
        >>> failed_record(Cell("a-0", "a", (("model", "a"),), ("instructrec",), ""), "no luck", exit_code=1)["status"]
        'failed'
    """
    return {
        "format": 1,
        "status": "failed",
        "error": error,
        "cell": cell.name,
        "name": cell.title,
        "labels": dict(cell.labels),
        "command": list(cell.command),
        **more,
    }
