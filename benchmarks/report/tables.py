"""Leaderboards as text: Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from benchmarks.analysis.leaderboard import Table, is_any_searched, search_text, trials_of
from benchmarks.analysis.rows import Difference, Row
from benchmarks.analysis.runs import GridResults, Problem
from benchmarks.metric_names import DEFINITIONS, fraction, metric_base, metric_label

EMPTY = "–"


@dataclass(frozen=True)
class TableCell:
    """A table cell as text, and the number that it sorts by where it has one."""

    text: str
    sort: float | None = None


def columns(table: Table) -> dict[str, list[TableCell]]:
    """A table's printed columns by title, one cell per row; a missing value is "–".

    Example:
        >>> table = Table("ab", None, "ranking", 20, {}, ("hr@5",), "hr@5", {}, (), ())
        >>> list(columns(table))[:3]
        ['method', 'kind', 'HR@5 [95 %]']
    """
    rows, main = table.rows, table.main
    result = {
        "method": [TableCell(f"{row.name} (best)" if row.best else row.name) for row in rows],
        "kind": [TableCell(row.kind or EMPTY) for row in rows],
        f"{metric_label(main)} [95 %]": [_measured(row, main, interval=True) for row in rows],
    }
    result |= {metric_label(name): [_measured(row, name) for row in rows] for name in table.headline[1:]}
    result[f"Δ {metric_label(table.compared)} to zero-shot"] = [_difference_cell(row.difference) for row in rows]
    key = "trainable_parameters"
    result["trainable"] = [TableCell(cost_text(key, row.costs.get(key)), row.costs.get(key)) for row in rows]
    if is_any_searched(rows):
        result["search"] = [TableCell(search_text(row), trials_of(row)) for row in rows]
    result["users"] = [TableCell(EMPTY if row.users is None else f"{row.users:,}", row.users) for row in rows]
    result["seeds"] = [TableCell(_seeds_text(row), len(row.runs)) for row in rows]
    return result


def _measured(row: Row, name: str, interval: bool = False) -> TableCell:
    value, ends = row.metrics.get(name), row.intervals.get(name)
    if value is None:
        return TableCell(EMPTY)
    shown = f" [{fraction(ends[0])}, {fraction(ends[1])}]" if interval and ends else ""
    return TableCell(fraction(value) + shown, value)


def _difference_cell(difference: Difference | None) -> TableCell:
    if difference is None:
        return TableCell(EMPTY)
    value, low, high = (fraction(v, signed=True) for v in (difference.value, difference.low, difference.high))
    return TableCell(f"{value} [{low}, {high}], {p_text(difference.p)}", difference.value)


def p_text(p: float) -> str:
    """A p-value as printed.

    Example:
        >>> p_text(0.0004), p_text(0.25)
        ('p < .001', 'p = .250')
    """
    return "p < .001" if p < 0.001 else f"p = {fraction(p, 3)}"


def _seeds_text(row: Row) -> str:
    return str(len(row.runs)) if row.spread is None else f"{len(row.runs)} (±{fraction(row.spread)})"


def cost_text(name: str, value: float | None) -> str:
    """A recorded cost with its unit, judged by the name's ending.

    Example:
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
    if name.endswith("_flops"):
        return _scaled(value, 1000, ("", "K", "M", "G", "T", "P", "E"))
    if name.endswith("_per_second"):
        return f"{value:,.1f}/s"
    if name.endswith("_seconds"):
        return f"{value:,.0f} s" if value >= 10 or value == 0 else f"{value:.2g} s"
    return f"{value:,.6g}"


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    unit = 0
    # 999.96 K would print as 1000.0 K.
    while round(value, 1) >= step and unit < len(units) - 1:
        value, unit = value / step, unit + 1
    return f"{value:.1f} {units[unit]}" if unit else f"{value:.0f} {units[0]}".strip()


