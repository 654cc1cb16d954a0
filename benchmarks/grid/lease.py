"""The right to run one cell, as a file: made by one runner, kept alive by a heartbeat, taken over when dead.

A lease is `lease.json` (`lease.2.json`, ... after a takeover) in the folder of a cell. It is created complete and
exclusively, by a hard link, and its modification time is the heartbeat. It is dead when its process is gone (same host)
or its heartbeat is older than `stale` seconds, and no process of the run itself is left on this host. Whoever first
creates the lease with the next number has taken the cell over: numbers, unlike a rename of the dead lease, leave no moment
in which two runners can both succeed.

No file locks are used: they do nothing on many cluster file systems. Ages are differences of modification times of one
file system, so the clocks of the hosts need not agree. The lease of the library `filelock` (4.2) does not do: it takes a
dead lease over by exchanging two files, which NFS refuses, and only after it has itself watched a foreign one for its
whole duration; it holds a zombie for alive; and it knows nothing of a run that outlives its runner.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Heartbeat", "Lease", "create_lease", "drop_lease", "has_guard", "host_name", "is_held", "owns"]

_LEASE = re.compile(r"lease(?:\.(\d+))?\.json")


@dataclass(frozen=True)
class Lease:
    """The right to run one cell; the modification time of its file is the heartbeat, the token tells it from others."""

    cell: str
    path: Path
    token: str

    @property
    def guard(self) -> Path:
        """The file in which the process that holds the run writes `{"host": ..., "pid": ...}`."""
        return self.path.with_name(f"guard-{self.token}.json")


def host_name() -> str:
    """The name under which process ids are comparable: the host and, on Linux, its namespace of ids.

    Two containers may share a host name without seeing each other's processes.

    Example:
        >>> host_name() == host_name()
        True
    """
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux, or no /proc
        return socket.gethostname()


def create_lease(cell: str, folder: Path, *, stale: float) -> Lease | None:
    """Claims the folder of a cell, which exists, or one whose runner has been silent for `stale` seconds; else None.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = create_lease("lora", Path(folder), stale=60.0)
        ...     second = create_lease("lora", Path(folder), stale=60.0)
        ...     (first.path.name, second, owns(first), is_held(Path(folder), stale=60.0))
        ('lease.json', None, True, True)
    """
    token = uuid.uuid4().hex
    draft = folder / f".lease-{token}.tmp"
    content = {"token": token, "host": host_name(), "pid": os.getpid(), "since": time.time()}
    try:
        _write(draft, content)
        now = draft.stat().st_mtime  # the file system's own clock
        seen = _leases(folder)
        if any(_is_live(path, now, stale) for path in seen):
            return None
        number = max((_number(path) for path in seen), default=0) + 1
        path = folder / ("lease.json" if number == 1 else f"lease.{number}.json")
        _link(draft, path)
    except (FileExistsError, FileNotFoundError):  # another runner was first, and may have cleared the draft
        return None
    finally:
        draft.unlink(missing_ok=True)
    lease = Lease(cell, path, token)
    # The listing above may be old by now: hold the cell only if every other lease is one of the dead ones.
    others = (other for other in _leases(folder) if other != path)
    if any(other not in seen or _is_live(other, now, stale) for other in others):
        drop_lease(lease)
        return None
    return lease


def owns(lease: Lease) -> bool:
    """Whether the lease is still in place, by its token: a later runner may use the same file name."""
    content = _read(lease.path)
    return content is not None and content.get("token") == lease.token


def drop_lease(lease: Lease) -> None:
    """Removes a lease; nothing happens if it is gone or another runner's."""
    lease.guard.unlink(missing_ok=True)
    if owns(lease):
        lease.path.unlink(missing_ok=True)


def is_held(folder: Path, *, stale: float) -> bool:
    """Whether a live runner works on the cell of a folder, which may be missing; writes nothing."""
    return any(_is_live(path, time.time(), stale) for path in _leases(folder))


def has_guard(folder: Path) -> bool:
    """Whether a process of an earlier run is left on this host; it may still write its record."""
    return any(_guard_runs(path) for path in folder.glob("guard-*.json"))


class Heartbeat:
    """A thread that keeps leases alive and notices when one has been taken over.

    Example:
        >>> beat = Heartbeat(10.0, 60.0)
        >>> beat.close()
        []
    """

    def __init__(self, interval: float, stale: float) -> None:
        self.interval = interval
        self.stale = stale
        self._held: dict[str, tuple[Lease, float]] = {}  # token -> lease, time of the last beat
        self._lost: set[str] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, lease: Lease) -> None:
        """Keeps a lease alive from now on."""
        with self._lock:
            self._held[lease.token] = (lease, time.monotonic())
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ledger-heartbeat", daemon=True)
            self._thread.start()

    def remove(self, lease: Lease) -> None:
        """Lets a lease go."""
        with self._lock:
            self._held.pop(lease.token, None)

    def lost(self, lease: Lease) -> bool:
        """Whether the last beat found the lease taken over."""
        with self._lock:
            return lease.token in self._lost

    def close(self) -> list[Lease]:
        """Ends the thread and returns the leases still held."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            return [lease for lease, _ in self._held.values()]

    def _run(self) -> None:
        while not self._closing.wait(self.interval):
            with self._lock:
                for token in list(self._held):
                    self._beat(token)

    def _beat(self, token: str) -> None:
        lease, last = self._held[token]
        try:
            if owns(lease):
                os.utime(lease.path)
                self._held[token] = (lease, time.monotonic())
            else:
                self._lost.add(token)
        except OSError:  # a hiccup of the file system is no loss before others may take over
            if time.monotonic() - last > self.stale - self.interval:
                self._lost.add(token)


def _leases(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if _LEASE.fullmatch(path.name))
    except FileNotFoundError:
        return []


def _number(path: Path) -> int:
    match = _LEASE.fullmatch(path.name)
    return int(match[1]) if match and match[1] else 1


def _write(path: Path, content: dict[str, Any]) -> None:
    with path.open("x", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _link(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links: exclusive too, but its content arrives a moment later
        with path.open("xb") as file:
            file.write(draft.read_bytes())


def _is_live(path: Path, now: float, stale: float) -> bool:
    try:
        fresh = now - path.stat().st_mtime <= stale
    except FileNotFoundError:
        return False
    content = _read(path)
    if content is None:  # just released, or its content is still to arrive
        return fresh and path.exists()
    if content.get("host") == host_name():
        fresh = fresh and _process_exists(content.get("pid"))
    # A suspended runner has no heartbeat, but its run goes on.
    return fresh or _guard_runs(path.with_name(f"guard-{content.get('token')}.json"))


def _guard_runs(path: Path) -> bool:
    content = _read(path)
    if content is None or content.get("host") != host_name() or not _process_exists(content.get("pid")):
        return False
    try:  # its command line names this file; another program may have been given the process id since
        return any(path.name in word for word in psutil.Process(content["pid"]).cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _process_exists(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:  # a zombie has ended; only its parent has not asked yet
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except (psutil.NoSuchProcess, OverflowError):
        return False
    except psutil.AccessDenied:  # it exists and belongs to somebody else
        return True
