"""The local launcher, on real processes: kills, shared folders, signals, failures.

RUNNER is one runner of a grid, to be killed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.grid.cells import Cell
from benchmarks.grid.ledger import Ledger
from benchmarks.grid.progress import Event
from benchmarks.launchers.local import run_local
from benchmarks.launchers.processes import describe_exit
from benchmarks.paths import CHECKOUT
from datamodules.contract.errors import InputError
from tests.benchmarks.launchers.fake_runs import FAKE, fake_prefix, is_alive, make_cells, records, said, wait_for

RUNNER = """
import json, sys, types
from pathlib import Path
checkout, root, options, processes = sys.argv[1:]
sys.path.insert(0, checkout)
# The class of input errors alone: what else the package exports would load torch in every runner.
sys.modules["datamodules"] = types.ModuleType("datamodules")
sys.modules["datamodules"].__path__ = [checkout + "/datamodules"]

from benchmarks.grid.cells import Cell
from benchmarks.launchers.local import run_local
from benchmarks.grid.ledger import Ledger

assert "torch" not in sys.modules
cells = [
    Cell(name, name, (), ("instructrec", "fit", *extra, "--out", f"{root}/runs/{name}"), name)
    for name, extra in json.loads(options).items()
]
with Ledger(Path(root), heartbeat=0.5) as ledger:
    prefix = (sys.executable, "-I", "-S", f"{root}/fake.py")
    summary = run_local(cells, ledger, processes=int(processes), prefix=prefix, grace=1.0)
sys.exit(1 if summary.stopped_by is not None or summary.failed else 0)
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "runner.py").write_text(RUNNER)
    return tmp_path


def start(root: Path, options: dict[str, tuple[str, ...]], processes: int = 2) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        str(root / "runner.py"),
        str(CHECKOUT),
        str(root),
        json.dumps(options),
        str(processes),
    ]
    return subprocess.Popen(command)


def grid(number: int, seconds: float = 0.1) -> dict[str, tuple[str, ...]]:
    return {f"cell{index}": (f"--seconds={seconds}",) for index in range(number)}


def run_here(root: Path, options: dict[str, tuple[str, ...]], **settings):
    events: list[Event] = []
    with Ledger(root) as ledger:
        cells = make_cells(root, options)
        summary = run_local(cells, ledger, prefix=fake_prefix(root), on_event=events.append, **settings)
    return summary, events


def test_runners_killed_at_random_moments_lose_and_repeat_nothing(root):
    moments = random.Random(7)
    options = grid(12, 0.15)
    before: dict[str, bytes] = {}
    stamps: dict[str, int] = {}
    kills = 0
    while kills < 6 or not stamps:
        begun = len(said(root, "start"))
        runner = start(root, options)
        wait_for(lambda begun=begun, runner=runner: len(said(root, "start")) > begun or runner.poll() is not None)
        assert runner.poll() is None, "the grid ended before the kills did"
        time.sleep(moments.uniform(0.0, 0.4))
        runner.kill()
        runner.wait()
        kills += 1
        now = records(root)
        assert {name: now[name] for name in before} == before
        before = now
        stamps |= {n: (root / "runs" / n / "record.json").stat().st_mtime_ns for n in now if n not in stamps}
    assert start(root, options).wait(60) == 0
    for name, stamp in stamps.items():
        assert (root / "runs" / name / "record.json").stat().st_mtime_ns == stamp
    assert {name: json.loads(text)["score"] for name, text in records(root).items()} == {
        name: sum(name.encode()) for name in options
    }
    assert len(said(root, "start")) > len(options)  # kills hit runs, or this test shows nothing
    assert said(root, "dirty") == []
    assert said(root, "overlap") == []
    left = {path.name for path in root.glob("runs/*/*") if not path.name.startswith(("lease.", "guard-"))}
    assert left == {"record.json", "run.log", "half-written", "threads", "group"}


