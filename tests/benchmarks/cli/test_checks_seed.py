"""A seed is one number, of model and data."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main


@pytest.mark.parametrize("word", ["true", "false"])
def test_a_seed_that_is_no_number_is_refused(
    word: str, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", "popularity", "-c", "ml_100k", f"--seed_everything={word}", f"--out={out}"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"instructrec: seed_everything is {word}, must be a whole number: it seeds model and data\n"
    )
    assert not out.exists()
