"""Runs comparisons: every side in its own process, turns interleaved, results compared before any time is believed."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.perf.measure import Comparison, Side, SideResult, Turn, Values, agreements, speed_up
from benchmarks.perf.setting import Precision, Setting
from callbacks.cost_meter import peak_memory
from datamodules.contract.errors import InputError

MakeSide = Callable[[Setting], Side]


class Inline:
    """A side in this process: no memory of its own can be measured."""

    def __init__(self, make: MakeSide, setting: Setting) -> None:
        setting.apply()
        self.side = make(setting)

    def prepare(self) -> None:
        """Lets the side choose its settings."""
        self.side.prepare()

    def turn(self, repetition: int) -> Turn:
        """One repetition."""
        return self.side.turn(repetition)

    def finish(self) -> tuple[Values, dict[str, int], dict[str, Any]]:
        """Values in float32, no memory, and the configuration."""
        return exact_values(self.side), {}, self.side.config


class Spawned:
    """A side in a fresh process that waits between its turns."""

    def __init__(self, make: MakeSide, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(make, setting, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def prepare(self) -> None:
        """Waits until the side is loaded, then lets it choose its settings."""
        self._answer()
        self.connection.send("prepare")
        self._answer()

    def turn(self, repetition: int) -> Turn:
        """One repetition."""
        self.connection.send(repetition)
        answer: Turn = self._answer()
        return answer

    def finish(self) -> tuple[Values, dict[str, int], dict[str, Any]]:
        """Values in float32, memory and configuration; ends the process."""
        self.connection.send(None)
        answer: tuple[Values, dict[str, int], dict[str, Any]] = self._answer()
        self.process.join(timeout=60)
        return answer

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    def _answer(self) -> Any:
        try:
            kind, answer = self.connection.recv()
        except EOFError:
            self.process.join(timeout=60)
            raise RuntimeError(f"the side's process ended with exit code {self.process.exitcode}") from None
        if kind == "wrong input":
            raise InputError(answer)
        if kind == "failed":
            raise RuntimeError(answer)
        return answer


def serve(make: MakeSide, setting: Setting, connection: Connection) -> None:
    """The spawned process: makes the side, then takes turns until told to finish."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        setting.apply()
        side = make(setting)
        baseline = present_memory(setting)
        connection.send(("done", None))
        connection.recv()  # sides load together, but choose their settings one after the other
        side.prepare()
        forget_peak(setting)
        connection.send(("done", None))
        while (repetition := connection.recv()) is not None:
            connection.send(("done", side.turn(repetition)))
        memory = {"baseline_bytes": baseline, "peak_bytes": peak_memory()}
        connection.send(("done", (exact_values(side), memory, side.config)))
    except InputError as error:
        connection.send(("wrong input", str(error)))
    except Exception as error:
        connection.send(("failed", f"{error!r}\n{traceback.format_exc()}"))


def _end_with_parent() -> None:
    """A side whose run was killed would go on to the end of its turn, beside the next run's."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def exact_values(side: Side) -> Values:
    """What a small part of the work gives in float32; nothing where every turn was in float32."""
    return {} if side.setting.precision == "float32" else side.exact()


def present_memory(setting: Setting) -> int:
    """Bytes this process holds now: of the CUDA allocator on a GPU, else resident."""
    if setting.device == "cuda":
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def forget_peak(setting: Setting) -> None:
    """Restarts the high-water mark, so that loading and trials do not count; Linux and CUDA only."""
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5")


Say = Callable[[str], None]


def run_comparison(comparison: Comparison, setting: Setting, say: Say, *, one_process: bool) -> dict[str, Any]:
    """Measures one comparison.

    Returns:
        What the JSON holds: each side's times, memory and configuration, speed-ups over each peer with their targets,
        and how far the sides' results are apart.

    Raises:
        DisagreementError: the sides computed different things.
        RuntimeError: a side failed.
    """
    workers: dict[str, Inline | Spawned] = {}
    try:
        say(f"{comparison.name}: loading {', '.join(comparison.sides)}")
        for name, make in comparison.sides.items():
            workers[name] = Inline(make, setting) if one_process else Spawned(make, setting)
        for name, worker in workers.items():
            worker.prepare()
            say(f"{comparison.name}: {name} is ready")
        turns: dict[str, list[Turn]] = {name: [] for name in workers}
        for repetition in range(setting.repetitions + 1):
            for name, worker in workers.items():
                turn = worker.turn(repetition)
                turns[name].append(turn)
                label = f"turn {repetition} of {setting.repetitions}" if repetition else "warm-up"
                say(f"{comparison.name}: {label}, {name} {turn.seconds:.2f} s")
        finished = {name: worker.finish() for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            if isinstance(worker, Spawned):
                worker.stop()
    return judged(comparison, turns, finished, setting.precision)


def judged(
    comparison: Comparison,
    turns: dict[str, list[Turn]],
    finished: dict[str, tuple[Values, dict[str, int], dict[str, Any]]],
    precision: Precision = "bfloat16",
) -> dict[str, Any]:
    """Compares what the sides computed in their turns and, `finished`, in float32; then their times."""
    first = {name: made[0].values for name, made in turns.items()}
    measured = agreements(comparison.rules, first, precision, exact=precision == "float32")
    if precision != "float32":
        exact = {name: values for name, (values, _, _) in finished.items()}
        measured += agreements(comparison.rules, exact, "float32", exact=True)
    for agreement in measured:
        agreement.check()
    results = {
        name: SideResult([t.seconds for t in made[1:]], made[0].count, *finished[name][1:])
        for name, made in turns.items()
    }
    ours, *peers = results
    return {
        "title": comparison.title,
        "unit": comparison.unit,
        "ours": ours,
        "sides": {name: result.as_json() for name, result in results.items()},
        "speed_up": {
            peer: speed_up(results[ours], results[peer]) | {"target": comparison.targets[peer]} for peer in peers
        },
        "agreement": [asdict(agreement) for agreement in measured],
    }
