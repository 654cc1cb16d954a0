"""Errors that are the user's to mend, and the one line that tells them."""

from __future__ import annotations

import sys

import requests


class InputError(Exception):
    """The user's input is wrong; the message is one line: what, where, and the nearest valid choice."""


class CheckpointError(InputError):
    """A checkpoint cannot be used; the message is one line: the file, what was expected, what was found."""


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
