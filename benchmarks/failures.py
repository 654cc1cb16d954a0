"""What the machine does to a run, in one line: a full disk, a folder that cannot be written, a killed worker."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

DISK = {
    errno.ENOSPC: "make room there, or give another folder with --out",
    errno.EDQUOT: "make room in your quota, or give another folder with --out",
    errno.EROFS: "give a writable folder with --out",
    errno.EACCES: "give a writable folder with --out",
    errno.EPERM: "give a writable folder with --out",
    errno.EIO: "the disk or the network file system fails",
}
"""Errors of the operating system that no code of ours can mend, and what can."""


def machine_failure(error: BaseException) -> str | None:
    """Says what the machine did and what helps; None where the error is of another kind, so that its traceback counts.

    Example:
        >>> machine_failure(OSError(28, "No space left on device", "results/run/best.ckpt"))
        'results/run/best.ckpt: No space left on device; make room there, or give another folder with --out'
        >>> machine_failure(ValueError("a mistake of ours")) is None
        True
    """
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in DISK:
            return f"{one.filename or 'a file'}: {one.strerror}; {DISK[one.errno]}"
        if isinstance(one, RuntimeError) and (worker := re.search(r"DataLoader worker \(pid[^)]*\)[^.]*", str(one))):
            return f"{worker.group()}; out of memory kills so: try a smaller data.num_workers, or 0 to see the worker's error"
        if isinstance(one, RuntimeError) and re.search(r"PytorchStreamWriter failed|file write failed", str(one)):
            return f"a checkpoint could not be written; {DISK[errno.ENOSPC]}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
