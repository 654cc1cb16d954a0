"""Reads a suite file: every mistake in it is one line that says what, where, and the nearest valid choice."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.grid.search_space import Rule, Search, read_search
from benchmarks.paths import located, printed_path
from benchmarks.plain_yaml import nearest_hint, neighbours, read_yaml
from datamodules.contract.errors import InputError

__all__ = ["AxisValue", "Pair", "Suite", "load_suite"]

Pair = tuple[str, str]

_SUITE_KEYS = ("name", "description", "configs", "axes", "overrides", "exclude", "include_overrides", "search")
_VALUE_KEYS = ("name", "config", "overrides")
_NOT_FOR_SUITES = ("c", "config", "out", "allow-import")  # a file must not widen what files may name
_DOTTED_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*\+?")


@dataclass(frozen=True)
class AxisValue:
    """One value of an axis.

    Attributes:
        label: Its name in `exclude` and `when`: the stem of a YAML path, the text of a scalar.
        title: Its name for people: a scalar's carries the key.
        configs: YAML overlays, as commands print them.
        overrides: Dotted keys and their values.
    """

    label: str
    title: str
    configs: tuple[str, ...]
    overrides: tuple[Pair, ...]


@dataclass(frozen=True)
class Suite:
    """A grid as its file describes it; every label in a rule is known and every config exists.

    Attributes:
        name: Name of the suite; one results folder holds one suite.
        description: What the grid is for.
        path: The suite file.
        text: Its content.
        configs: YAML overlays of every cell, before those of the axes.
        axes: Name of each axis and its values, in order.
        overrides: Overrides of every cell; those of the axes come later and win.
        exclude: A cell that matches any of these is dropped.
        include_overrides: Overrides of the cells that match; they win over all others.
        search: What is searched on validation before the cells run.
    """

    name: str
    description: str
    path: Path
    text: str
    configs: tuple[str, ...]
    axes: dict[str, tuple[AxisValue, ...]]
    overrides: tuple[Pair, ...]
    exclude: tuple[Rule, ...]
    include_overrides: tuple[tuple[Rule, tuple[Pair, ...]], ...]
    search: Search | None = None


def load_suite(path: Path) -> Suite:
    r"""Reads a suite file.

    Paths in it are looked for from the current directory, then from the checkout's root.

    Raises:
        InputError: The file is missing, is not plain YAML (tags are refused), or says something that has no
            meaning.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "tiny.yaml")
        ...     _ = path.write_text("name: tiny\naxes: {seed_everything: [1, 2]}\n")
        ...     suite = load_suite(path)
        >>> [value.overrides for value in suite.axes["seed_everything"]]
        [(('seed_everything', '1'),), (('seed_everything', '2'),)]
    """
    content, data = read_yaml(path)
    content = _mapping(content, str(path))
    _check_keys(content, _SUITE_KEYS, str(path))
    name = content.get("name")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{path}: name: a suite needs a name, got {name!r}")
    axes = _mapping(content.get("axes"), f"{path}: axes")
    if not axes:
        raise InputError(f"{path}: axes: no axis; give at least one, for example seed_everything: [1, 2]")
    values = {axis: _axis(axis, entry, f"{path}: axes.{axis}") for axis, entry in axes.items()}
    rules = enumerate(_list(content.get("exclude"), f"{path}: exclude"))
    return Suite(
        name=name,
        description=str(content.get("description") or ""),
        path=path,
        text=data.decode("utf-8-sig"),
        configs=_configs(content.get("configs"), f"{path}: configs"),
        axes=values,
        overrides=_overrides(content.get("overrides"), f"{path}: overrides"),
        exclude=tuple(_rule(entry, values, f"{path}: exclude[{index}]") for index, entry in rules),
        include_overrides=_include_overrides(content.get("include_overrides"), values, path),
        search=read_search(content.get("search"), f"{path}: search", lambda entry, where: _rule(entry, values, where)),
    )


def _axis(axis: str, entry: Any, where: str) -> tuple[AxisValue, ...]:
    if not isinstance(entry, list):
        raise InputError(f"{where}: an axis is a list of values, got {entry!r}")
    if not entry:
        raise InputError(f"{where}: no values; give at least one or remove the axis")
    values = tuple(_axis_value(axis, value, f"{where}[{index}]") for index, value in enumerate(entry))
    labels = [value.label for value in values]
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise InputError(f"{where}[{index}]: a second value named {label}; give it {{name: ..., config: ...}}")
    return values


def _axis_value(axis: str, value: Any, where: str) -> AxisValue:
    if isinstance(value, dict):
        _check_keys(value, _VALUE_KEYS, where)
        configs = _configs(value.get("config"), f"{where}.config")
        label = _text(value["name"]) if value.get("name") is not None else "-".join(Path(c).stem for c in configs)
        if not label:
            raise InputError(f"{where}: a value without config needs a name")
        return AxisValue(label, label, configs, _overrides(value.get("overrides"), f"{where}.overrides"))
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        label = Path(value).stem
        return AxisValue(label, label, (_locate(value, where),), ())
    label = "-".join(map(_text, value)) if isinstance(value, list) else _text(value)
    return AxisValue(label, f"{axis.rpartition('.')[2]}={label}", (), _overrides({axis: value}, where))


def _overrides(entry: Any, where: str, prefix: str = "") -> tuple[Pair, ...]:
    pairs: list[Pair] = []
    for key, value in _mapping({} if entry is None else entry, where).items():
        dotted = prefix + key
        if not _DOTTED_KEY.fullmatch(dotted) or dotted in _NOT_FOR_SUITES:
            raise InputError(f"{where}: {dotted!r} cannot be overridden; use a dotted key such as model.r")
        if isinstance(value, dict) and value:
            pairs += _overrides(value, where, f"{dotted}.")
        else:
            pairs.append((dotted, _text(value)))
    return tuple(pairs)


def _include_overrides(
    entry: Any, axes: dict[str, tuple[AxisValue, ...]], path: Path
) -> tuple[tuple[Rule, tuple[Pair, ...]], ...]:
    result = []
    for index, item in enumerate(_list(entry, f"{path}: include_overrides")):
        where = f"{path}: include_overrides[{index}]"
        _check_keys(_mapping(item, where), ("when", "overrides"), where)
        rule = _rule(item.get("when"), axes, f"{where}.when")
        result.append((rule, _overrides(item.get("overrides"), f"{where}.overrides")))
    return tuple(result)


def _rule(entry: Any, axes: dict[str, tuple[AxisValue, ...]], where: str) -> Rule:
    if not _mapping(entry, where):
        raise InputError(f"{where}: names no axis; axes: {', '.join(axes)}")
    rule = []
    for axis, wanted in entry.items():
        if axis not in axes:
            raise InputError(f"{where}: no axis {axis}{nearest_hint(axis, axes)}")
        labels = [value.label for value in axes[axis]]
        whole = "-".join(map(_text, wanted)) if isinstance(wanted, list) else _text(wanted)
        chosen = [whole] if whole in labels or not isinstance(wanted, list) else [_text(item) for item in wanted]
        for label in chosen:
            if label not in labels:
                raise InputError(f"{where}.{axis}: matches no cell, no value {label}{nearest_hint(label, labels)}")
        rule.append((axis, frozenset(chosen)))
    return tuple(rule)


def _configs(entry: Any, where: str) -> tuple[str, ...]:
    names = [entry] if isinstance(entry, str) else _list(entry, where)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{where}: a path to a YAML file is needed, got {name!r}")
    return tuple(_locate(name, where) for name in names)


def _locate(name: str, where: str) -> str:
    paths = [Path.cwd() / Path(name).expanduser(), located(name)]
    for path in paths:
        if path.is_file():
            return printed_path(path)
    known = sorted({neighbour for path in paths for neighbour in neighbours(path)})
    raise InputError(f"{where}: no file {name}{nearest_hint(Path(name).name, known)}")


def _check_keys(mapping: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in mapping:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}{nearest_hint(str(key), known)}")


def _mapping(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: a mapping (key: value) is needed, got {_shown(entry)}")
    for key in entry:
        if not isinstance(key, str):
            raise InputError(f"{where}: key {key!r} is not text; quote it")
    return entry


def _list(entry: Any, where: str) -> list[Any]:
    if entry is None:
        return []
    if not isinstance(entry, list):
        raise InputError(f"{where}: a list is needed, got {_shown(entry)}")
    return entry


def _shown(entry: Any) -> str:
    return "nothing" if entry is None else repr(entry)[:80]


def _text(value: Any) -> str:
    """Writes a value as a command line takes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return ".nan" if value != value else f"{'-' if value < 0 else ''}.inf"
    return json.dumps(value, ensure_ascii=False, default=str)
