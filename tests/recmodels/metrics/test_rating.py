"""Ratings: the expectation of five answers, its squared error, and the measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recmodels.baselines.simple import Popularity
from recmodels.metrics.rating import RatingMetrics, rating_values
from recmodels.objectives.base import expected_rating, squared_error, training_loss

CASES = st.lists(
    st.tuples(st.lists(st.floats(-20, 20), min_size=5, max_size=5), st.floats(1, 5)), min_size=1, max_size=6
)


def gains(rating: float) -> list[float]:
    return [max(0.0, 1 - abs(rating - stars)) for stars in range(1, 6)]


@given(CASES)
def test_expectation_and_error_are_those_of_numpy(cases: list[tuple[list[float], float]]) -> None:
    score = np.array([scores for scores, _ in cases])
    weight = np.exp(score - score.max(1, keepdims=True))
    expected = (weight / weight.sum(1, keepdims=True)) @ np.arange(1, 6)
    true = np.array([rating for _, rating in cases])

    flat = torch.tensor(score.ravel())
    owner = torch.arange(len(cases)).repeat_interleave(5)
    value = rating_values(torch.arange(5).repeat(len(cases)))
    relevance = torch.tensor([gain for _, rating in cases for gain in gains(rating)])
    np.testing.assert_allclose(expected_rating(flat, owner, value).numpy(), expected, atol=1e-9)
    loss = squared_error(flat, relevance.double(), owner, value)
    # Gains are float32: a rating of 5 may be off by 3e-7, and a square of 4 by eight times that.
    assert loss.item() == pytest.approx(((expected - true) ** 2).mean(), abs=1e-5)

    metric = RatingMetrics()
    for low, high in zip(expected, true, strict=True):
        metric.update(torch.tensor([low]), torch.tensor([high]))
    made = metric.compute()
    assert made["rmse"].item() == pytest.approx(np.sqrt(((expected - true) ** 2).mean()))
    assert made["mae"].item() == pytest.approx(np.abs(expected - true).mean())
    assert made["cases"] == len(cases)


def test_the_gradient_moves_towards_the_rating() -> None:
    score = torch.zeros(5, requires_grad=True)
    owner, value = torch.zeros(5, dtype=torch.long), torch.arange(1.0, 6.0)
    squared_error(score, torch.tensor(gains(5.0)), owner, value).backward()

    assert score.grad is not None
    assert score.grad[4] < 0 < score.grad[0]


def test_answers_without_values_are_refused() -> None:
    ones = torch.ones(2)
    with pytest.raises(ValueError, match=r"use data\.task=rating"):
        training_loss("rating", ones, ones, ones, ones, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("predicted", "true", "reason"),
    [([1.0], [1.0, 2.0], "must both be"), ([float("nan")], [1.0], "NaN or infinite")],
)
def test_what_cannot_be_measured_is_refused(predicted: list[float], true: list[float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RatingMetrics().update(torch.tensor(predicted), torch.tensor(true))


def test_the_checkpoint_is_chosen_by_the_smallest_error() -> None:
    """Checkpoints and searches take the largest `quality`: of ratings that is the negative RMSE."""
    model, logged = Popularity(), dict[str, float]()
    model.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
    model.log_dict = lambda values, **_: logged.update({k: float(v) for k, v in values.items()})  # type: ignore[method-assign]
    found = []
    for error in (0.5, 2.0):
        model.validation_rating.update(torch.tensor([3.0 + error, 3.0 - error]), torch.tensor([3.0, 3.0]))
        model.on_validation_epoch_end()
        assert logged["val/rmse"] == pytest.approx(error)
        found.append(logged["val/quality"])
    assert found[0] > found[1]
    trainer = yaml.safe_load((Path(__file__).parents[3] / "configs/trainer/default.yaml").read_text())["trainer"]
    chosen = next(each for each in trainer["callbacks"] if each["class_path"] == "ModelCheckpoint")["init_args"]
    assert (chosen["monitor"], chosen["mode"]) == ("val/quality", "max")
