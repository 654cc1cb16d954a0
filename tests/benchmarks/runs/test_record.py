"""What a run's record says is what its scores, its checkpoint and its data say."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.runs.folder import score_arrays
from callbacks.cost_meter import CostMeter
from callbacks.score_log import ScoreLog
from datamodules.contract.checkpoints import read_checkpoint
from recmodels.base import CaseScores
from tests.benchmarks.runs.tiny_runs import STEPS


@pytest.fixture(scope="module")
def record(tiny_run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tiny_run / "record.json").read_text())
    return found


@pytest.fixture(scope="module")
def scores(tiny_run: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(tiny_run / "scores.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_metrics_are_those_of_the_stored_scores(
    tiny_run: Path, record: dict[str, Any], scores: dict[str, np.ndarray[Any, Any]]
) -> None:
    assert record["scores_sha256"] == hashlib.sha256((tiny_run / "scores.npz").read_bytes()).hexdigest()
    untied = 0
    for user, (begin, end) in enumerate(zip(scores["case_start"][:-1], scores["case_start"][1:], strict=True)):
        score, relevance = scores["score"][begin:end], scores["relevance"][begin:end]
        assert scores["candidates"][user] == end - begin == 7
        assert relevance.sum() == scores["total_relevant"][user] == 1
        if len(set(score.tolist())) < len(score):
            continue  # what ties are worth is the metrics' own test
        untied += 1
        rank = 1 + int((score > score[relevance > 0][0]).sum())
        assert scores["mrr"][user] == pytest.approx(1 / rank)
        for k in (1, 3, 5):
            assert scores[f"hr@{k}"][user] == (rank <= k)
            assert scores[f"ndcg@{k}"][user] == pytest.approx((rank <= k) / np.log2(rank + 1))
    assert untied > 12
    for name in ("hr@1", "hr@3", "hr@5", "ndcg@3", "mrr"):
        assert record["metrics"][f"test/{name}"] == pytest.approx(scores[name].mean(), abs=1e-6)


def test_samples_are_cases_of_the_test_best_first(
    record: dict[str, Any], scores: dict[str, np.ndarray[Any, Any]], titles: list[str]
) -> None:
    assert len(record["samples"]) == 5
    for sample in record["samples"]:
        case = scores["user"].tolist().index(sample["user"])
        begin, end = scores["case_start"][case : case + 2]
        order = begin + np.argsort(-scores["score"][begin:end], kind="stable")
        assert [answer["score"] for answer in sample["ranking"]] == pytest.approx(scores["score"][order], abs=1e-4)
        assert [answer["relevant"] for answer in sample["ranking"]] == (scores["relevance"][order] > 0).tolist()
        assert {answer["title"] for answer in sample["ranking"]} <= set(titles)
        assert sample["prompt"]


def test_facts_are_those_of_the_raw_file(scores: dict[str, np.ndarray[Any, Any]], data_root: Path) -> None:
    lines = (data_root / "ml-100k" / "ml-100k.inter").read_text().splitlines()[1:]
    events = Counter(line.split("\t")[0] for line in lines)
    assert scores["history"].tolist() == [events[user] - 1 for user in scores["user"].tolist()]
    assert scores["popularity"].sum() == len(lines) - 2 * len(events)  # all but the last two of each user
    for user, (begin, end) in enumerate(zip(scores["case_start"][:-1], scores["case_start"][1:], strict=True)):
        assert scores["item"][begin:end][scores["relevance"][begin:end] > 0].tolist() == [scores["target"][user]]


def test_costs_are_those_of_the_model(tiny_run: Path, record: dict[str, Any]) -> None:
    costs, last = record["costs"], tiny_run / "checkpoints" / "last.ckpt"
    trained = read_checkpoint(last)["state_dict"]
    weights = sum(value.numel() for value in trained.values())
    assert costs["trainable_parameters"] == weights < costs["total_parameters"]
    assert costs["trained_bytes"] == 4 * weights
    assert costs["checkpoint_bytes"] == last.stat().st_size
    assert costs["optimizer_state_bytes"] == 2 * 4 * weights + 4 * len(trained)  # two moments, and a step a tensor
    assert costs["train_steps"] == STEPS
    assert costs["train_flops"] == costs["train_flops_per_token"] * costs["train_tokens"]
    assert costs["train_tokens_unshared"] > costs["train_tokens"] > 0
    assert costs["test_cases_per_second"] == pytest.approx(24 / costs["test_seconds"], rel=0.05)
    assert 0 < costs["best_validation_seconds"] <= costs["train_seconds"] + costs["validation_seconds"]


@pytest.mark.parametrize(("mode", "best"), [("max", 5.0), ("min", 3.0)])
def test_the_best_validation_is_the_monitored_one(mode: str, best: float) -> None:
    meter, seconds = CostMeter(), {0.5: 1.0, 0.1: 3.0, 0.9: 5.0, 0.3: 7.0}
    for value, spent in seconds.items():
        meter._seconds = {"train": spent - 0.5, "validation": 0.5, "test": 99.0}
        meter._compare(
            SimpleNamespace(  # type: ignore[arg-type]
                checkpoint_callback=SimpleNamespace(monitor="val/x", mode=mode),
                callback_metrics={"val/x": torch.tensor(value), "val/quality": torch.tensor(0.0)},
                state=SimpleNamespace(fn="fit"),
            )
        )
    meter._steps = 1
    assert meter.costs()["best_validation_seconds"] == best


def answered(score: list[list[float]], relevant: list[int], items: list[int], answers: str) -> ScoreLog:
    """A log of cases that each have the same few answers."""
    cases, width = len(score), len(score[0])
    relevance = torch.zeros(cases, width)
    relevance[torch.arange(cases), torch.tensor(relevant)] = 1.0
    log = ScoreLog()
    scored = CaseScores(
        case=torch.arange(cases),
        branch_case=torch.arange(cases).repeat_interleave(width),
        branch_item=torch.tensor(items * cases),
        score=torch.tensor(score).flatten(),
        relevance=relevance.flatten(),
        candidates=torch.full((cases,), width),
        total_relevant=torch.ones(cases, dtype=torch.long),
        answers=answers,  # type: ignore[arg-type]
        tokens=0,
    )
    log.on_test_batch_end(None, None, scored, None, 0)  # type: ignore[arg-type]
    return log


def test_answers_in_words_are_stored_as_probability_and_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.runs.folder.fact_arrays", lambda *_: {})
    data: Any = SimpleNamespace(user_of=lambda stage, case: f"{stage}{case}")
    log = answered([[1.0, 0.0], [-2.0, 1.0]], [0, 1], [0, 1], "fixed")
    arrays = score_arrays(log, data, (1,))
    assert arrays["user"].tolist() == ["test0", "test1"]
    assert arrays["probability"] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(3))])
    assert arrays["label"].tolist() == [1, 0]
    assert "mse" not in arrays


def test_ratings_are_stored_as_errors_of_the_expected_rating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.runs.folder.fact_arrays", lambda *_: {})
    data: Any = SimpleNamespace(user_of=lambda stage, case: case)
    log = answered([[0.0, 0.0, 1.0], [3.0, 0.0, 0.0]], [2, 1], [0, 1, 2], "ratings")
    arrays = score_arrays(log, data, (1,))
    weights = [np.exp([0, 0, 1]) / np.exp([0, 0, 1]).sum(), np.exp([3, 0, 0]) / np.exp([3, 0, 0]).sum()]
    errors = [weights[0] @ [1, 2, 3] - 3, weights[1] @ [1, 2, 3] - 2]
    assert arrays["mse"] == pytest.approx(np.square(errors))
    assert arrays["mae"] == pytest.approx(np.abs(errors))
    assert "label" not in arrays
