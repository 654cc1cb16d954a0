"""Where the cells of a grid run: on this machine, on a Ray cluster, or as SLURM jobs."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.grid.cells import Cell
from benchmarks.grid.ledger import Ledger
from benchmarks.grid.progress import Event
from benchmarks.launchers.local import Summary, run_local
from benchmarks.launchers.options import Value, read_options
from benchmarks.paths import PYTHON
from datamodules.contract.errors import InputError

__all__ = ["LAUNCHERS", "Launcher", "Summary", "choose_launcher", "run_local"]

LAUNCHERS = {"local": None, "ray": "ray", "slurm": "submitit"}
"""The launchers, and the package that each needs; it comes with the extra of the launcher's name."""


@dataclass(frozen=True)
class Launcher:
    """A launcher and what the user asked of it.

    Attributes:
        name: `local`, `ray` or `slurm`.
        processes: Cells that run at a time; None: one here, as many as the scheduler takes elsewhere.
        gpus: Devices dealt out to local processes.
        options: What the scheduler is told about every job.
        prefix: What runs in place of the command's first word, `instructrec`.
        grace: Seconds a run has to end after a signal.
    """

    name: str
    processes: int | None = None
    gpus: tuple[str, ...] = ()
    options: dict[str, Value] | None = None
    prefix: tuple[str, ...] = (*PYTHON, "-m", "benchmarks")
    grace: float = 30.0

    def run(
        self,
        cells: Sequence[Cell],
        ledger: Ledger,
        *,
        retry_failed: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> Summary:
        """Runs every cell that is not done.

        Raises:
            InputError: The scheduler cannot be reached or refuses an option, or a record in the folder is damaged.
        """
        if self.name == "local":
            return run_local(
                cells,
                ledger,
                processes=self.processes or 1,
                gpus=self.gpus,
                prefix=self.prefix,
                retry_failed=retry_failed,
                on_event=on_event,
                grace=self.grace,
            )
        from benchmarks.launchers.remote import run_remote

        def run_on(scheduler: object) -> Summary:
            return run_remote(
                cells,
                ledger,
                scheduler,  # type: ignore[arg-type]
                prefix=self.prefix,
                processes=self.processes,
                retry_failed=retry_failed,
                on_event=on_event,
                grace=self.grace,
            )

        if self.name == "ray":
            from benchmarks.launchers.ray import ray_cluster

            with ray_cluster(self.options or {}, self.grace) as scheduler:
                return run_on(scheduler)
        from benchmarks.launchers.slurm import SlurmScheduler

        return run_on(SlurmScheduler(ledger.root, self.options or {}, self.grace))


def choose_launcher(
    name: str, *, processes: int | None = None, gpus: Sequence[int | str] = (), options: Sequence[str] = ()
) -> Launcher:
    """Checks what the user asked for, before anything is read or written.

    Raises:
        InputError: There is no such launcher, its package is not installed, or an option is not for it.

    Example:
        >>> choose_launcher("local", processes=2, gpus=[0, 1]).gpus
        ('0', '1')
        >>> choose_launcher("slurmy")
        Traceback (most recent call last):
        ...
        datamodules.contract.errors.InputError: --launcher: no launcher 'slurmy'; nearest: slurm
    """
    if name not in LAUNCHERS:
        near = difflib.get_close_matches(name, LAUNCHERS, n=1, cutoff=0.0)[0]
        raise InputError(f"--launcher: no launcher {name!r}; nearest: {near}")
    if processes is not None and processes < 1:
        raise InputError(f"--processes: at least 1, got {processes}")
    package = LAUNCHERS[name]
    if package is not None and importlib.util.find_spec(package) is None:
        raise InputError(
            f"--launcher {name} needs {package}, which is not installed: pip install 'instructrec[{name}]'"
        )
    if gpus and name != "local":
        option = "num_gpus=1" if name == "ray" else "gpus_per_node=1"
        raise InputError(f"--gpus is for --launcher local; {name} deals GPUs out itself: --launcher-option {option}")
    return Launcher(name, processes, tuple(map(str, gpus)), read_options(options, _known_options(name), name))


def _known_options(name: str) -> dict[str, type]:
    if name == "ray":
        from benchmarks.launchers.ray import OPTIONS as RAY

        return RAY
    if name == "slurm":
        from benchmarks.launchers.slurm import OPTIONS as SLURM

        return SLURM
    return {}
