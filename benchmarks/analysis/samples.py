"""Users whose stored sample prompts the rows of a table answer differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.analysis.leaderboard import Table


@dataclass(frozen=True)
class Answer:
    """What a row said of a user: the place of the true item, None below those stored, and its first answers."""

    row: int
    rank: int | None
    stored: int
    titles: tuple[str, ...]


@dataclass(frozen=True)
class Disagreement:
    """A user whose true item some rows find and others do not, or whose first answer differs."""

    user: str
    prompt: str
    truth: str
    answers: tuple[Answer, ...]


def disagreements(table: Table, most: int = 5) -> list[Disagreement]:
    """Sampled users on whom the first runs of rows differ, those first whose true item has the most distant places.

    Example:
        >>> disagreements(Table("ab", None, "ranking", 20, {}, ("hr@5",), "hr@5", {}, (), ()))
        []
    """
    asked: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for at, row in enumerate(table.rows):
        for sample in row.runs[0].samples:
            asked.setdefault(str(sample.get("user")), []).append((at, sample))
    differing = []
    for user, samples in asked.items():
        answers = tuple(_answer(at, sample.get("ranking") or []) for at, sample in samples)
        if len({answer.titles[:1] for answer in answers}) > 1 or len({answer.rank for answer in answers}) > 1:
            ranked = (answer for _, sample in samples for answer in sample.get("ranking") or [])
            truth = next((str(answer.get("title")) for answer in ranked if answer.get("relevant") is True), "")
            differing.append(Disagreement(user, str(samples[0][1].get("prompt", "")), truth, answers))
    return sorted(differing, key=_distance, reverse=True)[:most]


def _answer(row: int, ranking: list[Mapping[str, Any]]) -> Answer:
    rank = next((place for place, answer in enumerate(ranking, 1) if answer.get("relevant") is True), None)
    return Answer(row, rank, len(ranking), tuple(str(answer.get("title", "")) for answer in ranking[:3]))


def _distance(found: Disagreement) -> int:
    places = [answer.rank or answer.stored + 1 for answer in found.answers]
    return max(places) - min(places)
