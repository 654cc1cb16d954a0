"""Leaderboards for a paper, as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from benchmarks.analysis.leaderboard import Table
from benchmarks.report.sections import cost_section
from benchmarks.report.tables import TableCell, columns, protocol_lines


def render_latex(tables: Sequence[Table]) -> str:
    r"""The tables for a paper (package booktabs), one environment per fingerprint.

    Example:
        >>> render_latex([])
        '% needs the package booktabs\n'
    """
    parts = ["% needs the package booktabs"]
    for table in tables:
        caption = "; ".join(f"{key}: {text}" for key, text in protocol_lines(table) if key != "fingerprint")
        parts += _environment(columns(table), f"{table.title}. {caption}.", "ll")
        if (costs := cost_section(table)) is not None:
            parts += _environment(costs.columns, f"{table.title}: costs. {' '.join(costs.notes)}", "l")
    return "\n".join(parts) + "\n"


def _environment(body: Mapping[str, Sequence[TableCell]], caption: str, left: str) -> list[str]:
    head = " & ".join(_latex(title) for title in body)
    lines = [" & ".join(_latex(cell.text) for cell in row) for row in zip(*body.values(), strict=True)]
    return [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{_latex(caption)}}}",
        f"\\begin{{tabular}}{{{left}{'r' * (len(body) - len(left))}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *(rf"{line} \\" for line in lines),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "Δ": r"$\Delta$",
        "–": "--",
        "→": r"$\to$",
        "±": r"$\pm$",
        "<": "$<$",
        ">": "$>$",
        **{c: f"\\{c}" for c in "&%$#_{}"},
    }
    return "".join(special.get(character, character) for character in re.sub(r"\s+", " ", text))
