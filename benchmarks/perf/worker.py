"""Where a side runs: in a process of its own, whose peak memory is its own, or in this one."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from benchmarks.perf.measure import Side, Turn, Values
from benchmarks.perf.setting import Setting
from callbacks.cost_meter import peak_memory
from datamodules.sources import InputError

MakeSide = Callable[[Setting], Side]


class Worker(Protocol):
    """Runs one side."""

    def prepare(self) -> None:
        """Lets the side choose its settings."""

    def turn(self, repetition: int) -> Turn:
        """One repetition."""

    def finish(self) -> tuple[Values, dict[str, int], dict[str, Any]]:
        """Values in float32 where the run has another precision, memory and configuration; the worker is gone then."""


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
        made: Turn = self._answer()
        return made

    def finish(self) -> tuple[Values, dict[str, int], dict[str, Any]]:
        """Values in float32, memory and configuration; ends the process."""
        self.connection.send(None)
        made: tuple[Values, dict[str, int], dict[str, Any]] = self._answer()
        self.process.join(timeout=60)
        return made

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
