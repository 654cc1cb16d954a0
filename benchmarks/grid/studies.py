"""Studies: the search of one row of a grid, kept as files that a kill at any moment leaves whole.

``DIR/search/<study>/trial-000.json`` says what a trial tries, and is written once, before it runs; its run is a cell
below ``DIR/search/runs``, whose record says what came of it. Both are the ledger's kind of file (atomic, no locks), so a
search is continued from them alone, on any file system. Optuna proposes from the trials of the rounds before and never
keeps anything of its own: what it proposes hangs on the records and the study, not on who asks or when.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.grid.cells import SEED, Cell, varied
from benchmarks.grid.ledger import Ledger
from benchmarks.grid.sampling import check_installed, suggest
from benchmarks.grid.search_space import Parameter, Search, matches, written
from benchmarks.metric_names import higher_is_better
from benchmarks.paths import located, printed_path
from datamodules.contract.errors import InputError
from datamodules.contract.files import write_atomic

__all__ = ["FORMAT", "Study", "make_studies", "propose", "read_search_file", "result_of", "searched", "trial_cell"]

FORMAT = 1
"""Of the files of trials and results."""


@dataclass(frozen=True)
class Study:
    """The search of one row of a grid: cells that differ in their seed only; trials use the seed of the first."""

    name: str
    cells: tuple[Cell, ...]
    space: Mapping[str, Parameter]
    search: Search
    folder: Path

    @property
    def title(self) -> str:
        """The row's title, without a seed."""
        parts = (part for part in self.cells[0].title.split(", ") if not part.startswith(f"{SEED}="))
        return ", ".join(parts) or self.cells[0].title

    def described(self) -> dict[str, str]:
        """The space in words."""
        return {name: parameter.described() for name, parameter in self.space.items()}


def make_studies(search: Search | None, cells: Sequence[Cell], out: Path) -> list[Study]:
    """The studies of a grid, one for each row that has something to search.

    Raises:
        InputError: a rule matches no cell, no row is left to be searched, or Optuna is needed and not installed.

    Example:
        >>> cell = Cell("lora-1-00000000", "lora", (("model", "lora"), (SEED, "1")), ("fit",), "ab")
        >>> search = Search(4, {"model.r": Parameter(choices=(4, 8))})
        >>> [study.title for study in make_studies(search, [cell], Path("out"))]
        ['lora']
    """
    if search is None:
        return []
    check_installed(search)
    rows: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    used: set[int] = set()
    for cell in cells:
        excluded = [index for index, rule in enumerate(search.exclude) if matches(rule, dict(cell.labels))]
        used |= set(excluded)
        if not excluded:
            rows.setdefault(tuple(pair for pair in cell.labels if pair[0] != SEED), []).append(cell)
    if unused := sorted(set(range(len(search.exclude))) - used):
        raise InputError(f"search.exclude[{unused[0]}] matches no cell")
    if not rows:
        raise InputError("search.exclude leaves no cell to search for")
    return [_study(search, tuple(row), out) for row in rows.values()]


def _study(search: Search, row: tuple[Cell, ...], out: Path) -> Study:
    spaces = [space for rule, space in search.instead if matches(rule, dict(row[0].labels))]
    space = spaces[-1] if spaces else search.parameters
    settings = [
        {name: str(parameter) for name, parameter in space.items()},
        search.sampler,
        search.pruner,
        search.metric,
    ]
    key = hashlib.sha256(json.dumps([row[0].key, settings, search.parallel]).encode()).hexdigest()
    name = f"{row[0].name.rpartition('-')[0] or 'study'}-{key[:8]}"
    return Study(name, row, space, search, out.absolute() / "search" / name)


def trial_cell(study: Study, number: int) -> Cell:
    """The run of a trial that has been proposed.

    Raises:
        InputError: its file is missing or damaged.
    """
    path = _trial_path(study, number)
    content = read_search_file(path, ("parameters", "metric", "pruner", "rivals"))
    option = f"--search.trial={printed_path(path)}"
    label = ("trial", f"{number:03d}")
    return varied(study.cells[0], content["parameters"].items(), option, label=label, reason=f"{study.name}/{number}")


