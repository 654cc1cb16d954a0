"""Sides taking turns: A B A B, each in its own process, timed where the work is and compared in what they computed."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from benchmarks.perf.setting import Setting

Values = dict[str, np.ndarray[Any, Any]]
Distance = Literal["largest", "typical", "relative", "unshared", "common", "worse"]


class DisagreementError(AssertionError):
    """Two sides computed different things, so their times must not be compared."""


@dataclass(frozen=True)
class Turn:
    """One repetition of one side: its seconds, the users or examples done in them, and what was computed."""

    seconds: float
    count: float
    values: Values = field(default_factory=dict)


class Side(ABC):
    """One way of doing the work of a comparison. Making one loads the model and the examples."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.config: dict[str, Any] = {}

    def prepare(self) -> None:  # noqa: B027  # most sides have nothing to choose
        """Chooses what is best for this side, outside the clock; says so in `config`."""

    @abstractmethod
    def turn(self, repetition: int) -> Turn:
        """Does the work once; repetition 0 warms up and is not counted."""

    @abstractmethod
    def exact(self) -> Values:
        """What a small part of the work gives in float32; the last thing asked of a side."""


@dataclass(frozen=True)
class Agreement:
    """How far ours and a peer are apart in one quantity at most; beyond the tolerance their times are not compared."""

    what: str
    precision: str
    peer: str
    difference: float
    tolerance: float

    def check(self) -> None:
        """Raises DisagreementError: beyond the tolerance, or not a number."""
        if not self.difference <= self.tolerance:
            raise DisagreementError(
                f"{self.what}, {self.precision}: ours and {self.peer} differ by {self.difference:.3g}, more than {self.tolerance:.3g}"
            )


@dataclass(frozen=True)
class ComparisonRule:
    """How one quantity is compared.

    Attributes:
        what: its name in tables.
        key: its name in `Turn.values` or `Side.exact`.
        distance: `largest` absolute difference; `typical`, the root of its mean square; `relative`, the norm of the difference to that of the peer's values;
            for results of a search, NaN where nothing was found: `unshared`, the share of values that only one of both
            has; `common`, the largest difference where both have one; `worse`, by how much our k-th best value is
            below the peer's, on average over users and k.
        tolerance: in the run's precision.
        exact_tolerance: in float32.
    """

    what: str
    key: str
    distance: Distance
    tolerance: float
    exact_tolerance: float

    def difference(self, ours: Values, peer: Values) -> float:
        """Distance of two sides' values.

        Example:
            >>> rule = ComparisonRule("scores", "score", "largest", 0.1, 1e-4)
            >>> rule.difference({"score": np.array([1.0, 2.0])}, {"score": np.array([1.0, 2.5])})
            0.5
        """
        a, b = ours[self.key].astype(np.float64), peer[self.key].astype(np.float64)
        if a.shape != b.shape:
            raise DisagreementError(f"{self.what}: shapes {a.shape} and {b.shape}")
        if self.distance == "worse":
            return shortfall(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))
        here, there = ~np.isnan(a), ~np.isnan(b)
        if self.distance == "unshared":
            return float((here ^ there).sum() / max(1, (here | there).sum()))
        if self.distance == "common":
            a, b = a[here & there], b[here & there]
        if not len(a.flat) or not np.isfinite(a).all() or not np.isfinite(b).all():
            raise DisagreementError(f"{self.what}: nothing to compare, or values that are not finite")
        if self.distance == "relative":
            return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-30)
        if self.distance == "typical":
            return float(np.sqrt(np.square(a - b).mean()))
        return float(np.abs(a - b).max())


def shortfall(ours: np.ndarray[Any, Any], peer: np.ndarray[Any, Any]) -> float:
    """How far ours falls behind at a rank of a user, on average; infinite where the peer found more at any.

    Ranks where ours is ahead count as 0, so they make up for nothing. The mean and not the largest: where values drop
    steeply, one title that rounding lost moves one rank by the whole step.

    Args:
        ours: `[U, I]`, NaN where nothing was found.
        peer: likewise.

    Example:
        >>> shortfall(np.array([[np.nan, -1.0, -3.0]]), np.array([[-2.5, -1.0, np.nan]]))
        0.25
    """
    # NaN sorts last, so the best come first and what was not found becomes -inf.
    best = [np.nan_to_num(-np.sort(-table, axis=1), nan=-np.inf) for table in (ours, peer)]
    found_by_peer = best[1] > -np.inf
    behind = (best[1][found_by_peer] - best[0][found_by_peer]).clip(min=0.0)
    return float(behind.mean()) if behind.size else 0.0


@dataclass(frozen=True)
class Comparison:
    """A piece of work, the sides that do it, ours first, and the least speed-up over each peer that is promised."""

    name: str
    title: str
    unit: str
    sides: Mapping[str, Callable[[Setting], Side]]
    targets: Mapping[str, float]
    rules: Sequence[ComparisonRule]


@dataclass(frozen=True)
class SideResult:
    """Everything one side left.

    Attributes:
        seconds: of each timed turn.
        count: units of work of a turn.
        memory: `baseline_bytes` (imports, model, examples) and `peak_bytes` of the process; empty where not measured.
        config: how the side was configured.
    """

    seconds: list[float]
    count: float
    memory: dict[str, int]
    config: dict[str, Any]

    @property
    def per_second(self) -> float:
        """Units of work a second, from the median turn."""
        return self.count / statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """The result with its median, least and largest time."""
        times = self.seconds
        summary = {"median": statistics.median(times), "min": min(times), "max": max(times)}
        return asdict(self) | {"summary": summary, "per_second": self.per_second}


def speed_up(ours: SideResult, peer: SideResult) -> dict[str, float]:
    """How many times more a second ours does: from the medians, and the least and largest of neighbouring turns.

    Example:
        >>> a, b = SideResult([1.0, 2.0], 4, {}, {}), SideResult([4.0, 4.0], 2, {}, {})
        >>> speed_up(a, b)
        {'median': 5.333333333333333, 'min': 4.0, 'max': 8.0}
    """
    quotients = [p / peer.count / (o / ours.count) for o, p in zip(ours.seconds, peer.seconds, strict=True)]
    return {"median": ours.per_second / peer.per_second, "min": min(quotients), "max": max(quotients)}


def agreements(
    rules: Sequence[ComparisonRule], values: Mapping[str, Values], precision: str, *, exact: bool = False
) -> list[Agreement]:
    """Compares the first side's values with every other's."""
    ours, *peers = values
    return [
        Agreement(
            rule.what,
            precision,
            peer,
            rule.difference(values[ours], values[peer]),
            rule.exact_tolerance if exact else rule.tolerance,
        )
        for peer in peers
        for rule in rules
    ]
