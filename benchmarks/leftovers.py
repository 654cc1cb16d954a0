"""What a run that did not finish has left in its folder: what it is continued from stays, the rest goes."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["RESUMABLE", "can_continue", "clear"]

RESUMABLE = ("resume", "checkpoints")
"""Folders of a run from which it is continued."""


def can_continue(folder: Path) -> bool:
    """Tell whether a run left a state in its folder from which `fit --ckpt_path last` continues.

    Args:
        folder: The run's folder.

    Example:
        >>> can_continue(Path("nowhere"))
        False
    """
    return any((folder / "resume").glob("step-*.ckpt"))


def clear(folder: Path, keep: set[str]) -> None:
    """Empty the folder of a cell but for what is kept.

    The record goes first: a kill in between must not leave a cell that is done but has lost files.

    Args:
        folder: The folder of the cell, held by a lease.
        keep: Names in it.
    """
    (folder / "record.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
