"""The report as an artifact of an offline W&B run, read back from its file."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

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
        artifacts = [e.artifact if e.HasField("artifact") else e.request.log_artifact.artifact for e in entries]
        files = {part.path for each in artifacts if each.type == "report" for part in each.manifest.contents}
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


def test_the_leaderboard_is_a_table_and_the_page_is_html(grid: Grid) -> None:
    report = write_report(grid.directory)
    log_report(grid.directory, report, project="mine", group="ranks")
    wandb.teardown()
    (file,) = grid.directory.glob("wandb/offline-run-*/run-*.wandb")
    items = [item for entry in wandb_records(file) for item in entry.history.item]
    logged = {tuple(item.nested_key): json.loads(item.value_json) for item in items}
    assert logged["leaderboard", "_type"] == "table-file"
    assert logged["report", "_type"] == "html-file"
    table = json.loads((file.parent / "files" / logged["leaderboard", "path"]).read_text())
    with report.csv.open() as lines:
        expected = list(csv.DictReader(lines))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["method"] for row in rows] == [line["method"] for line in expected] == ["lora", "full"]
    for row, line in zip(rows, expected, strict=True):
        assert row["hr@5"] == float(line["hr@5"])
        assert row["difference"] if "difference" in line else "difference" not in row
    page = (file.parent / "files" / logged["report", "path"]).read_text()
    assert page == report.html.read_text()


def test_the_example_of_a_sweep_runs_our_command(tmp_path: Path, mini_data: Path, tiny_causal: Path) -> None:
    """By the code with which W&B's agent makes a command of a sweep's file; its keys are those of W&B's manual."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    root = Path(__file__).parents[3]
    sweep = yaml.safe_load((root / "benchmarks" / "sweeps" / "wandb_lora.yaml").read_text())
    assert sweep.keys() <= {"name", "project", "method", "metric", "run_cap", "parameters", "command", "program"}
    assert sweep["method"] in ("grid", "random", "bayes")
    assert sweep["metric"]["goal"] in ("minimize", "maximize")
    assert all(
        space.keys() <= {"value", "values", "distribution", "min", "max"} for space in sweep["parameters"].values()
    )
    chosen = {name: {"value": space.get("min") or space["values"][0]} for name, space in sweep["parameters"].items()}
    arguments = create_sweep_command_args({"args": chosen})["args"]
    command = [part for part in create_sweep_command(list(sweep["command"])) if part != "${args}"] + arguments
    shim = tmp_path / "instructrec"
    shim.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m benchmarks "$@" --model.backbone={tiny_causal} --print_config\n'
    )
    shim.chmod(0o755)
    place = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(root), "WANDB_RUN_ID": "abc", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=root, env=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["out"] == "results/sweep/abc"
    assert config["model"]["init_args"]["r"] == 4
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.0001


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
