"""What a model and its objective ask of the data, so that a data module knows neither by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datamodules.contract.batch import BatchFormat


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


@dataclass(frozen=True)
class ModelNeeds:
    """What a model asks of its batches; the command line takes it from `--model` and its options.

    Attributes:
        batch_format: what the model reads.
        objective: name of its objective, for messages; this and the next two are that objective's `ObjectiveNeeds`.
        task: the only task form whose answers the objective can read; null for any.
        negatives: whether the objective compares several answers of a case.
        shots: solved cases of training users that every prompt begins with.
    """

    batch_format: BatchFormat = "prompt_tree"
    objective: str = "likelihood"  # flat: jsonargparse gives a linked group within a group its defaults
    task: Literal["like", "rating"] | None = None
    negatives: bool = False
    shots: int = 0
