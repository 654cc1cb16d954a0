"""Why a run ended without a record, in one line."""

from __future__ import annotations

import re
import signal

__all__ = ["describe_exit"]

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def describe_exit(code: int, log: bytes) -> str:
    r"""Say in one line why a run ended without a record.

    Args:
        code: Exit status; 128 + n, or -n, for signal n.
        log: The end of what it printed.

    Example:
        >>> describe_exit(-9, b"step 3\n")
        'killed (exit code 137), most often for lack of memory; step 3'
    """
    status = code if code >= 0 else 128 - code
    text = _ESCAPES.sub("", log.decode("utf-8", errors="replace"))
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    last = "".join(letter for letter in lines[-1] if letter.isprintable())[:300] if lines else "it printed nothing"
    if status == 128 + signal.SIGKILL:
        return f"killed (exit code {status}), most often for lack of memory; {last}"
    return f"exit code {status}; {last}" if status else f"ended without a record; {last}"
