"""Errors of the command line in one line: what, where, and the nearest valid choice."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from typing import Any

import torch

import callbacks
import datamodules
import recmodels

EXPORTS = {"model": recmodels, "data": datamodules, "callbacks": callbacks}


def one_line(message: str, parser: Any) -> str:
    """Shortens a parser's message to its cause and adds the nearest valid choice.

    Args:
        message: jsonargparse's message, often of many lines and with every branch of a union it tried.
        parser: whose options are the valid keys.

    Returns:
        One line.
    """
    key = re.search(r'Parser key "([^"]+)"', message)
    if key and (name := re.search(r"Expected a dot import path string: ([\w.]+)", message)):
        return _unknown_class(key.group(1), name.group(1))
    if found := re.search(r"(?:Option|Key) '([\w.\-+]+)' is not (?:accepted|expected)", message):
        return _unknown_key(found.group(1), parser)
    if found := re.search(r"unrecognized arguments: --([\w.\-+]+)", message):
        return _unknown_key(found.group(1), parser)
    if key and (found := re.search(r"Expected a typing\.Literal\[(.+?)\]\. Got value: (.*)", message)):
        choices = re.findall(r"'([^']+)'", found.group(1))
        return f"{key.group(1)}: {found.group(2)!r} is not one of {', '.join(choices)}{_near(found.group(2), choices)}"
    if found := re.search(r"Importing '([\w.]+)' is not allowed", message):
        return f"{key.group(1) if key else 'config'}: {found.group(1)!r} must not be named in a config"
    line = _telling_line(message)
    return f"{key.group(1)}: {line}" if key and key.group(1) not in line else line


def _unknown_class(key: str, name: str) -> str:
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "optimizer":
        choices: Iterable[str] = [n for n, c in vars(torch.optim).items() if inspect.isclass(c)]
    else:
        choices = EXPORTS[leaf].__all__ if leaf in EXPORTS else [n for p in EXPORTS.values() for n in p.__all__]
    return f"{key}: no class {name!r}{_near(name.rsplit('.', 1)[-1], choices)}"


def _unknown_key(name: str, parser: Any) -> str:
    keys = _keys(parser)
    groups = {key.split(".")[0] for key in keys}
    if "." in name and name.split(".")[0] not in groups | {"protocol"}:
        return f"no option {name!r}{_near(name.split('.')[0], ('model', 'data', 'trainer'))}"
    nearest = _nearest(name, keys) or _nearest(name.rsplit(".", 1)[-1], [key.rsplit(".", 1)[-1] for key in keys])
    return f"no option {name!r}; the nearest is {nearest!r}"


def _near(word: str, choices: Iterable[str]) -> str:
    nearest = _nearest(word, choices)
    return f"; the nearest is {nearest!r}" if nearest else ""


def _nearest(word: str, choices: Iterable[str]) -> str | None:
    by_case = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), by_case, n=1, cutoff=0.0)
    return by_case[found[0]] if found else None


def _telling_line(message: str) -> str:
    """The innermost line that says what is wrong."""
    lines = [re.sub(r"^[\s\-]+", "", line).strip() for line in message.splitlines()]
    noise = (
        "Parser key",
        "Problem with given",
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "Given value",
        "Expected a path",
    )
    telling = [line for line in lines if line and not line.startswith(noise) and "NoneType" not in line]
    return re.sub(r"\s+", " ", telling[0] if telling else " ".join(lines))[:300]


def _keys(parser: Any) -> list[str]:
    """Every option of the command, and every argument of the classes that are exported."""
    keys = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    for group, package in EXPORTS.items():
        for name in package.__all__:
            for cls in getattr(package, name).__mro__:
                if cls.__module__.split(".")[0] == package.__name__:
                    signature = inspect.signature(cls.__init__)
                    keys |= {f"{group}.{key}" for key in signature.parameters if key not in ("self", "kwargs")}
    return sorted(keys)
