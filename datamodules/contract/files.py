"""Files that are whole or not there: the one writer, the one checksum, and the manifests beside files.

A file is written under a draft's name in its own folder, synced and renamed. A manifest, `NAME.sha256`, lies beside its
file in the format of sha256sum; while the file is being replaced it lists the sums of the old and the new content, so
that there is no moment at which file and manifest disagree.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.contract.errors import CheckpointError

DRAFTS = ".*.tmp"
"""Pattern of files that a killed process was writing."""

Content = str | bytes | Callable[[BinaryIO], object]
"""What a file is to hold: text (as UTF-8), bytes, or a function that writes into the open file."""


def write_atomic(path: Path, content: Content, *, sync: bool = True, draft: Path | None = None) -> None:
    """Writes a file so that a reader, or a restart after a kill, sees the old content or the new, never a part.

    Args:
        path: the file; its folder exists.
        content: all of it.
        sync: whether it also survives a power cut; not worth its time for what is written every few seconds.
        draft: name to write under, in the same folder; by default one that `clear_drafts` removes.

    Raises:
        OSError: with the file's name, whatever the operating system refused.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(Path(folder, "a.txt"), "whole")
        ...     [(file.name, file.read_text()) for file in Path(folder).iterdir()]
        [('a.txt', 'whole')]
    """
    draft = draft or draft_of(path)
    try:
        write_new(draft, content, sync=sync, name=path)
        with _named(path):
            os.replace(draft, path)
        if sync:
            sync_folder(path.parent)
    finally:
        with suppress(OSError):  # the first error counts
            draft.unlink(missing_ok=True)


def write_new(path: Path, content: Content, *, sync: bool = True, name: Path | None = None) -> str:
    """Fills a file that did not exist, and returns its sha256."""
    with _named(name or path), path.open("xb") as file:
        stream = _Hashed(file)
        try:
            if callable(content):
                content(stream)  # type: ignore[arg-type]
            else:
                stream.write(content.encode() if isinstance(content, str) else content)
        except RuntimeError:  # torch says where it stood, never why
            if stream.error is None:
                raise
            raise stream.error from None
        file.flush()
        if sync:
            os.fsync(file.fileno())
    return stream.digest.hexdigest()


class _Hashed:
    """A file that is hashed while it is written, and keeps the error that a library may swallow."""

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


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the operating system get the file's name: those of a write have none, those of a draft another."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def draft_of(path: Path) -> Path:
    """A fresh name beside a file to write it under."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def clear_drafts(folder: Path) -> None:
    """Removes what killed processes were writing."""
    for draft in folder.glob(DRAFTS) if folder.is_dir() else ():
        draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes new names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """SHA-256 sum of a file, 64 lower-case hex digits.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as empty:
        ...     sha256_of(Path(empty.name))[:8]
        'e3b0c442'
    """
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def manifest_of(path: Path) -> Path:
    """Where the manifest of a file lies."""
    return path.with_name(f"{path.name}.sha256")


def read_manifest(path: Path) -> list[str]:
    """The sums that a file may have: one, or two while it is being replaced; none without a manifest.

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


def put_in_place(draft: Path, path: Path, content: str) -> None:
    """Renames a synced draft with a sum to a file that has a manifest."""
    _write_manifest(path, [*_present_sums(path), content])
    with _named(path):
        os.replace(draft, path)
    sync_folder(path.parent)
    _write_manifest(path, [content])


def _write_manifest(path: Path, sums: list[str]) -> None:
    write_atomic(manifest_of(path), "".join(f"{digest}  {path.name}\n" for digest in sums))


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
    actual = sha256_of(path)  # of an earlier version, or a kill came between manifest and rename
    return [actual] if actual in sums or not sums else []
