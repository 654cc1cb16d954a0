"""Results that grow work by work, within a run and over several.

A work and its peers are always measured in one run; the works of one table may come from several, on the same machine
with the same versions and settings, and each says from which.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datamodules.sources import InputError

ALONE = ("limit", "loading")
"""Works that compare nothing."""

SAME = ("cpu", "gpu", "bfloat16_units", "threads", "versions", "setting")
"""Of the environment: what the works of one table have in common."""

OF_A_RUN = ("date", "commit", "dirty")
"""Of the environment: what each work keeps of the run that it is from; a commit only inside a checkout."""


def nothing_yet(environment: dict[str, Any]) -> dict[str, Any]:
    """Results without a work.

    Args:
        environment: of this run.
    """
    return {"format": 1, "environment": environment, "comparisons": {}}


def read_earlier(path: Path, environment: dict[str, Any]) -> dict[str, Any]:
    """The results of an earlier run, to be added to; nothing yet where there is no file.

    Args:
        path: the JSON file.
        environment: of this run.

    Raises:
        InputError: the file is no such file, or is of another machine, other versions or settings.
    """
    if not path.exists():
        return nothing_yet(environment)
    try:
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, works = earlier["environment"], [*earlier["comparisons"].values(), *_alone(earlier)]
        other = [name for name in SAME if found.get(name) != environment.get(name)]
        for work in works:
            work.setdefault("run", _run(found))
        before = float(found.get("seconds", 0.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--add: {path} does not hold results of perf: {error!r}") from error
    if other:
        name = other[0]
        difference = _difference(found.get(name), environment.get(name))
        raise InputError(f"--add: {path} was measured with another {name}: {difference}; give another --out")
    return earlier | {"environment": environment | {"seconds": before}}


def holds(results: dict[str, Any], name: str) -> bool:
    """Whether a work is there, and did not fail.

    >>> holds({"comparisons": {"score_20": {}, "beam": {"error": "no memory"}}}, "beam")
    False
    """
    return "error" not in (results if name in ALONE else results["comparisons"]).get(name, {"error": "not there"})


def add(results: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    """Puts a work of this run in its place.

    Args:
        results: of all works so far.
        name: of the work.
        found: its numbers.
    """
    work = found | {"run": _run(results["environment"])}
    (results if name in ALONE else results["comparisons"])[name] = work


def runs(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that the works are from, the oldest first; none where the file is of an earlier version."""
    works = [*results["comparisons"].values(), *_alone(results)]
    found = {tuple(work["run"].items()): work["run"] for work in works if "run" in work}
    return sorted(found.values(), key=lambda run: str(run["date"]))


def _run(environment: dict[str, Any]) -> dict[str, Any]:
    return {name: environment[name] for name in OF_A_RUN if name in environment}


def _alone(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [results[name] for name in ALONE if name in results]


def _difference(found: Any, present: Any) -> str:
    if isinstance(found, dict) and isinstance(present, dict):
        name = next(name for name in {**found, **present} if found.get(name) != present.get(name))
        return f"{name} {found.get(name)}, now {present.get(name)}"
    return f"{found}, now {present}"
