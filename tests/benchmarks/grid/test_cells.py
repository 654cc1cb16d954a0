"""The suite file and its expansion into cells."""

import itertools
import json
import shlex
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.commands import benchmark as runner
from benchmarks.grid import cells as grid
from benchmarks.grid.cells import Cell, changed_file, expand, varied
from benchmarks.grid.suite import AxisValue, Suite, load_suite
from benchmarks.launchers import Launcher, choose_launcher
from benchmarks.paths import CHECKOUT
from datamodules.contract.errors import InputError

SUITE = """
name: tiny
description: Two models, two seeds
configs: [configs/trainer.yaml]
axes:
  data: [configs/ml.yaml]
  model:
    - configs/random.yaml
    - configs/lora.yaml
    - {name: wide, config: configs/lora.yaml, overrides: {model.r: 64, trainer.max_steps: 7}}
  seed_everything: [1, 2]
overrides: {trainer.max_steps: 80, model.optimizer: {lr: 0.1}}
exclude:
  - {model: random, seed_everything: 2}
include_overrides:
  - {when: {model: [lora, wide], seed_everything: 1}, overrides: {model.optimizer.lr: 0.001}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder outside the checkout with a suite and its configs; also the current directory."""
    (tmp_path / "configs").mkdir()
    for name in ("trainer", "ml", "random", "lora"):
        (tmp_path / "configs" / f"{name}.yaml").write_text(f"# {name}\nkey: {name}\n")
    (tmp_path / "suite.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def cells_of(folder: Path, out: str = "out") -> list[Cell]:
    return expand(load_suite(folder / "suite.yaml"), Path(out))


def test_order_labels_and_commands_follow_the_suite(folder):
    cells = cells_of(folder)
    assert [cell.title for cell in cells] == [
        "random, seed_everything=1",
        "lora, seed_everything=1",
        "lora, seed_everything=2",
        "wide, seed_everything=1",
        "wide, seed_everything=2",
    ]
    lora, wide = cells[1], cells[4]
    assert lora.labels == (("data", "ml"), ("model", "lora"), ("seed_everything", "1"))
    assert lora.name == f"ml-lora-1-{lora.key[:8]}"
    assert lora.command == (
        *("instructrec", "fit"),
        *("-c", f"{folder}/configs/trainer.yaml", "-c", f"{folder}/configs/ml.yaml"),
        *("-c", f"{folder}/configs/lora.yaml", "--trainer.max_steps=80", "--seed_everything=1"),
        *("--model.optimizer.lr=0.001", "--name=lora", "--out", f"{folder}/out/runs/{lora.name}"),
    )
    assert set(wide.command) >= {"--model.optimizer.lr=0.1", "--model.r=64", "--trainer.max_steps=7"}
    assert "--trainer.max_steps=80" not in wide.command


def test_paths_in_the_checkout_print_short_and_the_current_directory_comes_first(folder, monkeypatch):
    monkeypatch.setattr("benchmarks.paths.ROOT", folder)
    elsewhere = folder / "sub"
    (elsewhere / "configs").mkdir(parents=True)
    (elsewhere / "configs" / "ml.yaml").write_text("a: 1\n")
    monkeypatch.chdir(elsewhere)
    command = cells_of(folder)[0].command
    assert command[2:6] == ("-c", "configs/trainer.yaml", "-c", "sub/configs/ml.yaml")
    assert command[-1].startswith("sub/out/runs/")


@pytest.mark.parametrize(
    ("value", "option"),
    [
        ("true", "--k.x=true"),
        ("null", "--k.x=null"),
        ("0.0001", "--k.x=0.0001"),
        ("[a, 1]", '--k.x=["a", 1]'),
        ("text with space", "--k.x=text with space"),
        (".inf", "--k.x=.inf"),
        ("2020-01-02", '--k.x="2020-01-02"'),
    ],
)
def test_override_values_are_written_for_a_command_line(folder, value, option):
    write(folder, f"name: t\naxes: {{k.x: [{value}]}}\n")
    assert option in cells_of(folder)[0].command


def test_appended_list_items_all_stay(folder):
    write(folder, "name: t\naxes: {s: [1]}\noverrides: {trainer.callbacks+: A}\n")
    suite = load_suite(folder / "suite.yaml")
    both = Suite(**{**vars(suite), "include_overrides": (((), (("trainer.callbacks+", "B"),)),)})
    options = [part for part in expand(both, Path("o"))[0].command if "callbacks" in part]
    assert options == ["--trainer.callbacks+=A", "--trainer.callbacks+=B"]


def test_the_name_changes_with_all_that_makes_the_result_and_with_nothing_else(folder, monkeypatch):
    def names() -> list[str]:
        return [cell.name for cell in cells_of(folder)]

    before = names()
    assert names() == before
    assert [cell.name for cell in cells_of(folder, "another/out")] == before
    write(folder, SUITE.replace("description: Two", "description: 2").replace("name: tiny", "name: other"))
    assert names() == before

    (folder / "configs" / "lora.yaml").write_text("key: lora # edited\n")
    edited = names()
    assert [a == b for a, b in zip(before, edited, strict=True)] == [True, False, False, False, False]

    (folder / "configs" / "nested.yaml").write_text("lr: 1\n")
    (folder / "configs" / "lora.yaml").write_text("deep: [{optimizer: nested.yaml}]\n")
    nested = names()
    (folder / "configs" / "nested.yaml").write_text("lr: 2\n")
    assert [a == b for a, b in zip(nested, names(), strict=True)] == [True, False, False, False, False]

    (folder / "suite.yaml").write_text(SUITE.replace("trainer.max_steps: 80", "trainer.max_steps: 81"))
    assert sum(a == b for a, b in zip(nested, names(), strict=True)) == 0  # nested.yaml and the override changed
    current = names()
    monkeypatch.setattr(grid, "package_version", lambda: "99")
    assert not set(names()) & set(current)


def test_configs_that_name_each_other_are_followed_once(folder):
    (folder / "configs" / "lora.yaml").write_text("a: &x [ml.yaml, lora.yaml]\nb: [*x, *x]\n")
    assert [Path(name).name for name, _ in cells_of(folder)[1].files] == [
        "lora.yaml",
        "ml.yaml",
        "trainer.yaml",
    ]


def test_a_config_edited_after_planning_is_noticed(folder):
    cell = cells_of(folder)[1]
    assert changed_file(cell) is None
    (folder / "configs" / "lora.yaml").write_text("key: changed\n")
    assert changed_file(cell) == str(folder / "configs" / "lora.yaml")
    (folder / "configs" / "lora.yaml").unlink()
    assert changed_file(cell) == str(folder / "configs" / "lora.yaml")


def test_a_file_beside_the_config_that_names_it_comes_first(folder, monkeypatch):
    monkeypatch.setattr("benchmarks.paths.ROOT", folder)
    for place in ("configs/ml.yaml", "ml.yaml"):
        (folder / place).write_text(f"place: {place}\n")
    (folder / "configs" / "lora.yaml").write_text("other: ml.yaml\n")
    assert "ml.yaml" not in [name for name, _ in cells_of(folder)[1].files]


@pytest.mark.parametrize("text", ["long " * 100 + ".yaml", "two\nlines.yaml", "with a nul \0.yaml"])
def test_text_that_ends_like_a_file_is_text(folder, text):
    before = [Path(name).name for name, _ in cells_of(folder)[1].files]
    (folder / "configs" / "lora.yaml").write_text(json.dumps({"description": text}))
    assert [Path(name).name for name, _ in cells_of(folder)[1].files] == before


def test_a_folder_has_a_name_that_file_systems_take(folder):
    write(folder, f"name: t\naxes: {{m: [{{name: {'wide' * 100}, config: configs/lora.yaml}}]}}\n")
    (cell,) = cells_of(folder)
    assert cell.name == f"{('wide' * 100)[:80]}-{cell.key[:8]}"


def test_a_varied_cell_of_other_files_or_versions_is_another_run():
    cell = Cell("lora-0", "lora", (), ("instructrec", "fit", "--name=x", "--out", "o/runs/lora-0"), "a")
    keys = {varied(replace(cell, key=key), [("model.r", "8")], "--search.result=x", reason="why").key for key in "ab"}
    assert len(keys) == 2


BAD = {
    "unknown key": ("name: t\naxis: {s: [1]}\n", "unknown key 'axis'; nearest: axes"),
    "no name": ("axes: {s: [1]}\n", "name: a suite needs a name"),
    "no axes": ("name: t\n", "axes: a mapping"),
    "empty axes": ("name: t\naxes: {}\n", "axes: no axis"),
    "empty axis": ("name: t\naxes: {model: []}\n", "axes.model: no values"),
    "axis no list": ("name: t\naxes: {s: 1}\n", "axes.s: an axis is a list"),
    "axis key no text": ("name: t\naxes: {1: [1]}\n", "key 1 is not text"),
    "missing overlay": (
        "name: t\naxes: {m: [configs/lor.yaml]}\n",
        "axes.m[0]: no file configs/lor.yaml; nearest: lora.yaml",
    ),
    "missing config": ("name: t\nconfigs: [gone.yaml]\naxes: {s: [1]}\n", "configs: no file gone.yaml"),
    "config no path": (
        "name: t\nconfigs: [3]\naxes: {s: [1]}\n",
        "configs: a path to a YAML file is needed, got 3",
    ),
    "not yaml": ("name: t\naxes: {s: [1\nexclude: x\n", "suite.yaml:3: not plain YAML"),
    "tag": ("name: t\naxes: {s: [!!python/name:os.system ]}\n", "suite.yaml:2: not plain YAML"),
    "repeated key": ("name: t\naxes:\n  s: [1]\n  s: [2]\n", "suite.yaml:4: not plain YAML (key 's' twice)"),
    "not a mapping": ("[1, 2]\n", "a mapping (key: value) is needed"),
    "empty file": ("", "a mapping (key: value) is needed, got nothing"),
    "same label": ("name: t\naxes: {s: [1, 1]}\n", "axes.s[1]: a second value named 1"),
    "unknown value key": ("name: t\naxes: {m: [{nam: a}]}\n", "axes.m[0]: unknown key 'nam'; nearest: name"),
    "value without name": (
        "name: t\naxes: {m: [{overrides: {a: 1}}]}\n",
        "axes.m[0]: a value without config needs a name",
    ),
    "override of out": ("name: t\naxes: {s: [1]}\noverrides: {out: x}\n", "'out' cannot be overridden"),
    "override no key": ("name: t\naxes: {s: [1]}\noverrides: {--a b: x}\n", "'--a b' cannot be overridden"),
    "overrides no mapping": ("name: t\naxes: {s: [1]}\noverrides: [a]\n", "overrides: a mapping"),
    "exclude no list": ("name: t\naxes: {s: [1]}\nexclude: {s: 1}\n", "exclude: a list is needed"),
    "exclude empty": ("name: t\naxes: {s: [1]}\nexclude: [{}]\n", "exclude[0]: names no axis; axes: s"),
    "exclude unknown axis": (
        "name: t\naxes: {seed: [1]}\nexclude: [{sed: 1}]\n",
        "exclude[0]: no axis sed; nearest: seed",
    ),
    "exclude unknown value": (
        "name: t\naxes: {m: [full, lora]}\nexclude: [{m: lor}]\n",
        "exclude[0].m: matches no cell, no value lor; nearest: lora",
    ),
    "when unknown axis": (
        "name: t\naxes: {s: [1]}\ninclude_overrides: [{when: {q: 1}}]\n",
        "include_overrides[0].when: no axis q; choices: s",
    ),
    "when missing": (
        "name: t\naxes: {s: [1]}\ninclude_overrides: [{overrides: {a: 1}}]\n",
        "when: a mapping",
    ),
    "when excluded": (
        "name: t\naxes: {s: [1, 2]}\nexclude: [{s: 1}]\ninclude_overrides: [{when: {s: 1}}]\n",
        "include_overrides[0].when matches no cell",
    ),
    "no cells": ("name: t\naxes: {s: [1]}\nexclude: [{s: 1}]\n", "exclude leaves no cell of 1"),
    "equal cells": (
        "name: t\naxes: {m: [{name: a, overrides: {x: 1}}, {name: b, overrides: {x: 1}}]}\n",
        "are the same run",
    ),
    "broken config": ("name: t\naxes: {m: [bad.yaml]}\n", "bad.yaml:2: not plain YAML"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_bad_suites_are_refused_in_one_line(folder, text, message):
    (folder / "bad.yaml").write_text("a: 1\nb: ]\n")
    write(folder, text)
    with pytest.raises(InputError) as caught:
        cells_of(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_undecodable_suites_are_refused(folder):
    with pytest.raises(InputError, match=r"suit\.yaml does not exist; nearest: suite\.yaml"):
        load_suite(folder / "suit.yaml")
    (folder / "suite.yaml").write_bytes(b"name: t\n# \xff\n")
    with pytest.raises(InputError, match=r"suite\.yaml:2: not UTF-8"):
        load_suite(folder / "suite.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_suite(folder)
    (folder / "suite.yaml").write_text("[" * 5000)
    with pytest.raises(InputError, match="not plain YAML"):
        load_suite(folder / "suite.yaml")


def test_equal_cells_are_named(folder):
    write(folder, BAD["equal cells"][0])
    with pytest.raises(InputError, match=r"a-\w{8} and b-\w{8}"):
        cells_of(folder)


def test_too_many_cells_are_counted_before_they_are_made(folder):
    write(folder, f"name: t\naxes: {{a: {list(range(200))}, b: {list(range(200))}, d: {list(range(200))}}}\n")
    with pytest.raises(InputError, match=r"8000000 cells \(a 200 x b 200 x d 200\), more than max_cells = 10000"):
        cells_of(folder)
    write(folder, "name: t\naxes: {s: [1, 2, 3]}\n")
    suite = load_suite(folder / "suite.yaml")
    with pytest.raises(InputError, match="3 cells"):
        expand(suite, Path("o"), max_cells=2)
    assert len(expand(suite, Path("o"), max_cells=3)) == 3


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    data=st.data(),
)
def test_expansion_equals_a_filtered_product(sizes, data):
    names = [f"axis{i}" for i in range(len(sizes))]
    axes = {
        name: tuple(AxisValue(str(v), str(v), (), ((name, str(v)),)) for v in range(size))
        for name, size in zip(names, sizes, strict=True)
    }
    rule = st.dictionaries(st.sampled_from(names), st.sets(st.sampled_from("012"), min_size=1), min_size=1)
    rules = data.draw(st.lists(rule, max_size=2))
    exclude = tuple(tuple((axis, frozenset(wanted)) for axis, wanted in r.items()) for r in rules)
    suite = Suite("s", "", Path("s.yaml"), "", (), axes, (), exclude, ())

    expected = []
    for combination in itertools.product(*(range(size) for size in sizes)):
        labels = {name: str(v) for name, v in zip(names, combination, strict=True)}
        if not any(all(labels[axis] in wanted for axis, wanted in r.items()) for r in rules):
            expected.append(labels)
    if not expected:
        with pytest.raises(InputError, match="leaves no cell"):
            expand(suite, Path("out"))
        return
    cells = expand(suite, Path("out"))
    assert [dict(cell.labels) for cell in cells] == expected
    assert len({cell.name for cell in cells}) == len(cells)


RUN = """
import json, os, sys
out = sys.argv[sys.argv.index("--out") + 1]
if "--seed_everything=2" in sys.argv and "BREAK" in os.environ:
    sys.exit("no luck")
record = {"format": 1, "status": "finished", "error": None}
open(out + "/record.tmp", "w").write(json.dumps(record))
os.replace(out + "/record.tmp", out + "/record.json")
"""


@pytest.fixture
def benchmark(folder, monkeypatch):
    """`run_benchmark` over two seeds, with a tiny script for the runs and a stand-in for the report."""
    (folder / "run.py").write_text(RUN)
    prefix = (sys.executable, "-I", "-S", str(folder / "run.py"))
    report = ModuleType("benchmarks.report.write")
    paths = {"markdown": Path("leaderboard.md"), "html": Path("report.html")}
    report.write_report = lambda _: SimpleNamespace(text="| the table |", **paths)
    report.log_report = report.project_of = lambda _: None
    monkeypatch.setitem(sys.modules, "benchmarks.report.write", report)
    write(folder, "name: tiny\naxes: {seed_everything: [1, 2]}\n")
    return partial(
        runner.run_benchmark, folder / "suite.yaml", folder / "out", launcher=Launcher("local", prefix=prefix)
    )


def test_a_dry_run_prints_commands_and_writes_nothing(benchmark, folder, capsys):
    before = sorted(folder.rglob("*"))
    assert benchmark(dry_run=True) == 0
    assert sorted(folder.rglob("*")) == before
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "tiny: 2 cells: 2 waiting"
    commands = [shlex.join(cell.command) for cell in expand(load_suite(folder / "suite.yaml"), folder / "out")]
    assert printed[1::2] == [f"waiting   {command}" for command in commands]
    assert all(line.startswith("          ") for line in printed[2::2])


def test_a_grid_runs_reports_and_continues(benchmark, folder, capsys, monkeypatch):
    monkeypatch.setenv("BREAK", "1")
    assert benchmark() == 1
    printed = capsys.readouterr().out
    assert "| the table |" in printed
    assert "failed: seed_everything=2: exit code 1; no luck" in printed
    assert "results: leaderboard.md and report.html" in printed
    assert benchmark() == 1  # the failure is not forgotten, and not repeated
    assert "tiny: 2 cells: 1 finished, 1 failed" in capsys.readouterr().out
    monkeypatch.delenv("BREAK")
    assert benchmark(retry_failed=True) == 0
    assert "failed:" not in capsys.readouterr().out
    write(folder, "name: tiny\naxes: {seed_everything: [1, 3]}\n")
    assert benchmark() == 0
    assert "1 run folders in" in capsys.readouterr().out


def test_one_folder_holds_one_suite(benchmark, folder):
    assert benchmark() == 0
    kept = (folder / "out" / "suite.yaml").read_text()
    write(folder, "name: other\naxes: {seed_everything: [1]}\n")
    for dry_run in (True, False):
        with pytest.raises(InputError, match="holds the suite 'tiny', not 'other'"):
            benchmark(dry_run=dry_run)
    assert (folder / "out" / "suite.yaml").read_text() == kept


def test_bad_options_are_refused(benchmark, folder):
    with pytest.raises(InputError, match=r"--launcher: no launcher 'lokal'; nearest: local"):
        choose_launcher("lokal")
    with pytest.raises(InputError, match=r"--processes: at least 1, got 0"):
        choose_launcher("local", processes=0)
    (folder / "file").write_text("")
    with pytest.raises(InputError, match="file: not a folder"):
        runner.run_benchmark(folder / "suite.yaml", folder / "file")


GOLDEN = json.loads((CHECKOUT / "tests/golden/cell_names.json").read_text())


def test_every_suite_has_golden_names() -> None:
    suites = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "benchmarks/suites").rglob("*.yaml")}
    assert suites == set(GOLDEN["cells"])


@pytest.mark.parametrize("suite", GOLDEN["cells"])
def test_cells_keep_their_names(suite: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cell with another name is run again, and its finished run is no longer found.

    The names are those of commit 0086149, printed by `benchmark --dry-run`. An edited config makes new cells on purpose:
    then, and for a new suite, take the names from a dry run.
    """
    monkeypatch.setattr("benchmarks.grid.cells.package_version", lambda: GOLDEN["version"])
    assert [cell.name for cell in expand(load_suite(CHECKOUT / suite), tmp_path)] == GOLDEN["cells"][suite]
