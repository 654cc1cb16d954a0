"""What the protocol makes of interactions: users' events in one column, and the frozen cases.

# U users, I items, E events of all users, S cases of a split, C candidates
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Cases:
    """Frozen test cases of one split, as columns.

    Attributes:
        user: `[S]` user code.
        target: `[S]` place of the true event in `Sequences.item`.
        candidates: `[S, C]` item codes with the true item among them in random place, -1 after the end of a shorter
            published list; None ranks the catalogue.
        history_end: `[S]` one past the last event that may be shown; None where that is the target.
    """

    user: Ints
    target: Ints
    candidates: Ints | None
    history_end: Ints | None = None

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.user)

    @property
    def shown(self) -> Ints:
        """`[S]` one past the last event that a case's prompt may show."""
        return self.target if self.history_end is None else self.history_end


@dataclass(frozen=True)
class Sequences:
    """All users' events in time order, in one column, and the cases made of them.

    Where a split does not follow time within a user (published splits, cold items), what is trained on comes first.

    Attributes:
        user_ids: `[U]` original ids by user code.
        item_ids: `[I]` original ids by item code.
        titles: `[I]` titles by item code.
        item: `[E]` item code of each event, user by user, in time order.
        rating: `[E]` its rating, NaN where there is none.
        start: `[U + 1]` where each user's events begin.
        train_end: `[U]` first place that training must not see.
        validation: cases of the validation split (empty under `fit_on_validation`).
        test: cases of the test split.
        description: settings and statistics, for people.
        fingerprint: sha256 over data, settings and the cases themselves.
        timestamp: `[E]` time of each event; empty where nobody asked.
        shots: places of the only training targets, ascending; None where all are.
        history: events that a prompt shows at most; bounds what training on `shots` sees.
        row: `[E]` the data's own number of each event, its column `row`; empty where it has none.
    """

    user_ids: list[str]
    item_ids: list[str]
    titles: list[str]
    item: Ints
    rating: NDArray[np.float64]
    start: Ints
    train_end: Ints
    validation: Cases
    test: Cases
    description: dict[str, Any]
    fingerprint: str
    timestamp: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    shots: Ints | None = None
    history: int = 10
    row: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def owner(self) -> Ints:
        """`[E]` user code of each event."""
        return np.repeat(np.arange(len(self.user_ids)), np.diff(self.start))

    @property
    def trained(self) -> NDArray[np.bool_]:
        """`[E]` whether training may see the event; under few shots only the examples and what their prompts show."""
        place = np.arange(len(self.item))
        owner = self.owner
        if self.shots is None:
            return place < self.train_end[owner]
        first = np.maximum(self.start[owner[self.shots]], self.shots - self.history)
        marks = np.zeros(len(place) + 1, dtype=np.int64)
        np.add.at(marks, first, 1)
        np.add.at(marks, self.shots + 1, -1)
        return np.cumsum(marks)[:-1] > 0

    @property
    def longest_list(self) -> int:
        """Candidates of a test case; the catalogue where none were sampled."""
        drawn = self.test.candidates
        return len(self.item_ids) if drawn is None else int(drawn.shape[1])

    def candidate_items(self, cases: Cases, case: int, exclude_seen: bool) -> Ints:
        """Item codes the case ranks, the true one among them; the catalogue where none were sampled."""
        if cases.candidates is not None:
            row = np.asarray(cases.candidates[case])
            return row if row[-1] >= 0 else row[row >= 0]
        keep = np.ones(len(self.item_ids), dtype=bool)
        if exclude_seen:
            keep[self.item[self.start[cases.user[case]] : cases.shown[case]]] = False
        keep[self.item[cases.target[case]]] = True
        return np.flatnonzero(keep)
