"""Edges of the metrics that no other test held: each case here is a change of one line that every other test let pass."""

from __future__ import annotations

import math

import pytest
import torch

from recmodels.metrics.binary import BinaryMetrics, expected_calibration_error, log_loss
from recmodels.metrics.ranking import RankingMetrics, ndcg
from recmodels.metrics.rating import RatingMetrics


@pytest.mark.parametrize("metric", [RankingMetrics(cutoffs=(1, 2)), RatingMetrics()])
def test_sums_stay_exact_sums_over_processes(metric: RankingMetrics | RatingMetrics) -> None:
    for name, state in metric.metric_state.items():
        assert state.dtype == torch.float64, name
        assert metric._reductions[name](torch.stack([state + 1, state + 2])).flatten()[0].item() == 3.0


def test_probabilities_of_all_processes_are_pooled() -> None:
    metric = BinaryMetrics()
    for name in ("probability", "label"):
        assert metric._reductions[name]([torch.zeros(2), torch.ones(3)]).tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_rating_values_by_name() -> None:
    metric = RatingMetrics()
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 2.0]))
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == {"rmse": math.sqrt(4.5), "mse": 4.5, "mae": 1.5, "cases": 2.0}


def test_sure_and_wrong_is_finite_at_both_ends() -> None:
    p, label = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([1, 0])
    below, above = (log_loss(p[[k]], label[[k]]).item() for k in (0, 1))
    assert 30 < below < 40  # as sklearn, which clips at the spacing of float64: 36.04
    assert above == pytest.approx(below, rel=0.01)


@pytest.mark.parametrize(("p", "wrong"), [([0.0, 1.0, 1.5], "1.5"), ([1.0, 0.0, -0.25], "-0.25")])
def test_the_probability_that_is_none_is_named(p: list[float], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        log_loss(torch.tensor(p), torch.tensor([0, 1, 0]))


def test_the_label_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"\b3\b"):
        log_loss(torch.tensor([0.2, 0.3, 0.4]), torch.tensor([0, 1, 3]))


def test_calibration_is_told_over_ten_bins() -> None:
    p = torch.linspace(0.005, 0.995, 100, dtype=torch.float64)
    label = (torch.arange(100) % 3 == 0).long()
    assert expected_calibration_error(p, label).item() == expected_calibration_error(p, label, 10).item()
    assert expected_calibration_error(p, label).item() != expected_calibration_error(p, label, 11).item()


def test_one_class_has_no_auc_and_one_positive_has() -> None:
    metric = BinaryMetrics()
    metric.update(torch.tensor([0.3, 0.6]), torch.tensor([0, 0]))
    values = metric.compute()
    assert math.isnan(values["auc"].item())
    assert values["accuracy"].item() == 0.5
    metric.update(torch.tensor([0.9]), torch.tensor([1]))
    assert metric.compute()["auc"].item() == 1.0


def test_no_cases_have_no_values() -> None:
    with pytest.warns(UserWarning, match="was called before"):
        values = BinaryMetrics().compute()
    assert values["cases"].item() == values["positives"].item() == 0
    assert math.isnan(values["auc"].item())


def test_relevant_items_outside_the_list_count_in_the_mean() -> None:
    scores, relevance = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1, 0, 0]])
    metric = RankingMetrics(cutoffs=(2,))
    metric.update(scores, relevance, None, torch.tensor([2]))
    ideal = 1 + 1 / math.log2(3)
    assert metric.compute()["ndcg@2"].item() == pytest.approx(1 / ideal)
    assert ndcg(scores, relevance, 2, None, torch.tensor([2])).item() == pytest.approx(1 / ideal)


def test_padding_makes_no_list_longer(caplog: pytest.LogCaptureFixture) -> None:
    scores, relevance = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1, 0, 0]])
    metric = RankingMetrics(cutoffs=(1, 2))
    metric.update(scores, relevance, torch.tensor([[True, True, False]]))
    values = metric.compute()
    assert "cut-offs [2] are left out" in caplog.text
    assert "hr@1" in values
    assert "hr@2" not in values


def test_retrieved_lists_stand_for_all_candidates() -> None:
    metric = RankingMetrics(cutoffs=(2,))
    metric.update(torch.tensor([[3.0, 2.0]]), torch.tensor([[1, 0]]), candidates=torch.tensor([50]))
    assert metric.compute()["hr@2"].item() == 1.0


def test_one_long_list_among_short_ones_keeps_the_cut_off() -> None:
    metric = RankingMetrics(cutoffs=(2,))
    metric.update(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1, 0, 0]]))
    metric.update(torch.tensor([[3.0, 2.0]]), torch.tensor([[1, 0]]))
    assert metric.compute()["hr@2"].item() == 1.0


def test_nobody_seen_leaves_no_cut_off_out_and_users_only_skipped_do() -> None:
    metric = RankingMetrics(cutoffs=(1,))
    with pytest.warns(UserWarning, match="was called before"):
        assert "hr@1" in metric.compute()
    metric.reset()
    metric.update(torch.tensor([[3.0]]), torch.tensor([[0]]))
    values = metric.compute()
    assert "hr@1" not in values
    assert values["skipped_users"].item() == 1
