"""The section `search` of a suite: which options are searched, how, and over what; its mistakes are one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.metric_names import DEFINITIONS, metric_base
from benchmarks.plain_yaml import nearest_hint
from datamodules.contract.errors import InputError

__all__ = ["PRUNERS", "SAMPLERS", "Parameter", "Rule", "Search", "matches", "number", "read_search", "written"]

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "none")
_KEYS = ("trials", "parameters", "instead", "exclude", "sampler", "pruner", "metric", "parallel")
_RANGE = ("low", "high", "log")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[\w-]+)+")
_NOT_SEARCHED = ("seed_everything", "data.protocol", "search")  # what would change the cases, or choose among seeds
_MOST = 10_000

Rule = tuple[tuple[str, frozenset[str]], ...]
"""Labels wanted on some axes: a cell matches when its label on each of them is among those wanted."""


def matches(rule: Rule, labels: Mapping[str, str]) -> bool:
    """Whether a cell of these labels matches.

    Example:
        >>> matches((("model", frozenset({"lora", "full"})),), {"model": "lora", "seed_everything": "1"})
        True
    """
    return all(labels.get(axis) in wanted for axis, wanted in rule)


@dataclass(frozen=True)
class Parameter:
    """Values that one option may take: the choices of a list, or a range, of numbers or of their logarithms."""

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def described(self) -> str:
        """The values in words.

        Example:
            >>> Parameter(low=1e-5, high=0.01, log=True).described(), Parameter(choices=(4, 8)).described()
            ('0.00001 to 0.01 (log)', '4, 8')
        """
        if self.choices:
            return ", ".join(map(str, self.choices))
        return f"{number(self.low)} to {number(self.high)}{' (log)' if self.log else ''}"


@dataclass(frozen=True)
class Search:
    """What is searched before the cells of a grid.

    Attributes:
        trials: of every study, the same for all methods and baselines.
        parameters: the space of every study.
        instead: the space of the studies that match, in place of `parameters`.
        exclude: rows that have nothing to search.
        sampler: one of `SAMPLERS`.
        pruner: one of `PRUNERS`.
        metric: of validation.
        parallel: trials of one study that run at a time; each is proposed from those of the rounds before.
    """

    trials: int
    parameters: Mapping[str, Parameter]
    instead: tuple[tuple[Rule, Mapping[str, Parameter]], ...] = ()
    exclude: tuple[Rule, ...] = ()
    sampler: str = "tpe"
    pruner: str = "median"
    metric: str = "val/quality"
    parallel: int = 1


def read_search(entry: Any, where: str, rule: Callable[[Any, str], Rule]) -> Search | None:
    """Reads the section.

    Raises:
        InputError: it says something that has no meaning, with the place and the nearest valid choice.

    Example:
        >>> found = read_search({"trials": 4, "parameters": {"model.r": [4, 8]}}, "suite.yaml: search", lambda *_: ())
        >>> found.sampler, found.parameters["model.r"].choices
        ('tpe', (4, 8))
    """
    if entry is None:
        return None
    _check(entry, _KEYS, where)
    sampler = _one_of(entry.get("sampler", "tpe"), SAMPLERS, f"{where}.sampler")
    parameters = _space(entry.get("parameters"), f"{where}.parameters")
    instead = []
    for index, item in enumerate(_list(entry.get("instead"), f"{where}.instead")):
        here = f"{where}.instead[{index}]"
        _check(item, ("when", "parameters"), here)
        instead.append((rule(item.get("when"), f"{here}.when"), _space(item.get("parameters"), f"{here}.parameters")))
    excluded = enumerate(_list(entry.get("exclude"), f"{where}.exclude"))
    search = Search(
        trials=_count(entry.get("trials"), f"{where}.trials"),
        parameters=parameters,
        instead=tuple(instead),
        exclude=tuple(rule(item, f"{where}.exclude[{index}]") for index, item in excluded),
        sampler=sampler,
        pruner=_one_of(entry.get("pruner", "median"), PRUNERS, f"{where}.pruner"),
        metric=_metric(entry.get("metric", "val/quality"), f"{where}.metric"),
        parallel=_count(entry.get("parallel", 1), f"{where}.parallel"),
    )
    if sampler == "grid":
        for space in (parameters, *(space for _, space in instead)):
            _check_grid(space, search.trials, where)
    return search


def number(value: float) -> str:
    """A number as a command line takes it, without an exponent where it is short.

    Example:
        >>> number(0.0001783), number(8.0), number(1e-12)
        ('0.0001783', '8', '1e-12')
    """
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.10f}".rstrip("0") if 1e-7 <= abs(value) < 1e6 else repr(value)


def written(value: Any) -> str:
    """A value of a list as a command line takes it.

    Example:
        >>> written(0.001), written("AdamW"), written(True), written(8)
        ('0.001', 'AdamW', 'true', '8')
    """
    return number(value) if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _check_grid(space: Mapping[str, Parameter], trials: int, where: str) -> None:
    for name, parameter in space.items():
        if not parameter.choices:
            raise InputError(f"{where}.parameters.{name}: the sampler grid takes lists; give a list, or sampler: tpe")
    size = math.prod(len(parameter.choices) for parameter in space.values())
    if size != trials:
        raise InputError(
            f"{where}.trials is {trials}, the grid of {', '.join(space)} has {size} points; every method gets the same"
            f" number of trials: make lists of {trials} points, or choose sampler: tpe"
        )


def _space(entry: Any, where: str) -> dict[str, Parameter]:
    if not isinstance(entry, dict) or not entry:
        raise InputError(
            f"{where}: names no option; for example model.optimizer.lr: {{low: 0.0001, high: 0.01, log: true}}"
        )
    return {str(name): _parameter(str(name), value, f"{where}.{name}") for name, value in entry.items()}


def _parameter(name: str, value: Any, where: str) -> Parameter:
    if not _DOTTED.fullmatch(name) or name.startswith(_NOT_SEARCHED):
        raise InputError(f"{where}: {name!r} cannot be searched; use a dotted option such as model.optimizer.lr")
    if isinstance(value, list):
        if not value or any(isinstance(item, (dict, list)) for item in value):
            raise InputError(f"{where}: a list of single values is needed, got {value!r}")
        if len({str(item) for item in value}) < len(value):
            raise InputError(f"{where}: a value stands there twice: {value!r}")
        return Parameter(choices=tuple(value))
    if not isinstance(value, dict):
        raise InputError(f"{where}: a list of values or {{low: ..., high: ..., log: true}} is needed, got {value!r}")
    _check(value, _RANGE, where)
    low, high, log = _number(value, "low", where), _number(value, "high", where), value.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"{where}.log is {log!r}, must be true or false")
    if not low < high or (log and low <= 0):
        bound = "above 0 and below high" if log else "below high"
        raise InputError(f"{where}.low is {number(low)} with high {number(high)}, must be {bound}")
    whole = all(isinstance(value[key], int) for key in ("low", "high"))
    return Parameter(low=low, high=high, log=log, whole=whole)


def _number(value: Mapping[str, Any], key: str, where: str) -> float:
    bound = value.get(key)
    try:  # YAML 1.1 takes 1e-5 for text
        if isinstance(bound, bool) or not isinstance(bound, (int, float, str)) or not math.isfinite(float(bound)):
            raise ValueError(bound)
        return float(bound)
    except ValueError as error:
        raise InputError(f"{where}.{key} is {bound!r}, must be a number") from error


def _metric(name: Any, where: str) -> str:
    known = ("quality", *DEFINITIONS)
    text = str(name)
    if not text.startswith("val/"):
        raise InputError(f"{where} is {text!r}, must be of validation, such as val/quality: test cases choose nothing")
    if metric_base(text.removeprefix("val/")) not in known:
        near = nearest_hint(metric_base(text.removeprefix("val/")), known)
        raise InputError(f"{where} is {text!r}, no metric of that name{near}")
    return text


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise InputError(f"{where} is {value!r}, must be a whole number from 1 to {_MOST}")
    return value


def _one_of(value: Any, choices: tuple[str, ...], where: str) -> str:
    if value not in choices:
        raise InputError(f"{where} is {value!r}{nearest_hint(str(value), choices)}")
    return str(value)


def _check(entry: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: a mapping (key: value) is needed, got {entry!r}")
    for key in entry:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}{nearest_hint(str(key), known)}")


def _list(entry: Any, where: str) -> list[Any]:
    if entry is not None and not isinstance(entry, list):
        raise InputError(f"{where}: a list is needed, got {entry!r}")
    return entry or []
