"""One row of a leaderboard: the runs of one method, averaged over seeds.

# U users, N yes/no cases
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.runs import Run
from benchmarks.analysis.scores import Floats
from benchmarks.analysis.significance import bootstrap_auc_interval, bootstrap_interval


@dataclass(frozen=True)
class Difference:
    """A row's paired difference to its backbone's untuned row; `p` is corrected by Holm within the table."""

    base: str
    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Row:
    """One method of one table: its runs of several seeds, averaged.

    Attributes:
        metrics: means over seeds; a metric or cost that one seed lacks is absent.
        spread: standard deviation of the main metric between seeds, None for one seed.
        cases: `[U]` or `[N]` what `values` are about; two rows are compared only if these are equal.
        values: seed-averaged metric per user or, for a binary task, per case.
        intervals: 95 % bootstrap intervals of the headline metrics over users or cases.
    """

    name: str
    kind: str | None
    backbone: str | None
    runs: tuple[Run, ...]
    metrics: dict[str, float]
    costs: dict[str, float]
    spread: float | None
    users: int | None
    cases: NDArray[np.str_]
    values: dict[str, Floats]
    intervals: dict[str, tuple[float, float]]
    difference: Difference | None = None
    best: bool = False


def build_row(name: str, runs: Sequence[Run], headline: Sequence[str]) -> Row:
    """Averages the runs of one method over their seeds."""
    cases, values = _seed_averaged(runs)
    intervals = {}
    for metric in headline:
        counted = values[metric][~np.isnan(values[metric])] if metric in values else np.empty(0)
        if len(counted) > 1:
            intervals[metric] = bootstrap_interval(counted)
    if "auc" in headline and "log_loss" in values:
        # The ends are averaged over seeds: AUC is no mean over cases, so no case has a value to average.
        ends = np.array([_auc_interval(run) for run in runs])
        if not np.isnan(ends).any():
            intervals["auc"] = (float(ends[:, 0].mean()), float(ends[:, 1].mean()))
    mains = [run.metrics[headline[0]] for run in runs if headline[0] in run.metrics]
    return Row(
        name=name,
        kind=runs[0].kind,
        backbone=runs[0].backbone,
        runs=tuple(runs),
        metrics=_means([run.metrics for run in runs]),
        costs=_means([run.costs for run in runs]),
        spread=float(np.std(mains, ddof=1)) if len(mains) > 1 else None,
        users=_users(runs[0]),
        cases=cases,
        values=values,
        intervals=intervals,
    )


def _means(mappings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    common = set.intersection(*(set(mapping) for mapping in mappings))
    return {name: float(np.mean([mapping[name] for mapping in mappings])) for name in sorted(common)}


def _users(run: Run) -> int | None:
    if run.scores is not None and len(run.scores.user):
        return len(np.unique(run.scores.user))
    recorded = run.description.get("statistics")
    count = recorded.get("test_users") if isinstance(recorded, dict) else None
    return count if isinstance(count, int) else None


def _seed_averaged(runs: Sequence[Run]) -> tuple[NDArray[np.str_], dict[str, Floats]]:
    """Per-user values, averaged over seeds that all stored them for the same users."""
    stored = [_per_case(run) for run in runs]
    cases = stored[0][0]
    if not all(np.array_equal(cases, other) for other, _ in stored):
        return np.empty(0, dtype=np.str_), {}
    common = set.intersection(*(set(values) for _, values in stored))
    return cases, {name: np.mean([values[name] for _, values in stored], axis=0) for name in sorted(common)}


def _per_case(run: Run) -> tuple[NDArray[np.str_], dict[str, Floats]]:
    scores = run.scores
    if scores is None:
        return np.empty(0, dtype=np.str_), {}
    if scores.probability is None or scores.label is None:
        return scores.user, scores.values
    # Clipped where single precision ends, so that one certain mistake does not make a mean infinite.
    right = np.clip(np.where(scores.label == 1, scores.probability, 1 - scores.probability), 1e-7, 1)
    users = scores.user if len(scores.user) else np.full(len(right), "")
    return np.array([f"{u}/{y:g}" for u, y in zip(users, scores.label, strict=True)]), {"log_loss": -np.log(right)}


def _auc_interval(run: Run) -> tuple[float, float]:
    scores = run.scores
    if scores is None or scores.probability is None or scores.label is None or len(np.unique(scores.label)) < 2:
        return np.nan, np.nan
    return bootstrap_auc_interval(scores.probability, scores.label)
