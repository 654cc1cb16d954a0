"""Records, leases and takeovers: the files that several runners share."""

import ast
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import benchmarks
from benchmarks.grid import lease as lease_module
from benchmarks.grid.lease import Heartbeat, host_name
from benchmarks.grid.ledger import Ledger, clear
from datamodules.contract.errors import InputError
from datamodules.contract.files import write_atomic

FINISHED = {"format": 1, "status": "finished", "error": None}
FAILED = {"format": 1, "status": "failed", "error": "no luck"}


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path) as ledger:
        yield ledger


def put_lease(ledger: Ledger, *, host: str, pid: int, age: float, name: str = "lease.json") -> Path:
    folder = ledger.folder("a")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({"token": "t0", "host": host, "pid": pid}))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    process.wait()
    return process.pid


def test_a_cell_goes_from_waiting_over_running_to_done(ledger):
    assert ledger.state("a") == "waiting"
    lease = ledger.acquire("a")
    assert ledger.state("a") == "running"
    ledger.release(lease)
    assert ledger.state("a") == "waiting"
    lease = ledger.acquire("a")
    ledger.write_record(lease, FAILED)
    assert ledger.state("a") == "failed"
    assert ledger.record("a") == FAILED
    assert [path.name for path in ledger.folder("a").iterdir()] == ["record.json"]
    ledger.release(lease)


def test_asking_for_a_state_writes_nothing(tmp_path):
    ledger = Ledger(tmp_path / "new")
    assert ledger.state("a") == "waiting"
    assert ledger.stamp("a") is None
    ledger.check_suite("tiny")
    assert list(tmp_path.iterdir()) == []


