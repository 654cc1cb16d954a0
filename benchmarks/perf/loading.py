"""Whether the loader keeps up with the model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.perf.compare import Say
from benchmarks.perf.scoring import quiet_trainer
from benchmarks.perf.setting import Setting
from benchmarks.perf.training import OurSteps, OurTraining

TARGET = 0.05
"""Largest share of a step's time that may be spent waiting for data."""


class Clocked:
    """A loader that counts the seconds its user waits for the next batch.

    Args:
        loader: the data module's own.
        batches: after which it ends.
    """

    def __init__(self, loader: Iterable[Any], batches: int) -> None:
        self.loader, self.batches = loader, batches
        self.waited = 0.0

    def __iter__(self) -> Iterator[Any]:
        """Passes the batches on."""
        source = iter(self.loader)
        for _ in range(self.batches):
            began = time.perf_counter()
            batch = next(source)
            self.waited += time.perf_counter() - began
            yield batch


def run_loading(setting: Setting, say: Say) -> dict[str, Any]:
    """Trains some steps on the data module's own loader, then makes batches alone.

    Returns:
        `wait_fraction` with its target, and `instructions_per_second_per_core` and `tokens_per_second_per_core`:
        what one core samples, renders, encodes and lays out.
    """
    setting.apply()
    side = OurTraining(setting, kind="windows")
    data = side.work.data
    loader = data.train_dataloader()
    steps = OurSteps(setting)
    clocked = Clocked(loader, 2 if setting.quick else 6)
    trainer = quiet_trainer(setting, max_epochs=1, callbacks=[steps])
    trainer.fit(side.model, train_dataloaders=clocked)
    fraction = clocked.waited / steps.seconds

    source, made, tokens = iter(loader), 0, 0
    next(source)
    began = time.perf_counter()
    for _ in range(2 if setting.quick else 200):
        batch = next(source)
        made, tokens = made + len(batch.case), tokens + batch.tokens_unshared
    seconds = time.perf_counter() - began
    say(f"loading: {fraction:.2%} of a step waits for data; {made / seconds:.0f} instructions a second and core")
    return {
        "wait_fraction": fraction,
        "target": TARGET,
        "workers": data.num_workers,
        "instructions_per_second_per_core": made / seconds,
        "tokens_per_second_per_core": tokens / seconds,
    }