def test_runners_share_a_folder_and_one_takes_over_from_another_that_dies(root):
    options = grid(10, 0.2)
    runners = [start(root, options, processes=1) for _ in range(3)]
    wait_for(lambda: len(said(root, "start")) >= 4)
    runners[0].kill()
    assert runners[0].wait() == -signal.SIGKILL
    assert [runner.wait(60) for runner in runners[1:]] == [0, 0]
    assert sorted(records(root)) == sorted(options)
    starts = said(root, "start")
    assert len(starts) <= len(options) + 1  # only the cell of the killed runner began twice
    assert said(root, "overlap") == said(root, "dirty") == []


def test_a_killed_runner_takes_its_runs_with_it(root):
    runner = start(root, grid(1, 60))
    wait_for(lambda: (root / "pid-cell0").exists())
    pid = int((root / "pid-cell0").read_text())
    runner.kill()
    runner.wait()
    wait_for(lambda: not is_alive(pid))


@pytest.mark.parametrize(
    ("number", "do"),
    [
        (signal.SIGINT, "finish"),
        (signal.SIGTERM, "finish"),
        (signal.SIGTERM, "record-on-signal"),
        (signal.SIGTERM, "ignore-signals"),
    ],
)
def test_a_signal_stops_the_runs_and_leaves_them_to_be_run_again(root, number, do):
    runner = start(root, {"quick": ("--seconds=0",), "slow": ("--seconds=60", f"--do={do}")}, processes=1)
    wait_for(lambda: said(root, "start" if do == "finish" else "ready")[-1:] == ["slow"])
    wait_for(lambda: (root / "pid-slow").exists())
    runner.send_signal(number)
    assert runner.wait(60) == 1
    assert sorted(records(root)) == ["quick"]
    assert not list(root.glob("runs/slow/*lease*"))
    assert not is_alive(int((root / "pid-slow").read_text()))
    assert start(root, {"quick": (), "slow": ("--seconds=0",)}).wait(60) == 0
    assert said(root, "start") == ["quick", "slow", "slow"]


def test_failures_are_recorded_and_do_not_stop_the_others(root):
    deeds = ("crash", "die", "vanish", "garbage", "report-failure", "finish")
    options = {deed: ("--seconds=0", f"--do={deed}") for deed in deeds}
    summary, events = run_here(root, options, processes=2)
    assert set(summary.failed) == set(deeds) - {"finish"}
    assert summary.finished == ("finish",)
    errors = {name: json.loads(text)["error"] for name, text in records(root).items()}
    damage = errors.pop("garbage")
    assert "record.json: not a record" in damage
    assert errors == {
        "crash": "exit code 3; ValueError: loss is NaN",
        "die": "killed (exit code 137), most often for lack of memory; it printed nothing",
        "vanish": "ended without a record; it printed nothing",
        "report-failure": "no data",
        "finish": None,
    }
    crash = json.loads(records(root)["crash"])
    assert (crash["format"], crash["status"], crash["cell"], crash["name"]) == (1, "failed", "crash", "crash")
    assert crash["labels"] == {"model": "crash"}
    assert "ValueError" in (root / "runs" / "crash" / "run.log").read_text()
    assert {(event.kind, event.error) for event in events if event.cell and event.cell.name == "crash"} == {
        ("started", ""),
        ("failed", errors["crash"]),
    }

    again, _ = run_here(root, options)
    assert (again.finished, again.failed, set(again.skipped)) == ((), (), set(deeds))
    options["crash"] = ("--seconds=0",)
    retried, _ = run_here(root, options, retry_failed=True, processes=2)
    assert retried.finished == ("crash",)
    assert retried.skipped == ("finish",)
    assert said(root, "start").count("finish") == 1


def test_a_run_taken_over_by_another_runner_is_ended_and_left_to_it(root):
    other = {"token": "x", "host": "another host", "pid": 1}
    lease = root / "runs" / "cell0" / "lease.json"
    result = []

    def grid_in_a_thread() -> None:
        with Ledger(root, heartbeat=0.05) as ledger:
            cells = make_cells(root, grid(1, 60))
            result.append(run_local(cells, ledger, prefix=fake_prefix(root)))

    thread = threading.Thread(target=grid_in_a_thread)
    thread.start()
    wait_for(lambda: (root / "pid-cell0").exists())
    lease.write_text(json.dumps(other))
    pid = int((root / "pid-cell0").read_text())
    wait_for(lambda: not is_alive(pid))
    (lease.parent / "record.json").write_text('{"format": 1, "status": "finished", "error": null}')
    thread.join(10)
    assert result[0].skipped == ("cell0",)
    assert json.loads(lease.read_text()) == other


