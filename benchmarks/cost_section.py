"""What the rows of a leaderboard cost, as a second table below it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.leaderboard import Table
from benchmarks.rows import Row
from benchmarks.sections import Section
from benchmarks.tables import EMPTY, Cell, cost_text

__all__ = ["cost_section"]

COLUMNS = {
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
NOTES = {
    "train time": "train time: training alone, without validation and test",
    "to best validation": "to best validation: seconds of training and validation until the validation that chose the checkpoint",
    "training FLOPs": "training FLOPs: matrix products and attention of one batch, times the tokens trained on (an estimate)",
    "latency": "latency: median seconds to rank one user's candidates alone; merged: with updates merged into the weights",
    "perplexity": "perplexity: on general text, of the untuned and of the tuned model; what rises was forgotten",
}


def cost_section(table: Table) -> Section | None:
    """The costs of a table's rows, in its order; a cost that no row records has no column.

    Args:
        table: as built by `build_tables`.

    >>> cost_section(Table("ab", None, "ranking", 20, {}, ("hr@5",), "hr@5", {}, (), ())) is None
    True
    """
    columns = {"method": [Cell(row.name) for row in table.rows]}
    for title, key in COLUMNS.items():
        if any(key in row.costs for row in table.rows):
            columns[title] = [Cell(cost_text(key, row.costs.get(key)), row.costs.get(key)) for row in table.rows]
    if any(_forgotten(row) is not None for row in table.rows):
        columns["perplexity"] = [_perplexity(row) for row in table.rows]
    return None if len(columns) == 1 else Section("Costs", columns, _notes(columns, table.rows))


def _notes(columns: dict[str, list[Cell]], rows: Sequence[Row]) -> tuple[str, ...]:
    notes = [f"{text}." for title, text in NOTES.items() if title in columns]
    if any(len(row.runs) > 1 for row in rows):
        notes.append("Means over seeds.")
    return tuple(notes)


def _forgotten(row: Row) -> float | None:
    """How much the perplexity of general text has risen, as a share of what it was."""
    before, after = row.costs.get("perplexity_before"), row.costs.get("perplexity_after")
    return None if not before or after is None else after / before - 1


def _perplexity(row: Row) -> Cell:
    risen = _forgotten(row)
    if risen is None:
        return Cell(EMPTY)
    before, after = row.costs["perplexity_before"], row.costs["perplexity_after"]
    return Cell(f"{before:.4g} → {after:.4g} ({risen:+.1%})", risen)
