"""What would be recorded as something else: seeds that are no numbers, tests of a part of the users."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main

# What libraries warn of while whole commands run is theirs; the packages' own tests run with warnings as errors.
WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]


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


@pytest.mark.parametrize(
    "option", ["fast_dev_run=true", "fast_dev_run=2", "limit_test_batches=2", "limit_test_batches=0.5"]
)
def test_a_part_of_the_users_is_no_test(
    option: str, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["fit", "-c", "popularity", "-c", "ml_100k", f"--trainer.{option}", f"--out={out}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"trainer.{option.partition('=')[0]}: a test of a part of the users would be recorded as whole" in said[0]
    assert not out.exists()


def test_all_of_the_batches_are_no_part(mini_data: Path, tmp_path: Path) -> None:
    words = ["--trainer.limit_test_batches=1.0", "--trainer.logger=false", f"--out={tmp_path / 'run'}"]
    assert main(["fit", "-c", "popularity", "-c", "ml_100k", *words]) == 0
