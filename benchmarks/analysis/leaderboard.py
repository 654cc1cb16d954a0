"""Runs grouped by protocol into tables, with the differences tested and the mark "best" where it is earned.

It is not where the rows were not tuned alike: who was searched, with how many trials, and what was chosen.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.analysis.rows import Difference, Row, build_row
from benchmarks.analysis.runs import GridResults, Problem, Run
from benchmarks.analysis.significance import PairedComparison, holm, paired_bootstrap
from benchmarks.metric_names import higher_is_better, metric_base, metric_label

SOLVED = ("BM25", "EASE", "ItemKNN", "PureSVD", "SentenceEncoder")
"""Baselines without a learning rate that have other options to search."""
LEVEL = 0.05
"""Of the tests behind the mark "best", and behind a win."""


def trials_of(row: Row) -> int | None:
    """Trials of the search that a row's runs record, None without one."""
    trials = row.runs[0].search.get("trials")
    return trials if isinstance(trials, int) else None


def is_any_searched(rows: Iterable[Row]) -> bool:
    """Whether a row records a search with its number of trials.

    Example:
        >>> is_any_searched([])
        False
    """
    return any(trials_of(row) is not None for row in rows)


def search_text(row: Row) -> str:
    """Trials and chosen values; `none` for a row that could have been searched and was not."""
    trials, chosen = trials_of(row), row.runs[0].search.get("chosen")
    if trials is None:
        return "none" if _has_options(row) else "–"
    pairs = chosen.items() if isinstance(chosen, dict) else ()
    values = ", ".join(f"{str(name).removeprefix('model.')} {value}" for name, value in pairs)
    return f"{trials} trials: {values}" if values else f"{trials} trials"


def search_notes(rows: Sequence[Row]) -> list[str]:
    """How the searched rows were searched, in one line; none where none was.

    Example:
        >>> search_notes([])
        []
    """
    searches = {row.name: row.runs[0].search for row in rows if trials_of(row) is not None}
    if not searches:
        return []
    how = {f"{said.get('sampler')}, pruner {said.get('pruner')}, by {said.get('metric')}" for said in searches.values()}
    counts = [
        f"{name} {said['trials']} trials ({said.get('pruned_trials', 0)} pruned, {said.get('failed_trials', 0)} failed)"
        for name, said in sorted(searches.items())
    ]
    return [f"Searched on validation users before the test ({'; '.join(sorted(how))}): {', '.join(counts)}."]


def lineage_notes(rows: Sequence[Row]) -> list[str]:
    """Which rows started from earlier runs, one line each.

    Example:
        >>> lineage_notes([])
        []
    """
    notes = {}
    for row in rows:
        ancestors = row.runs[0].guards.get("lineage")
        known = [each for each in ancestors if isinstance(each, dict)] if isinstance(ancestors, list) else []
        if known:
            chain = [f"{each.get('run')} ({each.get('model')}, {each.get('steps')} steps)" for each in known]
            notes[row.name] = f"{row.name} starts from {', tuned from '.join(reversed(chain))}."
    return [notes[name] for name in sorted(notes)]


def ensemble_notes(rows: Sequence[Row]) -> list[str]:
    """What each ensemble is made of, and what it gains by each run.

    Example:
        >>> ensemble_notes([])
        []
    """
    notes = []
    for row in sorted(rows, key=lambda row: row.name):
        told = row.runs[0].config.get("ensemble")
        members = told.get("members") if isinstance(told, dict) else None
        parts = [each for each in members if isinstance(each, dict)] if isinstance(members, list) else []
        gains = [f"{each.get('run')} {each['gain']:+.4f}" for each in parts if isinstance(each.get("gain"), float)]
        if isinstance(told, dict) and gains:
            notes.append(
                f"{row.name} is the mean of {told.get('by')} of these runs, with its gain by each: {', '.join(gains)}."
            )
    return notes


