"""`instructrec report` on a folder, and the README's table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main


def test_report_writes_the_table_into_a_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "lora").mkdir(parents=True)
    readme = tmp_path / "README.md"
    readme.write_text("# Mine\n<!-- leaderboard:begin -->old<!-- leaderboard:end -->\nrest\n")
    assert main(["report", str(tmp_path), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert "old" not in text
    assert "### Results" in text
    assert text.count("\n# ") == 0
    assert text.endswith("rest\n")
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["report", "no/such/folder"], "no/such/folder"),
        (["benchmark", "x.yaml"], "x.yaml does not exist"),
        (["benchmark", "x.yaml", "--out", "y", "--launcher", "slurmy"], "nearest: slurm"),
        (["benchmark", "x.yaml", "--out", "y", "--processes", "two"], "two"),
        ([], ""),
    ],
)
def test_bad_use_is_one_line(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not arguments:
        assert main(arguments) == 0
        assert "instructrec benchmark" in capsys.readouterr().out
        return
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    err = capsys.readouterr().err.strip()
    assert code == 2
    assert err.count("\n") == 0
    assert expected in err
