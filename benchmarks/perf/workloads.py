"""What our training and its peers train on: the same windows, drawn by the seed, and the same adapters and rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.perf.setting import Pair, Setting, answered
from datamodules import MovieLens100K

RANK, ALPHA, LEARNING_RATE = 8, 16, 1e-3
NO_CLIP = 1e9  # the norm is computed and compared on every side, and never reached, so gradients stay comparable


@dataclass(frozen=True)
class Workload:
    """What is trained on.

    Attributes:
        task: task form of the template.
        targets: of one window, so examples that share a history.
        windows: of one optimiser step.
        shared: whether all of a window's examples have the history before its first target.
    """

    task: Literal["matching", "like"]
    targets: int
    windows: int
    shared: bool = False


# Growing histories take longer steps: one of 32 examples took us 1.9 to 2.6 s by itself and 2.2 to 3.0 s between the peers'
# turns, too short for three of them to tell.
WORKLOADS: Mapping[str, Workload] = {
    "titles": Workload("matching", targets=8, windows=4, shared=True),
    "pointwise": Workload("like", targets=8, windows=4, shared=True),
    "windows": Workload("matching", targets=8, windows=8),
    "single": Workload("matching", targets=1, windows=16),
}


@dataclass(frozen=True)
class DrawnWindows:
    """The keys of the windows of each optimiser step; step 0 warms up, and one small step more is for float32."""

    data: MovieLens100K
    steps: list[list[tuple[int, int]]]

    def examples(self, step: int) -> list[Pair]:
        """The step's examples as the peers read them, longest first, so that rows of like length share a batch."""
        slates = [s for epoch, window in self.steps[step] for s in self.data.slates.training(window, epoch)]
        return sorted(answered(self.data, slates), key=lambda pair: -len(pair[0]) - len(pair[1]))


def draw_windows(setting: Setting, workload: Workload) -> DrawnWindows:
    """Full windows with as much history as there can be, drawn by the seed."""
    targets = min(3, workload.targets) if setting.quick else workload.targets
    data = setting.data(workload.task, targets=targets, shared=workload.shared)
    windows, start = data.slates.windows, data.sequences.start
    shown = windows.first - start[windows.user]
    whole = (windows.last - windows.first == targets) & (
        shown >= setting.history + (0 if workload.shared else 1 - targets)
    )
    count = min(2, workload.windows) if setting.quick else setting.part(workload.windows)
    drawn = setting.draw([int(i) for i in np.flatnonzero(whole)], count * (setting.repetitions + 1) + 1)
    steps = [drawn[begin : begin + count] for begin in range(0, len(drawn), count)]
    return DrawnWindows(data, [[(0, window) for window in step] for step in steps])