def render_markdown(
    results: GridResults,
    tables: Sequence[Table],
    problems: Sequence[Problem],
    sentence: str,
    figures: Sequence[tuple[str, str]] = (),
    below: Sequence[str] = (),
) -> str:
    """The leaderboard as markdown: what was found, the tables, the figures, more of each, and its protocol folded.

    Example:
        >>> print(render_markdown(GridResults("tiny", "", (), ()), [], [], "Nothing yet."))
        # Results: tiny
        <BLANKLINE>
        **Nothing yet.**
        <BLANKLINE>
    """
    blocks = [summary_markdown(results, tables, sentence)]
    blocks += [f"![{re.sub(r'[][]', '', _plain(alt))}]({address})" for address, alt in figures]
    for table, rest in zip_longest(tables, below):
        protocol = "\n".join(f"- {_plain(key)}: {_plain(text)}" for key, text in protocol_lines(table))
        blocks += [f"## More of {_plain(table.title)}" if rest else "", rest or ""]
        blocks += [f"<details><summary>Protocol of {_plain(table.title)}</summary>", protocol, "</details>"]
    return _joined([*blocks, *_problem_blocks(problems)])


def summary_markdown(
    results: GridResults, tables: Sequence[Table], sentence: str, problems: Sequence[Problem] = ()
) -> str:
    r"""What was found, and the tables: what another page shows of a grid.

    Example:
        >>> summary_markdown(GridResults("tiny", "", (), ()), [], "Nothing yet.")
        '# Results: tiny\n\n**Nothing yet.**\n'
    """
    blocks = [f"# Results: {_plain(results.name)}", f"**{_plain(sentence)}**", _plain(results.description)]
    for table in tables:
        blocks += [f"## {_plain(table.title)}", *markdown_table(columns(table), table.notes)]
    return _joined([*blocks, *_problem_blocks(problems)])


def _problem_blocks(problems: Sequence[Problem]) -> list[str]:
    if not problems:
        return []
    title = "## Not in the tables, and why" if any(p.state != "note" for p in problems) else "## Notes"
    return [title, "\n".join(f"- {problem_text(problem)}" for problem in problems)]


def _joined(blocks: Sequence[str]) -> str:
    return "\n\n".join(block.strip("\n") for block in blocks if block) + "\n"


def markdown_table(body: Mapping[str, Sequence[TableCell]], notes: Sequence[str]) -> list[str]:
    """A table and the notes below it.

    Example:
        >>> print(markdown_table({"method": [TableCell("lora")]}, [])[0])
        | method |
        | --- |
        | lora |
    """
    lines = [[_plain(title) for title in body], ["---"] * len(body)]
    lines += [[_plain(cell.text) for cell in row] for row in zip(*body.values(), strict=True)]
    return ["\n".join(f"| {' | '.join(line)} |" for line in lines), "\n".join(f"- {_plain(note)}" for note in notes)]


def protocol_lines(table: Table) -> list[tuple[str, str]]:
    """What must be known to read a table: the protocol, each metric's definition, and chance.

    Example:
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

    Example:
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

    Example:
        >>> render_csv([]).split(",")[:2]
        ['fingerprint', 'data']
    """
    lines = [_csv_line(table, row) for table in tables for row in table.rows]
    leading = ["fingerprint", "data", "task", "num_candidates", "method", "kind", "backbone", "seeds", "users", "best"]
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
        "search_trials": trials_of(row),
        "search": search_text(row),
    }
    for name, (low, high) in row.intervals.items():
        known |= {f"{name}_low": low, f"{name}_high": high}
    if row.difference:
        difference = row.difference
        known |= {
            "difference_metric": table.compared,
            "difference": difference.value,
            "difference_low": difference.low,
            "difference_high": difference.high,
            "difference_p_holm": difference.p,
            "difference_to": difference.base,
        }
    return {
        key: f"{value:.10g}" if isinstance(value, float) else str(value)
        for key, value in known.items()
        if value is not None
    }
