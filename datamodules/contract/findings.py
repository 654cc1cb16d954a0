"""What the checks of a run find out, for its record."""

from __future__ import annotations

from typing import TypedDict


class Ancestor(TypedDict):
    """An earlier run that a run started from; the sum is of its checkpoint."""

    run: str
    model: str
    steps: int
    sha256: str


class Findings(TypedDict, total=False):
    """What models and callbacks hold as `findings`; together they are a record's `guards`.

    Example:
        >>> Findings(step0_score_difference=0.0) | Findings(parameters_moved=1.0)
        {'step0_score_difference': 0.0, 'parameters_moved': 1.0}
    """

    step0_score_difference: float  # of a method that promises the untuned scores
    budget_parameters: int  # asked for
    budget_size: int
    budget_trained: int
    lineage: list[Ancestor]  # the first one first
    stack_levels: int
    stack_parameters: int
    item_parameters: int  # of items that are tokens, beside what the method itself trains
    parameters_moved: float  # share of the trained tensors
    frozen_unchanged: bool
    reloaded_score_difference: float
    tested_checkpoint: str
    truncated_prompts: int
    time_budget_seconds: float
    time_budget_spent: float
    ended_by_time: bool
    resumed_at_steps: list[int]
