"""`--launcher-option KEY=VALUE`: what a scheduler is told about every job."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from datamodules.contract.errors import InputError

__all__ = ["Value", "read_options"]

Value = str | int | float


def read_options(given: Sequence[str], known: Mapping[str, type], launcher: str) -> dict[str, Value]:
    """Reads options and refuses what the launcher does not know.

    Raises:
        InputError: No `=`, an unknown key, a key given twice, a value of another kind or not positive.

    Example:
        >>> read_options(["num_gpus=0.5", "address=auto"], {"address": str, "num_gpus": float}, "ray")
        {'num_gpus': 0.5, 'address': 'auto'}
    """
    options: dict[str, Value] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise InputError(f"--launcher-option: KEY=VALUE is needed, got {text!r}")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f"nearest: {near[0]}" if near else f"it takes none; {launcher} runs cells on this machine"
            raise InputError(f"--launcher-option: {launcher} has no option {key!r}; {hint}")
        if key in options:
            raise InputError(f"--launcher-option: {key} is given twice")
        options[key] = _value(key, value, known[key])
    return options


def _value(key: str, text: str, kind: type) -> Value:
    if kind is str:
        return text
    try:
        value: int | float = int(text) if kind is int else float(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise InputError(f"--launcher-option: {key} is {wanted}, got {text!r}") from None
    if not 0 <= value < float("inf"):
        raise InputError(f"--launcher-option: {key} is at least 0 and finite, got {text!r}")
    return value
