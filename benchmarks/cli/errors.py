"""Errors of the command line in one line: what, where, and the nearest valid choice."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, get_args

import lightning.pytorch.accelerators
import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import lightning.pytorch.plugins
import lightning.pytorch.profilers
import lightning.pytorch.strategies
import torch

import callbacks
import datamodules
import datamodules.items
import recmodels.objectives
from benchmarks.cli.allowed_imports import FLAG
from datamodules.contract.compat.jsonargparse import actions_of

EXPORTS = {
    "model": recmodels,
    "model.objective": recmodels.objectives,
    "data": datamodules,
    "data.items": datamodules.items,
    "callbacks": callbacks,
}
LIBRARY = {
    "accelerator": lightning.pytorch.accelerators,
    "callbacks": lightning.pytorch.callbacks,
    "logger": lightning.pytorch.loggers,
    "plugins": lightning.pytorch.plugins,
    "profiler": lightning.pytorch.profilers,
    "strategy": lightning.pytorch.strategies,
}
"""Where the classes of the trainer's options are."""


def one_line(message: str, parser: Any, words: Sequence[str] = ()) -> str:
    """Shortens a parser's message to its cause and adds the nearest valid choice.

    Args:
        message: jsonargparse's message, often of many lines and with every branch of a union it tried.
        parser: whose options are the valid keys; for an option of a class, the parser of that class alone.
        words: the command line; it has the whole name of an option that `parser` knows without its class.
    """
    match = re.search(r'Parser key "([^"]+)"', message)
    key = _whole_name(match.group(1), parser, words) if match else ""
    if named := re.search(r"Importing '([\w.]+)' is not allowed", message):
        return f"{key or 'config'}: {named.group(1)!r} must not be named in a config{_plugin_hint(named.group(1))}"
    if key and (named := re.search(r"Expected a dot import path string: ([\w.]+)", message)):
        return _unknown_class(key, named.group(1))
    if key and re.search(r"module '[\w.]+' has no attribute|No module named", message):
        named = re.search(r"class_path(?:': |=)'([\w.]+)'", message)
        return _unknown_class(key, named.group(1) if named else "")
    if named := re.search(r"(?:Option|Key) '([\w.\-+]+)' is not (?:accepted|expected)", message):
        return _unknown_key(named.group(1), parser, words)
    if named := re.search(r"Subcommand '\w+' does not accept option '([\w.\-+]+)'", message):
        return _unknown_key(named.group(1), parser, words, whole=True)
    if named := re.search(r"Group '([\w.]+)' does not accept option '([\w.\-+]+)'", message):
        return _unknown_key(f"{named.group(1)}.{named.group(2)}", parser, words)
    if named := re.search(r"unrecognized arguments: --([\w.\-+]+)", message):
        return _unknown_key(named.group(1), parser, words, whole=True)
    if key and "Not a valid subclass of" in message and (named := re.search(r"Given value: \{'([\w\-]+)':", message)):
        if named.group(1) == "init_args":
            return f"{key}: name its class (--{key} CLASS, or a config) before its options"
        return f"no option '{key}.{named.group(1)}'; the nearest is '{key}.class_path'"
    if key and (choices := re.search(r"Expected a typing\.Literal\[(.+?)\]\. Got value: (.*)", message)):
        words = re.findall(r"'([^']+)'", choices.group(1))
        return f"{key}: {choices.group(2)!r} is not one of {', '.join(words)}{_near(choices.group(2), words)}"
    if key in EXPORTS and (named := re.search(r"Expected an instantiatable class, but ([\w.]+) is abstract", message)):
        names = ", ".join(EXPORTS[key].__all__)
        return f"{key}: {named.group(1).rsplit('.', 1)[-1]} is abstract; name one of {names} (before its options)"
    if named := re.search(r"Call to compute_fn of link '.*' with args \(.*?\) failed: (.*)", message):
        return named.group(1)
    if "argument after ** must be a mapping" in message:
        return f"{key or 'config'}: a mapping (key: value) is needed where a single value or a list is given"
    line = _telling_line(message)
    return f"{key}: {line}" if key and key not in line else line