def test_processes_share_cores_and_gpus(root, monkeypatch):
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    run_here(root, grid(4, 0.3), processes=4, gpus=(0, 5))
    seen = [path.read_text() for path in sorted(root.glob("runs/*/threads"))]
    threads = str(max(1, len(os.sched_getaffinity(0)) // 4))
    assert sorted(seen) == sorted(f"{threads} {gpu}" for gpu in (0, 0, 5, 5))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run_here(root, {"own": ("--seconds=0",)})
    assert (root / "runs" / "own" / "threads").read_text() == "7 all"


def test_a_cell_whose_config_was_edited_meanwhile_is_not_run_under_the_old_name(root):
    cell = Cell("a", "a", (), ("instructrec", "--out", f"{root}/runs/a"), "", ((str(root / "fake.py"), "0" * 64),))
    with Ledger(root) as ledger:
        summary = run_local([cell], ledger, prefix=fake_prefix(root))
        assert summary.changed == ("a",)
        assert ledger.state("a") == "waiting"


def test_bad_input_is_refused(root):
    with Ledger(root) as ledger:
        with pytest.raises(InputError, match="--processes: at least 1, got 0"):
            run_local([], ledger, processes=0)
        (root / "runs" / "cell0").mkdir(parents=True)
        (root / "runs" / "cell0" / "record.json").write_text("{")
        with pytest.raises(InputError, match=r"record\.json: not a record"):
            run_local(make_cells(root, grid(1)), ledger, prefix=fake_prefix(root))


def test_a_missing_program_is_a_failure_with_a_reason(root):
    with Ledger(root) as ledger:
        run_local(make_cells(root, grid(1)), ledger, prefix=("/no/such/program",))
        assert "No such file or directory" in ledger.record("cell0")["error"]


def test_the_runs_of_a_grid_are_one_group_in_wandb(root, monkeypatch):
    with Ledger(root) as ledger:
        run_local(make_cells(root, {"a": ()}), ledger, prefix=fake_prefix(root))
        ledger.adopt_suite("ranks", "name: ranks\n")
        run_local(make_cells(root, {"b": ()}), ledger, prefix=fake_prefix(root))
        monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
        run_local(make_cells(root, {"c": ()}), ledger, prefix=fake_prefix(root))
    seen = [path.read_text() for path in sorted(root.glob("runs/*/group"))]
    assert seen == [root.name, f"ranks/{root.name}", "mine"]


@pytest.mark.parametrize(
    ("code", "log", "expected"),
    [
        (1, b"a\r b\x1b[0m \n\n", "exit code 1; b"),
        (-15, b"", "exit code 143; it printed nothing"),
        (137, b"\xff", "killed (exit code 137), most often for lack of memory; \ufffd"),
        (2, b"x" * 5000, "exit code 2; " + "x" * 300),
    ],
)
def test_exits_are_described_in_one_line(code, log, expected):
    assert describe_exit(code, log) == expected


def test_an_interrupted_run_is_no_failure_and_is_continued(root):
    cells = make_cells(root, {"a": ("--do=preempted",), "b": ()})
    with Ledger(root) as ledger:
        first = run_local(cells, ledger, prefix=fake_prefix(root))
        assert (first.finished, first.failed, first.interrupted) == (("b",), (), ("a",))
        assert ledger.is_interrupted("a")
        assert ledger.state("a") == "waiting"
        second = run_local(cells, ledger, prefix=fake_prefix(root))
        assert (second.finished, second.skipped, second.interrupted) == (("a",), ("b",), ())
        assert ledger.state("a") == "finished"
    assert said(root, "continued") == ["a"]
    assert said(root, "dirty") == []  # of what an interrupted run leaves, only what it is continued from stays
