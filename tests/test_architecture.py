"""The house as a whole: who imports whom, what each part brings along, and how large files may grow."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("recmodels", "datamodules", "callbacks", "benchmarks")
# Import ranks within a package: a file imports its own folder or a lower rank.
RANKS = {
    "recmodels": (
        "metrics layers engine optimization",
        "objectives backbones base",
        "retrieval baselines",
        "methods",
    ),
    "datamodules": (
        "contract",
        "sources",
        "tables",
        "protocol",
        "items",
        "instructions",
        "curriculum",
        "tokens",
        "batching",
        "base",
        "datasets",
    ),
    "benchmarks": (
        "plain_yaml metric_names paths option_groups",
        "grid analysis",
        "launchers runs report reproduce audit",
        "cli",
        "perf serving",
        "commands",
        "__main__",
    ),
}
RANK = {
    (package, room): rank
    for package, ranks in RANKS.items()
    for rank, rooms in enumerate(ranks)
    for room in rooms.split()
}
# What other packages may import, besides `benchmarks`, which may import everything.
DOORS = {
    "recmodels": ("datamodules.contract", "datamodules.sources.pretrained"),
    "callbacks": ("datamodules.contract",),
    "datamodules": (),
}
NO_TORCH = ("grid", "analysis", "report", "reproduce")
LONG = {"InstructionDataModule": 259}  # has yet to shrink to 250 lines
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
def test_imports_between_packages_use_the_doors(package: str) -> None:
    for path in files_of(package):
        for name in imports_of(path):
            other = name.split(".")[0]
            allowed = other == package or package == "benchmarks" or name.startswith(DOORS[package])
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", RANKS)
def test_imports_point_to_lower_ranks(package: str) -> None:
    top = len(RANKS[package])  # of the package's own __init__, which imports everything
    rooms = {path.relative_to(ROOT / package).parts[0].removesuffix(".py") for path in files_of(package)} - {"__init__"}
    assert rooms <= {room for owner, room in RANK if owner == package}, "a new room needs a rank"
    assert len(rooms) <= 15
    for path in files_of(package):
        room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for name in imports_of(path):
            owner, other = (*name.split("."), "__init__")[:2]
            if owner == package and other != room:
                lower = RANK.get((package, other), top) < RANK.get((package, room), top)
                assert lower, f"{path.relative_to(ROOT)} imports {name}, which is not below it"


def test_no_two_files_import_each_other() -> None:
    """Imports at the top of files form no circle; those inside functions may be late on purpose."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in files_of(package)
    }
    above: dict[str, set[str]] = {}
    for module, path in modules.items():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        named = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in named if isinstance(node, ast.Import) for alias in node.names}
        for node in named:
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        above[module] = {name for name in names if name in modules and name not in PACKAGES and name != module}
    while free := {module for module, names in above.items() if not names & above.keys()}:
        above = {module: names for module, names in above.items() if module not in free}
    assert not above, f"these import each other: {sorted(above)}"


@pytest.mark.parametrize("room", NO_TORCH)
def test_planning_and_reporting_need_no_torch(room: str) -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files_of(f"benchmarks/{room}")]
    code = (
        "import importlib, sys\n"
        "sys.modules['torch'] = None\n"  # an import of it fails
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_module_imports_what_another_keeps_private() -> None:
    for path in (path for package in PACKAGES for path in files_of(package)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
                private = [alias.name for alias in node.names if re.match(r"_[^_]", alias.name)]
                assert not private, f"{path.relative_to(ROOT)}:{node.lineno} imports {private[0]} of {node.module}"


def test_no_test_module_imports_another() -> None:
    """What tests share lives in modules that hold no tests, so that moving or deleting a test breaks no other."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in (name for name in names if name.split(".")[0] == "tests"):
                shared = not any(part.startswith("test_") for part in name.split("."))
                assert shared, f"{path.relative_to(ROOT)} imports {name}"


def test_every_folder_of_code_is_a_package() -> None:
    """Folders without an `__init__.py` are data; what a wheel holds is tested in test_wheel.py."""
    for folder in {path.parent for package in PACKAGES for path in files_of(package)}:
        assert (folder / "__init__.py").is_file(), folder


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


def length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    return len(
        [each for each in (*given.posonlyargs, *given.args, *given.kwonlyargs) if each.arg not in ("self", "cls")]
    )


def exported_length(each: type) -> int:
    tree = ast.parse(Path(inspect.getfile(each)).read_text(encoding="utf-8"))
    return next(length(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.name == each.__name__)


def test_sizes() -> None:
    """What no file, folder, class or constructor may exceed: one is read at a time, and each is one idea."""
    files = [path for package in PACKAGES for path in files_of(package)]
    for folder in {path.parent for path in files}:
        assert len(list(folder.glob("*.py"))) <= 25, folder
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                assert length(node) <= LONG.get(node.name, 250), f"{path}:{node.lineno} {node.name}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert parameters(node) <= 15, f"{path}:{node.lineno} {node.name}"
    for each in exported("datamodules"):
        assert exported_length(each) <= 100, each.__name__
    for each in exported("recmodels"):
        if each.__module__.startswith("recmodels.methods"):
            assert exported_length(each) <= 80, each.__name__


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
