"""SIGINT, SIGTERM and SLURM's warning signal: end a run in order, with an exit code that says why."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment


class Interrupted(BaseException):
    """A signal ended the run. No `Exception`, so that nothing takes it for a failure.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 after SIGINT, 143 after SIGTERM, 138 after SIGUSR1."""
        return 128 + self.signum

    @property
    def asks_to_requeue(self) -> bool:
        """Whether the signal is SLURM's warning, after which the job has to ask for its next turn."""
        return self.signum == signal.SIGUSR1


def stop_signals() -> tuple[int, ...]:
    """Signals that end a run: in a SLURM job also SIGUSR1, its warning ahead of a time limit (`--signal=USR1@90`)."""
    return (signal.SIGINT, signal.SIGTERM, *((signal.SIGUSR1,) if SLURMEnvironment.detect() else ()))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While it lasts, a stop signal raises `Interrupted` at once."""

    def end(signum: int, _: FrameType | None) -> None:
        raise Interrupted(signum)

    handlers = _install(end)
    try:
        yield
    finally:
        _restore(handlers)


class StopRequest:
    """Notes the first stop signal instead of dying of it; a second one raises `Interrupted` at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Starts to note signals."""
        self.signum = None
        self._handlers = _install(self._note)

    def leave(self) -> None:
        """Gives signals back to whom they went before."""
        _restore(self._handlers)
        self._handlers = {}

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.signum is not None:
            raise Interrupted(signum)
        self.signum = signum


def requeue() -> str | None:
    """Asks SLURM to run the job again, from one process of it.

    Returns:
        What could not be done, else None.
    """
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return None
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID", "")
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"scontrol requeue {job}: {error.strerror}"
    return None if done.returncode == 0 else f"scontrol requeue {job}: {done.stderr.strip() or done.returncode}"


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return {}  # signals can only be caught in the main thread
    return {number: signal.signal(number, handler) for number in stop_signals()}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
