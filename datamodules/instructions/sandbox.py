"""The language that instruction templates are written in: a small, loop-bounded part of Jinja.

A sandbox alone keeps a template from reaching Python, not from running for ever or filling the memory: loops inside
loops over ranges, repeated strings, joins of joins. What is not needed to lay out a history is therefore not in the
language, and a rendered text is at most linear in the template times the values.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_LENGTH = 10_000
"""Characters of a template."""
MAX_STEPS = 1_000_000
"""Lines of Python that a chat template of a model may take; those in use take some ten thousand."""
MAX_MEMORY = 1 << 28
"""Bytes that it may take on top of what the process has."""
_T = TypeVar("_T")
FILTERS = frozenset({"capitalize", "first", "join", "last", "length", "lower", "title", "trim", "upper"})
PARTS = (
    nodes.And,
    nodes.Compare,
    nodes.Concat,
    nodes.CondExpr,
    nodes.Const,
    nodes.Filter,
    nodes.For,
    nodes.Getattr,
    nodes.If,
    nodes.Name,
    nodes.Not,
    nodes.Operand,
    nodes.Or,
    nodes.Output,
    nodes.Template,
    nodes.TemplateData,
    nodes.Tuple,
)


@cache
def compile_template(text: str) -> Template:
    """Compiles a template after checking that it stays within the language.

    Raises:
        SecurityError: it uses anything else: calls, arithmetic, assignments, macros, private names, a loop in a loop.

    Example:
        >>> compile_template("{{ history | join('; ') }}").render(history=["Alien", "Heat"])
        'Alien; Heat'
        >>> compile_template("{{ 'x' * 10**9 }}")
        Traceback (most recent call last):
            ...
        jinja2.exceptions.SecurityError: templates have no 'mul'
    """
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)  # chat text
    if len(text) > MAX_LENGTH:
        raise SecurityError(f"a template of {len(text)} characters, at most {MAX_LENGTH} are accepted")
    try:
        tree = environment.parse(text)
    except (TemplateSyntaxError, RecursionError) as error:
        raise SecurityError(f"not a template: {error}") from error
    _check(tree, in_loop=False)
    return environment.from_string(text)


def _check(node: nodes.Node, in_loop: bool) -> None:
    if not isinstance(node, PARTS):
        raise SecurityError(f"templates have no {type(node).__name__.lower()!r}")
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        raise SecurityError(f"templates may not read {node.attr!r}")
    if isinstance(node, nodes.For):
        if in_loop:
            raise SecurityError("templates have no loop inside a loop")
        if node.recursive or not isinstance(node.iter, (nodes.Name, nodes.Getattr)):
            raise SecurityError("a template's loop goes over a value by its name")
        in_loop = True
    if isinstance(node, nodes.Filter):
        if node.name not in FILTERS:
            raise SecurityError(f"templates have no filter {node.name!r}; there are {', '.join(sorted(FILTERS))}")
        # A join of a joined text, or with one in between, multiplies lengths.
        by_name = isinstance(node.node, (nodes.Name, nodes.Getattr))
        if not all(isinstance(part, nodes.Const) for part in node.args) or node.kwargs or node.dyn_args:
            raise SecurityError(f"the filter {node.name!r} takes constants only")
        if node.name == "join" and not by_name:
            raise SecurityError("a template joins a value by its name")
    for child in node.iter_child_nodes():
        _check(child, in_loop)


def run_bounded(render: Callable[[], _T]) -> _T:
    """Renders a template that came with a model's weights: written in all of Jinja, by a stranger.

    Its sandbox is transformers'; this bounds its time and memory.

    Raises:
        SecurityError: it takes too many steps or too much memory.

    Example:
        >>> run_bounded(lambda: "a" * 3)
        'aaa'
    """
    left = MAX_STEPS

    def count(frame: FrameType, event: str, value: Any) -> Any:  # noqa: ARG001  # the signature of a tracer
        nonlocal left
        left -= 1
        if left < 0:
            raise SecurityError(f"a template took more than {MAX_STEPS} steps")
        return count

    before = sys.gettrace()
    try:
        with _memory_limit():
            sys.settrace(count)
            return render()
    except (MemoryError, OverflowError) as error:
        raise SecurityError(f"a template needs more than {MAX_MEMORY >> 20} MiB") from error
    finally:
        sys.settrace(before)


@contextmanager
def _memory_limit() -> Iterator[None]:
    """Limits what the process may allocate, where the operating system can."""
    limits = None
    with suppress(ImportError, OSError, ValueError, TypeError):  # elsewhere than on Linux: without this bound
        import resource

        used = re.search(r"^VmData:\s*(\d+) kB", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
        kind, limits = resource.RLIMIT_DATA, resource.getrlimit(resource.RLIMIT_DATA)
        wanted = int(used[1]) * 1024 + MAX_MEMORY if used else limits[0]
        open_end = limits[0] == resource.RLIM_INFINITY
        resource.setrlimit(kind, (wanted if open_end else min(wanted, limits[0]), limits[1]))
    try:
        yield
    finally:
        if limits is not None:
            resource.setrlimit(kind, limits)
