"""The house as a whole: who imports whom, what each part brings along, and how large files may grow."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("recmodels", "datamodules", "callbacks", "benchmarks")
# What recmodels may read of datamodules. `sources` is the door to the three modules behind it.
LEAVES = {"datamodules.batch", "datamodules.sources", "datamodules.pretrained"}
BEHIND_LEAVES = {
    "datamodules.source_kinds",
    "datamodules.source_cache",
    "datamodules.archives",
    "datamodules.downloads",
    "datamodules.hostile_backbones",
    "datamodules.packaged",
}
TUNING_METHODS = {"AdapterTuning", "FullTuning", "LoRATuning", "PrefixTuning"}
NO_PAPER = {"ZeroShot", "Random", "Popularity"}  # there is none to cite
PAPER = re.compile(r"arXiv[: ]?\d{4}\.\d{4,5}|doi:10\.|https://", re.IGNORECASE)


def files_of(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no files in {package}"
    return found


def imports_of(path: Path) -> Iterator[str]:
    """Modules of this project that a file names in an import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [node.module or ""]
            if node.module in PACKAGES:  # `from datamodules import x` may mean a module
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def own(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    for path in files_of(package):
        for name in imports_of(path):
            other = name.split(".")[0]
            allowed = other == package or package == "benchmarks" or (package == "recmodels" and name in LEAVES)
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_leaves_import_only_leaves() -> None:
    for name in LEAVES | BEHIND_LEAVES:
        path = ROOT / f"{name.replace('.', '/')}.py"
        assert path.is_file(), f"{name} is gone: change the list of leaves"
        for imported in imports_of(path):
            assert imported in LEAVES | BEHIND_LEAVES, f"{path.relative_to(ROOT)} imports {imported}"


def test_no_module_imports_what_another_keeps_private() -> None:
    for path in (path for package in PACKAGES for path in files_of(package)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
                private = [alias.name for alias in node.names if re.match(r"_[^_]", alias.name)]
                assert not private, f"{path.relative_to(ROOT)}:{node.lineno} imports {private[0]} of {node.module}"


def test_every_listed_package_exists_and_every_package_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])

    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert listed == there


def exported(package: str) -> list[type]:
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module.__all__)
    found = [getattr(module, name) for name in module.__all__]
    assert found
    return [each for each in found if isinstance(each, type)]


def named_in(axis: str, key: str) -> set[str]:
    sheets = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "configs" / axis).rglob("*.yaml")]
    assert sheets
    return {str(sheet[key]["class_path"]).split(".")[-1] for sheet in sheets}


@pytest.mark.parametrize(("package", "axis", "key"), [("recmodels", "model", "model"), ("datamodules", "data", "data")])
def test_every_export_has_a_config_and_every_config_an_export(package: str, axis: str, key: str) -> None:
    assert {each.__name__ for each in exported(package)} == named_in(axis, key)


def test_every_export_is_documented_with_its_paper() -> None:
    for each in (*exported("recmodels"), *exported("datamodules")):
        told = each.__dict__.get("__doc__") or ""
        assert told.strip(), f"{each.__name__} has no docstring of its own"
        if each.__name__ not in NO_PAPER:
            assert PAPER.search(told), f"the docstring of {each.__name__} links no paper or source"


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_one_variant_is_one_small_file() -> None:
    """The aim is 80 lines for a tuning method and 100 for a data set."""
    methods = {each.__name__: each.__module__ for each in exported("recmodels")}
    assert set(methods) >= TUNING_METHODS
    homes = [methods[name] for name in TUNING_METHODS]
    assert len(set(homes)) == len(homes)
    for home in homes:
        assert lines_of(ROOT / f"{home.replace('.', '/')}.py") <= 80, home
    for each in exported("datamodules"):
        assert lines_of(ROOT / f"{each.__module__.replace('.', '/')}.py") <= 100, each.__name__


def test_no_file_grows_beyond_a_screenful_of_screens() -> None:
    too_long = {
        str(path.relative_to(ROOT)): lines_of(path)
        for package in PACKAGES
        for path in files_of(package)
        if lines_of(path) > 300
    }
    assert not too_long


def test_nothing_pretrained_may_bring_code_along() -> None:
    """Left out, `trust_remote_code` makes transformers ask on the terminal whether to run a stranger's code."""
    found = 0
    for path in (path for package in PACKAGES for path in files_of(package)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                found += 1
                given = {word.arg: word.value for word in node.keywords}
                value = given.get("trust_remote_code")
                assert isinstance(value, ast.Constant), f"{path.relative_to(ROOT)}:{node.lineno}"
                assert value.value is False, f"{path.relative_to(ROOT)}:{node.lineno}"
    assert found
