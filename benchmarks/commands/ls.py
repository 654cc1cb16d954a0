"""`instructrec ls`: what there is to choose from, a line each; reads files and imports nothing of what it lists."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.cli.names import names_of
from benchmarks.commands import LineParser
from benchmarks.paths import CONFIGS, PACKAGE, PUBLISHED, SUITES
from benchmarks.plain_yaml import read_yaml

KINDS = {
    "methods": ("model", "what is trained, and what it is compared with: fit -c NAME"),
    "objectives": ("objective", "what is optimised: fit -c NAME"),
    "data": ("data", "data sets: fit -c NAME"),
    "items": ("items", "how an item is written: fit -c NAME"),
    "curriculum": ("curriculum", "which examples, how often: fit -c NAME"),
    "trainer": ("trainer", "settings of the trainer: fit -c NAME"),
    "callbacks": ("callbacks", "what intervenes in training: fit -c NAME"),
    "suites": ("", "grids: benchmark NAME"),
    "tables": ("", "published tables: reproduce NAME"),
}
"""The folder of `configs/` that lists a kind, and what its names are for."""


def run_command(arguments: list[str]) -> int:
    """Runs `ls`; returns 0, or 2 where a file that it reads is damaged."""
    parser = LineParser(prog="instructrec ls", description="Lists what there is to choose from, a line each.")
    parser.add_argument("kind", nargs="?", choices=KINDS, help="one kind; default: all")
    options: argparse.Namespace = parser.parse_args(arguments)
    for kind in [options.kind] if options.kind else KINDS:
        lines = list(entries(kind))
        if options.kind is None and lines:
            print(f"\n{kind} ({KINDS[kind][1]})")
        for name, text in lines:
            print(f"{name:<{max(len(name) for name, _ in lines)}}  {text}")
    return 0


def entries(kind: str) -> Iterator[tuple[str, str]]:
    """Yields the names of a kind, as commands take them, each with a line that describes it.

    Example:
        >>> dict(entries("methods"))["lora"].split(":")[0]
        'Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)'
    """
    if kind in ("suites", "tables"):
        for path, short in names_of(SUITES if kind == "suites" else PUBLISHED):
            content = _content(path)
            yield str(short), first_sentence(str(content.get("description") or content.get("title") or ""))
        return
    configs = [(str(short), _content(path)) for path, short in names_of(CONFIGS / KINDS[kind][0])]
    classes = [_class_of(content) for _, content in configs]
    for (name, content), named in zip(configs, classes, strict=True):
        options = ", ".join(_options(content)) if classes.count(named) > 1 or named not in _docstrings() else ""
        text = first_sentence(_docstrings().get(named, ""))
        yield name, f"{text} [{_shortened(options, 80)}]".strip() if options else text


def first_sentence(text: str) -> str:
    r"""Returns the first sentence of a text, or its beginning, on one line.

    Example:
        >>> first_sentence("Ranks by counts.\n\nMore.")
        'Ranks by counts'
    """
    words = " ".join(text.split("\n\n")[0].split())
    return _shortened(re.split(r"(?<!et al)\.\s+(?=[A-Z])", words)[0].rstrip("."), 120)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 4].rpartition(" ")[0] + " ..."


def _content(path: Path) -> Mapping[str, Any]:
    content, _ = read_yaml(path)
    return content if isinstance(content, dict) else {}


def _class_of(content: Mapping[str, Any]) -> str:
    """The class that a config names for its axis: `model`, `data`, or an option of these."""
    for value in content.values():
        if isinstance(value, dict):
            return str(value.get("class_path") or _class_of(value)).rpartition(".")[2]
    return ""


def _options(node: Mapping[str, Any]) -> Iterator[str]:
    """What a config sets beside its class and the optimizer, which every method has."""
    for name, value in node.items():
        if isinstance(value, dict):
            if "class_path" in value and name not in ("model", "data", "optimizer"):
                yield f"{name.rstrip('+')}={value['class_path']}"
            yield from _options({} if name == "optimizer" else value)
        elif name != "class_path" and not isinstance(value, list):
            yield f"{name}={value}"


@cache
def _docstrings() -> dict[str, str]:
    """The docstring of every class in the rooms that configs name classes of."""
    rooms = ("recmodels/methods", "recmodels/baselines", "recmodels/objectives", "datamodules", "callbacks")
    return {
        node.name: ast.get_docstring(node) or ""
        for room in rooms
        for path in sorted((PACKAGE.parent / room).rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
