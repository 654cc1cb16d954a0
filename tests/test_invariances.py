"""What must not change a result, over the whole way from the files to the metrics; golden losses hold the rest.

Batch size, workers, padding side, order of candidates and any increasing transform of scores change nothing; a scorer
that always prefers what stands first is at chance.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config
from torch import Tensor

import recmodels
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from recmodels.base import Recommender
from recmodels.metrics import ranking as metrics
from recmodels.metrics.ranking import pad_branches
from tests.datamodules.options import grouped

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
REASON = os.environ.get("INSTRUCTREC_GOLDEN_REASON", "")
"""Set to the reason why the losses changed, the golden file is written anew and the reason kept in it."""
TRAINED = sorted(
    name
    for name in recmodels.__all__
    if getattr(recmodels, name).trains and getattr(recmodels, name).kind != "reference"
)
NETWORKS = sorted(name for name in recmodels.__all__ if getattr(recmodels, name).kind != "reference")
RANK_METRICS = {
    "hit_rate": metrics.hit_rate,
    "recall": metrics.recall,
    "precision": metrics.precision,
    "reciprocal_rank": metrics.reciprocal_rank,
    "average_precision": metrics.average_precision,
    "ndcg": metrics.ndcg,
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork, where workers are used

Scores = dict[tuple[int, int], float]
Make = Callable[[str], tuple[Recommender, Path]]


@pytest.fixture
def make(mini_data: Path, tiny_causal: Path, tiny_encoder: Path) -> Make:
    def build(name: str) -> tuple[Recommender, Path]:
        cls = getattr(recmodels, name)
        folder = tiny_encoder if cls.batch_format == "tagged_text" else tiny_causal
        torch.manual_seed(3)
        options = {"peft_config": IA3Config()} if name == "PeftTuning" else {}
        model: Recommender = cls(backbone=str(folder), cutoffs=(1, 3, 5), **options)
        model.configure_model()
        model.log = lambda *a, **k: None  # type: ignore[method-assign]
        return model, folder

    return build


def data_of(model: Recommender, folder: Path, **options: Any) -> MovieLens100K:
    protocol = options.pop("protocol", Protocol(negatives=5))
    made = MovieLens100K(backbone=str(folder), protocol=protocol, **grouped(batch_format=model.batch_format, **options))
    made.setup()
    return made


@torch.no_grad()
def scores(model: Recommender, data: MovieLens100K) -> Scores:
    """Score of every (case, item)."""
    model.eval()
    found: Scores = {}
    for batch in data.test_dataloader():
        case = batch.case[batch.branch_case].tolist()
        found |= dict(zip(zip(case, batch.branch_item.tolist(), strict=True), model.score(batch).tolist(), strict=True))
    assert len(found) == 24 * 6
    return found


def agree(one: Scores, other: Scores, tolerance: float) -> None:
    assert one.keys() == other.keys()
    worst = max(abs(one[key] - other[key]) for key in one)
    assert worst <= tolerance, f"scores differ by {worst:.3g}"


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_size_and_workers_change_no_score(make: Make, name: str) -> None:
    model, folder = make(name)
    expected = scores(model, data_of(model, folder, eval_batch_size=1))
    for size in (3, 8, 32):
        agree(scores(model, data_of(model, folder, eval_batch_size=size)), expected, 2e-5)
    alone = scores(model, data_of(model, folder, eval_batch_size=4))
    for workers in (1, 2):
        agree(scores(model, data_of(model, folder, eval_batch_size=4, num_workers=workers)), alone, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tokenizers_padding_side_changes_no_score(make: Make, name: str, tmp_path: Path) -> None:
    model, folder = make(name)
    found = []
    for side in ("left", "right"):
        copy = Path(shutil.copytree(folder, tmp_path / side))
        settings = json.loads((copy / "tokenizer_config.json").read_text()) | {"padding_side": side}
        (copy / "tokenizer_config.json").write_text(json.dumps(settings))
        data = data_of(model, copy)
        found.append(scores(model, data))
    agree(*found, 0)


def permuted(data: MovieLens100K, seed: int) -> MovieLens100K:
    """The same cases, with each one's candidates in another order."""
    rng = np.random.default_rng(seed)
    sequences = data.sequences
    assert sequences.test.candidates is not None
    candidates = rng.permuted(sequences.test.candidates, axis=1)
    assert not np.array_equal(candidates, sequences.test.candidates)
    data._sequences = replace(sequences, test=replace(sequences.test, candidates=candidates))
    data.slates.sequences = data._sequences
    return data


