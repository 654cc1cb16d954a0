"""Ratings: the measures; the loss is tested with the objectives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recmodels.baselines.simple import Popularity
from recmodels.metrics.rating import RatingMetrics

RATINGS = st.lists(st.tuples(st.floats(1, 5), st.floats(1, 5)), min_size=1, max_size=6)


@given(RATINGS)
def test_errors_are_those_of_numpy(cases: list[tuple[float, float]]) -> None:
    expected, true = np.array(cases).T
    metric = RatingMetrics()
    for low, high in cases:
        metric.update(torch.tensor([low]), torch.tensor([high]))
    made = metric.compute()
    assert made["rmse"].item() == pytest.approx(np.sqrt(((expected - true) ** 2).mean()), abs=1e-6)
    assert made["mae"].item() == pytest.approx(np.abs(expected - true).mean(), abs=1e-6)
    assert made["cases"] == len(cases)


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
