"""Where this project's files are, in a checkout and installed from a wheel, and how paths are printed and looked up.

A wheel has `configs/` inside this package; in a checkout it is the folder at the top. Both are called `configs/...` in
suites, commands and records, so that these say the same wherever a run is made.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
SUITES = PACKAGE / "suites"
PUBLISHED = PACKAGE / "published"
TEXTS = PACKAGE / "texts"

CHECKOUT = PACKAGE.parent if all((PACKAGE.parent / name).exists() for name in ("pyproject.toml", "configs")) else None
"""The root of the checkout that this code runs from; None where it is installed."""

CONFIGS = CHECKOUT / "configs" if CHECKOUT else PACKAGE / "configs"

ROOT = CHECKOUT or Path.cwd()
"""Where a grid's runs are started, and what relative paths in their commands mean: the checkout, or the current folder."""

PYTHON = (sys.executable,) if CHECKOUT else (sys.executable, "-P")
"""Starts a Python that imports these packages: an installed one must not take folders of `ROOT` for them."""


def printed_path(path: Path) -> str:
    """Returns a path as commands print it: relative where it is one of our files or below `ROOT`, else absolute.

    Example:
        >>> printed_path(CONFIGS / "model" / "lora.yaml")
        'configs/model/lora.yaml'
    """
    whole = Path(os.path.abspath(path.expanduser()))
    for folder, name in ((CONFIGS, "configs"), (PACKAGE, "benchmarks"), (ROOT, "")):
        if whole.is_relative_to(folder):
            return Path(name, whole.relative_to(folder)).as_posix()
    return str(whole)


def located(path: str | Path) -> Path:
    """Returns what a printed path means: a file below `ROOT` if it exists, else the one of ours with that name.

    Example:
        >>> located("configs/model/lora.yaml") == CONFIGS / "model" / "lora.yaml"
        True
    """
    given = Path(path).expanduser()
    ours = {"configs": CONFIGS, "benchmarks": PACKAGE}.get(given.parts[0] if given.parts else "")
    return ROOT / given if ours is None or (ROOT / given).exists() else ours.joinpath(*given.parts[1:])


def shadowed_package() -> str | None:
    """Returns what to do where one of our packages would be imported from another folder than this; else None."""
    for name in ("callbacks", "datamodules", "recmodels"):
        spec = importlib.util.find_spec(name)
        wanted = PACKAGE.parent / name / "__init__.py"
        if spec is not None and (spec.origin is None or Path(spec.origin).resolve() != wanted):
            where = spec.origin or ", ".join(spec.submodule_search_locations or ())
            return f"{where} hides the package {name!r} of instructrec ({wanted}): rename it, or take its folder off PYTHONPATH"
    return None


def package_version() -> str:
    """Returns the version of the code beside this file: an editable install may carry an older number."""
    if CHECKOUT is not None:
        return str(tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    return importlib.metadata.version("instructrec")


# Files of a run's folder: one pair for each rule of candidates that it was tested under.


def record_path(folder: Path, rule: str = "") -> Path:
    """The record under a rule of `protocol.also`; without one, of the run itself.

    Example:
        >>> record_path(Path("run")).name, record_path(Path("run"), "popularity").name
        ('record.json', 'record.popularity.json')
    """
    return folder / (f"record.{rule}.json" if rule else "record.json")


def scores_path(folder: Path, rule: str = "") -> Path:
    """The scores that `record_path` speaks of."""
    return folder / (f"scores.{rule}.npz" if rule else "scores.npz")


def further_rules(record: Mapping[str, Any]) -> list[str]:
    """The rules that a run's record names beside its own; empty where it names none in words.

    Example:
        >>> further_rules({"also": ["popularity"]}), further_rules({}), further_rules({"also": ["../a"]})
        (['popularity'], [], [])
    """
    named = record.get("also")
    rules = named if isinstance(named, list) else []
    return [rule for rule in rules if isinstance(rule, str) and rule.isidentifier()]
