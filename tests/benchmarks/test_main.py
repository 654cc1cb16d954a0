"""The command line before any command: names, lists, the version, and packages that hide ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import COMMANDS, USAGE, main
from benchmarks.cli.names import config_named, suite_named
from benchmarks.commands.ls import KINDS, entries
from benchmarks.paths import CONFIGS, package_version
from datamodules.contract.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def call(cwd: Path, *arguments: str, path: str = str(ROOT), before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {before}from benchmarks.__main__ import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", ["callbacks", "datamodules", "recmodels"])
@pytest.mark.parametrize("init", [True, False])
def test_a_package_that_hides_ours_is_named(tmp_path: Path, package: str, init: bool) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / ("__init__.py" if init else "mine.py")).write_text("raise SystemExit(7)\n")
    done = call(tmp_path, "ls", path=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == (2 if init else 0)  # a folder without __init__ gives way to ours
    if init:
        assert done.stderr.count("\n") == 1
        assert str(tmp_path / package) in done.stderr
        assert "rename it" in done.stderr


def test_lists_need_no_torch(tmp_path: Path) -> None:
    done = call(tmp_path, "ls", before="sys.modules['torch'] = None; ")
    assert done.returncode == 0, done.stderr
    for word in ("lora", "ml_100k", "quickstart", "tallrec_movie"):
        assert f"\n{word} " in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_listed_name_is_one_that_commands_take_and_says_what_it_is(kind: str) -> None:
    listed = dict(entries(kind))
    for name, text in listed.items():
        assert text, name
        assert len(text) < 210
        if kind == "tables":
            continue
        path = suite_named(name) if kind == "suites" else config_named(f"{KINDS[kind][0]}/{name}")
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
    if kind in ("methods", "data", "trainer", "callbacks"):
        assert len(listed) == len(list((CONFIGS / KINDS[kind][0]).rglob("*.yaml")))
        assert len(set(listed.values())) == len(listed), "two lines that do not tell their configs apart"


def test_every_committed_config_has_a_name_that_means_it() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        assert config_named(path.relative_to(CONFIGS).with_suffix("").as_posix()) == path


def test_the_shortest_path_has_a_name_first_and_equals_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config_named("prefix") == CONFIGS / "model" / "prefix.yaml"  # and not model/peft/prefix
    with pytest.raises(InputError, match=r"ambiguous: write model/partial/bias or model/token_classification/bias"):
        config_named("bias")
    with pytest.raises(InputError, match="no config 'lorra'; nearest: lora"):
        config_named("lorra")
    with pytest.raises(InputError, match="no suite 'quikstart'; nearest: quickstart"):
        suite_named("quikstart")
    monkeypatch.chdir(tmp_path)  # a user's own configs/ is searched, and never wins in silence
    (tmp_path / "configs" / "model").mkdir(parents=True)
    for name in ("mine", "lora"):
        (tmp_path / "configs" / "model" / f"{name}.yaml").write_text("model: {class_path: LoRATuning}\n")
    assert config_named("mine").resolve() == tmp_path / "configs" / "model" / "mine.yaml"
    with pytest.raises(InputError, match="ambiguous"):
        config_named("lora")
    shutil.copy(CONFIGS / "model" / "lora.yaml", tmp_path / "configs" / "model")
    assert config_named("lora").resolve() == tmp_path / "configs" / "model" / "lora.yaml"  # another checkout of ours
    assert config_named("configs/model/lora.yaml").resolve() == tmp_path / "configs" / "model" / "lora.yaml"
    assert config_named("configs/model/full.yaml") == CONFIGS / "model" / "full.yaml"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"instructrec {package_version()}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_usage_names_every_command(command: str) -> None:
    assert command in USAGE


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -P -m benchmarks ls methods | true"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_an_unknown_command_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmrk"]) == 2
    assert capsys.readouterr().err == "instructrec: no command 'benchmrk'; the nearest is 'benchmark'\n"
