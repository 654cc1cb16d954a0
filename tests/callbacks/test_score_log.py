"""Scores come back in case order, whatever the batches were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.runs.folder import user_metrics
from callbacks.score_log import ScoreLog, best_branches
from recmodels import Popularity
from recmodels.base import CaseScores


@given(
    order=st.permutations(range(7)), cut=st.integers(1, 7), sizes=st.lists(st.integers(1, 4), min_size=7, max_size=7)
)
def test_columns_are_in_case_order(order: list[int], cut: int, sizes: list[int]) -> None:
    log = ScoreLog()
    for begin in range(0, 7, cut):
        cases = order[begin : begin + cut]
        owner = [row for row, case in enumerate(cases) for _ in range(sizes[case])]
        items = [10 * case + branch for case in cases for branch in range(sizes[case])]
        outputs = SimpleNamespace(
            case=torch.tensor(cases),
            branch_case=torch.tensor(owner),
            branch_item=torch.tensor(items),
            score=torch.tensor(items).float() / 7,
            relevance=torch.tensor([float(item % 10 == 0) for item in items]),
            candidates=torch.tensor([100 + case for case in cases]),
            total_relevant=torch.tensor([1 + case for case in cases]),
            answers="candidates",
        )
        outputs.by_rule = lambda found=outputs: {"": found}
        log.on_test_batch_end(None, None, outputs, None, 0)  # type: ignore[arg-type]
    columns = log.columns()
    assert columns["case"].tolist() == list(range(7))
    assert columns["case_start"].diff().tolist() == sizes
    assert columns["item"].tolist() == [10 * case + branch for case in range(7) for branch in range(sizes[case])]
    assert torch.equal(columns["score"], columns["item"].float() / 7)
    assert columns["relevance"].sum() == 7
    assert columns["candidates"].tolist() == list(range(100, 107))
    assert columns["total_relevant"].tolist() == list(range(1, 8))


def long_lists(seed: int) -> CaseScores:
    """Three lists of 5, 7 and 6 branches with equal scores among them; one relevant branch each."""
    owner = torch.tensor([0] * 5 + [1] * 7 + [2] * 6)
    generator = torch.Generator().manual_seed(seed)
    relevance = torch.zeros(18)
    relevance[[3, 8, 12]] = 1.0
    scored = CaseScores(
        case=torch.tensor([2, 0, 1]),
        branch_case=owner,
        branch_item=torch.arange(18),
        score=torch.randint(4, (18,), generator=generator).float(),
        relevance=relevance,
        candidates=torch.bincount(owner),
        total_relevant=torch.ones(3, dtype=torch.long),
        answers="candidates",
        tokens=0,
    )
    return replace(scored, metrics=user_metrics(owner, vars(scored), (1, 3)))


@pytest.mark.parametrize("seed", range(20))
def test_long_lists_are_measured_whole_and_kept_in_part(seed: int) -> None:
    scored = long_lists(seed)
    whole, short = ScoreLog(), ScoreLog(longest=6, kept=2)
    for log in (whole, short):
        log.on_test_batch_end(None, None, scored, None, 0)  # type: ignore[arg-type]
    columns = whole.columns()
    owner = torch.arange(3).repeat_interleave(columns["case_start"].diff())
    measured = short.measured()
    assert measured is not None
    assert whole.measured() is None
    for name, value in user_metrics(owner, columns, (1, 3)).items():
        assert torch.equal(measured[name], value), name
    kept = short.columns()
    assert kept["case_start"].tolist() == [0, 2, 4, 6]
    assert kept["candidates"].tolist() == columns["candidates"].tolist()
    for case in range(3):
        best = columns["score"][columns["case_start"][case] : columns["case_start"][case + 1]].sort(descending=True)
        assert kept["score"][2 * case : 2 * case + 2].tolist() == best.values[:2].tolist()


@pytest.mark.parametrize("first", ["long", "short"])
def test_where_lists_differ_in_length_every_case_has_its_metrics(first: str) -> None:
    """As in a catalogue of just the limit's size, of which users have seen more or less."""
    batches = {"long": long_lists(3), "short": best_branches(long_lists(4), 4)}
    batches["short"] = replace(batches["short"], case=torch.tensor([5, 3, 4]))
    log = ScoreLog(longest=6, kept=2)
    for name in (first, *(set(batches) - {first})):
        log.on_test_batch_end(None, None, batches[name], None, 0)  # type: ignore[arg-type]
    measured = log.measured()
    if first == "short":  # then all are kept
        assert measured is None
        assert log.columns()["case_start"].tolist() == [0, 7, 13, 18, 22, 26, 30]
    else:
        assert measured is not None
        assert {len(values) for values in measured.values()} == {6}
        assert log.columns()["case_start"].tolist() == [0, 2, 4, 6, 8, 10, 12]


def test_no_list_is_shorter_than_it_was() -> None:
    kept = best_branches(long_lists(1), 6)
    assert torch.bincount(kept.branch_case).tolist() == [5, 6, 6]


def test_the_metrics_a_model_hands_over_are_what_the_scores_give() -> None:
    scored = replace(long_lists(2), metrics={})

    class Given(Popularity):
        def score_cases(self, batch: Any) -> CaseScores:
            return scored

    model = Given(cutoffs=(3, 1))
    for _ in range(2):  # of the last batch alone
        handed = model.test_step(None, 0).metrics  # type: ignore[arg-type]
    for name, value in user_metrics(scored.branch_case, vars(scored), (1, 3)).items():
        assert torch.equal(handed[name], value), name
    assert model.test_ranking.compute()["users"] == 6


@pytest.mark.filterwarnings("ignore")
def test_a_run_with_long_lists_stores_the_same_metrics(mini_data: Path, tmp_path: Path) -> None:
    """The same run with its lists kept whole and kept in part."""
    configs, stored = Path(__file__).parents[2] / "configs", {}
    sheets = [configs / "model" / "popularity.yaml", configs / "data" / "ml_100k_full.yaml"]
    for name in ("whole", "part"):
        words = [word for sheet in sheets for word in ("-c", str(sheet))]
        assert main(["fit", *words, "--trainer.logger=false", "--out", str(tmp_path / name)]) == 0
        with np.load(tmp_path / name / "scores.npz") as archive:
            stored[name] = {key: archive[key] for key in archive.files}
        told = (tmp_path / name / "config.yaml").read_text()
        sheets = [tmp_path / "shorter.yaml"]
        sheets[0].write_text(told.replace("longest: 4096", "longest: 5").replace("kept: 100", "kept: 3"))
    whole, part = stored["whole"], stored["part"]
    for name in ("user", "hr@1", "hr@10", "ndcg@5", "mrr", "candidates", "total_relevant"):
        np.testing.assert_array_equal(whole[name], part[name], err_msg=name)
    assert (np.diff(part["case_start"]) == 3).all()
    assert len(whole["score"]) > len(part["score"])
