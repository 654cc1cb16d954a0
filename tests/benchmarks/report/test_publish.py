"""Published runs: the same tables, nothing of the data or the machine, and a grid that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.grid.ledger import Ledger
from benchmarks.paths import CHECKOUT
from benchmarks.report.publish import publish_runs
from benchmarks.report.write import write_report
from datamodules.contract.errors import InputError
from tests.benchmarks.report.grids import Grid


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """Two finished rows, one of them under two seeds, one failed run and one without a record."""
    made = Grid(tmp_path / "grid")

    def placed(record: dict[str, Any]) -> None:
        record["config"]["out"] = str(tmp_path / "grid" / "runs" / "x")
        record["config"]["model"]["init_args"]["backbone"] = "/models/tiny"
        record["config"]["config"] = [str(CHECKOUT / "configs" / "model" / "lora.yaml")]

    made.add("lora", seed=1, rank=4.0, edit=placed)
    made.add("lora", seed=2, rank=4.5, edit=placed)
    made.add("zero_shot", kind="untuned", rank=7.0)
    made.add("full", edit=lambda record: record.update(status="failed", error="no memory"))
    (made.directory / "runs" / "waiting").mkdir()
    names = sorted(path.name for path in (made.directory / "runs").iterdir())
    cells = [
        {"name": name, "labels": {}, "command": f"instructrec fit --out {tmp_path}/grid/runs/{name}"} for name in names
    ]
    (made.directory / "cells.json").write_text(json.dumps({"format": 1, "cells": cells}))
    (made.directory / "suite.yaml").write_text("name: grid\n")
    return made


def test_published_runs_make_the_same_tables_and_are_done(grid: Grid, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["report", str(grid.directory), "--publish", str(again)]) == 0
    names = {folder.name for folder in (again / "runs").iterdir()}
    assert len(names) == 3
    report = write_report(again)
    assert report.csv.read_text() == (grid.directory / "leaderboard.csv").read_text()
    theirs = (grid.directory / "leaderboard.md").read_text()
    assert (
        report.text.partition("## Not in the tables")[0].splitlines()[2:]
        == (theirs.partition("## Not in the tables")[0].splitlines()[2:])
    )
    assert str(tmp_path) not in (again / "cells.json").read_text()
    with Ledger(again) as ledger:
        assert all(ledger.state(name) == "finished" for name in names)


def test_nothing_of_the_data_or_the_machine_is_published(grid: Grid, tmp_path: Path) -> None:
    for folder in publish_runs(grid.directory, tmp_path / "public"):
        text = (folder / "record.json").read_text()
        assert json.loads(text)["samples"] == []
        assert str(tmp_path) not in text
        assert str(CHECKOUT) not in text
        assert "/models" not in text
        assert {path.name for path in folder.iterdir()} == {"record.json", "scores.npz"}
        with np.load(folder / "scores.npz", allow_pickle=False) as archive:
            assert set(archive["user"]) == {f"{place:07d}" for place in range(len(archive["user"]))}
            assert not {"item", "target", "popularity", "feature", "allow_pickle"} & set(archive.files)


def test_the_same_run_is_published_in_the_same_bytes(grid: Grid, tmp_path: Path) -> None:
    one, other = (publish_runs(grid.directory, tmp_path / name)[0] for name in ("one", "other"))
    for name in ("record.json", "scores.npz"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_what_cannot_be_published_is_one_line(grid: Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["report", str(grid.directory), "--publish", str(tmp_path / "file")]) == 2
    assert "cannot write" in capsys.readouterr().err
    (empty := tmp_path / "empty" / "runs" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="has no finished run"):
        publish_runs(empty.parents[1], tmp_path / "public")
