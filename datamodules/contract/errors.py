"""Errors that are the user's to mend, and the one line that tells them."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import requests


class InputError(Exception):
    """The user's input is wrong; the message is one line: what, where, and the nearest valid choice."""


class CheckpointError(InputError):
    """A checkpoint cannot be used; the message is one line: the file, what was expected, what was found."""


DISK = {
    errno.ENOSPC: "make room there, or give another folder with --out",
    errno.EDQUOT: "make room in your quota, or give another folder with --out",
    errno.EFBIG: "files may be no larger here: raise `ulimit -f`, or give a folder of another file system with --out",
    errno.EROFS: "give a writable folder with --out",
    errno.EACCES: "give a writable folder with --out",
    errno.EPERM: "give a writable folder with --out",
    errno.EIO: "the disk or the network file system fails",
}
"""Errors of the operating system that no code of ours can mend, and what can."""


def first_input_error(error: BaseException | None) -> InputError | None:
    """The outermost error in a chain that says what is wrong with the user's input or file; None if there is none."""
    return next((link for link in _chain(error) if isinstance(link, InputError)), None)


def machine_failure(error: BaseException) -> str | None:
    """Says what the machine did and what helps; None where the error is of another kind, so that its traceback counts.

    Example:
        >>> machine_failure(OSError(28, "No space left on device", "results/run/best.ckpt"))
        'results/run/best.ckpt: No space left on device; make room there, or give another folder with --out'
        >>> machine_failure(ValueError("a mistake of ours")) is None
        True
    """
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in DISK:
            return f"{link.filename or _open_file(link) or 'a file'}: {link.strerror}; {DISK[link.errno]}"
        if number := re.search(r"\(os error (\d+)\)", str(link)):  # of a library in Rust
            code = int(number[1])
            return f"{_open_file(link) or 'a file'}: {os.strerror(code)}; {DISK[code]}" if code in DISK else None
        if isinstance(link, RuntimeError) and (worker := re.search(r"DataLoader worker \(pid[^)]*\)[^.]*", str(link))):
            return (
                f"{worker[0]}; out of memory kills so: try a smaller data.num_workers, or 0 to see the worker's error"
            )
        if isinstance(link, RuntimeError) and re.search(r"PytorchStreamWriter failed|file write failed", str(link)):
            return f"a checkpoint could not be written; {DISK[errno.ENOSPC]}"
    return None


def _open_file(error: BaseException) -> str | None:
    """The file that a library was writing, from the variables of the function that met an error without a file's name."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for variable, value in frame.f_locals.items():
            name = getattr(value, "name", None) if isinstance(value, io.IOBase) else value
            if (name is not value or variable == "filename") and isinstance(name, str | Path):
                return str(name)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason_of(error: BaseException) -> str:
    """The innermost cause in a few words; the network libraries wrap it several times.

    >>> reason_of(RuntimeError(OSError(28, "No space left on device")))
    'No space left on device'
    """
    while inner := _cause(error):
        error = inner
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((text or type(error).__name__).split())[:160]


def _cause(error: BaseException) -> BaseException | None:
    for inner in (*error.args, getattr(error, "reason", None), error.__cause__):
        if isinstance(inner, BaseException) and inner is not error:
            return inner
    return None


def say(text: str) -> None:
    """Tells the user one line on stderr.

    >>> from contextlib import redirect_stderr
    >>> with redirect_stderr(sys.stdout):
    ...     say("fetching it again")
    instructrec: fetching it again
    """
    print(f"instructrec: {text}", file=sys.stderr)
