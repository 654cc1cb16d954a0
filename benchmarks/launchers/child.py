"""What a scheduler's worker runs: one command as a child process that never outlives the worker.

Standard library only, and sent to the workers by value: they need the checkout and its environment at the same
path, but nothing of ours on their import path.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["CellProcess", "run"]

# A cell is one task, whose trainer starts its own processes: variables of the surrounding job would make Lightning
# wait for ranks that nobody starts, and make the run ask the scheduler for a turn that this process asks for.
_OF_THE_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_")


class CellProcess:
    """A command that can be called, interrupted (killed where it has not ended in time), and called again.

    Example:
        >>> CellProcess(["true"], "/", 1.0)()
        0
    """

    def __init__(
        self, command: Sequence[str], folder: str, patience: float, environment: dict[str, str] | None = None
    ) -> None:
        self.command = list(command)
        self.folder = folder
        self.patience = patience
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_JOB)}
        # The pipe closes with this process, however it ends, and the command ends with the pipe.
        self._process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            stdin=subprocess.PIPE,
            env=inherited | self.environment,
            start_new_session=True,
        )
        try:
            while self._process.poll() is None:  # no wait(): a signal handler must be able to ask too
                time.sleep(0.1)
        except BaseException:  # Ray cancels by KeyboardInterrupt
            self.stop()
            raise
        if self._process.stdin is not None:
            self._process.stdin.close()
        return self._process.returncode

    def checkpoint(self) -> Any:
        """Called by submitit when the job is preempted or its time is over: end in order, and come back later."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(type(self)(self.command, self.folder, self.patience, self.environment))

    def stop(self) -> None:
        """Asks the command to save and end; kills it if it takes too long."""
        process = self._process
        if process is None or _has_ended(process.pid):
            return
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self.patience
        while not _has_ended(process.pid):
            if time.monotonic() > deadline:
                process.kill()
                return
            time.sleep(0.05)


def run(process: CellProcess) -> int:
    """Calls it; a function, as Ray wants it.

    Example:
        >>> run(CellProcess(["false"], "/", 1.0))
        1
    """
    return process()


def _has_ended(pid: int) -> bool:
    """Looks without reaping: in a signal handler, `Popen` may be in the middle of asking itself."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # reaped
        return True
