"""Measures of predicted ratings.

# U cases, B branches
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def rating_values(branch_item: Tensor) -> Tensor:
    """`[B]` the rating that each answer stands for: answers are numbered from 0, ratings from 1.

    Example:
        >>> rating_values(torch.tensor([0, 4])).tolist()
        [1.0, 5.0]
    """
    return branch_item.float() + 1


class RatingMetrics(Metric):
    """RMSE, MSE and MAE of predicted ratings over cases; lower is better. `cases` is their number.

    All states are sums, so processes and objects merge by adding.

    Example:
        >>> metric = RatingMetrics()
        >>> metric.update(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 1.0]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'rmse': 2.828, 'mse': 8.0, 'mae': 2.0, 'cases': 2.0}
    """

    full_state_update = False
    squared: Tensor
    absolute: Tensor
    cases: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("squared", "absolute", "cases"):
            self.add_state(state, torch.zeros(1, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Any, exclude_state: Any = "") -> Metric:
        # As in `RankingMetrics`: sums must not become bfloat16.
        super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), exclude_state)
        return self

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Adds cases: `[U]` predicted and `[U]` true ratings.

        Raises:
            ValueError: shapes differ, or a value is NaN or infinite.
        """
        if predicted.shape != true.shape or predicted.ndim != 1:
            raise ValueError(f"predicted {tuple(predicted.shape)} and true {tuple(true.shape)} must both be [U]")
        difference = (predicted.double() - true.double()).to(self.squared.device)
        if not bool(torch.isfinite(difference).all()):
            raise ValueError("a rating is NaN or infinite")
        self.squared += difference.square().sum()
        self.absolute += difference.abs().sum()
        self.cases += len(difference)

    def compute(self) -> dict[str, Tensor]:
        """Returns values by name; NaN without cases."""
        mse = (self.squared / self.cases)[0]
        return {"rmse": mse.sqrt(), "mse": mse, "mae": (self.absolute / self.cases)[0], "cases": self.cases[0]}
