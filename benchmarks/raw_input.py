"""Looks at a command line before the parser does: mistakes that the parser would overlook, and where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.plain_yaml import read_yaml
from datamodules.sources import InputError

FLAG = "--allow-import"
HELP = (
    f"{FLAG} PACKAGE: configs may also name classes of this package (a plug-in); repeatable; never read from a config"
)
LINKED = {
    "data.backbone": "model.backbone",
    "data.objective": "model.objective",
    "data.batch_format": "the model's class",
    "data.seed": "seed_everything",
}
"""Options that follow another; a value of the user's own would be overwritten in silence."""


def take_plugins(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into what the parser reads and the packages that may be imported.

    Raises:
        InputError: the flag has no package, or one that is no name.

    Example:
        >>> take_plugins(["fit", "--allow-import", "my_methods", "--model.r=4", "--allow-import=more"])
        (['fit', '--model.r=4'], ['my_methods', 'more'])
    """
    rest: list[str] = []
    plugins: list[str] = []
    words = iter(arguments)
    for word in words:
        if word != FLAG and not word.startswith(f"{FLAG}="):
            rest.append(word)
            continue
        name = next(words, "") if word == FLAG else word.partition("=")[2]
        if not name or not all(part.isidentifier() for part in name.split(".")):
            raise InputError(f"{FLAG} {name!r}: a package name is needed, such as {FLAG} my_methods")
        plugins.append(name)
    return rest, plugins


def check_raw_input(arguments: list[str]) -> None:
    """Reads the config files that a command line names, and refuses values for what follows from another option.

    Args:
        arguments: command line without the program's name.

    Raises:
        InputError: a file is missing, unreadable, too large or not plain YAML (named by line), or an option is linked.

    Example:
        >>> check_raw_input(["fit", "--data.seed=3"])
        Traceback (most recent call last):
            ...
        datamodules.sources.InputError: --data.seed cannot be set, it follows seed_everything; set that
    """
    words = iter(arguments)
    for word in words:
        option, has_value, value = word.partition("=")
        if option in ("-c", "--config") or (word.startswith("-c") and not word.startswith("--")):
            name = value if has_value else word[2:] if option not in ("-c", "--config") else next(words, "")
            _check_file(name.removeprefix("="))
        elif option.startswith("--"):
            key = re.sub(r"\.init_args\b", "", option[2:])
            if key in LINKED:
                raise InputError(f"{option} cannot be set, it follows {LINKED[key]}; set that")
            if value.endswith((".yaml", ".yml")) and Path(value).is_file():
                _refuse_linked(read_yaml(Path(value))[0], value, key)


def _check_file(name: str) -> None:
    if not name or "\n" in name or name.lstrip().startswith("{"):
        return  # missing, or YAML in place of a file name: the parser's affair
    content, _ = read_yaml(Path(name))
    if content is None:
        raise InputError(f"{name}:1: the file is empty; a config has keys such as model, data, trainer")
    if not isinstance(content, dict):
        raise InputError(f"{name}:1: a mapping (key: value) is needed, got {str(content)[:60]!r}")
    _refuse_linked(content, name, "")


def _refuse_linked(content: Any, name: str, prefix: str) -> None:
    for key in _keys(content, prefix):
        if key in LINKED:
            raise InputError(f"{name}: {key} cannot be set, it follows {LINKED[key]}; set that")


def _keys(node: Any, prefix: str) -> Iterator[str]:
    """Dotted keys as the command line writes them, without `init_args` and without the name of a command in front."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        inner = prefix if key in ("init_args", "fit", "validate", "test", "predict") else f"{prefix}.{key}".strip(".")
        yield inner
        if inner.count(".") < 2:
            yield from _keys(value, inner)
