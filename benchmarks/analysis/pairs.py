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

    It claims a difference only where `compare_rows` calls it a win or a loss. Where the same cases were ranked among
    popularity-matched candidates too, it says whether the best tuned row is better than what popularity explains.

    Example:
        >>> conclude([], [])
        'No run has finished: nothing can be said yet.'
    """
    if not tables:
        return "No run has finished: nothing can be said yet."
    lead = tables[0]
    alike = [at for at, table in enumerate(tables) if _but_for_candidates(table) == _but_for_candidates(lead)]
    twins = [at for at in alike[1:] if tables[at].num_candidates == lead.num_candidates]
    begin = f"among {_rule(lead)} candidates " if len(alike) > 1 else ""
    if len(alike) < len(tables):
        begin = f"in the largest of {len(tables)} tables "
    told, over = _conclude_table(lead, pairs[0])
    sentence = f"{begin}{told}{over}"
    if begin or not told.startswith(tuple(row.name for row in lead.rows)):  # a row's name stays as it is written
        sentence = sentence[0].upper() + sentence[1:]
    if twins:
        at = next((at for at in twins if _rule(tables[at]) == MATCHED), twins[0])
        told, other = _conclude_table(tables[at], pairs[at])
        sentence += f"; among {_rule(tables[at])} candidates {told}{other if other != over else ''}"
        if MATCHED in (_rule(lead), _rule(tables[at])):
            sentence += _beyond_popularity((lead, tables[at]), (pairs[0], pairs[at]))
    return f"{sentence}."


MATCHED = "popularity-matched"


def _rule(table: Table) -> str:
    return table.description.get("candidates", "").partition(",")[0].replace("popularity", MATCHED)


def _but_for_candidates(table: Table) -> tuple[object, ...]:
    rest = [(key, text) for key, text in table.description.items() if key not in ("candidates", "fingerprint")]
    return table.task, table.data, rest


def _beyond_popularity(tables: Sequence[Table], pairs: Sequence[Mapping[tuple[int, int], Pair]]) -> str:
    """Whether the first table's best tuned row is above the popularity row in every table; empty where that is absent.

    Above: the pair is a win, and the row's own interval leaves chance below it, for among popularity-matched candidates
    popularity may be worse than chance.
    """
    best = _best_of("tuned", tables[0])
    name, missed, p = tables[0].rows[best].name if best is not None else "", [], 0.0
    for table, found in zip(tables, pairs, strict=True):
        named = next((at for at, row in enumerate(table.rows) if row.name == name), None)
        popular = next(
            (at for at, row in enumerate(table.rows) if row.runs[0].model.get("class") == "Popularity"), None
        )
        if named is None or popular is None:
            return ""
        pair, metric = found.get((named, popular), Pair("untested")), table.compared
        low = table.rows[named].intervals.get(metric, (float("inf"),))[0]
        p = max(p, pair.p)
        if pair.outcome != "win" or low <= table.chance.get(metric, 0.0):
            missed.append(_rule(table))
    if missed:
        return f"; popularity may explain what {name} has learnt: it is not shown to be above it among {' or '.join(missed)} candidates"
    return f"; {name} is better than popularity explains: above it under both rules (p {'< .001' if p < 0.001 else f'= {fraction(p, 3)}'})"


def _best_of(kind: str, table: Table) -> int | None:
    """The place of the best row of a kind by the compared metric; None without one."""
    metric, sign = table.compared, 1 if higher_is_better(table.compared) else -1
    of_kind = [at for at, row in enumerate(table.rows) if row.kind == kind and metric in row.metrics]
    return max(of_kind, key=lambda at: sign * table.rows[at].metrics[metric], default=None)


def _conclude_table(table: Table, pairs: Mapping[tuple[int, int], Pair]) -> tuple[str, str]:
    """What was found in a table, and over how many users and seeds."""
    metric, rows = table.compared, table.rows
    sign = 1 if higher_is_better(metric) else -1
    measured = [at for at, row in enumerate(rows) if metric in row.metrics]
    if not measured:
        return f"no row records {metric_label(metric)}", ""
    tuned, baseline = _best_of("tuned", table), _best_of("reference", table)
    if tuned is None:
        first = max(measured, key=lambda at: sign * rows[at].metrics[metric])
        return (
            f"no row is tuned; {_valued(rows[first], metric)} comes first of {len(rows)} by {metric_label(metric)}",
            "",
        )
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
    seeds = len(rows[tuned].runs)  # a row that learns by no chance has one run, whatever the others have
    users = f"{rows[tuned].users:,} users and " if rows[tuned].users else ""
    return sentence, f", over {users}{'one seed' if seeds == 1 else f'{seeds} seeds'}"


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