def test_leaving_the_ledger_releases_its_cells(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.acquire("a")
    assert list((tmp_path / "runs" / "a").iterdir()) == []


@pytest.mark.parametrize(
    ("host", "pid", "age", "taken_over"),
    [
        ("another host", 1, 5.0, False),
        ("another host", 1, 61.0, True),
        ("this host", "own", 5.0, False),  # known when it runs: every worker of the tests must collect the same names
        ("this host", "own", 61.0, True),
        ("this host", 0, 0.0, True),
        ("this host", 2**70, 0.0, True),
    ],
)
def test_a_lease_is_taken_over_when_its_heart_or_its_process_has_stopped(ledger, host, pid, age, taken_over):
    pid = os.getpid() if pid == "own" else pid
    here = host == "this host"
    path = put_lease(ledger, host=host_name() if here else host, pid=pid or dead_pid(), age=age)
    assert ledger.state("a") == ("waiting" if taken_over else "running")
    lease = ledger.acquire("a")
    assert (lease is not None) == taken_over
    assert path.exists() != taken_over
    if lease is not None:
        assert lease.path.name == "lease.2.json"


def test_a_zombie_counts_as_gone(ledger):
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    put_lease(ledger, host=host_name(), pid=process.pid, age=0)
    assert ledger.acquire("a") is not None
    process.wait()


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_lease_still_being_written_is_live_until_it_is_stale(ledger, content):
    path = put_lease(ledger, host="x", pid=1, age=0)
    path.write_text(content)
    assert ledger.acquire("a") is None
    os.utime(path, (time.time() - 61, time.time() - 61))
    assert ledger.acquire("a") is not None


def test_a_run_that_outlives_its_runner_keeps_the_cell_until_it_ends(ledger):
    stale = put_lease(ledger, host=host_name(), pid=dead_pid(), age=100)
    guard = stale.with_name("guard-t0.json")
    sleeper = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()", str(guard)], stdin=subprocess.PIPE)
    guard.write_text(json.dumps({"host": host_name(), "pid": sleeper.pid}))
    assert ledger.acquire("a") is None
    stale.unlink()  # without a lease, too
    assert ledger.acquire("a") is None
    sleeper.communicate(b"\n")
    assert ledger.acquire("a") is not None


def test_an_unrelated_process_with_a_reused_id_holds_nothing(ledger):
    stale = put_lease(ledger, host=host_name(), pid=dead_pid(), age=100)
    stale.with_name("guard-t0.json").write_text(json.dumps({"host": host_name(), "pid": os.getpid()}))
    assert ledger.acquire("a") is not None


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
@pytest.mark.parametrize("stale", [True, False], ids=["takeover", "first"])
def test_of_many_runners_exactly_one_gets_a_cell(tmp_path, monkeypatch, stale, links):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "not supported")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    rounds, runners = 15, 6
    ledgers = [Ledger(tmp_path) for _ in range(runners)]
    won: list[list[str]] = [[] for _ in range(runners)]
    barrier = threading.Barrier(runners)

    def compete(index: int) -> None:
        for number in range(rounds):
            barrier.wait()
            if ledgers[index].acquire(f"cell{number}") is not None:
                won[index].append(f"cell{number}")

    if stale:
        pid = dead_pid()
        for number in range(rounds):
            folder = tmp_path / "runs" / f"cell{number}"
            folder.mkdir(parents=True)
            (folder / "lease.json").write_text(json.dumps({"token": "t", "host": host_name(), "pid": pid}))
    threads = [threading.Thread(target=compete, args=(index,)) for index in range(runners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = sorted(name for names in won for name in names)
    assert len(everything) == len(set(everything))
    # Two that see each other may both step back; one of them gets the cell at the next try.
    for number in range(rounds):
        name = f"cell{number}"
        again = [ledger.acquire(name) is not None for ledger in ledgers]
        assert sum(again) == (0 if name in everything else 1)
    for ledger in ledgers:
        ledger.__exit__(None, None, None)


@pytest.mark.parametrize("now_held", ["lease.json", "lease.3.json"])
def test_a_runner_with_an_old_listing_steps_back(ledger, monkeypatch, now_held):
    """It saw only a dead lease; before it acts, others have taken the cell over, ended, and begun again."""
    dead = put_lease(ledger, host=host_name(), pid=dead_pid(), age=0)
    link = lease_module._link

    def others_act_first(draft: Path, path: Path) -> None:
        assert path.name == "lease.2.json"
        dead.unlink()
        put_lease(ledger, host=host_name(), pid=os.getpid(), age=0, name=now_held)
        link(draft, path)

    monkeypatch.setattr(lease_module, "_link", others_act_first)
    assert ledger.acquire("a") is None
    assert [path.name for path in ledger.folder("a").iterdir()] == [now_held]


def test_the_heartbeat_keeps_a_lease_alive_and_notices_a_takeover(tmp_path):
    with Ledger(tmp_path, heartbeat=0.02, stale=60) as ledger:
        lease = ledger.acquire("a")
        os.utime(lease.path, (0, 0))
        deadline = time.monotonic() + 5
        while lease.path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - lease.path.stat().st_mtime < 10
        assert not ledger.is_lost(lease)
        lease.path.write_text(json.dumps({"token": "of another runner", "host": "x", "pid": 1}))
        while not ledger.is_lost(lease) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ledger.is_lost(lease)
        ledger.write_record(lease, FAILED)
        assert [path.name for path in ledger.folder("a").iterdir()] == ["lease.json"]  # the other's, untouched
        (ledger.folder("a") / "record.json").write_text(json.dumps(FINISHED))
        ledger.discard_record(lease)
        assert ledger.record("a") == FINISHED  # the other's, too


def test_a_heart_that_cannot_beat_gives_its_lease_up_before_others_may_take_it(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(116, "stale file handle")

    with Ledger(tmp_path, heartbeat=0.02, stale=60) as patient, Ledger(tmp_path, heartbeat=0.02, stale=0.2) as hasty:
        kept, lost = patient.acquire("a"), hasty.acquire("b")
        monkeypatch.setattr(os, "utime", fail)
        deadline = time.monotonic() + 5
        while not hasty.is_lost(lost) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert hasty.is_lost(lost)
        assert not patient.is_lost(kept)


def test_a_lease_that_was_given_back_is_neither_kept_alive_nor_lost(ledger):
    beat = Heartbeat(0.01, 60.0)
    lease = ledger.acquire("a")
    beat.add(lease)
    beat.remove(lease)
    ledger.release(lease)
    time.sleep(0.05)
    assert not beat.lost(lease)
    assert beat.close() == []


def test_a_release_takes_the_guard_along(ledger):
    lease = ledger.acquire("a")
    lease.guard.write_text("{}")
    ledger.release(lease)
    assert list(ledger.folder("a").iterdir()) == []
    assert ledger._heartbeat.close() == []


def test_a_lease_given_back_while_it_is_read_holds_nothing(ledger, monkeypatch):
    path = put_lease(ledger, host="x", pid=1, age=0)
    monkeypatch.setattr(lease_module, "_read", lambda path: path.unlink(missing_ok=True))
    assert not ledger.is_held("a")
    assert not path.exists()


def test_a_kill_while_a_folder_is_cleared_leaves_no_record_without_its_files(ledger, monkeypatch):
    folder = ledger.folder("a")
    for number in range(8):  # whatever the order of the listing
        (folder / f"part{number}").mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(FAILED))
    there = []

    def killed(_: Path) -> None:
        there.append((folder / "record.json").exists())
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.grid.ledger.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        clear(folder, keep=set())
    assert there == [False]


def test_a_group_has_a_name_that_wandb_takes(tmp_path):
    ledger = Ledger(tmp_path)
    (tmp_path / "suite.yaml").write_text(f"name: {'long' * 100}\n")
    assert len(ledger.group) == 128
    assert ledger.group.startswith("longlong")


def test_what_a_killed_run_left_is_cleared_but_a_late_record_counts(ledger, tmp_path, monkeypatch):
    folder = ledger.folder("a")
    (folder / "checkpoints" / "deep").mkdir(parents=True)
    for name in ("run.log", "checkpoints/deep/x.ckpt", ".lease-x.tmp"):
        (folder / name).write_text("left")
    (tmp_path / "shared").mkdir()
    (folder / "link").symlink_to(tmp_path / "shared")
    ledger.release(ledger.acquire("a"))
    assert list(folder.iterdir()) == []
    assert (tmp_path / "shared").is_dir()

    monkeypatch.setattr(
        "benchmarks.grid.ledger.has_guard",
        lambda folder: write_atomic(folder / "record.json", json.dumps(FINISHED)),
    )
    assert ledger.acquire("a") is None  # the dead runner's run wrote its record at the last moment
    assert ledger.record("a") == FINISHED


def test_a_failed_cell_is_retried_once_among_all_runners(tmp_path):
    with Ledger(tmp_path) as first, Ledger(tmp_path) as second:
        first.write_record(first.acquire("a"), FAILED)
        assert first.acquire("a") is None
        stamps = [first.stamp("a"), second.stamp("a")]
        os.link(first.folder("a") / "record.json", tmp_path / "old")  # or the next record may be given its inode
        lease = first.acquire("a", retry=stamps[0])
        assert first.state("a") == "running"
        first.write_record(lease, FAILED)
        assert second.acquire("a", retry=stamps[1]) is None
        record = first.folder("a") / "record.json"
        os.utime(record, ns=(stamps[1][0], stamps[1][0]))  # of the same moment, as coarse clocks have it
        assert second.acquire("a", retry=stamps[1]) is None
        assert second.acquire("a", retry=second.stamp("a")) is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"format": 1}',
        b'{"format": 1, "status": "done"}',
        b'{"format": 2, "status": "failed"}',
    ],
)
def test_a_damaged_record_is_refused_and_named(ledger, content):
    folder = ledger.folder("a")
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes(content)
    for ask in (ledger.state, ledger.record, ledger.stamp, ledger.acquire):
        with pytest.raises(InputError, match=r"runs/a/record\.json: .*delete .*runs/a to run") as caught:
            ask("a")
        assert "\n" not in str(caught.value)
    assert (folder / "record.json").read_bytes() == content


