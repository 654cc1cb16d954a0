"""Whether the rows of a table were tuned alike: who was searched, with how many trials, and what was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.rows import Row

__all__ = ["is_any_searched", "search_text", "trials_of", "unfair_reasons"]

SOLVED = ("BM25", "EASE", "ItemKNN", "SentenceEncoder")
"""Baselines without a learning rate that have other options to search."""


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
    told = chosen.items() if isinstance(chosen, dict) else ()
    values = ", ".join(f"{str(name).removeprefix('model.')} {value}" for name, value in told)
    return f"{trials} trials: {values}" if values else f"{trials} trials"


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
        told = ", ".join(f"{name} {count}" for name, count in sorted(trials.items()))
        reasons.append(f"unequal numbers of trials were searched: {told}")
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
    own = {str(value) for key, value in config.items() if key in ("lr", "learning_rate") and value is not None}
    return own.union(*(_learning_rates(value) for value in config.values()))
