"""How much a row had learnt from when it reached another: targets of training against quality on validation users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.analysis.leaderboard import Table
from benchmarks.analysis.rows import Row
from benchmarks.analysis.runs import Run
from benchmarks.metric_names import higher_is_better

Points = list[tuple[float, float]]
TARGETS = "train/targets"


def learning_curve(run: Run, metric: str) -> Points:
    """Points `(targets seen, value on validation users)` of a run, in the order of its steps.

    Between two steps that recorded their targets the number is interpolated. Empty where the run counted none.
    """
    seen = sorted(run.curves.get(TARGETS, []))
    if not seen:
        return []
    steps, targets = np.array([(-1.0, 0.0), *seen]).T
    return [(float(np.interp(step, steps, targets)), value) for step, value in sorted(run.curves.get(metric, []))]


def targets_to_reach(curve: Points, level: float, higher: bool = True) -> float | None:
    """Targets seen when a curve first is as good as a level; between two validations on the line through them.

    Example:
        >>> round(targets_to_reach([(100.0, 0.2), (300.0, 0.6)], 0.4))
        200
        >>> targets_to_reach([(100.0, 0.2), (300.0, 0.6)], 0.7) is None
        True
    """
    sign = 1.0 if higher else -1.0
    before: tuple[float, float] | None = None
    for targets, value in curve:
        if sign * value >= sign * level:
            if before is None or value == before[1]:
                return targets
            return before[0] + (level - before[1]) * (targets - before[0]) / (value - before[1])
        before = targets, value
    return None


def levels(table: Table) -> dict[str, float]:
    """What the classical rows of a table reach on validation users: their best value, averaged over seeds."""
    metric, better = f"val/{table.main}", max if higher_is_better(table.main) else min
    found = {}
    for row in table.rows:
        best = [better(value for _, value in run.curves[metric]) for run in row.runs if run.curves.get(metric)]
        if row.kind == "reference" and best:
            found[row.name] = float(np.mean(best))
    return found


def reached(row: Row, table: Table, level: float) -> Sequence[float | None]:
    """Targets that each of a row's runs took to reach a level on validation users; None where one never did."""
    curves = [learning_curve(run, f"val/{table.main}") for run in row.runs]
    return [targets_to_reach(curve, level, higher_is_better(table.main)) for curve in curves if curve]
