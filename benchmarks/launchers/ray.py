"""Cells as tasks of a Ray cluster: one that is started here for the grid, or a running one by its address.

The workers need the checkout and its environment at the same path as here, and the results folder: a shared file
system. Ray decides where a cell runs and which GPUs it sees; if this process ends, Ray ends the tasks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.grid.cells import Cell
from benchmarks.launchers import child
from benchmarks.launchers.options import Value
from benchmarks.launchers.remote import Job
from benchmarks.paths import ROOT
from datamodules.contract.errors import InputError

__all__ = ["OPTIONS", "RayScheduler", "ray_cluster"]

OPTIONS: dict[str, type] = {"address": str, "num_cpus": float, "num_gpus": float, "memory": float}
"""`address` of a running cluster (`auto`, `HOST:6379`, `ray://HOST:10001`); the others are for each cell."""


@contextlib.contextmanager
def ray_cluster(options: dict[str, Value], grace: float) -> Iterator[RayScheduler]:
    """Connects to a cluster, or starts one on this machine, and leaves it at the end.

    Raises:
        InputError: There is no cluster at the address, or none whose nodes have what a cell asks for.
    """
    import ray

    address = options.get("address")
    try:
        # The cluster's own messages would tear the progress line; errors still come through.
        ray.init(address=str(address) if address else "local", log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise InputError(f"--launcher ray: no cluster at {address!r} ({' '.join(str(error).split())[:200]})") from error
    try:
        needs = {"num_cpus": float(options.get("num_cpus", 1.0)), "num_gpus": float(options.get("num_gpus", 0.0))}
        if "memory" in options:
            needs["memory"] = float(options["memory"]) * 2**30
        _check_room(ray.nodes(), needs)
        yield RayScheduler(needs, grace)
    finally:
        ray.shutdown()


class RayScheduler:
    """Gives cells to the cluster that this process is connected to."""

    jobs_survive = False
    answers_late = False

    def __init__(self, needs: dict[str, float], grace: float) -> None:
        import ray

        ray.cloudpickle.register_pickle_by_value(child)
        # A lost node is seen by the grid, which looks at the results folder before it tries again.
        self._run = ray.remote(max_retries=0, **needs)(child.run)
        self._grace = grace

    def submit(self, cell: Cell, command: Sequence[str]) -> Job:
        """Gives a cell to the cluster, with the command that runs it."""
        process = child.CellProcess(command, str(ROOT), self._grace + 5.0)
        return _RayJob(self._run.options(name=cell.name).remote(process))


class _RayJob:
    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def ended(self) -> str | None:
        import ray

        ready, _ = ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            code = ray.get(self._reference)
        except ray.exceptions.RayError as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return f"exit code {code}" if code else ""

    def cancel(self, *, force: bool = False) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.cancel(self._reference, force=force)


def _check_room(nodes: list[dict[str, Any]], needs: dict[str, float]) -> None:
    """A task that fits no node would wait for ever."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(has.get(names[key], 0.0) >= amount for key, amount in needs.items()) for has in alive):
        most = {key: max((has.get(names[key], 0.0) for has in alive), default=0.0) for key in needs}
        asked = ", ".join(f"{key}={_shown(key, amount)}" for key, amount in needs.items())
        there = ", ".join(f"{key}={_shown(key, amount)}" for key, amount in most.items())
        raise InputError(f"--launcher ray: no node has {asked} for a cell; the most of each is {there}")


def _shown(key: str, amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB" if key == "memory" else f"{amount:g}"