def unfair_reasons(rows: Sequence[Row]) -> list[str]:
    """Why a comparison of these rows is not one of equally tuned methods.

    Example:
        >>> unfair_reasons([])
        []
    """
    reasons = []
    rated = sorted(row.name for row in rows if _has_rate(row) and not _is_searched(row, rows))
    if rated:
        reasons.append(f"untuned baselines, no learning-rate search is recorded for {', '.join(rated)}")
    solved = sorted(row.name for row in rows if _has_options(row) and not _has_rate(row) and not row.runs[0].search)
    if solved:
        reasons.append(f"untuned baselines, no search is recorded for {', '.join(solved)}")
    trials = {row.name: count for row in rows if (count := trials_of(row)) is not None}
    if len(set(trials.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(trials.items()))
        reasons.append(f"unequal numbers of trials were searched: {counts}")
    return reasons


def _has_options(row: Row) -> bool:
    return _has_rate(row) or row.runs[0].model.get("class") in SOLVED


def _has_rate(row: Row) -> bool:
    return row.kind != "untuned" and bool(_learning_rates(row.runs[0].config))


def _is_searched(row: Row, rows: Iterable[Row]) -> bool:
    """A row with a learning rate needs a recorded search, or several rates in the table."""
    rates = {
        rate
        for other in rows
        for run in other.runs
        if run.name == row.runs[0].name
        for rate in _learning_rates(run.config)
    }
    return len(rates) > 1 or any(run.search for run in row.runs)


def _learning_rates(config: Any) -> set[str]:
    if not isinstance(config, dict):
        return set()
    rates = {str(value) for key, value in config.items() if key in ("lr", "learning_rate") and value is not None}
    return rates.union(*(_learning_rates(value) for value in config.values()))


@dataclass(frozen=True)
class Table:
    """Rows of one protocol fingerprint, best first by the first headline metric.

    Attributes:
        headline: metrics with a column of their own; the first is the main one.
        compared: metric of the column of differences.
        chance: expected headline metrics of a random order.
    """

    fingerprint: str
    data: str | None
    task: str
    num_candidates: int | None
    description: dict[str, str]
    headline: tuple[str, ...]
    compared: str
    chance: dict[str, float]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def main(self) -> str:
        """The metric that orders the rows."""
        return self.headline[0]

    @property
    def title(self) -> str:
        """Data set, task, the rule of candidates where it is a further one, and the fingerprint's first twelve digits."""
        rules = {run.rule for row in self.rows for run in row.runs}
        among = f" among {rules.pop()} candidates" if len(rules) == 1 and "" not in rules else ""
        return f"{self.data or 'data not recorded'}, {self.task}{among}, protocol {self.fingerprint[:12]}"


def build_tables(suite: GridResults) -> tuple[list[Table], list[Problem]]:
    """Groups runs by protocol, averages seeds, and tests the differences.

    Returns:
        The tables, longest first and of like ones the runs' own rule of candidates first, and the problems of the suite with repeated runs added.

    Example:
        >>> build_tables(GridResults("empty", "", (), ()))
        ([], [])
    """
    problems = list(suite.problems)
    groups: dict[tuple[str, str, int], dict[tuple[str, str, str], dict[int | None, Run]]]
    groups = defaultdict(lambda: defaultdict(dict))
    for run in suite.runs:
        seeds = groups[run.fingerprint, run.task, run.num_candidates or 0][
            run.name, run.backbone or "", ",".join(run.settings)
        ]
        first = seeds.setdefault(run.seed, run)
        if first is not run:
            reason = f"same name, settings and seed as {first.cell}; only that one is counted"
            problems.append(Problem(run.cell, "note", reason, None))
    tables = [_build_table(methods) for methods in groups.values()]
    order = sorted(tables, key=lambda table: (-len(table.rows), _is_further(table), table.fingerprint, table.task))
    return order, sorted(problems, key=lambda problem: (problem.state == "note", problem.cell))


def _is_further(table: Table) -> bool:
    """Whether all its results are under a further rule of candidates, beside the runs' own."""
    return all(run.rule for row in table.rows for run in row.runs)


def _build_table(methods: Mapping[tuple[str, str, str], Mapping[int | None, Run]]) -> Table:
    runs = [run for seeds in methods.values() for run in seeds.values()]
    first, names = runs[0], sorted({name for run in runs for name in run.metrics})
    headline = _headline(names, first.task)
    compared = {"binary": "log_loss", "rating": "mae"}.get(first.task, headline[0])
    rows = [
        build_row(
            _label(key, list(methods)),
            [seeds[s] for s in sorted(seeds, key=lambda seed: (seed is None, seed or 0))],
            headline,
        )
        for key, seeds in methods.items()
    ]
    # A row without the main metric comes last: it is not known to be bad, but it cannot be placed.
    sign = -1 if higher_is_better(headline[0]) else 1
    rows.sort(key=lambda row: (sign * row.metrics.get(headline[0], sign * np.inf), row.name))
    rows, notes = _with_differences(rows, compared)
    rows, reasons = _with_best(rows, headline[0], first.task)
    if reasons:
        notes.insert(0, f"No row is marked best: {'; '.join(reasons)}.")
    return Table(
        fingerprint=first.fingerprint,
        data=first.data,
        task=first.task,
        num_candidates=first.num_candidates,
        description=dict(flatten(first.description)),
        headline=headline,
        compared=compared,
        chance=_chance(headline, first.task, first.num_candidates),
        rows=tuple(rows),
        notes=(
            *notes,
            *search_notes(rows),
            *lineage_notes(rows),
            *ensemble_notes(rows),
            *_reading_notes(rows, headline, compared, first),
        ),
    )


def _label(key: tuple[str, str, str], keys: Sequence[tuple[str, str, str]]) -> str:
    """The method's name, with what tells it from others of that name."""
    twins = [other for other in keys if other[0] == key[0]]
    if len(twins) == 1:
        return key[0]
    parts: list[set[str]] = [{*other[2].split(","), other[1]} for other in twins]
    differing = {*key[2].split(","), key[1]} - parts[0].intersection(*parts[1:]) - {""}
    return f"{key[0]} ({', '.join(sorted(differing))})" if differing else key[0]


def _headline(names: Iterable[str], task: str) -> tuple[str, ...]:
    if task == "binary":
        return ("auc", "log_loss")
    if task == "rating":
        return ("rmse", "mae")
    cutoffs = sorted({int(n.split("@")[1]) for n in names if re.fullmatch(r"hr@\d+", n)})
    cutoff = 5 if 5 in cutoffs or not cutoffs else cutoffs[0]
    return (f"hr@{cutoff}", f"ndcg@{cutoff}", "mrr")


def _with_differences(rows: list[Row], compared: str) -> tuple[list[Row], list[str]]:
    """Adds each row's paired difference to its backbone's untuned row, corrected over the table."""
    untuned: dict[str | None, Row]
    untuned = {row.backbone: row for row in reversed(rows) if is_untuned_base(row) and row.backbone}
    found: dict[int, Difference] = {}
    notes = []
    for place, row in enumerate(rows):
        base = untuned.get(row.backbone)
        if base is None or is_untuned_base(row):
            continue
        pair = paired(row, base, compared)
        if pair is None:
            reason = f"it has no stored values of the users of {base.name}"
            notes.append(f"No difference is given for {row.name}: {reason}.")
            continue
        found[place] = Difference(base.name, pair.difference, pair.low, pair.high, pair.p_value)
    corrected = holm([difference.p for difference in found.values()]) if found else []
    for (place, difference), p in zip(found.items(), corrected, strict=True):
        rows[place] = replace(rows[place], difference=replace(difference, p=float(p)))
    return rows, notes


def paired(row: Row, other: Row, metric: str, resamples: int = 10_000) -> PairedComparison | None:
    """The paired comparison, or None unless both stored the metric of the same users."""
    stored = metric in row.values and metric in other.values
    if not stored or not np.array_equal(row.cases, other.cases):
        return None
    both = ~np.isnan(row.values[metric]) & ~np.isnan(other.values[metric])
    if both.sum() < 2:
        return None
    return paired_bootstrap(row.values[metric][both], other.values[metric][both], resamples=resamples)


def _with_best(rows: list[Row], main: str, task: str) -> tuple[list[Row], list[str]]:
    """Marks the first row if it has earned it; else says what it lacks."""
    if len(rows) < 2:
        return rows, ["there is nothing to compare with"]
    top, second = rows[0], rows[1]
    reasons = []
    if len(top.runs) < 2:
        reasons.append("one seed")
    reasons += unfair_reasons(rows)
    if task == "binary":
        reasons.append("AUC has no per-case values for a paired test")
    elif task == "rating":
        reasons.append("RMSE has no per-case values for a paired test")
    elif (pair := paired(top, second, main)) is None:
        reasons.append(f"{top.name} and {second.name} have no per-user values of the same users")
    elif pair.p_value >= LEVEL or (pair.difference > 0) != higher_is_better(main) or pair.difference == 0:
        reasons.append(f"{top.name} is not significantly better than {second.name}")
    return ([replace(top, best=True), *rows[1:]] if not reasons else rows), reasons


def is_untuned_base(row: Row) -> bool:
    """The untuned backbone without demonstrations; with some, it is a row to be compared."""
    shots = ((row.runs[0].config.get("model") or {}).get("init_args") or {}).get("shots")
    return row.kind == "untuned" and not shots


def _chance(headline: Sequence[str], task: str, candidates: int | None) -> dict[str, float]:
    """Expected metrics of a random order of one relevant item among the candidates."""
    if task == "binary":
        return {"auc": 0.5}
    if task == "rating":
        return {}
    if not candidates or candidates < 1:
        return {}
    ranks = np.arange(1, candidates + 1)
    gain = {"hr": np.ones(candidates), "ndcg": 1 / np.log2(ranks + 1), "mrr": 1 / ranks}
    cut = {name: int(name.split("@")[1]) if "@" in name else candidates for name in headline}
    return {
        name: float(gain[metric_base(name)][: cut[name]].mean() * min(cut[name], candidates) / candidates)
        for name in headline
    }


def _reading_notes(rows: Sequence[Row], headline: Sequence[str], compared: str, run: Run) -> list[str]:
    cutoff = int(headline[0].split("@")[1]) if "@" in headline[0] else 0
    notes = []
    if any(row.intervals for row in rows):
        over = "users" if run.task == "ranking" else "cases"
        notes.append(
            f"Intervals: 95 %, percentile bootstrap over {over}, values averaged over seeds first. They say "
            "nothing about variance between trainings; ± beside the seeds is that standard deviation."
        )
    torn = [
        row.name
        for row in rows
        if len(row.runs) > 1 and not len(row.cases) and all(run.scores and len(run.scores.user) for run in row.runs)
    ]
    if torn:
        notes.append("No interval and no test, because the seeds' runs name other cases: " + ", ".join(torn) + ".")
    if any(row.users and row.users < len(row.cases) for row in rows):
        notes.append("Some users have several cases; intervals and tests take these as independent.")
    if any(row.difference for row in rows):
        better = "" if higher_is_better(compared) else " (below zero is better)"
        notes.append(
            f"Δ {metric_label(compared)}{better}: paired bootstrap against the untuned row of the same backbone, p "
            f"corrected by Holm over {sum(row.difference is not None for row in rows)} comparisons."
        )
    if run.num_candidates and cutoff >= run.num_candidates:
        notes.append(f"Warning: {metric_label(headline[0])} over {run.num_candidates} candidates is 1 by construction.")
    ties = {row.name: row.metrics["tie_rate"] for row in rows if row.metrics.get("tie_rate", 0) > 0.01}
    if ties:
        notes.append(
            "Tied scores (expected values are shown): "
            + ", ".join(f"{name} {rate:.1%}" for name, rate in sorted(ties.items()))
            + "."
        )
    moved = {row.name: row.costs.get("rounded_first_places", 0.0) for row in rows}
    if any(share > 0.01 for share in moved.values()):
        told = ", ".join(f"{name} {share:.1%}" for name, share in sorted(moved.items()) if share > 0.01)
        notes.append(
            f"First places, in a sample of users, that rounding changed (float32 has another item there): {told}."
        )
    return notes


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """A nested mapping as lines of key and text, missing values left out.

    Example:
        >>> dict(flatten({"split": "loo", "statistics": {"users": 943, "ties": 0.75}}))
        {'split': 'loo', 'statistics.users': '943', 'statistics.ties': '0.75'}
    """
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield from flatten({f"{key}[{place}]": item for place, item in enumerate(value)}, prefix)
        elif value is not None:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)
