"""What machines do to runs: full disks, read-only folders, killed workers, lost networks. One line, soon, no loss."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import save_file

from benchmarks.__main__ import main
from datamodules.contract.checkpoints import write_checkpoint
from datamodules.contract.errors import DISK, InputError, machine_failure
from datamodules.contract.files import write_atomic
from datamodules.sources.fetch import fetch
from datamodules.sources.kinds import UrlFile
from recmodels.objectives import Likelihood
from tests.faults import tally

WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [
    *(pytest.mark.filterwarnings(rule) for rule in WARNINGS),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # files on a disk that has gone
]
SECONDS = 60.0
Run = Callable[..., tuple[int, str, float]]


@pytest.fixture
def run(mini_data: Path, tiny_causal: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Two steps of a tiny run: exit code, stderr, seconds."""

    def call(out: Path, *words: str) -> tuple[int, str, float]:
        small = ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--data.protocol.negatives=4"]
        base = ["--model=LoRATuning", f"--model.backbone={tiny_causal}", "--data=MovieLens100K", "--data.batch_size=2"]
        capsys.readouterr()
        begin = time.monotonic()
        code = main(["fit", *base, *small, "--trainer.logger=false", "--out", str(out), *words])
        return code, capsys.readouterr().err, time.monotonic() - begin

    return call


def one_line(err: str) -> str:
    told = [line for line in err.splitlines() if line.startswith("instructrec:")]
    assert len(told) == 1, err
    assert "Traceback" not in err
    return told[0]


class Disk:
    """A disk of its own, where this machine allows to mount one; else its errors are made at the system's calls.

    Attributes:
        path: the folder.
        real: whether it is a mounted one.
    """

    def __init__(self, path: Path, real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.real, self.monkeypatch = path, real, monkeypatch

    def fill(self, leave: int) -> None:
        """Leaves so many bytes free."""
        if self.real:
            room = os.statvfs(self.path)
            with (self.path / "filling").open("wb") as file:
                file.write(bytes(max(0, room.f_bavail * room.f_frsize - leave)))
        else:
            self._refuse(errno.ENOSPC)

    def free(self) -> None:
        if self.real:
            (self.path / "filling").unlink()
        else:
            self.monkeypatch.undo()

    def lock(self) -> None:
        """Makes it read-only."""
        if self.real:
            subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)
        else:
            self._refuse(errno.EROFS)

    def _refuse(self, number: int) -> None:
        """Every file that would be written below the folder fails as the system would make it fail."""
        original = os.open

        def guarded(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(self.path)):
                raise OSError(number, os.strerror(number), str(path))
            return original(path, flags, *args, **kwargs)

        opened = open

        def guarded_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax+") and str(file).startswith(str(self.path)):
                raise OSError(number, os.strerror(number), str(file))
            return opened(file, mode, *args, **kwargs)

        self.monkeypatch.setattr(os, "open", guarded)
        self.monkeypatch.setattr("builtins.open", guarded_open)
        self.monkeypatch.setattr("io.open", guarded_open)


