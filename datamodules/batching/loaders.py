"""What stands between slates and the trainer: loaders that say how long they were waited for, and what they call.

Everything here is small and free of the trainer, so that worker processes start by fork and by spawn alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.batching.predict_file import Request
from datamodules.contract.batch import Batch
from datamodules.contract.errors import InputError
from datamodules.instructions.slates import Ints, Slate, SlateMaker
from datamodules.protocol.sequences import Cases


class WindowSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, window) in an order that depends on the seed and the epoch alone.

    Windows of like length share a batch, so little is padded; batches come in random order.

    Args:
        sizes: `[W]` estimated tokens of each window.
        batch_size: windows a batch.
        seed: of the order.
        rank: of this process; each takes every `processes`-th batch of the one order.
        processes: that train together. Batches left over when they do not divide are dropped, so that all take as
            many steps.
        start: epoch, and batches of it that this process has trained on; a continued run begins there.
    """

    def __init__(
        self,
        sizes: Ints,
        batch_size: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        self.sizes, self.batch_size, self.seed, self.epoch = sizes, batch_size, seed, start[0]
        self.rank, self.processes, self.start = rank, processes, start

    @property
    def sampler(self) -> WindowSampler:
        """Itself: Lightning looks for `set_epoch` here, never at the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's order; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches of this process in a whole epoch."""
        return -(-len(self.sizes) // self.batch_size) // self.processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields the epoch's batches, in the first epoch of a continued run those that are left."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.sizes))
        pool = 50 * self.batch_size
        batches: list[Ints] = []
        for begin in range(0, len(order), pool):
            chunk = order[begin : begin + pool]
            chunk = chunk[np.argsort(self.sizes[chunk], kind="stable")]
            batches += [chunk[i : i + self.batch_size] for i in range(0, len(chunk), self.batch_size)]
        mine = rng.permutation(len(batches))[: len(self) * self.processes][self.rank :: self.processes]
        for index in mine[self.start[1] if self.epoch == self.start[0] else 0 :]:
            yield [(self.epoch, int(window)) for window in batches[index]]


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


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are computed: this changes speed and memory, never scores.

    Attributes:
        eval_batch_size: test cases a batch.
        row_tokens: tokens that attention handles at once: a run of whole trees, or a packed row of an encoder.
        num_workers: processes that prepare batches; 0 prepares them in the main process.
    """

    eval_batch_size: int = 8
    row_tokens: int = 128
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Refuses sizes that hold nothing."""
        check_least(1, eval_batch_size=self.eval_batch_size, row_tokens=self.row_tokens)
        check_least(0, num_workers=self.num_workers)


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
    """Batches of numbers of frozen cases, each under several rules of candidates: slates of one group, hence of one prompt.

    Rules that list candidates and rules that rank the catalogue make batches of different kinds, so they are passes of
    their own: number `n` means case `n % U` in pass `n // U`.

    Attributes:
        slates: makes the slates of cases.
        passes: for each pass the cases `[U]` by rule, "" for the main one.
        collate: makes batches.
    """

    slates: SlateMaker
    passes: tuple[dict[str, Cases], ...]
    collate: Collator

    def __call__(self, keys: Sequence[int]) -> Batch:
        """The batch of some cases."""
        return self.collate([self._group(key) for key in keys])

    def _group(self, key: int) -> list[Slate]:
        number, case = divmod(key, len(next(iter(self.passes[0].values()))))
        return [replace(self.slates.evaluation(cases, case), rule=rule) for rule, cases in self.passes[number].items()]


def passes_of(by_rule: dict[str, Cases]) -> tuple[dict[str, Cases], ...]:
    """Cases by rule, parted into those that list candidates and those that rank the catalogue; no part is empty."""
    parts = [{rule: c for rule, c in by_rule.items() if (c.candidates is None) == whole} for whole in (False, True)]
    return tuple(part for part in parts if part)


def batches_within(cases: int, passes: int, size: int) -> dict[str, Any]:
    """Options of a loader whose batches hold `size` keys, and none cases of two passes.

    Example:
        >>> batches_within(cases=3, passes=1, size=2), batches_within(cases=3, passes=2, size=2)
        ({'batch_size': 2}, {'batch_sampler': [[0, 1], [2], [3, 4], [5]]})
    """
    if passes == 1:
        return {"batch_size": size}
    ends = [(number + 1) * cases for number in range(passes)]
    starts = [(begin, end) for end in ends for begin in range(end - cases, end, size)]
    return {"batch_sampler": [list(range(begin, min(begin + size, end))) for begin, end in starts]}


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
