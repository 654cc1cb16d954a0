"""The table of attempts and survivals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import tally


def test_rows_become_a_table_and_the_latest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows"
    monkeypatch.setenv("INSTRUCTREC_TALLY", str(file))
    tally.add("kill", 2, 1)
    tally.add("bit flip", 3, 3)
    tally.add("kill", 2, 2)
    assert tally.table(file.read_text()).splitlines()[2:] == ["| kill | 2 | 2 |", "| bit flip | 3 | 3 |"]


def test_without_a_file_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSTRUCTREC_TALLY", raising=False)
    tally.add("kill", 1, 1)
    with pytest.raises(AssertionError):
        tally.add("kill", 1, 2)


def test_the_table_goes_between_the_markers() -> None:
    page = f"a\n{tally.BEGIN}\nold\n{tally.END}\nb\n"
    text = tally.table(json.dumps({"what": "kill", "attempts": 1, "survived": 0}))
    made = tally.into(page, text)
    assert made == f"a\n{tally.BEGIN}\n{text}\n{tally.END}\nb\n"
    with pytest.raises(AssertionError, match="no <!--"):
        tally.into("no markers", text)


def test_the_page_takes_the_table(tmp_path: Path) -> None:
    rows, page = tmp_path / "rows", tmp_path / "README.md"
    rows.write_text(json.dumps({"what": "kill", "attempts": 3, "survived": 3}) + "\n")
    page.write_text((Path(tally.__file__).parent / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, tally.__file__, str(rows), "--readme", str(page)], check=True, capture_output=True)
    before, _, table = page.read_text(encoding="utf-8").partition(tally.BEGIN)
    assert before.startswith("# Faults on purpose")
    assert table.count("\n| ") == 2  # the head and the row; nothing of the table before
    assert "| kill | 3 | 3 |" in table
