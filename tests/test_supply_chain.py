"""What `make` installs: every version pinned, every file by its sum, no compromised release."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
COMPROMISED = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}
"""GHSA-w37p-236h-pfx3."""
VULNERABLE = {"torch": "2.9.1", "jinja2": "3.1.5", "jsonargparse": "4.52.0"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert len(found) == len([line for line in lines if line and not line.startswith("#")])
    return {canonicalize_name(name): version for name, version in found.items()}


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    text = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = re.match(r"([\w.-]+)==(\S+)", line)
            assert match, line
            found[str(canonicalize_name(match[1]))] = (match[2], re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
    assert found
    return found


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(x for extra in project["optional-dependencies"].values() for x in extra)]
    return [Requirement(line) for line in lines]


def test_the_development_lock_holds_every_pin_by_hash() -> None:
    lock, pinned = locked("dev"), pins()
    assert {name: version for name, (version, _) in lock.items()} == {
        name: version for name, version in pinned.items() if name != "torch"
    }, "constraints.txt has changed: make lock"


def test_the_run_lock_is_a_part_of_it_that_holds_every_dependency() -> None:
    run, dev = locked("run"), locked("dev")
    assert run.items() <= dev.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {str(canonicalize_name(Requirement(line).name)) for line in project["dependencies"]}
    assert named - {"torch"} <= set(run), "a dependency is not in the lock: make lock"
    assert len(run) < len(dev)
    assert "pytest" not in run


@pytest.mark.parametrize("name", ["run", "dev"])
def test_every_locked_package_has_sums(name: str) -> None:
    for package, (_, sums) in locked(name).items():
        assert sums, package
        assert len(sums) == len(set(sums)), package
    assert "torch" not in locked(name)


def test_every_pin_is_within_the_bounds_of_pyproject() -> None:
    pinned = pins()
    for requirement in requirements():
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} and {version}"


def test_compromised_and_vulnerable_releases_are_excluded() -> None:
    bounds = {str(canonicalize_name(each.name)): each.specifier for each in requirements()}
    for version in COMPROMISED["lightning"]:
        assert not bounds["lightning"].contains(version)
    for name, version in VULNERABLE.items():
        assert not bounds[name].contains(version), name
    pinned = pins()
    for name, versions in COMPROMISED.items():
        assert pinned[name] not in versions


def test_every_lower_bound_stands_and_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in requirements():
        if requirement.name.startswith("types-"):
            continue
        lower = [each for each in requirement.specifier if each.operator == ">="]
        assert len(lower) == 1, f"{requirement} has no lower bound"
        Version(lower[0].version)
    assert text.count("# ") > 15


def test_make_installs_from_the_locks_only() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    rule = text[text.index("$(VENV)/installed-%:") : text.index("touch $@")]
    installs = [line for line in rule.splitlines() if "$(PIP)" in line]
    assert installs
    assert "--require-hashes --requirement locks/$*.txt" in installs[0]
    for line in installs[1:]:
        assert line.endswith("--constraint constraints.txt torch") or "--no-deps" in line, line


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The packages that a file imports, and whether it does when it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        yield from ((name.partition(".")[0], node in tree.body) for name in names)


def test_every_import_is_declared() -> None:
    """In the dependencies if a file needs it to be imported; in an extra at least if only one function does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {key: lines for key, lines in project["optional-dependencies"].items() if key != "dev"}
    always = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    anywhere = always | {canonicalize_name(Requirement(line).name) for lines in extras.values() for line in lines}
    distributions, found = packages_distributions(), set[str]()
    ours = {"recmodels", "datamodules", "callbacks", "benchmarks"}
    for path in (path for package in ours for path in (ROOT / package).rglob("*.py")):
        for name, needed in imports(path):
            if name not in sys.stdlib_module_names and name not in ours:
                found.add(name)
                declared = {canonicalize_name(each) for each in distributions[name]} & (always if needed else anywhere)
                assert declared, f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not name"
    assert {"torch", "huggingface_hub", "optuna", "cloudpickle"} <= found


def test_there_is_a_security_page() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|benchmarks|locks)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    assert "Reporting" in text
