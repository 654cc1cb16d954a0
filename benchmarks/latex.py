"""Leaderboards for a paper."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.leaderboard import Table
from benchmarks.tables import columns, protocol_lines


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
