"""Commands that are refused."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import main


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command leaves."""
    try:
        code = main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("instructrec:")]
    assert code == 2
    assert len(said) == 1
    return said[0]