def test_an_atomic_write_that_fails_leaves_the_old_text(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "old\r\n")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \ud800")
    assert path.read_bytes() == b"old\r\n"
    assert list(tmp_path.iterdir()) == [path]


def test_an_edited_suite_replaces_the_copy_and_another_is_refused(ledger, tmp_path):
    ledger.adopt_suite("tiny", "name: tiny\nv: 1\n")
    ledger.adopt_suite("tiny", "name: tiny\nv: 2\n")
    kept = (tmp_path / "suite.yaml").read_text()
    assert kept.endswith("\nname: tiny\nv: 2\n")
    assert kept.startswith("# a copy; sha256 of the original: ")
    with pytest.raises(InputError, match="holds the suite 'tiny', not 'other'"):
        ledger.adopt_suite("other", "name: other\n")
    for damaged in ("[", "- 1\n", ""):
        (tmp_path / "suite.yaml").write_text(damaged)
        with pytest.raises(InputError, match="choose another --out"):
            ledger.adopt_suite("tiny", "name: tiny\n")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/out: not a folder"):
        Ledger(tmp_path / "file" / "out").adopt_suite("tiny", "name: tiny\n")


def test_no_file_locks_anywhere():
    files = [path for path in Path(benchmarks.__file__).parent.rglob("*.py") if "perf" not in path.parts]
    assert len(files) > 5
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"fcntl", "msvcrt", "filelock"}, path
