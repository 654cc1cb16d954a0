"""Progress of a loop that is no training: done, total and time left, now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def counted(rows: Iterable[T], total: int, what: str, every: float = 10.0) -> Iterator[T]:
    """The rows, with a line on stderr each time so many seconds have passed.

    Args:
        rows: to go through.
        total: how many they are.
        what: they are, for the line.
        every: seconds between two lines.

    Example:
        >>> list(counted("ab", 2, "letters"))
        ['a', 'b']
    """
    began = said = time.monotonic()
    for done, row in enumerate(rows):
        now = time.monotonic()
        if done and now - said >= every:
            said = now
            left = (now - began) / done * (total - done)
            print(f"{what} {done:,}/{total:,}, {left:.0f} s left", file=sys.stderr, flush=True)
        yield row
