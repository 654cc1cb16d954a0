"""The Ray and SLURM launchers: a real local Ray cluster, submitit's local jobs, and a stand-in for SLURM's commands."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from benchmarks.__main__ import main
from benchmarks.grid.ledger import Ledger
from benchmarks.launchers import choose_launcher
from benchmarks.launchers.one_cell import NOT_DONE, command_for
from benchmarks.paths import CHECKOUT
from datamodules.contract.errors import InputError
from tests.benchmarks.launchers.fake_runs import FAKE, fake_prefix, is_alive, make_cells, records, said, wait_for

OPTIONS = {"ray": [], "slurm": ["cluster=local"]}

RUNNER = """
import dataclasses, json, sys
from pathlib import Path
from benchmarks.launchers import choose_launcher
from benchmarks.grid.ledger import Ledger
from tests.benchmarks.launchers.fake_runs import fake_prefix, make_cells
root, name, options, given = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
launcher = dataclasses.replace(choose_launcher(name, options=given), prefix=fake_prefix(root), grace=3.0)
with Ledger(root) as ledger:
    summary = launcher.run(make_cells(root, options), ledger)
print(json.dumps(dataclasses.asdict(summary)))
"""


@pytest.fixture(params=["ray", "slurm"])
def launcher(request):
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[request.param])
    return request.param


@pytest.fixture
def root(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    return tmp_path


def run_here(root, launcher, options, *given, **settings):
    chosen = choose_launcher(launcher, options=[*OPTIONS[launcher], *given])
    events = []
    with Ledger(root) as ledger:
        cells = make_cells(root, options)
        chosen = dataclasses.replace(chosen, prefix=fake_prefix(root), grace=3.0)
        summary = chosen.run(cells, ledger, on_event=events.append, **settings)
    return summary, events


def start(root: Path, launcher: str, options: dict[str, tuple[str, ...]], **environment: str) -> subprocess.Popen[str]:
    given = [] if environment else OPTIONS[launcher]
    command = [sys.executable, "-c", RUNNER, str(root), launcher, json.dumps(options), json.dumps(given)]
    return subprocess.Popen(command, cwd=CHECKOUT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)


def summary_of(runner: subprocess.Popen[str]) -> dict[str, list[str]]:
    out, _ = runner.communicate(timeout=120)
    return json.loads(out.splitlines()[-1])


def test_cells_end_as_with_the_local_launcher(root, launcher):
    options = {name: ("--seconds=0", f"--do={name}") for name in ("finish", "crash", "report-failure", "garbage")}
    options["preempted"] = ("--seconds=0", "--do=preempted")
    summary, events = run_here(root, launcher, options)
    assert set(summary.finished) == {"finish", "preempted"}
    assert set(summary.failed) == {"crash", "report-failure", "garbage"}
    errors = {name: json.loads(text)["error"] for name, text in records(root).items()}
    assert errors["crash"] == "exit code 3; ValueError: loss is NaN"
    assert errors["report-failure"] == "no data"
    assert "not a record" in errors["garbage"]
    assert Counter(said(root, "start")) == {name: 1 + (name == "preempted") for name in options}
    assert said(root, "continued") == ["preempted"]  # the next job of an interrupted run goes on with it
    assert not list(root.glob("runs/*/lease*"))
    told = [event.cell.name for event in events if event.kind in ("finished", "failed")]
    assert sorted(told) == sorted(options)

    options["crash"] = ("--seconds=0",)
    again, _ = run_here(root, launcher, options, retry_failed=True)
    assert set(again.skipped) == {"finish", "preempted"}
    assert again.finished == ("crash",)
    assert set(again.failed) == {"report-failure", "garbage"}
    assert Counter(said(root, "start"))["finish"] == 1


def test_a_cell_that_another_runner_holds_is_left_to_it(root, launcher):
    with Ledger(root) as other:
        lease = other.acquire("a")

        def finish(event):
            if event.kind == "tick" and event.elsewhere:
                other.write_record(lease, {"format": 1, "status": "finished", "error": None})

        chosen = dataclasses.replace(choose_launcher(launcher, options=OPTIONS[launcher]), prefix=fake_prefix(root))
        with Ledger(root) as ledger:
            summary = chosen.run(make_cells(root, {"a": ()}), ledger, on_event=finish)
    assert summary.skipped == ("a",)
    assert said(root, "start") == []


def test_ray_ends_its_runs_on_a_signal_and_when_the_runner_is_killed(root):
    pytest.importorskip("ray")
    options = {"slow": ("--seconds=60", "--do=record-on-signal")}
    runner = start(root, "ray", options)
    wait_for(lambda: said(root, "ready") == ["slow"] and (root / "pid-slow").exists())
    runner.send_signal(signal.SIGTERM)
    summary = summary_of(runner)
    assert summary["stopped_by"] == signal.SIGTERM
    assert not is_alive(int((root / "pid-slow").read_text()))
    assert records(root) == {}

    runner = start(root, "ray", options)
    wait_for(lambda: said(root, "ready") == ["slow", "slow"])
    pid = int((root / "pid-slow").read_text())
    runner.kill()
    runner.communicate()
    wait_for(lambda: not is_alive(pid))
    summary, _ = run_here(root, "ray", {"slow": ("--seconds=0",)})
    assert summary.finished == ("slow",)
    assert said(root, "overlap") == said(root, "dirty") == []


@pytest.mark.parametrize("told", [True, False])
def test_a_cell_whose_worker_goes_away_leaves_no_record(root, told):
    """A worker that goes after its signal, before the cell has ended: its record of failure once stayed as a result."""
    slow = FAKE.replace('record("failed", "interrupted")', 'record("failed", "interrupted"); time.sleep(1)')
    (root / "fake.py").write_text(slow)
    (cell,) = make_cells(root, {"slow": ("--seconds=60", "--do=record-on-signal")})
    command = command_for(cell, root, prefix=fake_prefix(root), retry=None, grace=10.0)
    runner = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE)
    wait_for(lambda: said(root, "ready") == ["slow"])
    if told:
        runner.send_signal(signal.SIGTERM)
        wait_for(lambda: (root / "runs" / "slow" / "record.json").exists())
    runner.stdin.close()
    assert runner.wait(60) in (NOT_DONE, -signal.SIGTERM)  # the second signal may find its work done
    assert records(root) == {}
    assert not is_alive(int((root / "pid-slow").read_text()))
    assert not list(root.glob("runs/*/lease*"))


def test_slurm_jobs_outlive_their_runner_and_are_not_repeated(root):
    pytest.importorskip("submitit")
    options = {"slow": ("--seconds=3",)}
    runner = start(root, "slurm", options)
    wait_for(lambda: said(root, "start") == ["slow"])
    runner.send_signal(signal.SIGTERM)
    assert summary_of(runner)["left_running"] == ["slow"]
    summary, _ = run_here(root, "slurm", options)
    assert summary.skipped == ("slow",)
    assert said(root, "start") == ["slow"]


def test_a_preempted_job_saves_and_is_requeued(root):
    pytest.importorskip("submitit")
    (root / "fake.py").write_text(
        FAKE.replace("record-on-signal", "preempted-by-signal")
        .replace(
            'record("failed", "interrupted")',
            'record("interrupted", "by SIGTERM"); os.makedirs(out + "/resume", exist_ok=True);'
            ' open(out + "/resume/step-00000001.ckpt", "w").close()',
        )
        .replace('say("ready")', 'options["seconds"] = 0 if sys.argv[-1] == "last" else 60; say("ready")')
    )
    runner = start(root, "slurm", {"slow": ("--do=preempted-by-signal",)})
    wait_for(lambda: said(root, "ready") == ["slow"])
    workers = [p for p in psutil.process_iter(["cmdline"]) if _is_submitit_task(p, root)]
    assert len(workers) == 1
    workers[0].send_signal(signal.SIGUSR2)  # what SLURM sends before it takes the node away
    summary = summary_of(runner)
    assert summary["finished"] == ["slow"]
    assert said(root, "start") == ["slow", "slow"]
    log = next((root / "jobs").glob("*/*_log.out")).read_text() + next((root / "jobs").glob("*/*_log.err")).read_text()
    assert "Requeued job" in log
    assert len(list((root / "jobs").glob("*/*_submitted.pkl"))) == 1  # the same job, not another one
    assert said(root, "overlap") == said(root, "dirty") == []


def _is_submitit_task(process: psutil.Process, root: Path) -> bool:
    words = process.info["cmdline"] or []
    return "submitit.core._submit" in words and any(str(root) in word for word in words)


SBATCH = """#!/bin/sh
cp "$1" "$FAKE_SLURM/script-$$"
echo "Submitted batch job $$"
"""
SACCT = """#!/bin/sh
: > "$FAKE_SLURM/asked"
printf 'JobID|State|NodeList\\n'
for script in "$FAKE_SLURM"/script-*; do printf '%s|PENDING|\\n' "${script##*-}"; done
"""


def test_a_queued_job_is_found_again_and_the_script_asks_for_what_was_asked(root):
    pytest.importorskip("submitit")
    bin_folder = root / "bin"
    bin_folder.mkdir()
    for name, text in {"sbatch": SBATCH, "sacct": SACCT, "srun": "#!/bin/sh\n"}.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "FAKE_SLURM": str(root)}
    runner = start(root, "slurm", {"a": ()}, **environment)
    wait_for(lambda: (root / "jobs" / "a.json").exists())
    runner.send_signal(signal.SIGINT)
    assert summary_of(runner)["left_running"] == ["a"]
    (root / "asked").unlink(missing_ok=True)
    runner = start(root, "slurm", {"a": ()}, **environment)
    wait_for(lambda: (root / "asked").exists())
    (root / "runs" / "a").mkdir(parents=True)  # the job's turn: SLURM goes on saying that it waits
    whole = root / "runs" / "a" / "whole.json"  # as runs do: nobody may read half a record
    whole.write_text('{"format": 1, "status": "finished", "error": null}')
    whole.replace(whole.with_name("record.json"))
    assert summary_of(runner)["finished"] == ["a"]
    scripts = list(root.glob("script-*"))
    assert len(scripts) == 1, "a queued cell was submitted again"
    text = scripts[0].read_text()
    assert "--signal=USR2@120" in text
    assert "--time=60" in text


@pytest.mark.parametrize(
    ("launcher", "settings", "message"),
    [
        ("slurm", {"options": ["partitoin=gpu"]}, "slurm has no option 'partitoin'; nearest: partition"),
        ("slurm", {"options": ["timeout_min=soon"]}, "timeout_min is a whole number, got 'soon'"),
        ("slurm", {"options": ["timeout_min"]}, "KEY=VALUE is needed, got 'timeout_min'"),
        ("ray", {"options": ["num_gpus=-1"]}, "num_gpus is at least 0 and finite"),
        ("ray", {"options": ["num_cpus=1", "num_cpus=2"]}, "num_cpus is given twice"),
        ("ray", {"gpus": [0]}, "--gpus is for --launcher local.*num_gpus=1"),
        ("local", {"options": ["num_gpus=1"]}, "local has no option 'num_gpus'; it takes none"),
        ("local", {"processes": 0}, "--processes: at least 1, got 0"),
    ],
)
def test_wrong_options_are_one_line(launcher, settings, message):
    with pytest.raises(InputError, match=message) as refused:
        choose_launcher(launcher, **settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_whose_package_is_missing_says_how_to_get_it(launcher, package, monkeypatch, capsys, tmp_path):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert main(["benchmark", "no.yaml", "--out", str(tmp_path / "out"), "--launcher", launcher]) == 2
    error = capsys.readouterr().err.strip()
    assert f"pip install 'instructrec[{launcher}]'" in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_schedulers_that_cannot_run_a_cell_are_refused(root, monkeypatch):
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match="cluster is slurm or local, got 'lsf'"):
        choose_and_run(root, "slurm", "cluster=lsf")
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(InputError, match="no sbatch on"):
        choose_and_run(root, "slurm")
    monkeypatch.undo()
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="no node has num_cpus=1, num_gpus=100 for a cell; the most of each is"):
        choose_and_run(root, "ray", "num_gpus=100")


def choose_and_run(root: Path, launcher: str, *options: str) -> None:
    with Ledger(root) as ledger:
        choose_launcher(launcher, options=options).run(make_cells(root, {"a": ()}), ledger)
