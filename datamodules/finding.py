"""What one check of an audit found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "warning", "leak"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        verdict: `ok`; `note`, true of the rules and no fault; `warning` or `leak`, which make the audit fail.
        count: how many.
        of: out of how many.
        told: what was counted.
        remedy: what to do next; empty where nothing is to be done.
    """

    check: str
    verdict: Verdict
    count: int
    of: int
    told: str
    remedy: str = ""

    @property
    def alarms(self) -> bool:
        """Whether the audit fails."""
        return self.verdict in ("warning", "leak")


def verdict_of(count: int, bad: Verdict, remedy: str) -> tuple[Verdict, str]:
    """The bad verdict and its remedy where anything was counted.

    Example:
        >>> verdict_of(0, "leak", "mend it"), verdict_of(2, "leak", "mend it")
        (('ok', ''), ('leak', 'mend it'))
    """
    return (bad, remedy) if count else ("ok", "")
