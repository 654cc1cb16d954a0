"""Checkpoint files that a kill at any moment leaves whole, and whose damage always shows.

A checkpoint is written as a draft, synced, read back, and put in place together with its manifest, `NAME.sha256`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.contract.errors import CheckpointError
from datamodules.contract.files import draft_of, manifest_of, put_in_place, read_manifest, sha256_of, write_new


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint so that the newest whole one is never lost; memory does not grow with its size.

    Args:
        content: tensors and plain values; anything else could not be read back without running code.
        path: its final name.

    Raises:
        CheckpointError: the content cannot be read back.
        OSError: the disk is full, or what was read back is not what was written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.ckpt"
        >>> write_checkpoint({"state_dict": {"w": torch.ones(2)}}, path)
        >>> read_checkpoint(path)["state_dict"]["w"].tolist(), sorted(file.name for file in path.parent.iterdir())
        ([1.0, 1.0], ['a.ckpt', 'a.ckpt.sha256'])
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        written = write_new(draft, lambda file: torch.save(content, file), name=path)
        if sha256_of(draft) != written:
            raise OSError(errno.EIO, "what was read back is not what was written", str(path))
        _load(draft, path, mmap=True)
        put_in_place(draft, path, written)
    finally:
        draft.unlink(missing_ok=True)


def link_checkpoint(source: Path, path: Path) -> None:
    """Gives a checkpoint a second name, without a copy where the file system can."""
    draft = draft_of(path)
    try:
        try:
            os.link(source, draft)
        except OSError:  # some file systems have no links
            with source.open("rb") as data:
                write_new(draft, lambda file: shutil.copyfileobj(data, file), name=path)
        sums = read_manifest(source)
        put_in_place(draft, path, sums[0] if len(sums) == 1 else sha256_of(draft))
    finally:
        draft.unlink(missing_ok=True)


def check_file(path: Path) -> bool:
    """Compares a checkpoint with its manifest.

    Returns:
        Whether there is a manifest. Without one (files of version 0.1.0) the archive's own check sums are compared:
        they cover the tensors, but not every byte.

    Raises:
        CheckpointError: the file is not there, empty, or not what was written.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: the checkpoint does not exist")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: expected a checkpoint, found an empty file")
    expected = read_manifest(path)
    if expected:
        found = sha256_of(path)
        if found not in expected:
            raise CheckpointError(
                f"{path} is damaged: expected sha256 {expected[-1]}, found {found}; use another checkpoint"
            )
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: expected an archive, found {error}") from error
    if broken:
        raise CheckpointError(f"{path} is damaged: expected the archive's own check sum, found another in {broken}")
    return False


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Reads a checkpoint after checking it; never runs code from the file.

    Raises:
        CheckpointError: as `check_file`, or the content is no checkpoint.
    """
    check_file(path)
    return _load(path, path, mmap)


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint, and then its manifest."""
    path.unlink(missing_ok=True)
    manifest_of(path).unlink(missing_ok=True)


def checksum_parameters(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names and values of tensors, whatever their device: the identity of a backbone.

    Example:
        >>> checksum_parameters([("w", torch.zeros(2))])[:8]
        'e5868624'
    """
    digest = hashlib.sha256()
    for name, value in sorted(parameters, key=lambda pair: pair[0]):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load(file: Path, name: Path, mmap: bool) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a broken pickle program raises whatever it meets
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(
            f"{name} cannot be read as a checkpoint: expected tensors and plain values, found: {reason}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{name}: expected a checkpoint with a state_dict, found {type(content).__name__}")
    return content
