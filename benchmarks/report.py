"""A grid's folder turned into tables, figures and one HTML page; every number comes from a run's files.

# U users, N yes/no cases
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ledger import write_atomic
from benchmarks.records import DEFINITIONS, Floats, Problem, Run, Suite, metric_base, metric_label, read_suite
from benchmarks.statistics import (
    PairedComparison,
    bootstrap_auc_interval,
    bootstrap_interval,
    holm,
    paired_bootstrap,
)
from datamodules.sources import InputError

EMPTY = "–"
LEVEL = 0.05  # of the tests behind the mark "best"
COSTS = ("trainable_parameters", "train_seconds", "peak_memory_bytes")


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


@dataclass(frozen=True)
class Table:
    """Rows of one protocol fingerprint, best first by the first headline metric.

    Attributes:
        headline: metrics with a column of their own; the first is the main one, higher is better.
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
        """Data set, task and the fingerprint's first twelve digits."""
        return f"{self.data or 'data not recorded'}, {self.task}, protocol {self.fingerprint[:12]}"


@dataclass(frozen=True)
class ReportPaths:
    """What `write_report` wrote; a figure is None where nothing can be drawn.

    Attributes:
        text: the markdown leaderboard.
    """

    markdown: Path
    csv: Path
    latex: Path
    quality_cost: Path | None
    learning_curves: Path | None
    html: Path
    text: str


def write_report(directory: Path) -> ReportPaths:
    """Writes `leaderboard.md/.csv/.tex`, the figures and `report.html` into a grid's folder.

    Args:
        directory: the folder given to `instructrec benchmark --out`.

    Raises:
        InputError: the folder holds no runs, or its `suite.yaml` is not YAML.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "runs" / "lora").mkdir(parents=True)
    >>> print(write_report(folder).text.splitlines()[-1])
    - `lora`: unfinished, no record.json yet
    """
    # Imported here because matplotlib costs a second that a command line without a report need not wait for.
    from benchmarks.figures import draw_learning_curves, draw_quality_cost
    from benchmarks.html_report import render_html

    suite = read_suite(directory)
    tables, problems = build_tables(suite)
    text = render_markdown(suite, tables, problems)
    (directory / "figures").mkdir(exist_ok=True)
    paths = ReportPaths(
        markdown=directory / "leaderboard.md",
        csv=directory / "leaderboard.csv",
        latex=directory / "leaderboard.tex",
        quality_cost=draw_quality_cost(tables, directory / "figures" / "quality_cost.png"),
        learning_curves=draw_learning_curves(tables, directory / "figures" / "learning_curves.png"),
        html=directory / "report.html",
        text=text,
    )
    write_atomic(paths.markdown, text)
    write_atomic(paths.csv, render_csv(tables))
    write_atomic(paths.latex, render_latex(tables))
    write_atomic(paths.html, render_html(suite, tables, problems, [paths.quality_cost, paths.learning_curves]))
    return paths


def replace_between_markers(path: Path, marker: str, text: str) -> None:
    """Replaces what stands between `<!-- marker:begin -->` and `<!-- marker:end -->`.

    Args:
        path: a text file with both markers once.
        marker: their name.
        text: the new content, without the markers.

    Raises:
        InputError: the file or a marker is missing, or a marker stands there more than once.

    >>> import tempfile
    >>> page = Path(tempfile.mkdtemp()) / "README.md"
    >>> _ = page.write_text("<!-- table:begin -->old<!-- table:end -->")
    >>> replace_between_markers(page, "table", "new")
    >>> page.read_text().split()
    ['<!--', 'table:begin', '-->', 'new', '<!--', 'table:end', '-->']
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    page = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    for mark in (begin, end):
        if page.count(mark) != 1:
            raise InputError(f"{path} holds {mark!r} {page.count(mark)} times, must hold it once")
    head, rest = page.split(begin)
    if end not in rest:
        raise InputError(f"{path}: {end!r} stands before {begin!r}")
    write_atomic(path, f"{head}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}")


def build_tables(suite: Suite) -> tuple[list[Table], list[Problem]]:
    """Groups runs by protocol, averages seeds, and tests the differences.

    Args:
        suite: as read by `read_suite`.

    Returns:
        The tables, longest first, and the problems of the suite with repeated runs added.

    >>> build_tables(Suite("empty", "", (), ()))
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
    order = sorted(tables, key=lambda table: (-len(table.rows), table.fingerprint, table.task))
    return order, sorted(problems, key=lambda problem: (problem.state == "note", problem.cell))


