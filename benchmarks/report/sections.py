"""What stands below a leaderboard: costs, results beyond accuracy and by segment, as text, CSV and for the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.analysis.beyond_accuracy import DEFINITIONS, Beyond, Segment
from benchmarks.analysis.leaderboard import Table
from benchmarks.analysis.learning import levels, reached
from benchmarks.analysis.rows import Row
from benchmarks.metric_names import fraction, higher_is_better, metric_label
from benchmarks.report.tables import EMPTY, TableCell, cost_text, markdown_table

LABELS = {"coverage": "coverage", "gini": "Gini", "popularity": "popularity", "novelty": "novelty (bits)"}
LABELS |= {"as_blank": "as without history", "diversity": "diversity", "ece": "ECE", "brier": "Brier"}
COSTS = {
    "targets": "train_targets",
    "train time": "train_seconds",
    "to best validation": "best_validation_seconds",
    "training FLOPs": "train_flops",
    "tokens/s": "train_tokens_per_second",
    "peak memory": "peak_memory_bytes",
    "optimizer state": "optimizer_state_bytes",
    "checkpoint": "checkpoint_bytes",
    "latency": "latency_seconds",
    "latency, merged": "merged_latency_seconds",
}
"""Titles of the columns, and the costs of the records."""
COST_NOTES = {
    "targets": "targets: events that training learnt to predict, each time it did",
    "train time": "train time: training alone, without validation and test",
    "to best validation": "to best validation: seconds of training and validation until the validation that chose the checkpoint",
    "training FLOPs": "training FLOPs: matrix products and attention of one batch, times the tokens trained on (an estimate)",
    "latency": "latency: median seconds to rank one user's candidates alone; merged: with updates merged into the weights",
    "perplexity": "perplexity: on general text, of the untuned and of the tuned model; what rises was forgotten",
}


@dataclass(frozen=True)
class Section:
    """A smaller table below a leaderboard, its rows in the same order; the notes say how to read it."""

    title: str
    columns: dict[str, list[TableCell]]
    notes: tuple[str, ...]


def sections(table: Table, found: Beyond) -> list[Section]:
    """The tables below a leaderboard; one that would be empty is left out.

    Example:
        >>> sections(Table("ab", None, "ranking", 20, {}, ("hr@5",), "hr@5", {}, (), ()), Beyond(5))
        []
    """
    names = [row.name for row in table.rows]
    by_segment = _table_of_segments(table, names, found, ("users", "items"), "By segment", {})
    parts = [_beyond_section(names, found), by_segment]
    columns = dict.fromkeys(column for gaps in found.gaps.values() for column in gaps)
    parts += [_group_section(table, names, found, column) for column in columns]
    return [section for section in parts if section is not None]


def _beyond_section(names: Sequence[str], found: Beyond) -> Section | None:
    metrics = [name for name in DEFINITIONS if any(name in values for values in found.values.values())]
    if not metrics:
        return None
    columns = {"method": [TableCell(name) for name in names]}
    notes = []
    for metric in metrics:
        label = LABELS[metric] + (f" @{found.cutoff}" if metric not in ("ece", "brier", "as_blank") else "")
        columns[label] = [_number(found.values[name].get(metric), metric) for name in names]
        notes.append(f"{label}: {DEFINITIONS[metric]}.")
    if found.offered:
        notes.append(f"The lists hold {found.offered[0]:,} of the catalogue's {found.offered[1]:,} items.")
    if found.chosen:
        chosen = ", ".join(f"{LABELS[name]} {_number(value, name).text}" for name, value in found.chosen.items())
        notes.append(f"What the users really chose: {chosen}.")
    if found.without:
        notes.append(f"Stored too little for all of this: {', '.join(found.without)}.")
    return Section("Beyond accuracy", columns, tuple(notes))


def _number(value: float | None, metric: str) -> TableCell:
    if value is None or value != value:
        return TableCell(EMPTY)
    return TableCell(f"{value:.2f}" if metric == "novelty" else fraction(value), value)


def _group_section(table: Table, names: Sequence[str], found: Beyond, column: str) -> Section | None:
    gaps = {name: found.gaps.get(name, {}).get(column) for name in names}
    cells = [
        TableCell(f"{fraction(g.value)}, p = {fraction(g.p, 3)}", g.value) if g else TableCell(EMPTY)
        for g in gaps.values()
    ]
    return _table_of_segments(table, names, found, (column,), f"By users' {column}", {"gap": cells})


def _table_of_segments(
    table: Table,
    names: Sequence[str],
    found: Beyond,
    wanted: Sequence[str],
    title: str,
    more: dict[str, list[TableCell]],
) -> Section | None:
    by_row = {name: [s for s in found.segments.get(name, []) if s.of in wanted] for name in names}
    titles = dict.fromkeys(segment.name for segments in by_row.values() for segment in segments)
    if not titles:
        return None
    columns = {"method": [TableCell(name) for name in names]}
    for each in titles:
        held = {name: next((s for s in by_row[name] if s.name == each), None) for name in names}
        cases = max(segment.cases for segment in held.values() if segment)
        columns[f"{each}, {cases} cases"] = [_segment_cell(segment) for segment in held.values()]
    metric = table.main if table.task == "ranking" else table.compared
    notes = [f"{metric_label(metric)} and its 95 % interval (bootstrap over the cases of the segment)."]
    if "items" in wanted:
        notes.append(
            "Cold and warm: the least and the largest quarter by known history. Head: the fifth of the catalogue most"
            " popular in training. All by the case, that is by the item really chosen."
        )
    if more:
        notes.append(
            "Gap: best group's mean minus the worst's; p: share of random groupings with such a gap, not corrected for"
            " the number of rows."
        )
    return Section(title, columns | more, tuple(notes))


def _segment_cell(segment: Segment | None) -> TableCell:
    if segment is None:
        return TableCell(EMPTY)
    ends = f" [{fraction(segment.interval[0])}, {fraction(segment.interval[1])}]" if segment.interval else ""
    return TableCell(fraction(segment.value) + ends, segment.value)


def render_sections(made: Sequence[Section]) -> str:
    """The sections as markdown, a heading each.

    Example:
        >>> print(render_sections([Section("By segment", {"method": [TableCell("lora")]}, ())]))
        ### By segment
        <BLANKLINE>
        | method |
        | --- |
        | lora |
    """
    blocks = [[f"### {section.title}", *markdown_table(section.columns, section.notes)] for section in made]
    return "\n\n".join(block for blocks_of_one in blocks for block in blocks_of_one if block)


def render_beyond_csv(tables: Sequence[Table], found: Sequence[Beyond]) -> str:
    """All numbers of the sections at full precision, one a line.

    Example:
        >>> render_beyond_csv([], []).strip()
        'fingerprint,task,method,metric,of,segment,cases,value,low,high,p'
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fingerprint", "task", "method", "metric", "of", "segment", "cases", "value", "low", "high", "p"])
    for table, made in zip(tables, found, strict=True):
        metric = table.main if table.task == "ranking" else table.compared
        for row in table.rows:
            head = [table.fingerprint, table.task, row.name]
            for name, value in made.values.get(row.name, {}).items():
                cut = f"@{made.cutoff}" if name not in ("ece", "brier") else ""
                writer.writerow([*head, f"{name}{cut}", "all", "all", row.users or "", f"{value:.10g}", "", "", ""])
            for part in made.segments.get(row.name, []):
                ends = [f"{end:.10g}" for end in part.interval] if part.interval else ["", ""]
                writer.writerow([*head, metric, part.of, part.name, part.cases, f"{part.value:.10g}", *ends, ""])
            for column, gap in made.gaps.get(row.name, {}).items():
                writer.writerow([*head, metric, column, "gap", "", f"{gap.value:.10g}", "", "", f"{gap.p:.10g}"])
    return buffer.getvalue()