def propose(study: Study, ledger: Ledger, number: int) -> None:
    """Writes what a trial tries, if that is not yet written: proposed from the trials of the rounds before."""
    path = _trial_path(study, number)
    if path.is_file():
        return
    before = _outcomes(study, ledger, number - number % study.search.parallel)
    content = {
        "format": FORMAT,
        "study": study.title,
        "number": number,
        "parameters": _proposal(study, before, number),
        "metric": study.search.metric,
        "pruner": study.search.pruner,
        "rivals": [outcome["values"] for outcome in before if outcome["state"] == "completed"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def result_of(study: Study, ledger: Ledger) -> dict[str, Any] | None:
    """What the search has chosen; None before all trials are done.

    Raises:
        InputError: no trial has a value, so that nothing can be chosen; with the last trial's error.
    """
    outcomes = _outcomes(study, ledger, study.search.trials)
    if len(outcomes) < study.search.trials:
        return None
    measured = [outcome for outcome in outcomes if outcome["state"] == "completed"]
    measured = measured or [outcome for outcome in outcomes if outcome["value"] is not None]
    if not measured:
        raise InputError(f"search of {study.title}: no trial has a value; the last one: {outcomes[-1]['error']}")
    sign = 1 if higher_is_better(study.search.metric) else -1
    best = max(measured, key=lambda outcome: sign * outcome["value"])  # of equal ones the first
    count = {
        f"{state}_trials": sum(o["state"] == state for o in outcomes) for state in ("completed", "pruned", "failed")
    }
    return {
        "format": FORMAT,
        "trials": study.search.trials,
        **count,
        "sampler": study.search.sampler,
        "pruner": study.search.pruner,
        "metric": study.search.metric,
        "space": study.described(),
        "chosen": best["parameters"],
        "value": best["value"],
        "trial": best["number"],
        "seconds": round(sum(outcome["seconds"] for outcome in outcomes), 1),
    }


def searched(study: Study, result: dict[str, Any]) -> list[Cell]:
    """The row's cells with what the search has chosen, which their records tell."""
    path = study.folder / "chosen.json"
    text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)
    option = f"--search.result={printed_path(path)}"
    reason = hashlib.sha256(text.encode()).hexdigest()
    return [varied(cell, result["chosen"].items(), option, reason=reason) for cell in study.cells]


def read_search_file(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Reads the file of a trial or of a result: data, checked for what must be in it.

    Raises:
        InputError: it is missing, is not JSON, or lacks a key.

    Example:
        >>> read_search_file(Path("nowhere.json"), ["trials"])
        Traceback (most recent call last):
            ...
        datamodules.contract.errors.InputError: nowhere.json: cannot be read (No such file or directory)
    """
    try:  # commands name it from the checkout's root
        content = json.loads((path if path.is_file() else located(path)).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a file of a search ({error}); delete it to have it written again") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing or content.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a file of a search (no {(missing or ['format'])[0]}); delete it to write it again"
        )
    return dict(content)


def _trial_path(study: Study, number: int) -> Path:
    return study.folder / f"trial-{number:03d}.json"


def _outcomes(study: Study, ledger: Ledger, count: int) -> list[dict[str, Any]]:
    """What came of the first trials, up to the first that is not done."""
    outcomes: list[dict[str, Any]] = []
    for number in range(count):
        if not _trial_path(study, number).is_file():
            break
        record = ledger.record(trial_cell(study, number).name)
        if record is None:
            break
        trial = record.get("trial") or {}
        failed = record["status"] == "failed" or trial.get("value") is None
        outcomes.append(
            {
                "number": number,
                "parameters": read_search_file(_trial_path(study, number), ["parameters"])["parameters"],
                "state": "failed" if failed else "pruned" if trial.get("pruned") else "completed",
                "value": None if failed else float(trial["value"]),
                "values": trial.get("values") or [],
                "seconds": float(trial.get("seconds") or 0.0),
                "error": record.get("error"),
            }
        )
    return outcomes


def _proposal(study: Study, before: Sequence[Mapping[str, Any]], number: int) -> dict[str, str]:
    if study.search.sampler == "grid":
        points = itertools.product(*(parameter.choices for parameter in study.space.values()))
        point = next(itertools.islice(points, number, None))
        return {name: written(value) for name, value in zip(study.space, point, strict=True)}
    digest = hashlib.sha256(f"{study.name}/{number}".encode()).digest()
    return suggest(study.search, study.space, before, int.from_bytes(digest[:4], "big"))
