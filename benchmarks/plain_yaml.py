"""Plain YAML: data and never code, bounded in size, and every mistake in it named by file and line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datamodules.contract.errors import InputError

MAX_BYTES = 1 << 20
"""A config is a few lines; a larger file is not one, and must not cost memory before that is noticed."""
MAX_DEPTH = 40
MAX_VALUES = 100_000


class NotPlain(yaml.YAMLError):
    """YAML that is more than plain data; carries the line, counted from 1."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(f"line {line}: {problem}")
        self.problem, self.line = problem, line


def check_plain(text: str) -> None:
    r"""Refuses what plain data does not need: tags, repeated keys, and size beyond reason.

    An alias counts as all that it stands for: with aliases of aliases nine lines can mean a billion values.

    Raises:
        NotPlain: the text is YAML of that kind, or is not YAML.

    Example:
        >>> check_plain("r: 8\nr: 16")
        Traceback (most recent call last):
            ...
        benchmarks.plain_yaml.NotPlain: line 2: key 'r' twice
    """
    if len(text) > MAX_BYTES:
        raise NotPlain(f"longer than {MAX_BYTES} characters", 1)
    document, sizes = _Collection(None, None), dict[str, int]()
    path = [document]
    try:
        for event in yaml.parse(text, Loader=_Loader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.CollectionEndEvent):
                done = path.pop()
                path[-1].size += done.size
                if done.anchor is not None:
                    sizes[done.anchor] = done.size
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise NotPlain(f"*{event.anchor} is not defined before it is used", line)
                path[-1].place(None, sizes[event.anchor])
            elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
                if event.tag is not None:
                    raise NotPlain(f"the tag {event.tag!r} is not accepted", line)
                value = event.value if isinstance(event, yaml.ScalarEvent) else None
                if not path[-1].place(value, 1):
                    raise NotPlain(f"key {value!r} twice", line)
                if isinstance(event, yaml.CollectionStartEvent):
                    keys = set[str]() if isinstance(event, yaml.MappingStartEvent) else None
                    path.append(_Collection(keys, event.anchor))
                elif event.anchor is not None:
                    sizes[event.anchor] = 1
            if len(path) > MAX_DEPTH or sum(one.size for one in path) > MAX_VALUES:
                raise NotPlain(f"more than {MAX_DEPTH} levels or {MAX_VALUES} values", line)
    except NotPlain:
        raise
    except yaml.MarkedYAMLError as error:
        raise NotPlain(str(error.problem), error.problem_mark.line + 1 if error.problem_mark else 1) from error
    except yaml.YAMLError as error:
        raise NotPlain(" ".join(str(error).split())[:200], 1) from error


@dataclass
class _Collection:
    """An open list, mapping or document: its keys so far (None: it has none), its anchor, and the values in it."""

    keys: set[str] | None
    anchor: str | None
    size: int = 0
    key_is_next: bool = True

    def place(self, value: str | None, size: int) -> bool:
        """Counts a node, which is a key at every second place of a mapping; False for a key that was there."""
        self.size += size
        is_key, self.key_is_next = self.key_is_next, not self.key_is_next
        if not is_key or self.keys is None or value is None:
            return True
        new = value not in self.keys
        self.keys.add(value)
        return new


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> tuple[Any, bytes]:
    """Reads one plain YAML file; returns its content and its bytes.

    Raises:
        InputError: It is missing, unreadable, too large, not UTF-8, not YAML, repeats a key, or has a tag.

    Example:
        >>> read_yaml(Path("nowhere.yaml"))
        Traceback (most recent call last):
            ...
        datamodules.contract.errors.InputError: nowhere.yaml does not exist
    """
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes; a config has at most {MAX_BYTES}")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist{nearest_hint(path.name, neighbours(path))}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    try:
        text = data.decode("utf-8-sig")
        check_plain(text)
        return yaml.load(text, Loader=_Loader), data  # noqa: S506  (a SafeLoader)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 text") from error
    except NotPlain as error:
        raise InputError(f"{path}:{error.line}: not plain YAML ({error.problem})") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: not plain YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not plain YAML ({' '.join(str(error).split())[:200]})") from error


def neighbours(path: Path) -> list[str]:
    """Names of the YAML files beside a path."""
    return [item.name for item in path.parent.glob("[!.]*.y*ml")] if path.parent.is_dir() else []


def nearest_hint(word: str, choices: Iterable[str]) -> str:
    """The nearest valid choice, or all of them where none is near, as the end of a message.

    Example:
        >>> nearest_hint("lorra.yaml", ["lora.yaml", "full.yaml"])
        '; nearest: lora.yaml'
    """
    known = list(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; nearest: {close[0]}"
    return f"; choices: {', '.join(known[:12])}" if known else ""
