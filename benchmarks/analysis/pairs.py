"""Every pair of rows of a table compared on the same users, and the sentence that says what was found.

# U users or cases
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from benchmarks.analysis.leaderboard import LEVEL, Table, is_untuned_base, paired
from benchmarks.analysis.rows import Row
from benchmarks.analysis.significance import holm
from benchmarks.metric_names import fraction, higher_is_better, metric_label

FEW_USERS = 20
"""With fewer, bootstrap intervals are too short to claim anything by (`significance.bootstrap_interval`)."""
MOST_ROWS = 30
"""Rows of a table that are compared pair by pair; of a longer one those that come first, and what tells of tuning."""


@dataclass(frozen=True)
class Pair:
    """A row against another, by the table's `compared` metric.

    Attributes:
        difference: mean of the first minus the second over users; positive is better only if more is.
        p: corrected by Holm over all pairs of the table.
        outcome: `win` or `lose` of the first where p is below 5 % and the interval excludes zero; `untested` where the
            two stored no values of the same users, or there are fewer than `FEW_USERS`.
    """

    outcome: Literal["win", "tie", "lose", "untested"]
    difference: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")
    users: int = 0


def compare_rows(table: Table) -> dict[tuple[int, int], Pair]:
    """Compares every two rows, both ways round, by their positions in the table.

    Resamples are as many as the number of pairs asks for: a bootstrap's p-value is never below one over their number.

    Example:
        >>> compare_rows(Table("ab", None, "ranking", 20, {}, ("hr@5",), "hr@5", {}, (), ()))
        {}
    """
    rows = table.rows
    chosen = sorted(range(len(rows)), key=lambda at: (rows[at].kind == "tuned" and at >= MOST_ROWS // 2, at))[
        :MOST_ROWS
    ]
    every = len(rows) * (len(rows) - 1) // 2
    pairs: dict[tuple[int, int], Pair] = {}
    for first, second in combinations(sorted(chosen), 2):
        found = paired(rows[first], rows[second], table.compared, resamples=max(10_000, round(2 * every / LEVEL)))
        pairs[first, second] = Pair("untested")
        if found is not None:
            ends = (found.difference, found.low, found.high)
            pairs[first, second] = Pair("tie", *ends, found.p_value, found.users)
    tested = [key for key, pair in pairs.items() if pair.users]
    # Pairs of rows that are left out count as tests, too: which rows come first was seen in the same numbers.
    corrected = holm([*(pairs[key].p for key in tested), *[1.0] * (every - len(tested))])
    for key, p in zip(tested, corrected, strict=False):
        pairs[key] = _judged(replace(pairs[key], p=p), table.compared)
    turned: dict[str, Literal["win", "lose"]] = {"win": "lose", "lose": "win"}
    return pairs | {
        (second, first): replace(
            pair,
            outcome=turned.get(pair.outcome, pair.outcome),
            difference=-pair.difference,
            low=-pair.high,
            high=-pair.low,
        )
        for (first, second), pair in pairs.items()
    }


def _judged(pair: Pair, metric: str) -> Pair:
    if pair.users < FEW_USERS:
        return replace(pair, outcome="untested")
    if pair.p >= LEVEL or pair.low <= 0 <= pair.high:
        return pair
    return replace(pair, outcome="win" if (pair.difference > 0) == higher_is_better(metric) else "lose")


def conclude(tables: Sequence[Table], pairs: Sequence[Mapping[tuple[int, int], Pair]]) -> str:
    """One sentence that says what was found and how sure that is: the best tuned row, the untuned model, the best baseline.

    It claims a difference only where `compare_rows` calls it a win or a loss.

    Example:
        >>> conclude([], [])
        'No run has finished: nothing can be said yet.'
    """
    if not tables:
        return "No run has finished: nothing can be said yet."
    lead = tables[0]
    largest = f"in the largest of {len(tables)} tables " if len(tables) > 1 else ""
    sentence = largest + _conclude_table(lead, pairs[0])
    for table, found in zip(tables[1:], pairs[1:], strict=True):
        if _but_for_candidates(table) == _but_for_candidates(lead):
            rule = table.description["candidates"].partition(",")[0].replace("popularity", "popularity-matched")
            sentence += f"; among {rule} candidates {_conclude_table(table, found)}"
            break
    return f"{sentence}."


def _but_for_candidates(table: Table) -> tuple[object, ...]:
    rest = [(key, text) for key, text in table.description.items() if key not in ("candidates", "fingerprint")]
    return table.task, table.data, table.num_candidates, rest


def _conclude_table(table: Table, pairs: Mapping[tuple[int, int], Pair]) -> str:
    metric, rows = table.compared, table.rows
    sign = 1 if higher_is_better(metric) else -1
    measured = [at for at, row in enumerate(rows) if metric in row.metrics]
    if not measured:
        return f"no row records {metric_label(metric)}"

    def best_of(kind: str) -> int | None:
        of_kind = [at for at in measured if rows[at].kind == kind]
        return max(of_kind, key=lambda at: sign * rows[at].metrics[metric], default=None)

    tuned, baseline = best_of("tuned"), best_of("reference")
    if tuned is None:
        first = max(measured, key=lambda at: sign * rows[at].metrics[metric])
        return f"no row is tuned; {_valued(rows[first], metric)} comes first of {len(rows)} by {metric_label(metric)}"
    name = rows[tuned].name
    base = next(
        (at for at in measured if is_untuned_base(rows[at]) and rows[at].backbone == rows[tuned].backbone), None
    )
    if base is None:
        sentence = f"{_valued(rows[tuned], metric)} is the best tuned row by {metric_label(metric)}, without an untuned row to compare"
    else:
        sentence = f"{name} {_against(pairs.get((tuned, base)), 'the untuned model', metric)}"
    if baseline is None:
        sentence += "; no baseline stands beside it"
    else:
        of_tuned = [pairs.get((at, baseline)) for at in measured if rows[at].kind == "tuned"]
        reached = not all(pair is not None and pair.outcome == "lose" for pair in of_tuned)
        value = _valued(rows[baseline], metric)
        sentence += (
            f"; it {_against(pairs.get((tuned, baseline)), value, metric)}"
            if reached
            else f"; no tuned row reaches {value}"
        )
    seeds = min(len(row.runs) for row in rows)
    users = f"{rows[tuned].users:,} users and " if rows[tuned].users else ""
    return f"{sentence}, over {users}{'one seed' if seeds == 1 else f'{seeds} seeds'}"


def _valued(row: Row, metric: str) -> str:
    return f"{row.name} ({fraction(row.metrics[metric], 2)})"


def _against(pair: Pair | None, other: str, metric: str) -> str:
    """What a row does to another, as far as its pair allows."""
    if pair is None or not pair.users:
        return f"has no stored values of the same users as {other} for a test"
    if pair.outcome == "untested":
        return f"cannot be told from {other} with {pair.users} users"
    ends = (pair.difference, pair.low, pair.high)
    gain, low, high = ends if higher_is_better(metric) else (-pair.difference, -pair.high, -pair.low)
    if pair.outcome == "tie":
        shown = f"{fraction(gain, 2, signed=True)} [{fraction(low, 2, signed=True)}, {fraction(high, 2, signed=True)}]"
        # The p-value too: over all pairs it may be above the level where the interval alone leaves zero out.
        return (
            f"cannot be told from {other} by {metric_label(metric)} ({shown}, p = {fraction(pair.p, 2)} over all pairs)"
        )
    if pair.outcome == "lose":
        gain, low, high = -gain, -high, -low
    digits = next((digits for digits in (2, 3) if round(low, digits) > 0), 4)
    shown = f"{fraction(gain, digits)} [{fraction(low, digits)}, {fraction(high, digits)}] {metric_label(metric)}"
    return f"beats {other} by {shown}" if pair.outcome == "win" else f"falls behind {other} by {shown}"
