"""Errors of the command line in one line: what, where, and the nearest valid choice."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import callbacks
import datamodules
import recmodels


def one_line(message: str, parser: Any, arguments: Sequence[str]) -> str:
    """Shortens a parser's message to its cause and adds the nearest valid choice.

    Args:
        message: jsonargparse's message, often of many lines.
        parser: whose options are the valid keys.
        arguments: the command line.

    Returns:
        One line.
    """
    cause = _cause(message)
    wrong, choices = _wrong_word(cause, message, parser, arguments)
    if wrong is None:
        return cause
    leaf = wrong.lstrip("-").split("=")[0]
    near = difflib.get_close_matches(leaf, choices, n=1, cutoff=0.0) or difflib.get_close_matches(
        leaf.rsplit(".", 1)[-1], choices, n=1, cutoff=0.0
    )
    return f"{cause}; the nearest valid choice is {near[0]!r}" if near else cause


def _cause(message: str) -> str:
    """The innermost reason of a nested message, with the key it belongs to."""
    lines = [re.sub(r"^[\s\-]+", "", line).strip() for line in message.splitlines()]
    lines = [line for line in lines if line]
    key = re.search(r'Parser key "([^"]+)"', message)
    telling = [
        line
        for line in lines
        if re.search(
            r"not valid|No action for|not accepted|does not accept|Expected|Unable|required|denied|Invalid|must be|is not|Key ",
            line,
        )
        and not line.startswith(("Parser key", "Problem with given class_path", "Does not validate"))
    ]
    cause = telling[-1] if telling else (lines[-1] if lines else message)
    cause = re.sub(r"\s+", " ", cause)[:300]
    return f"{key.group(1)}: {cause}" if key and key.group(1) not in cause else cause


def _wrong_word(cause: str, message: str, parser: Any, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The word that is wrong and the words that would have been right."""
    if found := re.search(
        r"(?:Option|Key|argument|key) '([\w.\-]+)' is not (?:accepted|expected)|Group '([\w.\-]+)'", message
    ):
        return found.group(1) or found.group(2), _keys(parser, arguments, message)
    if found := re.search(r"No action for key ['\"]([\w.\-]+)['\"]", message):
        return found.group(1), _keys(parser, arguments, message)
    if found := re.search(r"(?:[Uu]nrecognized arguments|[Uu]nknown option)[^:]*: (\S+)", message):
        return found.group(1), _keys(parser, arguments, message)
    if found := re.search(r"invalid choice: '?([\w\-]+)'?", cause):
        return found.group(1), re.findall(r"\w+", cause.split("choose from", 1)[-1])
    if found := re.search(r"(?:class_path|import|class) ['\"]?([\w.]+)['\"]?", message):
        names = [name for package in (recmodels, datamodules, callbacks) for name in package.__all__]
        if found.group(1).rsplit(".", 1)[-1] not in names:
            return found.group(1), names
    return None, []


def _keys(parser: Any, arguments: Sequence[str], message: str) -> list[str]:
    """Every option of the command, and every argument of the classes that are named."""
    import inspect

    parsers = [
        parser,
        *((getattr(parser, "_subcommands_action", None) and parser._subcommands_action.choices.values()) or ()),
    ]
    keys = {option.lstrip("-") for p in parsers for action in p._actions for option in action.option_strings}
    text = " ".join(arguments) + message
    for package, prefix in ((recmodels, "model"), (datamodules, "data"), (callbacks, "callback")):
        for name in package.__all__:
            if name in text or prefix != "callback":
                for cls in getattr(package, name).__mro__:
                    if cls.__module__.split(".")[0] == package.__name__:
                        keys |= {
                            f"{prefix}.{p}"
                            for p in inspect.signature(cls.__init__).parameters
                            if p not in ("self", "kwargs")
                        }
    return sorted(keys)
