"""The table of attempts and survivals."""

import json
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
