"""Checkpoint files that a kill at any moment leaves whole, and whose damage always shows.

Beside every checkpoint lies its manifest, `NAME.sha256`, in the format of sha256sum. A checkpoint is written under a
temporary name, synced, read back, and renamed; the manifest names the old and the new content while the rename is due,
so that there is no moment at which file and manifest disagree.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

DRAFTS = ".*.tmp"
"""Pattern of files that a killed process was writing."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one line: the file, what was expected, what was found."""


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

    def fill(file: BinaryIO) -> None:
        torch.save(content, file)

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        written = _write(draft, fill)
        if checksum(draft) != written:
            raise OSError(errno.EIO, "what was read back is not what was written", str(path))
        _load(draft, path, mmap=True)
        _put_in_place(draft, path, written)
    finally:
        draft.unlink(missing_ok=True)


def link_checkpoint(source: Path, path: Path) -> None:
    """Gives a checkpoint a second name, without a copy where the file system can.

    Args:
        source: a whole checkpoint.
        path: the other name; what it named before is replaced.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            os.link(source, draft)
        except OSError:  # some file systems have no links
            shutil.copyfile(source, draft)
        sums = read_manifest(source)
        _put_in_place(draft, path, sums[0] if len(sums) == 1 else checksum(draft))
    finally:
        draft.unlink(missing_ok=True)


def check_file(path: Path) -> bool:
    """Compares a checkpoint with its manifest.

    Args:
        path: the checkpoint.

    Returns:
        Whether there is a manifest. Without one (files of version 0.1.0) the archive's own check sums are compared:
        they cover the tensors, but not every byte.

    Raises:
        CheckpointError: the file is not there, empty, or not what was written.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint, found no such file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: expected a checkpoint, found an empty file")
    expected = read_manifest(path)
    if expected:
        found = checksum(path)
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

    Args:
        path: the checkpoint.
        mmap: leave tensors on disk until they are used.

    Raises:
        CheckpointError: as `check_file`, or the content is no checkpoint.
    """
    check_file(path)
    return _load(path, path, mmap)


def read_manifest(path: Path) -> list[str]:
    """The sums that a checkpoint may have: one, or two while it is being replaced; none without a manifest.

    Raises:
        CheckpointError: the manifest itself is damaged.
    """
    manifest = manifest_of(path)
    try:
        lines = manifest.read_bytes().decode("ascii").splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{manifest} is damaged: expected ASCII text, found byte {error.start}") from error
    sums = [line[:64] for line in lines if re.fullmatch(rf"[0-9a-f]{{64}}  {re.escape(path.name)}", line)]
    if not sums or len(sums) != len(lines):
        raise CheckpointError(f"{manifest} is damaged: expected lines 'SHA256  {path.name}', found {lines[:1]}")
    return sums


def manifest_of(path: Path) -> Path:
    """Where the manifest of a checkpoint lies."""
    return path.with_name(f"{path.name}.sha256")


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint, and then its manifest."""
    path.unlink(missing_ok=True)
    manifest_of(path).unlink(missing_ok=True)


def clear_drafts(folder: Path) -> None:
    """Removes what killed processes were writing."""
    for draft in folder.glob(DRAFTS) if folder.is_dir() else ():
        draft.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Stream:
    """A file that is hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _write(path: Path, fill: Callable[[Any], None]) -> str:
    """Fills a new file, syncs it, and returns its sha256."""
    with path.open("xb") as file:
        stream = _Stream(file)
        try:
            fill(stream)
        except RuntimeError as error:  # torch says where it stood, never why
            if stream.error is None:
                raise
            raise OSError(stream.error.errno, stream.error.strerror, str(path)) from error
        file.flush()
        os.fsync(file.fileno())
    return stream.digest.hexdigest()


def _put_in_place(draft: Path, path: Path, content: str) -> None:
    _write_manifest(path, [*_present_sums(path), content])
    os.replace(draft, path)
    _sync_folder(path.parent)
    _write_manifest(path, [content])


def _present_sums(path: Path) -> list[str]:
    """What the manifest must go on to allow until the file is replaced."""
    if not path.is_file():
        return []
    try:
        sums = read_manifest(path)
    except CheckpointError:  # the file is not to be trusted, and no reason to lose the new one
        return []
    if len(sums) == 1:
        return sums
    found = checksum(path)  # of an earlier version, or a kill came between manifest and rename
    return [found] if found in sums or not sums else []


def _write_manifest(path: Path, sums: list[str]) -> None:
    manifest = manifest_of(path)
    draft = manifest.with_name(f".{manifest.name}.{uuid.uuid4().hex}.tmp")
    text = "".join(f"{one}  {path.name}\n" for one in sums)
    try:
        _write(draft, lambda file: file.write(text.encode("ascii")))
        os.replace(draft, manifest)
        _sync_folder(manifest.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes new names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


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
