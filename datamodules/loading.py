"""What stands between slates and the trainer: loaders that say how long they were waited for, and what they call.

Everything here is small and free of the trainer, so that worker processes start by fork and by spawn alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from datamodules.batch import Batch
from datamodules.protocol import Cases
from datamodules.requests import Request
from datamodules.slates import Slate, SlateMaker
from datamodules.sources import InputError


def check_least(least: int, **numbers: int) -> None:
    """Refuses options of a data module that are too small.

    Raises:
        InputError: a number is below `least`.

    Example:
        >>> check_least(1, batch_size=4)
    """
    for name, value in numbers.items():
        if value < least:
            raise InputError(f"data.{name} is {value}, must be at least {least}")


class Collator(Protocol):
    """Makes a batch of groups of slates."""

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> Batch:
        """Collates groups of slates."""


class Keys(Dataset[Any]):
    """A data set whose samples are their own keys; the collator does the work on whole batches."""

    def __init__(self, keys: Sequence[Any] | None = None) -> None:
        self.keys = keys

    def __len__(self) -> int:
        """Number of keys."""
        return len(self.keys or ())

    def __getitem__(self, key: Any) -> Any:
        """The key at a place, or the key itself where a sampler makes them."""
        return key if self.keys is None else self.keys[key]


class TimedLoader(DataLoader[Any]):
    """A loader that adds up how long its user waited for batches.

    Args:
        waited: seconds by stage; this loader adds to its own.
        stage: name of the stage.
        **options: of `DataLoader`.

    Example:
        >>> waited: dict[str, float] = {}
        >>> loader = TimedLoader(waited=waited, stage="train", dataset=Keys([3, 1, 2]), batch_size=None)
        >>> list(loader), 0 < waited["train"] < 60
        ([3, 1, 2], True)
    """

    def __init__(self, *, waited: dict[str, float], stage: str, **options: Any) -> None:
        self.waited, self.stage = waited, stage
        super().__init__(**options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator serves as well
        """Yields batches; starting worker processes counts as waiting too."""
        began = time.perf_counter()
        source = super().__iter__()
        while True:
            try:
                batch = next(source)
            except StopIteration:
                return
            finally:
                self.waited[self.stage] = self.waited.get(self.stage, 0.0) + time.perf_counter() - began
            yield batch
            began = time.perf_counter()


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of (epoch, window) keys.

    Attributes:
        slates: makes the slates of windows.
        collate: makes batches.
    """

    slates: SlateMaker
    collate: Collator

    def __call__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """The batch of some windows."""
        return self.collate([self.slates.training(window, epoch) for epoch, window in keys])


@dataclass(frozen=True)
class EvaluationBatches:
    """Batches of numbers of frozen cases.

    Attributes:
        slates: makes the slates of cases.
        cases: of one split.
        collate: makes batches.
    """

    slates: SlateMaker
    cases: Cases
    collate: Collator

    def __call__(self, keys: Sequence[int]) -> Batch:
        """The batch of some cases."""
        return self.collate([[self.slates.evaluation(self.cases, case)] for case in keys])


@dataclass(frozen=True)
class RequestBatches:
    """Batches of numbers of requests.

    Attributes:
        requests: new users.
        history: a prompt shows at most so many of a user's latest items.
        collate: makes batches.
    """

    requests: Sequence[Request]
    history: int
    collate: Collator

    def __call__(self, keys: Sequence[int]) -> Batch:
        """The batch of some requests."""
        return self.collate([[self.requests[key].slate(key, self.history)] for key in keys])
