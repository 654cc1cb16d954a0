"""What has finished: the state of every cell of a grid, read from files alone.

One folder per cell, `DIR/runs/<cell>/`. A `record.json` there, written by the run as its very last act, means the cell is
done (`status` is `finished` or `failed`); else a live lease (`benchmarks.grid.lease`) means a runner works on it; else the
cell waits, and whatever lies in its folder was left by a killed or an interrupted run: what that run can be continued from
stays, the rest goes. Any number of runners on any number of hosts may share the results folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml

from benchmarks.grid.lease import Heartbeat, Lease, create_lease, drop_lease, has_guard, is_held, owns
from benchmarks.paths import further_rules, record_path
from datamodules.contract.errors import InputError
from datamodules.contract.files import write_atomic

RESUMABLE = ("resume", "checkpoints")
"""Folders of a run from which it is continued."""


def can_continue(folder: Path) -> bool:
    """Whether a run left a state in its folder from which `fit --ckpt_path last` continues.

    Example:
        >>> can_continue(Path("nowhere"))
        False
    """
    return any((folder / "resume").glob("step-*.ckpt"))


def clear(folder: Path, keep: set[str]) -> None:
    """Empties the folder of a cell, held by a lease, but for some names.

    The record goes first: a kill in between must not leave a cell that is done but has lost files.
    """
    record_path(folder).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


State = Literal["waiting", "running", "finished", "failed"]
Stamp = tuple[int, int]
"""Identity of one written record (modification time in ns, inode): a second failure is another record."""


class Ledger:
    """The cells of one results folder.

    Use it as a context manager: leaving it ends the heartbeat and releases what is still held.

    Args:
        root: The results folder. Nothing is written before a cell or a suite is claimed.
        heartbeat: Seconds between two heartbeats.
        stale: Seconds without a heartbeat after which another runner may take a cell over.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder)) as ledger:
        ...     lease = ledger.acquire("lora")
        ...     print(ledger.state("lora"), ledger.acquire("lora"))
        ...     ledger.write_record(lease, {"format": 1, "status": "finished", "error": None})
        ...     print(ledger.state("lora"), ledger.acquire("lora"), ledger.state("full"))
        running None
        finished None waiting
    """

    def __init__(self, root: Path, *, heartbeat: float = 10.0, stale: float = 60.0) -> None:
        self.root = root
        self._stale = stale
        self._heartbeat = Heartbeat(heartbeat, stale)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lease in self._heartbeat.close():
            drop_lease(lease)

    def folder(self, cell: str) -> Path:
        """The folder of a cell."""
        return self.root / "runs" / cell

    @property
    def group(self) -> str:
        """The grid's name for whoever shows its runs together: the suite's, and the folder's where that is another."""
        try:
            name = str(yaml.safe_load((self.root / "suite.yaml").read_bytes())["name"])
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            name = self.root.name
        return (name if name == self.root.name else f"{name}/{self.root.name}")[:128]

    def record(self, cell: str) -> dict[str, Any] | None:
        """The record of a cell that is done, else None; one that names further rules is done with a record of each.

        Raises:
            InputError: The file is damaged. Records are written atomically, so this is no trace of a kill.
        """
        record = self._read(cell)
        if record is None or record["status"] == "interrupted":
            return None
        whole = all(record_path(self.folder(cell), rule).is_file() for rule in further_rules(record))
        return record if whole else None

    def is_interrupted(self, cell: str) -> bool:
        """Whether the cell's last run ended on a signal, and waits to be continued."""
        record = self._read(cell)
        return record is not None and record["status"] == "interrupted"

    def state(self, cell: str) -> State:
        """What the files say about a cell; writes nothing."""
        record = self.record(cell)
        if record is not None:
            return "finished" if record["status"] == "finished" else "failed"
        return "running" if self.is_held(cell) else "waiting"

    def is_held(self, cell: str) -> bool:
        """Whether a live runner works on a cell; writes nothing."""
        return is_held(self.folder(cell), stale=self._stale)

    def stamp(self, cell: str) -> Stamp | None:
        """The identity of the record of a failed cell, to ask `acquire` for one more try; else None."""
        record = self.record(cell)
        return self._identity(cell) if record is not None and record["status"] == "failed" else None

    def is_done(self, cell: str, *, retry: Stamp | None = None) -> bool:
        """Whether a cell needs no run.

        Args:
            cell: Name of the cell.
            retry: A failed cell needs one if its record is still this one; so of several runners that retry,
                one does.

        Raises:
            InputError: The record is damaged.
        """
        record = self.record(cell)
        if record is None:
            return False
        return record["status"] == "finished" or retry is None or self._identity(cell) != retry

    def acquire(self, cell: str, *, retry: Stamp | None = None) -> Lease | None:
        """Claims a cell that is not done and that no live runner holds, and clears what a killed run cannot use.

        Returns:
            The lease, kept alive by a thread until `release`, or None.
        """
        if self.is_done(cell, retry=retry):
            return None
        folder = self.folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        lease = create_lease(cell, folder, stale=self._stale)
        if lease is None:
            return None
        self._heartbeat.add(lease)
        # Only the holder may conclude that there is no record: the last one may have written it meanwhile.
        if has_guard(folder) or self.is_done(cell, retry=retry):
            self.release(lease)
            return None
        clear(folder, keep={lease.path.name, *(RESUMABLE if can_continue(folder) else ())})
        return lease

    def release(self, lease: Lease) -> None:
        """Gives a cell back, twice if need be; with a record it is done, without one it waits for the next runner."""
        self._heartbeat.remove(lease)
        drop_lease(lease)

    def is_lost(self, lease: Lease) -> bool:
        """Whether another runner has taken the cell over, because this one was suspended or cut off."""
        return self._heartbeat.lost(lease)

    def write_record(self, lease: Lease, record: dict[str, Any]) -> None:
        """Writes the record of a cell whose run could not, and releases it; nothing if another has taken it."""
        if owns(lease):
            text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
            write_atomic(lease.path.with_name("record.json"), text)
        self.release(lease)

    def discard_record(self, lease: Lease) -> None:
        """Removes the record of a stopped run, so that the cell is run again; not if the lease is another's by now."""
        if owns(lease) and self.record(lease.cell) is not None:
            lease.path.with_name("record.json").unlink(missing_ok=True)

    def check_suite(self, name: str) -> None:
        """Refuses a results folder that holds a suite of another name; writes nothing.

        Raises:
            InputError: The folder holds another suite, the copy is unreadable, or the folder is a file.
        """
        path = self.root / "suite.yaml"
        try:
            copy = yaml.safe_load(path.read_bytes())
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise InputError(f"{self.root}: not a folder; choose another --out") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); choose another --out") from error
        except yaml.YAMLError as error:
            raise InputError(f"{path}: unreadable copy of the suite; choose another --out") from error
        other = copy.get("name") if isinstance(copy, dict) else None
        if other != name:
            raise InputError(f"{self.root}: holds the suite {other!r}, not {name!r}; choose another --out")

    def adopt_suite(self, name: str, text: str) -> None:
        """Keeps a copy of the suite in the results folder; an edited one of the same name replaces it."""
        self.check_suite(name)
        digest = hashlib.sha256(text.encode()).hexdigest()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomic(self.root / "suite.yaml", f"# a copy; sha256 of the original: {digest}\n{text}")
        except OSError as error:
            raise InputError(f"{self.root}: cannot write results here ({error.strerror})") from error

    def _read(self, cell: str) -> dict[str, Any] | None:
        path = self.folder(cell) / "record.json"
        remedy = f"delete {path.parent} to run the cell again"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a record ({error}); {remedy}") from error
        if not isinstance(record, dict) or record.get("status") not in ("finished", "failed", "interrupted"):
            raise InputError(f"{path}: not a record (status must be finished, failed or interrupted); {remedy}")
        if record.get("format") != 1:
            raise InputError(f"{path}: record format {record.get('format')!r}, this version reads 1; {remedy}")
        return record

    def _identity(self, cell: str) -> Stamp:
        status = (self.folder(cell) / "record.json").stat()
        return status.st_mtime_ns, status.st_ino
