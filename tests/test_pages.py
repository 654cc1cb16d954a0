"""The pages for people: they are short, point at what exists, and show code and commands that are really there."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import COMMANDS
from recmodels.methods.full import FullTuning

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "results", "records", "build", ".git"} & set(path.relative_to(ROOT).parts)
    and not any(part.startswith((".venv", ".pytest")) for part in path.relative_to(ROOT).parts)
)
README = ROOT / "README.md"
LINK = re.compile(r"\]\((?!https?://|#|data:)([^)#\s]+)")
COMMAND = re.compile(r"\binstructrec ([a-z]+)((?:\s+(?:\\\n\s*)?[^`|\n]*)?)")


def commands_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """Commands in fenced blocks and between backticks, with their words."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    pieces = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    pieces += re.findall(r"`(instructrec [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for piece in pieces:
        if found := re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*instructrec ([a-z]+)(.*)", piece.partition("  #")[0]):
            yield found[1], shlex.split(found[2].replace("[", " ").replace("]", " "), comments=True)


def test_readme_is_read_in_five_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_pages_exist_where_a_reader_looks_for_them() -> None:
    assert {README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} points at {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_configs_exist(page: Path) -> None:
    for command, words in commands_of(page.read_text(encoding="utf-8")):
        assert command in COMMANDS or command.isupper(), f"{page.relative_to(ROOT)}: instructrec {command}"
        for flag, name in itertools.pairwise(words):
            if flag == "-c" and re.fullmatch(r"[\w/.-]+", name) and not name.startswith("results/"):
                there = (ROOT / name).is_file() or list(ROOT.glob(f"configs/*/{name}.yaml"))
                assert there or name.isupper() or name.endswith(".yaml"), f"{page.relative_to(ROOT)}: -c {name}"


def test_the_method_that_readme_shows_is_the_one_that_runs() -> None:
    shown = re.search(r"```python\n(class FullTuning.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == inspect.getsource(FullTuning).strip()


def test_a_newcomer_finds_the_room_for_every_change() -> None:
    """The table of CONTRIBUTING.md: one folder of code, one of configs or none, one of tests, and all of them exist."""
    rows = re.findall(
        r"^\| (an? .*?|something .*?) \| (.*?) \| (.*?) \| (.*?) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M
    )
    assert len(rows) >= 10
    for change, code, config, tests in rows:
        for cell in (code, config, tests):
            for folder in re.findall(r"`((?:recmodels|datamodules|callbacks|configs|benchmarks|tests)/[^`]*)`", cell):
                assert (ROOT / folder).is_dir(), f"{change}: {folder}"


def test_the_citation_names_this_version() -> None:
    sheet = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{sheet["version"]}"' in project


def test_the_data_set_that_the_page_shows_runs(tmp_path: Path) -> None:
    page = (ROOT / "datamodules/README.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(from typing.*?class Library.*?)```", page, re.DOTALL)
    assert shown is not None
    (tmp_path / "lending.py").write_text(shown[1], encoding="utf-8")
    data = tmp_path / "data"
    data.mkdir()
    loans = [f"r{reader},b{(reader + day) % 9},2024-01-{day + 1:02}" for reader in range(6) for day in range(5)]
    (data / "loans.csv").write_text("\n".join(["reader,book,day", *loans]))
    (data / "books.csv").write_text("\n".join(["book,name", *(f'b{k},"Book, the {k}th"' for k in range(9))]))
    words = f"fit --allow-import lending -c popularity --data lending.Library --data.data_dir {data}"
    options = f"--data.protocol.candidates full --trainer.logger false --out {tmp_path / 'run'}"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words.split(), *options.split()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run/record.json").read_text())["protocol"]["statistics"]["users"] == 6