def _build_table(methods: Mapping[tuple[str, str, str], Mapping[int | None, Run]]) -> Table:
    runs = [run for seeds in methods.values() for run in seeds.values()]
    first, names = runs[0], sorted({name for run in runs for name in run.metrics})
    headline = _headline(names, first.task)
    compared = headline[0] if first.task == "ranking" else "log_loss"
    rows = [
        _build_row(_label(key, list(methods)), [seeds[s] for s in sorted(seeds, key=_seed_order)], headline)
        for key, seeds in methods.items()
    ]
    # A row without the main metric comes last: it is not known to be bad, but it cannot be placed.
    rows.sort(key=lambda row: (-row.metrics.get(headline[0], -np.inf), row.name))
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
        notes=(*notes, *_reading_notes(rows, headline, compared, first)),
    )


def _seed_order(seed: int | None) -> tuple[bool, int]:
    return seed is None, seed or 0


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
    cutoffs = sorted({int(n.split("@")[1]) for n in names if re.fullmatch(r"hr@\d+", n)})
    cutoff = 5 if 5 in cutoffs or not cutoffs else cutoffs[0]
    return (f"hr@{cutoff}", f"ndcg@{cutoff}", "mrr")


def _build_row(name: str, runs: Sequence[Run], headline: Sequence[str]) -> Row:
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


def _with_differences(rows: list[Row], compared: str) -> tuple[list[Row], list[str]]:
    """Adds each row's paired difference to its backbone's untuned row, corrected over the table."""
    untuned: dict[str | None, Row]
    untuned = {row.backbone: row for row in reversed(rows) if row.kind == "untuned" and row.backbone}
    found: dict[int, Difference] = {}
    notes = []
    for place, row in enumerate(rows):
        base = untuned.get(row.backbone)
        if base is None or row.kind == "untuned":
            continue
        pair = _paired(row, base, compared)
        if pair is None:
            reason = f"it has no stored values of the users of {base.name}"
            notes.append(f"No difference is given for {row.name}: {reason}.")
            continue
        found[place] = Difference(base.name, pair.difference, pair.low, pair.high, pair.p_value)
    corrected = holm([difference.p for difference in found.values()]) if found else []
    for (place, difference), p in zip(found.items(), corrected, strict=True):
        rows[place] = replace(rows[place], difference=replace(difference, p=float(p)))
    return rows, notes


def _paired(row: Row, other: Row, metric: str) -> PairedComparison | None:
    """The paired comparison, or None unless both stored the metric of the same users."""
    stored = metric in row.values and metric in other.values
    if not stored or not np.array_equal(row.cases, other.cases):
        return None
    both = ~np.isnan(row.values[metric]) & ~np.isnan(other.values[metric])
    if both.sum() < 2:
        return None
    return paired_bootstrap(row.values[metric][both], other.values[metric][both])


def _with_best(rows: list[Row], main: str, task: str) -> tuple[list[Row], list[str]]:
    """Marks the first row if it has earned it; else says what it lacks."""
    if len(rows) < 2:
        return rows, ["there is nothing to compare with"]
    top, second = rows[0], rows[1]
    reasons = []
    if len(top.runs) < 2:
        reasons.append("one seed")
    unsearched = [row.name for row in rows if not _is_searched(row, rows)]
    if unsearched:
        reasons.append(f"untuned baselines, no learning-rate search is recorded for {', '.join(sorted(unsearched))}")
    if task == "binary":
        reasons.append("AUC has no per-case values for a paired test")
    elif (pair := _paired(top, second, main)) is None:
        reasons.append(f"{top.name} and {second.name} have no per-user values of the same users")
    elif pair.p_value >= LEVEL or pair.difference <= 0:
        reasons.append(f"{top.name} is not significantly better than {second.name}")
    return ([replace(top, best=True), *rows[1:]] if not reasons else rows), reasons


def _is_searched(row: Row, rows: Iterable[Row]) -> bool:
    """A row without a learning rate needs no search; others need a recorded one or several rates."""
    if row.kind == "untuned" or not _learning_rates(row.runs[0].config):
        return True
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
    own = {str(value) for key, value in config.items() if key in ("lr", "learning_rate") and value is not None}
    return own.union(*(_learning_rates(value) for value in config.values()))


