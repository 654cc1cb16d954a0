"""A grid's tables and figures as an artifact in W&B, in the group of its runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.report import ReportPaths

__all__ = ["log_report", "project_of"]


def project_of(directory: Path) -> str | None:
    """The W&B project that the runs of a grid were logged to; None where none was.

    Args:
        directory: the grid's folder.

    Example:
        >>> import tempfile
        >>> project_of(Path(tempfile.mkdtemp())) is None
        True
    """
    for folder in sorted(directory.glob("runs/*/wandb")):
        try:
            loggers = json.loads((folder.parent / "record.json").read_bytes())["config"]["trainer"]["logger"]
            named = [one["init_args"] for one in loggers if str(one["class_path"]).endswith("WandbLogger")]
        except (OSError, ValueError, KeyError, TypeError):  # a cell that has no record yet, or another logger
            continue
        if named:
            return str(named[0].get("project") or "instructrec")
    return None


def log_report(directory: Path, paths: ReportPaths, *, project: str, group: str) -> str:
    """Logs what `write_report` wrote as the next version of one artifact; the same run is continued each time.

    Without an account it is written beside the grid, as the runs are; `WANDB_MODE=online` sends it.

    Args:
        directory: the grid's folder.
        paths: the files.
        project: of W&B.
        group: of the grid's runs.

    Returns:
        One line that says where it is, or why it is nowhere: the files on the disk do not depend on it.
    """
    import wandb

    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    if os.environ["WANDB_MODE"] == "disabled":
        return "W&B: the report was not logged: WANDB_MODE is disabled"
    # Copies of the files wait there to be sent: beside the grid, and not in the user's home.
    os.environ.setdefault("WANDB_DATA_DIR", str(directory.absolute() / "wandb"))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"report-{group}")[:128]
    settings: dict[str, Any] = {"project": project, "group": group, "job_type": "report", "name": name}
    mark = hashlib.sha256(f"{project} {group} {directory.absolute()}".encode()).hexdigest()[:16]
    try:
        with wandb.init(**settings, id=f"report-{mark}", dir=str(directory), resume="allow") as run:
            artifact = wandb.Artifact(name, type="report", description=f"tables and figures of {group}")
            for path in _files(paths):
                artifact.add_file(str(path), name=path.relative_to(directory).as_posix())
            run.log_artifact(artifact)
            where = Path(run.dir).parent
    except (wandb.Error, OSError, ValueError) as error:
        return f"W&B: the report was not logged: {' '.join(str(error).split())[:200]}"
    return f"W&B: the report is an artifact of group {group!r}, project {project!r}: {where}"


def _files(paths: ReportPaths) -> list[Path]:
    found = (getattr(paths, field.name) for field in dataclasses.fields(paths))
    return [path for path in found if isinstance(path, Path)]
