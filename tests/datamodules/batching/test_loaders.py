"""Loaders: the same batches with any workers, counts that survive them, waiting that is measured, flat memory."""

from __future__ import annotations

import pickle
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from datamodules.batching.loaders import Keys, TimedLoader
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from tests.datamodules.options import grouped


def data_of(backbone: Path, **options: Any) -> MovieLens100K:
    made = MovieLens100K(backbone=str(backbone), protocol=Protocol(negatives=7), **grouped(**options))
    made.setup("fit")
    return made


def equal(one: Sequence[Any], other: Sequence[Any]) -> bool:
    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return len(one) == len(other) and all(
        type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
        for a, b in zip(one, other, strict=True)
    )


def three_loaders(data: MovieLens100K) -> list[list[Any]]:
    return [list(data.train_dataloader()), list(data.val_dataloader()), list(data.test_dataloader())]


@pytest.mark.parametrize(("task", "context"), [("matching", 80), ("like", 170)])
def test_workers_make_the_same_batches_and_counts(
    mini_data: Path, with_context: Callable[[int], Path], task: Any, context: int
) -> None:
    backbone = with_context(context)
    apart = three_loaders(data_of(backbone, task=task))
    together = three_loaders(data_of(backbone, task=task, num_workers=2))

    for one, other in zip(apart, together, strict=True):
        assert equal(one, other)
        assert 0 < sum(batch.truncated for batch in one) < sum(len(batch.case) for batch in one)


@pytest.mark.parametrize("backbone", ["tiny_causal", pytest.param("tiny_encoder", marks=pytest.mark.slow)])
def test_spawned_workers_make_the_same_batches(mini_data: Path, backbone: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(backbone)
    data = data_of(folder, batch_format="prompt_tree" if backbone == "tiny_causal" else "tagged_text")
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    loader = data.test_dataloader()
    assert isinstance(loader, TimedLoader)
    spawned = TimedLoader(
        waited={},
        stage="test",
        dataset=loader.dataset,
        collate_fn=loader.collate_fn,
        batch_size=loader.batch_size,
        num_workers=1,
        multiprocessing_context="spawn",
    )

    assert equal(list(spawned), list(loader))


def test_what_workers_get_holds_neither_trainer_nor_titles_tokens(mini_data: Path, tiny_causal: Path) -> None:
    data = data_of(tiny_causal)
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for loader in (data.train_dataloader(), data.test_dataloader()):
        raw = pickle.dumps(loader.collate_fn)
        assert b"lightning" not in raw
    titles = data.collator.slates.titles  # type: ignore[union-attr]
    assert titles.file.path is not None
    assert len(pickle.dumps(titles)) < 3000


def test_waiting_is_counted_by_stage(mini_data: Path, tiny_causal: Path) -> None:
    data = data_of(tiny_causal)
    began = time.perf_counter()
    list(data.train_dataloader())
    spent = time.perf_counter() - began

    assert list(data.waited) == ["train"]
    assert 0.3 * spent < data.waited["train"] <= spent
    before = dict(data.waited)
    for _ in data.val_dataloader():
        time.sleep(0.05)  # a step is no waiting
    assert data.waited["train"] == before["train"]
    assert data.waited["validation"] < 0.05 * len(data.val_dataloader())


def test_a_batch_that_cannot_be_made_is_an_error_and_counted() -> None:
    def broken(keys: Any) -> Any:
        raise ValueError("cannot be made")

    waited: dict[str, float] = {}
    with pytest.raises(ValueError, match="cannot be made"):
        list(TimedLoader(waited=waited, stage="train", dataset=Keys([1]), collate_fn=broken))
    assert waited["train"] > 0


def test_memory_stays_flat_over_epochs(mini_data: Path, with_context: Callable[[int], Path]) -> None:
    data = data_of(with_context(170), task="like")

    def epoch(number: int) -> int:
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(number)  # type: ignore[union-attr]
        for _ in loader:
            pass
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        epoch(0)
        first = epoch(1)
        assert max(epoch(number) for number in range(2, 6)) - first < 50_000
    finally:
        tracemalloc.stop()
