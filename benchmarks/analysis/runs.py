"""Run folders read into typed rows; anything unreadable becomes a named problem instead of a number.

A record may have been edited by hand, or come from another version: each field is read with its type checked.

# U users, N yes/no cases
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from benchmarks.analysis.scores import RunFailed, Scores, check_agreement, read_scores
from benchmarks.metric_names import DEFINITIONS, metric_base
from benchmarks.paths import further_rules, record_path, scores_path
from datamodules.contract.errors import InputError

T = TypeVar("T")
UNBOUNDED = ("log_loss", "rmse", "mse", "mae")
FORMAT = 1  # of record.json
KINDS = ("reference", "tuned", "untuned")
TASKS = ("ranking", "binary", "rating")


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
    """A field of text, or None; `prefix` says where `record` lies in its file, `choices` what the text may be.

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

    Example:
        >>> typed({"seed": True}, "seed", int, "a whole number")
        Traceback (most recent call last):
        datamodules.contract.errors.InputError: record.json: seed is True, must be a whole number
    """
    value = record.get(key)
    # True is an int in Python, but no seed.
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise InputError(f"record.json: {prefix}{key} is {_shown(value)}, must be {noun}")
    return value


def numbers(record: Mapping[str, Any], key: str) -> dict[str, float]:
    """A field of named finite numbers; those that are null are left out.

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

    Example:
        >>> samples({"samples": [{"user": "7"}]})
        ({'user': '7'},)
    """
    entries = record.get("samples") or []
    if not isinstance(entries, list) or not all(isinstance(sample, dict) for sample in entries):
        raise InputError("record.json: samples must be a list of mappings")
    for sample in entries:
        ranking = sample.get("ranking") or []
        if not isinstance(ranking, list) or not all(isinstance(answer, dict) for answer in ranking):
            raise InputError("record.json: samples[].ranking must be a list of mappings")
    return tuple(entries)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


@dataclass(frozen=True)
class Run:
    """One finished run. What the record does not say is None or absent from its mapping, never zero.

    Attributes:
        settings: the cell's place on the grid's axes as `axis=label`, but for the seed.
        command: what runs this cell alone, where the grid's list of cells tells.
        metrics: test metrics by name without the `test/` prefix.
        costs: as recorded: parameters, bytes, seconds, rates.
        rule: the rule of `protocol.also` that this result is under; "" for the run's own. Its costs are those of the run.
        curves: points `(step, value)` by column of `metrics.csv`, which Lightning's CSVLogger writes.
    """

    folder: Path
    cell: str
    name: str
    kind: str | None
    model: dict[str, Any]
    data: str | None
    fingerprint: str
    description: dict[str, Any]
    task: str
    num_candidates: int | None
    seed: int | None
    config: dict[str, Any]
    environment: dict[str, Any]
    costs: dict[str, float]
    metrics: dict[str, float]
    guards: dict[str, Any]
    samples: tuple[dict[str, Any], ...]
    search: dict[str, Any]
    scores: Scores | None
    settings: tuple[str, ...] = ()
    command: str = ""
    rule: str = ""
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    @property
    def backbone(self) -> str | None:
        """Name of the language model, None for a classical row."""
        name = self.model.get("backbone")
        return None if name is None else str(name)


@dataclass(frozen=True)
class Problem:
    """A run folder, or a file of it, that gives no numbers, and why."""

    cell: str
    state: Literal["failed", "unfinished", "unreadable", "note"]
    reason: str
    log: str | None


@dataclass(frozen=True)
class GridResults:
    """A grid folder: finished runs, and the rest by name."""

    name: str
    description: str
    runs: tuple[Run, ...]
    problems: tuple[Problem, ...]


def read_suite(directory: Path) -> GridResults:
    """Reads every run below `directory/runs`; a broken one becomes a problem and hides no other.

    Raises:
        InputError: there is no `runs` folder, or `suite.yaml` or `cells.json` is damaged.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "runs" / "lora").mkdir(parents=True)
        >>> read_suite(folder).problems[0].state
        'unfinished'
    """
    if not (directory / "runs").is_dir():
        raise InputError(f"{directory} has no folder runs/; give the --out folder of `instructrec benchmark`")
    name, description = _read_suite_file(directory / "suite.yaml", directory.resolve().name)
    grid = _read_cells(directory / "cells.json")
    folders = {path.name: path for path in (directory / "runs").iterdir() if path.is_dir()}
    runs: list[Run] = []
    problems: list[Problem] = []
    for cell in sorted(folders.keys() | (grid or {}).keys()):
        log = f"runs/{cell}/run.log" if cell in folders and (folders[cell] / "run.log").is_file() else None
        if grid is not None and cell not in grid:
            problems.append(Problem(cell, "note", "of an earlier version of this suite, not counted", log))
            continue
        if cell not in folders or not (folders[cell] / "record.json").is_file():
            reason = "no record.json yet" if cell in folders else "not started"
            problems.append(Problem(cell, "unfinished", reason, log))
            continue
        try:
            results = read_results(folders[cell])
        except RunFailed as error:
            problems.append(Problem(cell, error.state, str(error), log))
        except InputError as error:
            problems.append(Problem(cell, "unreadable", str(error), log))
        else:
            curves, complaint = _read_curves(folders[cell] / "metrics.csv")
            settings, command = (_settings(cell), "") if grid is None else grid[cell]
            runs += [
                replace(run, settings=settings, curves={} if run.rule else curves, command=command) for run in results
            ]
            if complaint:
                problems.append(Problem(cell, "note", f"{complaint}; its row stays, without curves", log))
    return GridResults(name, description, tuple(runs), tuple(problems))


def read_results(folder: Path) -> list[Run]:
    """A run's results: under its own rule of candidates, and under each further one that its record names.

    Raises:
        RunFailed: the record's status is `failed` or `interrupted`.
        InputError: a file is missing or damaged, of another format, or a value has the wrong type.
    """
    main = read_run(folder)
    further = [read_run(folder, rule) for rule in further_rules(read_json(record_path(folder)))]
    return [main, *(replace(run, costs=main.costs) for run in further)]


def read_run(folder: Path, rule: str = "") -> Run:
    """Reads one run's `record.json` and `scores.npz`, and checks that they agree; curves are read by `read_suite`.

    Args:
        folder: the run's folder.
        rule: of `protocol.also`, whose record and scores are read instead.

    Raises:
        RunFailed: the record's status is `failed` or `interrupted`.
        InputError: a file is damaged, of another format, or a value has the wrong type.

    Example:
        >>> read_run(Path("nowhere"))
        Traceback (most recent call last):
        datamodules.contract.errors.InputError: record.json cannot be read: No such file or directory
    """
    record = read_json(record_path(folder, rule))
    if record.get("format") != FORMAT:
        raise InputError(f"record.json: format is {record.get('format')!r}, this version reads {FORMAT}")
    status = record.get("status")
    if status in ("failed", "interrupted"):
        reason = text(record, "error") or "no error recorded"
        raise RunFailed(reason, "failed" if status == "failed" else "unfinished")
    if status != "finished":
        raise InputError(f"record.json: status is {status!r}, must be 'finished' or 'failed'")
    protocol, metrics = mapping(record, "protocol"), metric_values(numbers(record, "metrics"))
    fingerprint = text(protocol, "fingerprint", "protocol.")
    if not fingerprint:
        raise InputError("record.json: protocol.fingerprint is missing, so the run can share a table with no other")
    scores = read_scores(scores_path(folder, rule), text(record, "scores_sha256"))
    check_agreement(metrics, scores)
    costs = numbers(record, "costs")
    for key, cost in costs.items():
        if cost < 0:
            raise InputError(f"record.json: costs[{key!r}] is {cost:g}, must not be negative")
    description = mapping(protocol, "description", "protocol.")
    statistics = mapping(protocol, "statistics", "protocol.")
    return Run(
        folder=folder,
        cell=folder.name,
        name=text(record, "name") or folder.name,
        kind=text(record, "kind", choices=KINDS),
        model=mapping(record, "model"),
        data=text(mapping(record, "data"), "class", "data."),
        fingerprint=fingerprint,
        description={**description, **({"statistics": statistics} if statistics else {})},
        task=text(protocol, "task", "protocol.", TASKS) or ("binary" if "auc" in metrics else "ranking"),
        num_candidates=typed(protocol, "num_candidates", int, "a whole number", "protocol."),
        seed=typed(record, "seed", int, "a whole number"),
        config=mapping(record, "config"),
        environment={k: record[k] for k in ("commit", "dirty", "device", "versions") if record.get(k) is not None},
        costs=costs,
        metrics=metrics,
        guards=mapping(record, "guards"),
        samples=samples(record),
        search=mapping(record, "search"),
        scores=scores,
        rule=rule,
    )


def _read_suite_file(path: Path, fallback: str) -> tuple[str, str]:
    if not path.is_file():
        return fallback, ""
    try:
        suite = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise InputError(f"{where}: not readable as YAML") from error
    suite = suite if isinstance(suite, dict) else {}
    return str(suite.get("name") or fallback), " ".join(str(suite.get("description") or "").split())


def _read_cells(path: Path) -> dict[str, tuple[tuple[str, ...], str]] | None:
    """Settings and command by cell of the grid's present version, None where the runs were started one by one."""
    if not path.is_file():
        return None
    cells = read_json(path).get("cells")
    try:
        return {
            str(cell["name"]): (
                _without_seed(f"{axis}={label}" for axis, label in dict(cell["labels"]).items()),
                str(cell.get("command") or ""),
            )
            for cell in cells or []
        }
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cells must be a list of mappings with name and labels") from error


def _settings(cell: str) -> tuple[str, ...]:
    """What a cell's name sets, without the seed and the hash at its end."""
    return _without_seed(part for part in re.sub(r"-[0-9a-f]{8,64}$", "", cell).split(",") if "=" in part)


def _without_seed(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(part for part in parts if part.split("=")[0] not in ("seed", "seed_everything"))


def _read_curves(path: Path) -> tuple[dict[str, list[tuple[float, float]]], str | None]:
    """Sparse columns of Lightning's CSV logger as points by step, and a complaint if unreadable."""
    if not path.is_file():
        return {}, None
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = row.get("step")
                for name, value in row.items():
                    if step and value and re.match(r"(train|val)/", name or ""):
                        points.setdefault(name, []).append((float(step), float(value)))
    except (ValueError, csv.Error, OSError, TypeError) as error:
        return {}, f"metrics.csv is unreadable ({str(error).splitlines()[0]})"
    return {name: [point for point in line if math.isfinite(point[1])] for name, line in points.items()}, None
