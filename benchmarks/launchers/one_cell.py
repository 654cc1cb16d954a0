"""Runs one cell where a scheduler has put it: a runner of its own on the shared results folder.

`python -m benchmarks.launchers.one_cell TASK` with the scheduler's worker at the other end of standard input. The
lease and its heartbeat are made here, beside the run: so a job that is started twice, or that outlives whoever
submitted it, neither repeats nor loses a cell.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.grid.cells import Cell
from benchmarks.grid.ledger import Ledger, Stamp
from benchmarks.launchers.local import run_local
from benchmarks.paths import PYTHON
from datamodules.contract.errors import InputError

__all__ = ["NOT_DONE", "command_for", "main"]

NOT_DONE = 75
"""Exit status where the cell was left to another runner, or was interrupted (EX_TEMPFAIL)."""


def command_for(cell: Cell, root: Path, *, prefix: Sequence[str], retry: Stamp | None, grace: float) -> list[str]:
    """Returns the command that runs one cell; it is to be started in the checkout.

    Example:
        >>> command = command_for(Cell("a", "a", (), (), ""), Path("out"), prefix=["x"], retry=None, grace=1.0)
        >>> command[1:3], json.loads(command[3])["root"]
        (['-m', 'benchmarks.launchers.one_cell'], 'out')
    """
    task = {
        "cell": dataclasses.asdict(cell),
        "root": str(root),
        "prefix": list(prefix),
        "retry": retry,
        "grace": grace,
    }
    return [*PYTHON, "-m", "benchmarks.launchers.one_cell", json.dumps(task)]


def main(arguments: list[str]) -> int:
    """Runs the cell that `command_for` wrote down.

    Returns:
        0 with a record, `NOT_DONE` without, 2 if the folder's content is damaged.
    """
    task = json.loads(arguments[0])
    cell = _cell(task["cell"])
    retry = tuple(task["retry"]) if task["retry"] else None
    threading.Thread(target=_end_with_the_worker, args=(task["grace"],), daemon=True).start()
    try:
        with Ledger(Path(task["root"])) as ledger:
            if ledger.is_done(cell.name, retry=retry):
                return 0
            summary = run_local(
                [cell],
                ledger,
                prefix=task["prefix"],
                retry_failed=retry is not None,
                grace=task["grace"],
                wait_for_others=False,
            )
    except InputError as error:
        print(f"instructrec: {error}", file=sys.stderr)
        return 2
    return 0 if summary.finished or summary.failed or summary.skipped else NOT_DONE


def _cell(fields: dict[str, object]) -> Cell:
    """JSON has no tuples."""
    return Cell(**{name: _tuples(value) for name, value in fields.items()})  # type: ignore[arg-type]


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _end_with_the_worker(grace: float) -> None:
    os.read(0, 1)  # nothing is ever written: this returns when the other end is gone
    # In order, as on a signal: the worker may have sent one just before it went, and what a run writes on a signal
    # must not be left standing as its result.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace + 10.0)
    os._exit(1)  # and the run's guard sees its own pipe close


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
