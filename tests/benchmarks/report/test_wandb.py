"""The report as an artifact of an offline W&B run, read back from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import wandb

from benchmarks.__main__ import main
from benchmarks.commands.benchmark import _print_report
from benchmarks.grid.ledger import Ledger
from benchmarks.report.write import log_report, project_of, write_report
from tests.benchmarks.report.grids import Grid
from tests.benchmarks.report.wandb_files import wandb_records


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    """A finished grid whose runs were logged to the project `mine`."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    made = Grid(tmp_path / "grid")

    def logged(record: dict[str, Any]) -> None:
        loggers = [{"class_path": "CSVLogger", "init_args": {}}]
        loggers.append({"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "mine"}})
        record["config"]["trainer"]["logger"] = loggers

    for name in ("lora", "full"):
        (made.add(name, edit=logged) / "wandb").mkdir()
    (made.directory / "suite.yaml").write_text("name: ranks\n")
    return made


def logged(directory: Path) -> list[tuple[str, str, str, set[str]]]:
    """Group, project, kind of the runs, and the names of their artifacts' files."""
    wandb.teardown()  # W&B's service may still be writing
    found = []
    for file in sorted(directory.glob("wandb/offline-run-*/run-*.wandb")):
        entries = wandb_records(file)
        run = next(entry.run for entry in entries if entry.run.run_id)
        files = {
            one.path
            for entry in entries
            for one in (
                entry.artifact if entry.HasField("artifact") else entry.request.log_artifact.artifact
            ).manifest.contents
        }
        found.append((run.run_group, run.project, run.job_type, files))
    return found


def test_a_grid_ends_with_its_report_in_wandb(grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
    directory = grid.directory
    _print_report(directory, Ledger(directory).group)
    assert "W&B: the report is an artifact of group 'ranks/grid', project 'mine': " in capsys.readouterr().out
    ((group, project, kind, files),) = logged(directory)
    assert (group, project, kind) == ("ranks/grid", "mine", "report")
    written = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    expected = {name for name in written if name.split("/")[0] not in ("runs", "wandb", "suite.yaml")}
    assert files == expected >= {"leaderboard.md", "leaderboard.csv", "leaderboard.tex", "report.html"}
    assert any(name.startswith("figures/") for name in files)


def test_a_grid_without_wandb_stays_without_it(grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in grid.directory.glob("runs/*/wandb"):
        folder.rmdir()
    _print_report(grid.directory, "ranks")
    assert "W&B" not in capsys.readouterr().out
    assert not logged(grid.directory)
    assert main(["report", str(grid.directory), "--wandb"]) == 0
    ((group, project, _, files),) = logged(grid.directory)
    assert (group, project) == ("ranks/grid", "instructrec")
    assert "leaderboard.md" in files


def test_a_report_that_cannot_be_logged_is_told_in_a_line(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> Any:
        raise wandb.Error("no\nnetwork")

    monkeypatch.setattr(wandb, "init", broken)
    report = write_report(grid.directory)
    told = log_report(grid.directory, report, project="mine", group="ranks")
    assert told == "W&B: the report was not logged: no network"
    assert report.html.is_file()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    told = log_report(grid.directory, report, project="mine", group="ranks")
    assert told == "W&B: the report was not logged: WANDB_MODE is disabled"


def test_records_that_name_no_project_are_passed_over(grid: Grid) -> None:
    for path in grid.directory.glob("runs/*/record.json"):
        path.write_text("[")
    assert project_of(grid.directory) is None
