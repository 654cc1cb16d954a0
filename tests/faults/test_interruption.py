"""SIGTERM, SIGINT and SLURM's warning: the run ends in order, says so, and goes on exactly where it was."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from callbacks.resume import checkpoints_in
from tests.faults import tally
from tests.faults.trials import Runs, differences, strayed

ACCUMULATED = ["--trainer.accumulate_grad_batches=2", "--trainer.max_steps=10"]
EPOCHS = [
    *("--trainer.max_steps=-1", "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=1"),
    "--trainer.val_check_interval=6",
]
FORMS = [
    pytest.param(signal.SIGTERM, "batch_end", 7, 7, []),
    pytest.param(signal.SIGINT, "validation", 10, 10, []),
    pytest.param(signal.SIGINT, "after_backward", 11, 12, [], marks=pytest.mark.faults),
    pytest.param(signal.SIGTERM, "epoch_end", 6, 6, [], marks=pytest.mark.faults),
    pytest.param(signal.SIGTERM, "validation", 12, 12, ["--trainer.val_check_interval=6"], marks=pytest.mark.faults),
    # After the last step nothing can be saved that Lightning would go on from: the save before it is used.
    pytest.param(signal.SIGTERM, "validation", 20, 18, [], marks=pytest.mark.faults),
    pytest.param(signal.SIGTERM, "batch_end", 4, 4, ACCUMULATED, marks=pytest.mark.faults),
    # A validation between two batches of one step: their gradients are in no checkpoint.
    pytest.param(signal.SIGTERM, "validation", 7, 6, ACCUMULATED, marks=pytest.mark.faults),
    pytest.param(signal.SIGINT, "validation", 12, 12, EPOCHS, marks=pytest.mark.faults),
]


@pytest.mark.parametrize(("signum", "point", "step", "saved", "options"), FORMS)
def test_a_signal_saves_and_leaves(
    runs: Runs, tmp_path: Path, signum: int, point: str, step: int, saved: int, options: list[str]
) -> None:
    whole = runs.uninterrupted("adapter", tmp_path, *options)
    out, log = tmp_path / "stopped", tmp_path / "stopped.log"
    command = runs.command("adapter", out, *options)
    code = runs.warm.run(log, command, trace=str(tmp_path / "a"), point=point, step=step, signum=signum)
    assert code == 128 + signum, log.read_text()
    assert seconds_to_leave(log) < 30
    record = json.loads((out / "record.json").read_text())
    assert record["status"] == "interrupted"
    assert (
        f"by {signal.Signals(signum).name}; saved at step {saved}; the same command with --ckpt_path last"
        in (record["error"])
    )
    assert "metrics" not in record
    code = runs.warm.run(log, command)
    assert code == 2  # not lost by typing the same again
    assert "add --ckpt_path last to continue it, or delete" in log.read_text().splitlines()[-1]
    code = runs.warm.run(log, [*command, "--ckpt_path=last"], trace=str(tmp_path / "b"))
    assert code == 0, log.read_text()
    wrong = strayed(tmp_path / "a", whole) + strayed(tmp_path / "b", whole)
    wrong += differences(out, whole)
    tally.add(f"{signal.Signals(signum).name} at {point} {step}", 1, int(not wrong))
    assert not wrong
    finished = json.loads((out / "record.json").read_text())
    assert finished["guards"]["resumed_at_steps"] == [saved]


def seconds_to_leave(log: Path) -> float:
    """From the signal to the end of the command."""
    found = re.findall(r"left (\S+) s after the signal", log.read_text())
    return float(found[-1])


SCONTROL = """#!/bin/sh
echo "$@" >> "$CALLS"
"""


def test_a_slurm_job_is_run_again_once_and_continues_by_itself(runs: Runs, tmp_path: Path) -> None:
    whole = runs.uninterrupted("adapter", tmp_path)
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    (tools / "scontrol").write_text(SCONTROL)
    (tools / "scontrol").chmod(0o755)
    job = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "CALLS": str(calls),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }
    out, log = tmp_path / "job", tmp_path / "job.log"
    command = runs.command("adapter", out)
    usr1 = int(signal.SIGUSR1)
    code = runs.warm.run(log, command, point="batch_end", step=7, signum=usr1, patches=job)
    assert code == 128 + usr1, log.read_text()
    assert calls.read_text() == "requeue 4711\n"
    code = runs.warm.run(log, command, patches=job | {"SLURM_RESTART_COUNT": "1"})
    assert code == 0, log.read_text()
    assert calls.read_text() == "requeue 4711\n"
    assert not differences(out, whole)
    # A job that its user cancels gets SIGTERM, and is not run again.
    code = runs.warm.run(
        log, runs.command("adapter", tmp_path / "b"), point="batch_end", step=7, signum=15, patches=job
    )
    assert code == 143, log.read_text()
    assert calls.read_text() == "requeue 4711\n"
    assert checkpoints_in(tmp_path / "b" / "resume")