@contextmanager
def mounted(path: Path) -> Iterator[bool]:
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True)
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    with mounted(path) as real:
        yield Disk(path, real, monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def full_disk(run: Run, disk: Disk, leave: int) -> None:
    """A run on a disk with so many bytes left fails in one line; an earlier one is intact; with room it succeeds."""
    earlier = disk.path / "earlier"
    if not earlier.exists():
        assert run(earlier)[0] == 0
    before = contents(earlier)
    disk.fill(leave)
    code, err, seconds = run(disk.path / "run")
    disk.free()
    assert code in (1, 2), err
    assert "No space left on device" in one_line(err) or "could not be written" in one_line(err)
    assert seconds < SECONDS
    assert contents(earlier) == before
    record = disk.path / "run" / "record.json"
    assert not record.exists() or json.loads(record.read_text())["status"] == "failed"


def test_a_full_disk_is_one_line_and_takes_nothing_along(run: Run, disk: Disk) -> None:
    full_disk(run, disk, leave=30_000)  # room for the config, none for a checkpoint
    code, err, _ = run(disk.path / "run")
    assert code == 0, err
    assert json.loads((disk.path / "run" / "record.json").read_text())["status"] == "finished"


@pytest.mark.faults
def test_a_disk_that_fills_anywhere(run: Run, disk: Disk) -> None:
    if not disk.real:
        pytest.skip("this machine does not allow to mount a small disk; the short form makes the errors itself")
    assert run(disk.path / "earlier")[0] == 0
    whole = sum(map(len, contents(disk.path / "earlier").values()))
    sizes = [whole * part // 12 for part in range(10)]  # the config, the checkpoints or the scores find no room
    survived = 0
    problems = []
    for leave in sizes:
        try:
            full_disk(run, disk, leave)
            survived += 1
        except AssertionError as error:
            problems.append(f"{leave} bytes left: {str(error)[:300]}")
            (disk.path / "filling").unlink(missing_ok=True)
        subprocess.run(["rm", "-rf", str(disk.path / "run")], check=True)
    tally.add("runs on a full disk: one line, earlier results intact", len(sizes), survived)
    assert not problems, "\n".join(problems)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes, as under `ulimit -f`: the operating system itself refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size", "file"), [(300, "config.yaml"), (6000, "checkpoints/best.ckpt")])
def test_a_limit_on_the_size_of_files_is_one_line(run: Run, tmp_path: Path, size: int, file: str) -> None:
    with limited(size):
        code, err, _ = run(tmp_path / "run")
    assert code == 1
    assert f"{tmp_path / 'run' / file}: File too large; " in one_line(err)
    assert "ulimit -f" in one_line(err)


def write_metrics(folder: Path) -> Path:
    logger = CSVLogger(folder, name="", version="")
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.save()
    return folder / "metrics.csv"


def write_tensors(folder: Path) -> Path:
    save_file({"weight": torch.zeros(100)}, folder / "model.safetensors")
    return folder / "model.safetensors"


def write_bytes(folder: Path) -> Path:
    write_atomic(folder / "scores.npz", bytes(1000))
    return folder / "scores.npz"


def write_tensors_through_the_writer(folder: Path) -> Path:
    write_checkpoint({"state_dict": {"weight": torch.zeros(100_000)}}, folder / "best.ckpt")
    return folder / "best.ckpt"


@pytest.mark.parametrize("write", [write_metrics, write_tensors, write_bytes, write_tensors_through_the_writer])
def test_whoever_finds_no_room_the_line_names_the_file(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    (tmp_path / "whole").mkdir()
    path = write(tmp_path / "whole")
    assert path.is_file()
    before = path.read_bytes()
    with limited(3), pytest.raises(Exception, match=r"File too large|os error 27") as error:
        write(tmp_path)
    named = tmp_path / path.name
    assert machine_failure(error.value) == f"{named}: File too large; {DISK[errno.EFBIG]}"
    assert not list(tmp_path.glob(".*.tmp"))
    if write in (write_bytes, write_tensors_through_the_writer):
        with limited(3), pytest.raises(OSError, match="File too large"):
            write(tmp_path / "whole")
        assert path.read_bytes() == before


def test_every_command_tells_what_the_machine_refuses(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from benchmarks.commands import audit

    def refuse(arguments: list[str]) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "audit.json")

    monkeypatch.setattr(audit, "run_command", refuse)
    assert main(["audit"]) == 1
    assert one_line(capsys.readouterr().err).startswith("instructrec: audit.json: No space left on device; make room")


def test_a_read_only_folder_is_refused_before_anything_is_loaded(run: Run, disk: Disk) -> None:
    disk.lock()
    code, err, seconds = run(disk.path / "run")
    assert code == 2
    assert "is not a writable folder" in one_line(err)
    assert seconds < SECONDS


def test_a_disk_that_becomes_read_only_is_one_line(run: Run, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network file system does when its server has gone."""
    original = Likelihood.__call__

    def loss(*args: Any) -> Any:
        disk.lock()
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Likelihood, "__call__", loss)
        code, err, seconds = run(disk.path / "run")
    assert code == 1
    assert "Read-only file system" in one_line(err) or "could not be written" in one_line(err)
    assert seconds < SECONDS


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_loader_worker_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: signal.Signals
) -> None:
    original, killed = Likelihood.__call__, []

    def loss(*args: Any) -> Any:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, sign)
            killed.append(worker.pid)
            # torch raises as soon as the child is gone: here, and not in a fork's hooks, where Python would swallow the
            # error and leave logging's lock taken, so that the next thread that logs waits for ever.
            time.sleep(5)
        return original(*args)

    monkeypatch.setattr(Likelihood, "__call__", loss)
    out = tmp_path / "run"
    code, err, seconds = run(out, "--data.num_workers=1", "--trainer.max_steps=20")
    assert killed
    assert code == 1
    assert "DataLoader worker" in one_line(err)
    assert "data.num_workers" in one_line(err)
    assert seconds < SECONDS
    record = json.loads((out / "record.json").read_text())
    assert record["status"] == "failed"
    assert "DataLoader worker" in record["error"]
    assert "metrics" not in record
    monkeypatch.undo()


@contextmanager
def mute_server() -> Iterator[int]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)
        for connection in held:
            connection.close()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def lost_network(port: int, cache: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds until a download is given up in one line."""
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(cache))
    monkeypatch.setenv("NO_PROXY", "*")
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"cannot download .*; put u\.data at .*, or run again") as error:
        fetch(UrlFile(f"http://127.0.0.1:{port}/u.data", "0" * 64))
    assert "\n" not in str(error.value)
    return time.monotonic() - begin


def test_a_lost_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.sources.downloads.BACKOFF_SECONDS", (0.1, 0.1))
    assert lost_network(closed_port(), tmp_path, monkeypatch) < 10
    monkeypatch.setattr("datamodules.sources.downloads._TIMEOUT", (0.5, 0.5))
    monkeypatch.setattr("datamodules.sources.downloads.STALLED_SECONDS", 0.2)
    with mute_server() as port:
        assert lost_network(port, tmp_path, monkeypatch) < 10


@pytest.mark.faults
def test_a_lost_network_is_given_up_within_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [lost_network(closed_port(), tmp_path, monkeypatch)]
    with mute_server() as port:
        times.append(lost_network(port, tmp_path, monkeypatch))
    tally.add("lost networks given up in one line within a minute", len(times), sum(t < SECONDS for t in times))
    assert max(times) < SECONDS


def test_data_without_a_network_are_one_line(
    tiny_causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datamodules.sources.downloads.BACKOFF_SECONDS", (0.1, 0.1))
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port()}/simple")
    monkeypatch.delenv("INSTRUCTREC_DATA", raising=False)
    words = ["--model=LoRATuning", f"--model.backbone={tiny_causal}", "--data=MovieLens100K", "--trainer.logger=false"]
    code = main(["fit", *words, "--out", str(tmp_path / "run")])
    told = one_line(capsys.readouterr().err)
    assert code == 2
    assert "cannot download" in told
    assert "INSTRUCTREC_DATA" in told
