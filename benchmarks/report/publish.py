"""Finished runs as files for everybody: the record and what its tables need, without prompts, titles, ids and paths.

From them anyone makes the same tables, with the same tests, and goes on with the grid: its cells are done there.

# U users or cases
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.analysis.runs import read_json, read_results
from benchmarks.analysis.scores import RunFailed
from benchmarks.metric_names import DEFINITIONS, metric_base
from benchmarks.paths import ROOT, further_rules, record_path, scores_path
from datamodules.contract.errors import InputError
from datamodules.contract.files import write_atomic


def publish_runs(directory: Path, target: Path) -> list[Path]:
    """Writes a grid's finished runs as a grid's folder of its own, passes over others, and returns the runs' folders.

    Raises:
        InputError: the grid has no finished run, or `target` cannot be written.
    """
    folders = []
    try:
        for folder in sorted(path.parent for path in directory.glob("runs/*/record.json")):
            try:
                read_results(folder)
            except (RunFailed, InputError):  # the report says why
                continue
            folders.append(_publish(folder, target / "runs" / folder.name))
        if folders and (directory / "suite.yaml").is_file():
            write_atomic(target / "suite.yaml", (directory / "suite.yaml").read_text(encoding="utf-8"))
        if folders and (directory / "cells.json").is_file():
            cells = json.loads((directory / "cells.json").read_text(encoding="utf-8"))
            for cell in cells["cells"]:
                cell.pop("command", None)  # it names places
            cells = without_paths(cells, directory)
            write_atomic(target / "cells.json", json.dumps(cells, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"--publish {target}: cannot write ({error.strerror})") from error
    if not folders:
        raise InputError(f"--publish: {directory} has no finished run")
    return folders


def _publish(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    for rule in (*further_rules(read_json(record_path(folder))), ""):
        record = read_json(record_path(folder, rule))
        if scores_path(folder, rule).is_file():
            content = _scores(scores_path(folder, rule))
            record["scores_sha256"] = hashlib.sha256(content).hexdigest()
            write_atomic(scores_path(target, rule), content)
        record = without_paths(record | {"samples": []}, folder)
        write_atomic(record_path(target, rule), json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return target


def _scores(path: Path) -> bytes:
    """Metrics, or probabilities and labels, by user; a user's number is the place of the id among all, in every run."""
    with np.load(path, allow_pickle=False) as archive:
        named = {name: archive[name] for name in archive.files if metric_base(name) in DEFINITIONS}
        named |= {name: archive[name] for name in ("probability", "label") if name in archive.files}
        if "user" in archive.files:
            number = np.unique(archive["user"].astype(np.str_), return_inverse=True)[1]
            named["user"] = np.array([f"{place:07d}" for place in number], dtype=np.str_)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **named)
    return file.getvalue()


def without_paths(value: Any, run: Path) -> Any:
    """A record's value with no place of a machine in it: paths become relative, or the last word of a path.

    Example:
        >>> without_paths({"out": "/home/me/grid/runs/a", "backbone": "/models/tiny", "r": 8}, Path("/home/me/grid/runs/a"))
        {'out': '.', 'backbone': 'tiny', 'r': 8}
    """
    if isinstance(value, dict):
        return {key: without_paths(one, run) for key, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one, run) for one in value]
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    for root in (run.absolute(), ROOT):
        if Path(value).is_relative_to(root):
            return Path(value).relative_to(root).as_posix()
    return Path(value).name
