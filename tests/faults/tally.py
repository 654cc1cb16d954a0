"""The table of attempts and survivals that the fault injectors print.

A test of the full form adds its row with `add`. Rows go to the file that INSTRUCTREC_TALLY names (JSON, one a line), so
that several test processes may add to one table; without it they go nowhere. `make test-faults` prints the table:

    python tests/faults/tally.py FILE [--readme tests/faults/README.md]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"


def add(what: str, attempts: int, survived: int) -> None:
    """Adds a row; a later row of the same name takes its place."""
    assert 0 <= survived <= attempts
    file = os.environ.get("INSTRUCTREC_TALLY")
    if file:
        row = json.dumps({"what": what, "attempts": attempts, "survived": survived}, ensure_ascii=False)
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(row + "\n")


def table(lines: str) -> str:
    """The rows as a Markdown table, in the order in which they first came."""
    rows = {row["what"]: row for row in map(json.loads, lines.splitlines())}
    cells = [f"| {row['what']} | {row['attempts']} | {row['survived']} |" for row in rows.values()]
    return "\n".join(["| fault | attempts | survived |", "|---|---:|---:|", *cells])


def into(page: str, text: str) -> str:
    """The page with the text between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"the page has no {BEGIN} and {END}"
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the table of attempts and survivals.")
    parser.add_argument("file", type=Path, help="the rows that tests added")
    parser.add_argument("--readme", type=Path, help="put the table between this file's fault markers")
    options = parser.parse_args()
    text = table(options.file.read_text(encoding="utf-8"))
    print(text)
    if options.readme:
        page = options.readme.read_text(encoding="utf-8")
        options.readme.write_text(into(page, text), encoding="utf-8")


if __name__ == "__main__":
    main()
