"""From a suite file to the cells of its grid.

A suite names the configs and overrides of every run and the axes whose product is the grid; a cell is one
run: its command, and a name that changes whenever anything that makes its result changes. So an unchanged
cell is never run twice, and an edited config is a new cell.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.grid.search_space import matches
from benchmarks.grid.suite import AxisValue, Pair, Suite, load_suite
from benchmarks.paths import located, package_version, printed_path
from benchmarks.plain_yaml import read_yaml
from datamodules.contract.errors import InputError
from datamodules.contract.files import sha256_of

__all__ = ["MAX_CELLS", "SEED", "Cell", "changed_file", "expand", "load_suite", "varied"]

MAX_CELLS = 10_000
SEED = "seed_everything"  # cells that differ in nothing else are one row of the table


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        name: Readable labels and eight digits of the key; the name of the run's folder.
        title: The labels of the axes that vary, for people.
        labels: The label on every axis, in the suite's order.
        command: What a user would type to get this run alone; runs in the checkout's root.
        key: SHA-256 over all that makes the result: the command without `--out`, the bytes of the config
            files it names (and of those they name), and the version of the package.
        files: These config files and the SHA-256 of each.
    """

    name: str
    title: str
    labels: tuple[Pair, ...]
    command: tuple[str, ...]
    key: str
    files: tuple[Pair, ...] = ()


def expand(suite: Suite, out: Path, *, max_cells: int = MAX_CELLS, plugins: Iterable[str] = ()) -> list[Cell]:
    """Returns the cells of a suite, the last axis fastest.

    Raises:
        InputError: No cells, too many cells, two equal cells, an `include_overrides` that matches no cell,
            or an unreadable config file.

    Example:
        >>> from benchmarks.grid.suite import AxisValue, Suite
        >>> from benchmarks.paths import ROOT
        >>> seeds = tuple(AxisValue(str(s), f"seed={s}", (), (("seed_everything", str(s)),)) for s in (1, 2))
        >>> suite = Suite("tiny", "", Path("tiny.yaml"), "", (), {"seed_everything": seeds}, (), (), ())
        >>> for cell in expand(suite, ROOT / "results/tiny"):
        ...     print(cell.title, *cell.command[:-1])
        seed=1 instructrec fit --seed_everything=1 --name=tiny --out
        seed=2 instructrec fit --seed_everything=2 --name=tiny --out
    """
    count = math.prod(len(values) for values in suite.axes.values())
    if count > max_cells:
        sizes = " x ".join(f"{name} {len(values)}" for name, values in suite.axes.items())
        raise InputError(f"{suite.path}: {count} cells ({sizes}), more than max_cells = {max_cells}")
    folder, version, files = printed_path(out), package_version(), _ConfigFiles()
    used = [False] * len(suite.include_overrides)
    cells: dict[str, Cell] = {}
    for values in itertools.product(*suite.axes.values()):
        labels = tuple(zip(suite.axes, (value.label for value in values), strict=True))
        if any(matches(rule, dict(labels)) for rule in suite.exclude):
            continue
        overrides = list(suite.overrides)
        overrides += itertools.chain.from_iterable(value.overrides for value in values)
        for index, (rule, extra) in enumerate(suite.include_overrides):
            if matches(rule, dict(labels)):
                used[index] = True
                overrides += extra
        configs = [*suite.configs, *itertools.chain.from_iterable(value.configs for value in values)]
        arguments = _arguments(configs, overrides, plugins)
        cell = _cell(suite, values, labels, arguments, files.of(arguments), version, folder)
        if cell.key in cells:
            raise InputError(f"{suite.path}: {cells[cell.key].name} and {cell.name} are the same run")
        cells[cell.key] = cell
    if not cells:
        raise InputError(f"{suite.path}: exclude leaves no cell of {count}")
    if not all(used):
        raise InputError(f"{suite.path}: include_overrides[{used.index(False)}].when matches no cell")
    return list(cells.values())


