"""Fields of `record.json`, each read with its type checked: a wrong one is a line that names it.

A record may have been edited by hand, or come from another version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.metric_names import DEFINITIONS, metric_base
from datamodules.sources import InputError

__all__ = ["mapping", "metric_values", "numbers", "read_json", "samples", "text", "typed"]

T = TypeVar("T")
UNBOUNDED = ("log_loss",)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        InputError: it cannot be read, or holds something else; the line names the file and the place.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path.name}:{error.lineno}: not valid JSON ({error.msg})") from error
    except RecursionError as error:
        raise InputError(f"{path.name}: nested too deeply") from error
    if not isinstance(record, dict):
        raise InputError(f"{path.name}: holds a {type(record).__name__}, must be a mapping")
    return record


def mapping(record: Mapping[str, Any], key: str, prefix: str = "") -> dict[str, Any]:
    """A field that holds fields; empty where it is missing.

    Example:
        >>> mapping({"data": {"class": "A"}}, "data"), mapping({}, "data")
        ({'class': 'A'}, {})
    """
    return typed(record, key, dict, "a mapping", prefix) or {}


def text(record: Mapping[str, Any], key: str, prefix: str = "", choices: tuple[str, ...] = ()) -> str | None:
    """A field of text, or None.

    Args:
        record: the fields.
        key: which of them.
        prefix: where `record` lies in the file, for the message.
        choices: what it may say; anything if empty.

    Raises:
        InputError: it holds something else.

    Example:
        >>> text({"kind": "tuned"}, "kind", choices=("tuned",))
        'tuned'
    """
    value = typed(record, key, str, "text", prefix)
    if choices and value is not None and value not in choices:
        raise InputError(f"record.json: {prefix}{key} is {_shown(value)}, must be one of {', '.join(choices)}")
    return value


def typed(record: Mapping[str, Any], key: str, kind: type[T], noun: str, prefix: str = "") -> T | None:
    """A field of one type, or None.

    Args:
        record: the fields.
        key: which of them.
        kind: the type.
        noun: its name in the message.
        prefix: where `record` lies in the file, for the message.

    Raises:
        InputError: it holds something else.

    Example:
        >>> typed({"seed": True}, "seed", int, "a whole number")
        Traceback (most recent call last):
        datamodules.sources.InputError: record.json: seed is True, must be a whole number
    """
    value = record.get(key)
    # True is an int in Python, but no seed.
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise InputError(f"record.json: {prefix}{key} is {_shown(value)}, must be {noun}")
    return value


def numbers(record: Mapping[str, Any], key: str) -> dict[str, float]:
    """A field of named finite numbers; those that are null are left out.

    Raises:
        InputError: one is no finite number.

    Example:
        >>> numbers({"costs": {"steps": 8, "latency": None}}, "costs")
        {'steps': 8.0}
    """
    found: dict[str, float] = {}
    for name, value in mapping(record, key).items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"record.json: {key}[{name!r}] is {_shown(value)}, must be a finite number")
        found[name] = float(value)
    return found


def metric_values(recorded: dict[str, float]) -> dict[str, float]:
    """Test metrics without their prefix.

    Raises:
        InputError: one lies outside the range of its definition.

    Example:
        >>> metric_values({"test/hr@10": 0.5, "val/hr@10": 0.25})
        {'hr@10': 0.5}
    """
    metrics = {name.removeprefix("test/"): value for name, value in recorded.items() if name.startswith("test/")}
    for name, value in metrics.items():
        base = metric_base(name)
        if base in DEFINITIONS and (value < 0 or (value > 1 + 1e-6 and base not in UNBOUNDED)):
            raise InputError(f"record.json: metrics['test/{name}'] is {value:g}, must lie between 0 and 1")
    return metrics


def samples(record: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Sample prompts with their ranked answers.

    Raises:
        InputError: they are no list of mappings.

    Example:
        >>> samples({"samples": [{"user": "7"}]})
        ({'user': '7'},)
    """
    found = record.get("samples") or []
    if not isinstance(found, list) or not all(isinstance(sample, dict) for sample in found):
        raise InputError("record.json: samples must be a list of mappings")
    for sample in found:
        ranking = sample.get("ranking") or []
        if not isinstance(ranking, list) or not all(isinstance(answer, dict) for answer in ranking):
            raise InputError("record.json: samples[].ranking must be a list of mappings")
    return tuple(found)


def _shown(value: object) -> str:
    told = repr(value)
    return told if len(told) <= 60 else f"{told[:57]}..."
