"""Cells as SLURM jobs through submitit, or as its local jobs on a machine without SLURM.

Jobs go on when the runner ends, and a later runner finds them: queued ones by the job ids in `DIR/jobs`, running
ones by their leases. A job that is preempted or reaches its time limit saves, asks SLURM for its next turn, and goes
on from there. The compute nodes need the checkout, its environment and the results folder at the same path as here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.grid.cells import Cell
from benchmarks.launchers import child
from benchmarks.launchers.options import Value
from benchmarks.launchers.remote import Job
from benchmarks.paths import ROOT
from datamodules.contract.errors import InputError
from datamodules.contract.files import write_atomic

__all__ = ["OPTIONS", "SlurmScheduler"]

OPTIONS: dict[str, type] = {
    "cluster": str,
    "timeout_min": int,
    "mem_gb": float,
    "cpus_per_task": int,
    "gpus_per_node": int,
    **dict.fromkeys(("partition", "account", "qos", "constraint", "exclude", "nodelist", "gres", "comment"), str),
    "signal_delay_s": int,
}
"""`cluster` is `slurm` or `local`; the others are submitit's, for each cell. A cell is one task on one node."""

_SHARED = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")  # what submitit's local jobs take too
_TURNS = 1000  # times a job may reach its time limit and go on; the run's own number of steps ends it
_SIGNAL_DELAY = 120  # seconds between SLURM's warning and the kill: time to save
_ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED", "COMPLETING")


class SlurmScheduler:
    """Submits cells; jobs, their logs and ids go into `jobs` of the results folder.

    Raises:
        InputError: This machine has no SLURM, or an option's value is refused.
    """

    jobs_survive = True

    def __init__(self, root: Path, options: dict[str, Value], grace: float) -> None:
        import cloudpickle
        import submitit

        cloudpickle.register_pickle_by_value(child)
        self._submitit = submitit
        self._folder = root / "jobs"
        self._grace = grace
        self._cluster = str(options.get("cluster", "slurm"))
        _check_cluster(self._cluster)
        self.answers_late = self._cluster == "slurm"
        asked: dict[str, Value] = {"timeout_min": 60, "signal_delay_s": _SIGNAL_DELAY} | options
        asked.pop("cluster", None)
        if self._cluster == "local":  # what is SLURM's own means nothing here
            asked = {key: value for key, value in asked.items() if key in _SHARED}
        names = {key if key in _SHARED else f"slurm_{key}": value for key, value in asked.items()}
        turns: dict[str, Any] = {f"{self._cluster}_max_num_timeout": _TURNS}
        try:
            self._executor = submitit.AutoExecutor(self._folder / "%j", cluster=self._cluster, **turns)
            self._executor.update_parameters(name="instructrec", **names)
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"--launcher slurm: {' '.join(str(error).split())[:300]}") from error

    def submit(self, cell: Cell, command: Sequence[str]) -> Job:
        """Submits a cell, or finds the job that an earlier runner submitted and that still waits or runs."""
        note = self._folder / f"{cell.name}.json"
        if self._cluster == "slurm" and (job := self._find(note)) is not None:
            return _SlurmJob(job)
        process = child.CellProcess(command, str(ROOT), self._grace + 5.0)
        try:
            job = self._executor.submit(process)
        except (OSError, RuntimeError, self._submitit.core.utils.FailedJobError) as error:
            raise InputError(f"--launcher slurm: sbatch: {' '.join(str(error).split())[:300]}") from error
        write_atomic(note, json.dumps({"job_id": job.job_id}))
        return _SlurmJob(job)

    def _find(self, note: Path) -> Any:
        try:
            number = str(json.loads(note.read_text(encoding="utf-8"))["job_id"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        job = self._submitit.SlurmJob(folder=self._folder / "%j", job_id=number)
        return job if _state(job, force=True) in _ALIVE else None


class _SlurmJob:
    def __init__(self, job: Any) -> None:
        self._job = job

    def ended(self) -> str | None:
        if not self._job.done():
            return None
        log = self._job.paths.stderr
        text = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
        last = text.splitlines()[-1][:300] if text else "no log"
        return f"job {self._job.job_id} {_state(self._job)}; {last}"

    def cancel(self, *, force: bool = False) -> None:
        del force
        self._job.cancel(check=False)


def _state(job: Any, *, force: bool = False) -> str:
    if force:
        info = job.get_info(mode="force")
        return str(info.get("State", "UNKNOWN")).split()[0]
    return str(job.state)


def _check_cluster(name: str) -> None:
    if name not in ("slurm", "local"):
        raise InputError(f"--launcher-option: cluster is slurm or local, got {name!r}")
    if name == "slurm" and shutil.which("sbatch") is None:
        host = os.uname().nodename
        raise InputError(f"--launcher slurm: no sbatch on {host}; log in to the cluster, or choose --launcher local")