def varied(cell: Cell, pairs: Iterable[Pair], option: str, *, label: Pair | None = None, reason: str = "") -> Cell:
    """Returns a cell with other values of some options: another run, with a name of its own.

    Args:
        cell: From `expand`.
        pairs: Options and their values; they win over those that the cell has.
        option: One more option, for the run alone: like `--out` it makes no other result.
        label: What tells it from the cell; one with a label runs below `search` of the results folder.
        reason: Why it has these values; with another reason it is another run.

    Example:
        >>> cell = Cell("lora-0", "lora", (), ("instructrec", "fit", "--model.r=4", "--name=x", "--out", "o/runs/lora-0"), "")
        >>> varied(cell, [("model.r", "8")], "--search.result=found.json").command[2:5]
        ('--model.r=8', '--search.result=found.json', '--name=x')
    """
    values = dict(pairs)
    *arguments, name, out, folder = cell.command
    remaining = (word for word in arguments if word.partition("=")[0].removeprefix("--") not in values)
    words = (*remaining, *(f"--{key}={value}" for key, value in values.items()))
    key = hashlib.sha256(json.dumps([words, cell.files, cell.key, reason]).encode()).hexdigest()
    slug = "-".join(part for part in (cell.name.rpartition("-")[0], *(label or ())) if part)
    unique = f"{slug}-{key[:8]}" if slug else key[:8]
    runs = folder.rpartition("/")[0] if label is None else f"{folder.rpartition('/runs/')[0]}/search/runs"
    title = cell.title if label is None else f"{cell.title}, {' '.join(label)}"
    labels = cell.labels if label is None else (*cell.labels, label)
    return Cell(unique, title, labels, (*words, option, name, out, f"{runs}/{unique}"), key, cell.files)


def changed_file(cell: Cell) -> str | None:
    """Returns the first config file of a cell that is no longer what the cell was named for, else None.

    Example:
        >>> changed_file(Cell("a", "a", (), (), ""))
    """
    for name, digest in cell.files:
        path = located(name)
        if not path.is_file() or sha256_of(path) != digest:
            return name
    return None


def _arguments(configs: Iterable[str], overrides: Iterable[Pair], plugins: Iterable[str]) -> tuple[str, ...]:
    """Writes the command without `--out`; of a key given twice the later value holds, at the later place."""
    last: dict[str, list[str]] = {}
    for key, value in overrides:
        before = last.pop(key, [])
        last[key] = [*before, value] if key.endswith("+") else [value]  # "key+" appends to a list
    arguments = itertools.chain.from_iterable(("-c", config) for config in configs)
    options = (f"--{key}={value}" for key, values in last.items() for value in values)
    return ("instructrec", "fit", *(f"--allow-import={name}" for name in plugins), *arguments, *options)


def _cell(
    suite: Suite,
    values: tuple[AxisValue, ...],
    labels: tuple[Pair, ...],
    arguments: tuple[str, ...],
    files: tuple[Pair, ...],
    version: str,
    folder: str,
) -> Cell:
    key = hashlib.sha256(json.dumps([arguments, files, version]).encode()).hexdigest()
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(label for _, label in labels)).strip("-.")[:80]
    name = f"{slug}-{key[:8]}" if slug else key[:8]
    varying = [value.title for axis, value in zip(suite.axes.values(), values, strict=True) if len(axis) > 1]
    title = ", ".join(varying or [value.title for value in values])
    row = [v.title for axis, v in zip(suite.axes, values, strict=True) if v.title in varying and axis != SEED]
    command = (*arguments, f"--name={', '.join(row) or suite.name}", "--out", f"{folder}/runs/{name}")
    return Cell(name, title, labels, command, key, files)


class _ConfigFiles:
    """The config files that a command reads, with their digests; each file is read once per grid."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[str, tuple[Path, ...]]] = {}

    def of(self, arguments: Iterable[str]) -> tuple[Pair, ...]:
        """Returns every YAML file that the arguments name, directly or through another, and its SHA-256."""
        names = (argument.partition("=")[2] if "=" in argument else argument for argument in arguments)
        todo = list(_existing(names))
        digests: dict[Path, str] = {}
        while todo:
            path = todo.pop()
            if path not in digests:
                digests[path], mentioned = self._read(path)
                todo += mentioned
        return tuple(sorted((printed_path(path), digest) for path, digest in digests.items()))

    def _read(self, path: Path) -> tuple[str, tuple[Path, ...]]:
        if path not in self._seen:
            content, text = read_yaml(path)
            mentioned = tuple(_existing(_strings(content), path.parent))
            self._seen[path] = hashlib.sha256(text).hexdigest(), mentioned
        return self._seen[path]


def _existing(names: Iterable[str], *bases: Path) -> Iterator[Path]:
    for name in names:
        if name.endswith((".yaml", ".yml")):
            paths = (*(base / name for base in bases), located(name))
            yield from itertools.islice(
                (path for path in paths if os.path.isfile(path)), 1
            )  # text may be too long a name


def _strings(content: Any) -> Iterator[str]:
    todo, visited = [content], set[int]()  # an alias is visited once, however often it is used
    while todo:
        node = todo.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict | list) and id(node) not in visited:
            visited.add(id(node))
            todo += node.values() if isinstance(node, dict) else node
