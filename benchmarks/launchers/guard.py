"""Runs one command, and ends it with all its children as soon as the launcher is gone, even by `kill -9`.

`python guard.py GUARD_FILE HOST COMMAND...` with the launcher's pipe as standard input. A run without a
launcher would write into a folder that another runner takes over, and would hold a GPU that nobody watches.
Standard library only: it starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Runs the command.

    Args:
        arguments: The file to announce this process in, the name of the host, and the command.

    Returns:
        The command's exit status; 128 + n for signal n, as shells write it.
    """
    guard_file, host, *command = arguments
    child: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        if child is not None:
            child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    # Announced before the command starts: from then on a takeover waits for this process.
    _announce(Path(guard_file), host)
    if received or _launcher_is_gone():
        return 1
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    for early in received:
        child.send_signal(early)
    threading.Thread(target=_kill_when_launcher_goes, args=(child.pid,), daemon=True).start()
    code = child.wait()
    _kill_group(child.pid)  # what the command has left behind, such as data loader workers
    return code if code >= 0 else 128 - code


def _announce(path: Path, host: str) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({"host": host, "pid": os.getpid()}), encoding="utf-8")
    os.replace(draft, path)


def _launcher_is_gone() -> bool:
    readable, _, _ = select.select([0], [], [], 0)
    return bool(readable)  # nothing is ever written: readable means end of file


def _kill_when_launcher_goes(group: int) -> None:
    os.read(0, 1)
    _kill_group(group)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OSError as error:
        sys.exit(f"cannot run {sys.argv[3:]}: {error}")
