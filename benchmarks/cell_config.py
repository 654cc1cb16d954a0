"""What a cell's command configures, read without torch: its YAML overlays one over another, then its options."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from benchmarks.plain_yaml import read_yaml
from benchmarks.suite import CHECKOUT
from datamodules.sources import InputError


def cell_config(command: Sequence[str]) -> dict[str, Any]:
    """The config that a command asks for, defaults of classes not filled in.

    A later file that names another class takes the place of the earlier one's options, as on the command line.

    Args:
        command: words of `instructrec fit`.

    >>> made = cell_config(["instructrec", "fit", "-c", "configs/model/lora.yaml", "--model.r=4", "--name", "x"])
    >>> made["model"]["class_path"], made["model"]["init_args"]["r"]
    ('LoRATuning', 4)
    """
    made: dict[str, Any] = {}
    files = ["configs/trainer/default.yaml", *(after for word, after in _pairs(command) if word == "-c")]
    for name in files:
        content, _ = read_yaml(CHECKOUT / name)
        _merge(made, content if isinstance(content, dict) else {})
    for word in command:
        key, given, text = word.removeprefix("--").partition("=")
        if word.startswith("--") and given:
            _place(made, key.rstrip("+").split("."), _value(text))
    return made


def options(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The options of a part's class; empty where it has none.

    >>> options({"model": {"class_path": "LoRATuning", "init_args": {"r": 4}}}, "model")
    {'r': 4}
    """
    value = config.get(part)
    found = value.get("init_args") if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def class_of(config: Mapping[str, Any], part: str) -> str:
    """The last part of a part's class name; "" where none is named.

    >>> class_of({"model": {"class_path": "recmodels.lora.LoRATuning"}}, "model")
    'LoRATuning'
    """
    value = config.get(part)
    path = value.get("class_path") if isinstance(value, dict) else value
    return str(path or "").rpartition(".")[2]


def _pairs(command: Sequence[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(command))


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    if into.get("class_path") and other.get("class_path") not in (None, into["class_path"]):
        into.clear()
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, dict):
            into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value


def _place(into: dict[str, Any], path: list[str], value: Any) -> None:
    """Sets a dotted option; one of a class stands among its `init_args`, which the command line leaves out."""
    for number, key in enumerate(path[:-1]):
        into = into[key] if isinstance(into.get(key), dict) else into.setdefault(key, {})
        following = path[number + 1]
        of_a_class = "class_path" in into or (number == 0 and key in ("model", "data"))
        if of_a_class and following not in ("class_path", "init_args"):
            into = into.setdefault("init_args", {})
    into[path[-1]] = value


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{text[:80]!r} is not readable as a value") from error