def _plugin_hint(name: str) -> str:
    package = name.partition(".")[0]
    known = package in sys.stdlib_module_names or package in ("recmodels", "datamodules", "callbacks", "benchmarks")
    return "" if known else f"; if {package} is a plug-in of yours: {FLAG} {package}"


def _unknown_class(key: str, name: str) -> str:
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "optimizer":
        choices = [n for n, c in vars(torch.optim).items() if inspect.isclass(c)]
    else:
        homes = [home for places in (EXPORTS, LIBRARY) for place, home in places.items() if place.endswith(leaf)]
        choices = [n for home in homes or EXPORTS.values() for n in home.__all__]
        choices += get_args(recmodels.objectives.ObjectiveName) if leaf == "objective" else ()
    return f"{key}: no class {name!r}{_near(name.rsplit('.', 1)[-1], choices)}"


def _whole_name(name: str, parser: Any, words: Sequence[str]) -> str:
    """Returns the name of an option as users write it, where a class's own parser has left out what is before it.

    It is the word of the command line that ends so; for what a config says, the only option that ends so.
    """
    if match := re.fullmatch(r"(?:fit|validate|test|predict)\.(.+)", name):
        name = match[1]
    name = re.sub(r"\.init_args\b", "", name)
    written = [re.sub(r"\.init_args\b", "", word[2:].split("=")[0]) for word in words if word.startswith("--")]
    if name in written:
        return name
    if longer := [word for word in written if word.endswith(f".{name}")]:
        return longer[0]
    keys = _keys(parser)
    ending = [key for key in keys if key.endswith(f".{name}")]
    return ending[0] if len(ending) == 1 and name.partition(".")[0] not in ("model", "data", "trainer") else name


def _unknown_key(name: str, parser: Any, words: Sequence[str], *, whole: bool = False) -> str:
    """Names the nearest option; unless `whole`, the name may lack the groups in front of it."""
    options = {option[2:] for action in actions_of(parser) for option in action.option_strings if option[:2] == "--"}
    if "seed_everything" not in options:  # the parser of one class
        near = difflib.get_close_matches(name, options - {"help"}, n=1, cutoff=0.0)
        above = _whole_name(name, parser, words).removesuffix(name)
        above = above or _whole_name(near[0], parser, ()).removesuffix(near[0]) if near else above
        return f"no option {above + name!r}" + (f"; the nearest is {above + near[0]!r}" if near else "")
    parts = [part for part in name.split(".") if part not in ("init_args", "")]
    best, nearest = 0.0, ""
    for key in _keys(parser):
        known = key.split(".")
        # What follows a mistyped group cannot be told, so the beginning of the name may match alone.
        for length in range(1, len(parts) + 1):
            ends = [known] if whole else [known[start:] for start in range(len(known))]
            for end in (end for end in ends if len(end) == length):
                value = sum(_likeness(a, b) for a, b in zip(parts, end, strict=False)) / length + 0.01 * length
                if value > best and (length == len(parts) or end != parts[:length]):  # an exact group is no answer
                    best, nearest = value, key
    return f"no option {name!r}; the nearest is {nearest!r}"


@cache
def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()


def _near(word: str, choices: Iterable[str]) -> str:
    by_case = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), by_case, n=1, cutoff=0.0)
    return f"; the nearest is {by_case[matches[0]]!r}" if matches else ""


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
    keys = {option.lstrip("-") for action in actions_of(parser) for option in action.option_strings}
    for group, package in EXPORTS.items():
        keys |= {f"{group}.class_path", f"{group}.init_args"} if group != "callbacks" else set()
        for name in package.__all__:
            for cls in getattr(package, name).__mro__:
                if cls.__module__.startswith(package.__name__):
                    for argument in inspect.signature(cls.__init__).parameters.values():
                        if argument.name not in ("self", "kwargs"):
                            keys |= _with_fields(f"{group}.{argument.name}", argument.default)
    return sorted(keys)


def _with_fields(key: str, default: Any) -> set[str]:
    """An option, with those of the settings that it groups."""
    fields = dataclasses.fields(default) if dataclasses.is_dataclass(default) else ()
    return {key, *(f"{key}.{field.name}" for field in fields)}
