"""What `pip install` gives: the wheel holds all that the commands need, and works where there is no checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.__main__ import main

ROOT = Path(__file__).parents[1]
PACKAGES = ("recmodels", "datamodules", "callbacks", "benchmarks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy of what git would hand out."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    _pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def run(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the installed packages as the console script does: neither folder of work on `sys.path`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import sys; from benchmarks.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", code, *arguments]
    environment["PYTHONPATH"] = str(site)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_every_file_that_commands_read(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    configs = {f"benchmarks/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    data = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("benchmarks/suites/**/*.yaml", "benchmarks/published/*.yaml", "benchmarks/texts/*")
        for path in ROOT.glob(pattern)
    }
    templates = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("datamodules/instructions/templates/*.yaml")}
    others = {"benchmarks/report/report.html.j2", *(f"{package}/py.typed" for package in PACKAGES)}
    for wanted in (code, configs, data, templates):
        assert wanted
        assert wanted <= names, sorted(wanted - names)
    assert others <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)


def test_a_grid_runs_from_the_wheel(site: Path, tmp_path: Path, mini_data: Path) -> None:
    """In a folder without a checkout, with a package of the user's own name beside: runs, record, guard, report."""
    (tmp_path / "callbacks").mkdir()  # not on sys.path there, so that nothing of ours is hidden, in no run either
    (tmp_path / "callbacks" / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    (tmp_path / "tiny.yaml").write_text(
        "name: tiny\nconfigs: [configs/data/ml_100k.yaml]\noverrides: {data.protocol.negatives: 6}\n"
        "axes: {model: [configs/model/popularity.yaml]}\n"
    )
    done = run(site, tmp_path, "benchmark", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "results" / "tiny" / "report.html").is_file()
    (path,) = (tmp_path / "results" / "tiny" / "runs").glob("*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "finished"
    assert record["config"]["trainer"]["max_steps"] == 400
    assert "commit" not in record["versions"]
    assert (path.parent / "scores.npz").is_file()
    assert (path.parent / "metrics.csv").is_file()


def test_names_mean_the_packaged_files(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "benchmark", "quickstart", "--dry-run")
    assert done.returncode == 0, done.stderr
    checkout = [sys.executable, "-m", "benchmarks", "benchmark", "quickstart", "--dry-run"]
    here = subprocess.run(checkout, cwd=ROOT, capture_output=True, text=True, check=True)
    cells = [line for line in done.stdout.splitlines() if line.startswith("waiting")]
    assert cells
    assert cells == [line for line in here.stdout.splitlines() if line.startswith("waiting")]


def test_a_missing_default_config_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Without it the parser would go on: no guard, no logger, no scores, and nobody told."""
    monkeypatch.setattr("benchmarks.cli.app.DEFAULTS", tmp_path / "default.yaml")
    assert main(["fit", "-c", "popularity", "-c", "ml_100k"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "default.yaml does not exist" in error
