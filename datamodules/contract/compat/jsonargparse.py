"""What this project uses of jsonargparse (4.53), and of argparse beneath it, beyond their public interface."""

from __future__ import annotations

import functools
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterator
from typing import Any

from jsonargparse import _typehints, _util

_all_subclass_paths = _typehints.get_all_subclass_paths  # before it is replaced below


def restrict_subclasses(accepts: Callable[[str], bool]) -> None:
    """Lets a bare class name stand for those subclasses alone whose path is accepted.

    Replaces `_typehints.get_all_subclass_paths`, by which the parser turns `AdamW` into a path: the public list of
    allowed imports is asked only once a path is known, and bitsandbytes brings an `AdamW`, too.
    """

    @functools.wraps(_all_subclass_paths)
    def accepted(*args: Any, **kwargs: Any) -> list[str]:
        return [path for path in _all_subclass_paths(*args, **kwargs) if accepts(path)]

    _typehints.get_all_subclass_paths = accepted


class _NestedArgument(_util.NestedArg):
    """An option inside a class, such as `protocol.shots`, whose null is written as YAML."""

    def __new__(cls, key: str, val: Any) -> _NestedArgument:
        return super().__new__(cls, key, "null" if val is None else val)


def accept_nested_null() -> None:
    """Lets `--data.protocol.shots null` mean null.

    Replaces `_util.NestedArg` and the name of it in `_typehints`: the parser hands an option of a group inside a class on
    as text, in which None became the word `None`.
    """
    for module in (_util, _typehints):
        setattr(module, "NestedArg", _NestedArgument)  # noqa: B010 - mypy holds an assignment to a class for a mistake


def actions_of(parser: ArgumentParser) -> Iterator[Action]:
    """Yields the options of a parser and of its commands (`ArgumentParser._actions`); no public list has them."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from command._actions
