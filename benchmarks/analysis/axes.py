"""A grid's runs along its axes: lines over a numeric axis, spreads over wordings, ranks over protocols.

# U users
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.analysis.leaderboard import Table
from benchmarks.analysis.rows import Row, build_row
from benchmarks.analysis.runs import Run
from benchmarks.metric_names import metric_base
from benchmarks.option_groups import without_groups

LOWER_IS_BETTER = ("rmse", "mae", "mse", "log_loss", "brier", "ece")


@dataclass(frozen=True)
class Point:
    """A method's result at one value of an axis: its runs, averaged over seeds, under one protocol."""

    x: float
    row: Row
    fingerprint: str


@dataclass(frozen=True)
class Axis:
    """Results along a numeric axis of a grid: points by method and its other settings, by rising value."""

    name: str
    main: str
    task: str
    lines: dict[str, list[Point]]

    @property
    def protocols(self) -> int:
        """How many protocols the points have: with more than one, they are not the same cases."""
        return len({point.fingerprint for line in self.lines.values() for point in line})


def numeric_axes(tables: Sequence[Table]) -> list[Axis]:
    """The axes whose labels are two or more numbers, each with the lines along it.

    Runs without a label on the axis, and lines of one point, are left out.

    Example:
        >>> numeric_axes([])
        []
    """
    # Under further rules of candidates a point would hold several protocols.
    runs = [run for table in tables for row in table.rows for run in row.runs if not run.rule]
    names = dict.fromkeys(name for run in runs for name, _ in _labels(run))
    axes = []
    for task in dict.fromkeys(table.task for table in tables):
        main = next(table.main for table in tables if table.task == task)
        for name in names:
            lines = _lines([run for run in runs if run.task == task], name, main)
            if lines:
                axes.append(Axis(name, main, task, lines))
    return axes


def _labels(run: Run) -> list[tuple[str, str]]:
    return [(name, label) for name, _, label in (part.partition("=") for part in run.settings)]


def _lines(runs: Iterable[Run], name: str, main: str) -> dict[str, list[Point]]:
    grouped: dict[tuple[str, ...], dict[float, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        labels = dict(_labels(run))
        here = labels.pop(name, "")
        value = number(here)
        if value is None or main not in run.metrics:
            continue
        # The name given to a run lists the axes that vary, this one among them.
        method = _without(run.name, name, here) or str(run.model.get("class") or run.name)
        rest = (f"{key}={label}" for key, label in labels.items() if label not in method and key != "model")
        grouped[(method, *sorted(rest))][value].append(run)
    shared = set.intersection(*(set(key[1:]) for key in grouped)) if grouped else set()
    axes = {}
    for key, by_value in sorted(grouped.items()):
        line = [
            Point(value, build_row(key[0], found, (main,)), found[0].fingerprint)
            for value, found in sorted(by_value.items())
            if len({run.fingerprint for run in found}) == 1
        ]
        if len(line) > 1:
            axes[", ".join([key[0], *(part for part in key[1:] if part not in shared)])] = line
    return axes


def _without(name: str, axis: str, label: str) -> str:
    """A run's name without the part that tells its place on an axis; a value that has a name stands there alone.

    Example:
        >>> _without("history=5, lora", "data.protocol.history", "5"), _without("16, lora", "shots", "16")
        ('lora', 'lora')
    """
    last = axis.rpartition(".")[2]
    parts = [part for part in name.split(", ") if part.partition("=")[0] not in (axis, last)]
    if len(parts) == len(name.split(", ")) and label in parts:
        parts.remove(label)
    return ", ".join(parts)


def number(label: str) -> float | None:
    """A label's number, None where it is none.

    Example:
        >>> number("0.5"), number("16 shots"), number("lora"), number("25%")
        (0.5, 16.0, None, 25.0)
    """
    match = re.match(r"-?\d+(\.\d+)?(e-?\d+)?(?=$| |%)", label.strip().lower())
    value = float(match.group()) if match else math.nan
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Spread:
    """A method's main metric under several wordings of one protocol, averaged over seeds."""

    method: str
    by_wording: dict[str, float]

    @property
    def mean(self) -> float:
        """Over the wordings, each alike."""
        return float(np.mean(list(self.by_wording.values())))


def wording(run: Run) -> str:
    """Which wording a run was evaluated with, as far as its config tells; "" where it names none.

    Example:
        >>> from types import SimpleNamespace
        >>> wording(SimpleNamespace(config={"data": {"init_args": {"template": "matching.zh.2", "language": "zh"}}}))
        'matching.zh.2'
    """
    options = without_groups((run.config.get("data") or {}).get("init_args") or {})
    if options.get("template"):
        return str(options["template"])
    labels = [str(options[key]) for key in ("language", "paraphrase") if options.get(key) is not None]
    return " ".join(labels)


def template_spreads(table: Table) -> list[Spread]:
    """Methods of a table that were run under two or more wordings.

    Example:
        >>> template_spreads(Table("ab", None, "ranking", 20, {}, ("hr@5",), "hr@5", {}, (), ()))
        []
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in (run for row in table.rows for run in row.runs):
        if table.main in run.metrics and (text := wording(run)):
            found[method_of(run)][text].append(run.metrics[table.main])
    spreads = [
        Spread(method, {text: float(np.mean(values)) for text, values in sorted(by_text.items())})
        for method, by_text in sorted(found.items())
        if len(by_text) > 1
    ]
    return sorted(spreads, key=lambda spread: spread.mean, reverse=table.main not in LOWER_IS_BETTER)


def method_of(run: Run) -> str:
    """The method's class, with what its name tells beside a wording."""
    labels = dict(_labels(run))
    model = labels.get("model")
    return model or str(run.model.get("class") or run.name)


def ranks(tables: Sequence[Table]) -> tuple[list[Table], dict[str, list[int]]]:
    """The tables, and by method its place in each among the methods that all have in common, 1 the best; or nothing.

    Example:
        >>> ranks([])
        ([], {})
    """
    tasks = [table.task for table in tables]
    chosen = [table for table in tables if tasks and table.task == max(sorted(set(tasks)), key=tasks.count)]
    scored = [{method_of(row.runs[0]): row.metrics[t.main] for row in t.rows if t.main in row.metrics} for t in chosen]
    common = set.intersection(*map(set, scored)) if scored else set()
    if len(chosen) < 2 or len(common) < 3:
        return [], {}
    sign = 1 if metric_base(chosen[0].main) in LOWER_IS_BETTER else -1
    orders = [sorted(common, key=lambda name, s=s: (sign * s[name], name)) for s in scored]  # type: ignore[misc]
    return chosen, {name: [order.index(name) + 1 for order in orders] for name in orders[0]}


def kendall(first: Sequence[int], second: Sequence[int]) -> float:
    """Kendall's tau of two orders without ties: 1 the same, -1 turned round.

    Example:
        >>> kendall([1, 2, 3], [1, 3, 2]).__round__(4)
        0.3333
    """
    pairs = [(i, j) for i in range(len(first)) for j in range(i)]
    agreeing = sum((first[i] - first[j]) * (second[i] - second[j]) > 0 for i, j in pairs)
    return 2 * agreeing / len(pairs) - 1 if pairs else math.nan