def _chance(headline: Sequence[str], task: str, candidates: int | None) -> dict[str, float]:
    """Expected metrics of a random order of one relevant item among the candidates."""
    if task == "binary":
        return {"auc": 0.5}
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
    if any(row.users and row.users < len(row.cases) for row in rows):
        notes.append("Some users have several cases; intervals and tests take these as independent.")
    if any(row.difference for row in rows):
        notes.append(
            f"Δ {metric_label(compared)}: paired bootstrap against the untuned row of the same backbone, p "
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
    return notes


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """A nested mapping as lines of key and text, missing values left out.

    >>> dict(flatten({"split": "loo", "statistics": {"users": 943, "ties": 0.75}}))
    {'split': 'loo', 'statistics.users': '943', 'statistics.ties': '0.75'}
    """
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Cell:
    """A table cell as text, and the number that it sorts by where it has one."""

    text: str
    sort: float | None = None


def columns(table: Table) -> dict[str, list[Cell]]:
    """A table's printed columns by title, one cell per row; a missing value is "–".

    Args:
        table: as built by `build_tables`.

    >>> table = Table("ab", None, "ranking", 20, {}, ("hr@5",), "hr@5", {}, (), ())
    >>> list(columns(table))[:3]
    ['method', 'kind', 'HR@5 [95 %]']
    """
    rows, main = table.rows, table.main
    result = {
        "method": [Cell(f"{row.name} (best)" if row.best else row.name) for row in rows],
        "kind": [Cell(row.kind or EMPTY) for row in rows],
        f"{metric_label(main)} [95 %]": [_measured(row, main, interval=True) for row in rows],
    }
    result |= {metric_label(name): [_measured(row, name) for row in rows] for name in table.headline[1:]}
    result[f"Δ {metric_label(table.compared)} to zero-shot"] = [_difference_cell(row.difference) for row in rows]
    for title, key in zip(("trainable", "train time", "peak memory"), COSTS, strict=True):
        result[title] = [Cell(cost_text(key, row.costs.get(key)), row.costs.get(key)) for row in rows]
    result["users"] = [Cell(EMPTY if row.users is None else f"{row.users:,}", row.users) for row in rows]
    result["seeds"] = [Cell(_seeds_text(row), len(row.runs)) for row in rows]
    return result


def _measured(row: Row, name: str, interval: bool = False) -> Cell:
    value, ends = row.metrics.get(name), row.intervals.get(name)
    if value is None:
        return Cell(EMPTY)
    shown = f" [{fraction(ends[0])}, {fraction(ends[1])}]" if interval and ends else ""
    return Cell(fraction(value) + shown, value)


def _difference_cell(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(EMPTY)
    value, low, high = (fraction(v, signed=True) for v in (difference.value, difference.low, difference.high))
    p = "p < .001" if difference.p < 0.001 else f"p = {fraction(difference.p, 3)}"
    return Cell(f"{value} [{low}, {high}], {p}", difference.value)


def _seeds_text(row: Row) -> str:
    return str(len(row.runs)) if row.spread is None else f"{len(row.runs)} (±{fraction(row.spread)})"


def fraction(value: float, digits: int = 4, signed: bool = False) -> str:
    """A number with fixed decimals and no zero before the point.

    >>> fraction(0.412), fraction(-0.03, signed=True), fraction(1.0), fraction(-0.00001)
    ('.4120', '-.0300', '1.0000', '.0000')
    """
    value = round(value, digits) + 0.0  # no "-.0000"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text)


def cost_text(name: str, value: float | None) -> str:
    """A recorded cost with its unit, judged by the name's ending.

    >>> cost_text("trainable_parameters", 460800), cost_text("peak_memory_bytes", 1.3e9)
    ('460.8 K', '1.2 GiB')
    >>> cost_text("trainable_parameters", None)
    '–'
    """
    if value is None:
        return EMPTY
    if name.endswith("_bytes"):
        return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    if name.endswith("_parameters"):
        return _scaled(value, 1000, ("", "K", "M", "B", "T"))
    if name.endswith("_per_second"):
        return f"{value:,.1f}/s"
    if name.endswith("_seconds"):
        return f"{value:,.0f} s" if value >= 10 or value == 0 else f"{value:.2g} s"
    return f"{value:,.6g}"


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    place = 0
    # 999.96 K would print as 1000.0 K.
    while round(value, 1) >= step and place < len(units) - 1:
        value, place = value / step, place + 1
    return f"{value:.1f} {units[place]}" if place else f"{value:.0f} {units[0]}".strip()


def render_markdown(suite: Suite, tables: Sequence[Table], problems: Sequence[Problem]) -> str:
    """The leaderboard as markdown: per protocol its definitions, chance and rows; problems at the end.

    Args:
        suite: for its name and description.
        tables: as built by `build_tables`.
        problems: the same.

    >>> print(render_markdown(Suite("tiny", "", (), ()), [], []))
    # Results: tiny
    <BLANKLINE>
    No finished run.
    <BLANKLINE>
    """
    blocks = [f"# Results: {_plain(suite.name)}", *([_plain(suite.description)] if suite.description else [])]
    for table in tables:
        body = columns(table)
        lines = [
            list(body),
            ["---"] * len(body),
            *([_plain(c.text) for c in row] for row in zip(*body.values(), strict=True)),
        ]
        blocks += [
            f"## {_plain(table.title)}",
            "\n".join(f"- {_plain(key)}: {_plain(text)}" for key, text in protocol_lines(table)),
            "\n".join(f"| {' | '.join(line)} |" for line in lines),
            "\n".join(f"- {_plain(note)}" for note in table.notes),
        ]
    blocks += [] if tables else ["No finished run."]
    if problems:
        blocks += ["## Not in the tables, and why" if any(p.state != "note" for p in problems) else "## Notes"]
        blocks += ["\n".join(f"- {problem_text(problem)}" for problem in problems)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def protocol_lines(table: Table) -> list[tuple[str, str]]:
    """What must be known to read a table: the protocol, each metric's definition, and chance.

    >>> table = Table("ab", None, "binary", None, {}, ("auc",), "log_loss", {"auc": 0.5}, (), ())
    >>> protocol_lines(table)[0], protocol_lines(table)[-1]
    (('fingerprint', 'ab'), ('chance', 'AUC .5000'))
    """
    lines = list(table.description.items())
    lines.append(("fingerprint", table.fingerprint))
    lines += [(metric_label(name), DEFINITIONS[metric_base(name)]) for name in table.headline]
    chance = ", ".join(f"{metric_label(name)} {fraction(value)}" for name, value in table.chance.items())
    # Under a full catalogue the number recorded is the longest list: seen items are left out of the others.
    up_to = "up to " if "full" in table.description.get("candidates", "") else ""
    among = f" (one relevant item among {up_to}{table.num_candidates})" if table.task == "ranking" else ""
    return [*lines, ("chance", f"{chance}{among}" if chance else "number of candidates not recorded")]


def problem_text(problem: Problem) -> str:
    """A problem in one line of markdown.

    >>> problem_text(Problem("lora-1", "failed", "non-finite loss at step 3", "runs/lora-1/run.log"))
    '`lora-1`: failed, non-finite loss at step 3 (log: `runs/lora-1/run.log`)'
    """
    log = f" (log: `{problem.log}`)" if problem.log else ""
    return f"`{problem.cell}`: {problem.state}, {_plain(problem.reason)}{log}"


def _plain(text: str) -> str:
    """Text that cannot end a table cell or a line, nor start an HTML tag."""
    return re.sub(r"\s+", " ", text).replace("|", r"\|").replace("<", "&lt;")


def render_csv(tables: Sequence[Table]) -> str:
    """Every number at full precision, one line per row; the fingerprint in front separates the tables.

    Args:
        tables: as built by `build_tables`.

    >>> render_csv([]).split(",")[:2]
    ['fingerprint', 'data']
    """
    lines = [_csv_line(table, row) for table in tables for row in table.rows]
    leading = [
        "fingerprint",
        "data",
        "task",
        "num_candidates",
        "method",
        "kind",
        "backbone",
        "seeds",
        "users",
        "best",
    ]
    rest = sorted({key for line in lines for key in line} - set(leading))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*leading, *rest], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _csv_line(table: Table, row: Row) -> dict[str, str]:
    known: dict[str, Any] = {
        "fingerprint": table.fingerprint,
        "data": table.data,
        "task": table.task,
        "num_candidates": table.num_candidates,
        "method": row.name,
        "kind": row.kind,
        "backbone": row.backbone,
        "seeds": len(row.runs),
        "users": row.users,
        "best": row.best,
        f"{table.main}_seed_sd": row.spread,
        **row.metrics,
        **row.costs,
    }
    for name, (low, high) in row.intervals.items():
        known |= {f"{name}_low": low, f"{name}_high": high}
    if row.difference:
        found = row.difference
        known |= {
            "difference_metric": table.compared,
            "difference": found.value,
            "difference_low": found.low,
            "difference_high": found.high,
            "difference_p_holm": found.p,
            "difference_to": found.base,
        }
    return {
        key: f"{value:.10g}" if isinstance(value, float) else str(value)
        for key, value in known.items()
        if value is not None
    }


def render_latex(tables: Sequence[Table]) -> str:
    r"""The tables for a paper (package booktabs), one environment per fingerprint.

    Args:
        tables: as built by `build_tables`.

    >>> render_latex([])
    '% needs the package booktabs\n'
    """
    parts = ["% needs the package booktabs"]
    for table in tables:
        body = columns(table)
        caption = "; ".join(f"{key}: {text}" for key, text in protocol_lines(table) if key != "fingerprint")
        head = " & ".join(_latex(title) for title in body)
        lines = [" & ".join(_latex(cell.text) for cell in row) for row in zip(*body.values(), strict=True)]
        parts += [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{_latex(table.title)}. {_latex(caption)}.}}",
            f"\\begin{{tabular}}{{ll{'r' * (len(body) - 2)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *(rf"{line} \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def _latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "Δ": r"$\Delta$",
        "–": "--",
        "±": r"$\pm$",
        "<": "$<$",
        ">": "$>$",
        **{c: f"\\{c}" for c in "&%$#_{}"},
    }
    return "".join(special.get(character, character) for character in re.sub(r"\s+", " ", text))