@torch.no_grad()
def measured(model: Recommender, data: MovieLens100K) -> dict[str, float]:
    model.eval()
    model.test_ranking.reset()
    for number, batch in enumerate(data.test_dataloader()):
        model.test_step(batch, number)
    return {name: float(value) for name, value in model.test_ranking.compute().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_order_of_candidates_changes_no_result(make: Make, name: str) -> None:
    """Of a model that is shown one candidate at a time; where it reads their list, the list's order is its input."""
    model, folder = make(name)
    one, other = data_of(model, folder), permuted(data_of(model, folder), 0)
    if model.batch_format == "tagged_text":
        assert set(scores(model, one)) == set(scores(model, other))
        return
    agree(scores(model, one), scores(model, other), 2e-5)
    before, after = measured(model, one), measured(model, other)
    assert before == pytest.approx(after, abs=1e-9)


class First(Recommender):
    """Prefers what stands first."""

    batch_format = "interactions"
    trains = False

    def forward(self, batch: Any) -> Tensor:
        return -torch.arange(len(batch.branch_case), dtype=torch.float64)


class Constant(First):
    """Likes all alike."""

    def forward(self, batch: Any) -> Tensor:
        return torch.full((len(batch.branch_case),), 0.3)


@pytest.mark.parametrize("task", ["matching", "reranking"])
def test_preferring_the_first_candidate_is_chance(mini_data: Path, tmp_path: Path, task: Any) -> None:
    hits = cases = 0
    for seed in range(40):
        data = data_of(First(), tmp_path, protocol=Protocol(negatives=5, seed=seed), task=task)
        found = measured(First(cutoffs=(1,)), data)
        hits, cases = hits + round(found["hr@1"] * 24), cases + 24
    chance = 1 / 6
    assert abs(hits / cases - chance) < 4 * sqrt(chance * (1 - chance) / cases)


@pytest.mark.parametrize("negatives", [1, 5, 19])
def test_a_constant_scorer_gets_exactly_k_of_n(mini_data: Path, tmp_path: Path, negatives: int) -> None:
    cutoffs = tuple(k for k in (1, 3, 5, 10) if k <= negatives)
    data = data_of(Constant(), tmp_path, protocol=Protocol(negatives=negatives))
    found = measured(Constant(cutoffs=cutoffs), data)
    for k in cutoffs:
        assert found[f"hr@{k}"] == pytest.approx(k / (negatives + 1), abs=1e-12)
    assert found["tie_rate"] == 1


@given(
    table=st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=8), min_size=1, max_size=4),
    steps=st.lists(st.floats(1e-3, 1e6), min_size=7, max_size=7),
    start=st.floats(-1e6, 1e6),
    k=st.integers(1, 8),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_any_increasing_transform_changes_nothing(
    table: list[list[int]], steps: list[float], start: float, k: int, data: st.DataObject
) -> None:
    image = np.cumsum([start, *steps])[1:]
    assert (np.diff(image) > 0).all()
    owner = torch.tensor([row for row, values in enumerate(table) for _ in values])
    flat = torch.tensor([float(v) for values in table for v in values])
    moved = torch.tensor([image[v + 3] for values in table for v in values])
    gain = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=len(flat), max_size=len(flat))))
    before, mask = pad_branches(flat.double(), owner, len(table), 0.0)
    after, _ = pad_branches(moved, owner, len(table), 0.0)
    relevance, _ = pad_branches(gain, owner, len(table), 0.0)
    for name, metric in RANK_METRICS.items():
        one, other = metric(before, relevance, k, mask), metric(after, relevance, k, mask)
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=name)


def losses(model: Recommender, folder: Path) -> list[float]:
    """Losses of six optimiser steps in float32 without dropout."""
    data = data_of(model, folder, batch_size=2, targets_per_window=3)
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.01)
    model.train()
    found = []
    for number, batch in zip(range(6), data.train_dataloader(), strict=False):
        loss = model.training_step(batch, number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(round(float(loss.detach()), 6))
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_losses_are_what_they_were(make: Make, name: str) -> None:
    """A refactor shows the same numbers; where they must change, the reason is written beside them."""
    model, folder = make(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = losses(model, folder)
    assert len(set(found)) == len(found), "nothing is learnt"
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"tolerance": 1e-3, "reasons": {}, "losses": {}}
    if REASON:
        golden["losses"][name], golden["reasons"][name] = found, REASON
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    told = (
        f"{name} has no golden losses, or others; if that is meant: INSTRUCTREC_GOLDEN_REASON='...' pytest {__file__}"
    )
    assert found == pytest.approx(golden["losses"].get(name, []), rel=golden["tolerance"]), told


def test_every_golden_loss_is_of_a_model_that_there_is() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(golden["losses"]) == set(golden["reasons"]) == set(TRAINED)
    assert golden["tolerance"] <= 1e-3
