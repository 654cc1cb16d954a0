"""What a model's objective asks of the data, so that a data module knows no objective by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ObjectiveNeeds:
    """What training cases must have for an objective to be computed.

    Attributes:
        name: of the objective, for messages.
        task: the only task form whose answers it can read; null for any.
        negatives: whether it compares several answers of a case, so that windows have sampled negatives by default.
    """

    name: str = "likelihood"
    task: Literal["like", "rating"] | None = None
    negatives: bool = False


NAMED_NEEDS = {
    needs.name: needs
    for needs in (
        ObjectiveNeeds("likelihood"),
        ObjectiveNeeds("listwise", negatives=True),
        ObjectiveNeeds("yes_no", task="like"),
        ObjectiveNeeds("rating", task="rating"),
    )
}
"""The objectives that release 0.1 knew by name, so that its calls of data modules stay valid."""