def cost_section(table: Table) -> Section | None:
    """The costs of a table's rows, in its order; a cost that no row records has no column.

    Example:
        >>> cost_section(Table("ab", None, "ranking", 20, {}, ("hr@5",), "hr@5", {}, (), ())) is None
        True
    """
    columns = {"method": [TableCell(row.name) for row in table.rows]}
    for title, key in COSTS.items():
        if any(key in row.costs for row in table.rows):
            columns[title] = [TableCell(cost_text(key, row.costs.get(key)), row.costs.get(key)) for row in table.rows]
    if any(_forgotten(row) is not None for row in table.rows):
        columns["perplexity"] = [_perplexity(row) for row in table.rows]
    return None if len(columns) == 1 else Section("Costs", columns, _notes(columns, table.rows))


def targets_section(table: Table) -> Section | None:
    """Targets that tuned rows took to be as good as each classical row on validation users; None where none counted them.

    Example:
        >>> targets_section(Table("ab", None, "ranking", 20, {}, ("hr@5",), "hr@5", {}, (), ())) is None
        True
    """
    rows = [row for row in table.rows if row.kind == "tuned"]
    columns = {"method": [TableCell(row.name) for row in rows]}
    for name, level in sorted(
        levels(table).items(), key=lambda pair: pair[1], reverse=not higher_is_better(table.main)
    ):
        cells = [_targets_cell(reached(row, table, level)) for row in rows]
        columns[f"{name} ({fraction(level, 3)})"] = cells
    if len(columns) == 1 or all(cell.text == EMPTY for cells in [*columns.values()][1:] for cell in cells):
        return None
    metric = metric_label(table.main)
    notes = [
        f"Targets seen when {metric} on validation users first was that of a classical row (in brackets: its best there);"
        " interpolated between validations, the median of seeds, with least and most where there are several."
    ]
    return Section("Targets to reach classical rows", columns, tuple(notes))


def _targets_cell(targets: Sequence[float | None]) -> TableCell:
    if not targets:
        return TableCell(EMPTY)
    known = sorted(float("inf") if value is None else value for value in targets)
    middle = known[len(known) // 2]
    words = ["never" if value == float("inf") else f"{value:,.0f}" for value in (middle, known[0], known[-1])]
    spread = f" [{words[1]}, {words[2]}]" if len(known) > 1 and words[1] != words[2] else ""
    return TableCell(words[0] + spread, None if middle == float("inf") else middle)


def _notes(columns: dict[str, list[TableCell]], rows: Sequence[Row]) -> tuple[str, ...]:
    notes = [f"{text}." for title, text in COST_NOTES.items() if title in columns]
    if any(len(row.runs) > 1 for row in rows):
        notes.append("Means over seeds.")
    return tuple(notes)


def _forgotten(row: Row) -> float | None:
    """How much the perplexity of general text has risen, as a share of what it was."""
    before, after = row.costs.get("perplexity_before"), row.costs.get("perplexity_after")
    return None if not before or after is None else after / before - 1


def _perplexity(row: Row) -> TableCell:
    risen = _forgotten(row)
    if risen is None:
        return TableCell(EMPTY)
    before, after = row.costs["perplexity_before"], row.costs["perplexity_after"]
    return TableCell(f"{before:.4g} → {after:.4g} ({risen:+.1%})", risen)
