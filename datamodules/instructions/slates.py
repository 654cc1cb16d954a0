"""Slates: one case before any text, and the training windows that group a user's successive cases.

# U users, W windows
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.contract.errors import InputError
from datamodules.instructions.mixture import Mixture
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Cases, Sequences

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Slate:
    """A history and the candidates to be ranked after it.

    Attributes:
        case: number of the case within its split; -1 in training.
        user: the user's id, for messages.
        history: `[H]` item codes, oldest first.
        liked: `[H]` whether the user liked each of them.
        candidates: `[C]` item codes, the true one among them.
        target: item code of the true one; -1 where nobody knows it.
        target_liked: whether the user liked the true one.
        whole: whether the candidates are the whole catalogue, but for items the case leaves out.
        begin: place of the first shown event in `Sequences.item`; -1 where the history is no part of it.
        place: place of the true event there; -1 likewise.
        wording: number of the template among those of a mixture.
        preference: the user's taste in words, where the case itself brings it.
        intention: what the user asks for, likewise.
        rule: of the candidates, where it is one of `protocol.also`.
    """

    case: int
    user: str
    history: Ints
    liked: NDArray[np.bool_]
    candidates: Ints
    target: int
    target_liked: bool
    whole: bool = False
    begin: int = -1
    place: int = -1
    wording: int = 0
    preference: str = ""
    intention: str = ""
    rule: str = ""

    def without_oldest(self, count: int) -> Slate:
        """The slate with a shorter history."""
        begin = self.begin + count if self.begin >= 0 else -1
        return replace(self, history=self.history[count:], liked=self.liked[count:], begin=begin)


@dataclass(frozen=True)
class WindowOptions:
    """Which targets are trained together, and beside what.

    Attributes:
        targets_per_window: successive targets of a user trained together, at most `train_history`; null is 10, or 100 where
            the history continues into the answer.
        window_history: `growing`, each of them after all events before it; `shared`, all after those before the first,
            as branches of one prompt (as PinnerFormer's dense all-action loss, arXiv 2205.04507).
        train_negatives: sampled negatives beside each training target; null means as many as in the test where the
            task or objective needs them, else none.
        train_history: events before a training target that it is shown at most; null is `protocol.history`.
    """

    targets_per_window: int | None = None
    window_history: Literal["growing", "shared"] = "growing"
    train_negatives: int | None = None
    train_history: int | None = None


@dataclass(frozen=True)
class Windows:
    """Training targets, grouped by user into runs that share one history.

    Attributes:
        user: `[W]` user code.
        first: `[W]` place of the window's first target.
        last: `[W]` one past its last target.
    """

    user: Ints
    first: Ints
    last: Ints

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.user)


def make_windows(sequences: Sequences, targets: int, least: int = 1) -> Windows:
    """Cuts every user's training events, from the second on, into runs of at most `targets` targets.

    Every training event after a user's first is the target of exactly one window; under few shots, every one of the
    chosen is a window. `least` events stand before a target: none where a request alone asks for it.
    """
    if sequences.shots is not None:
        return Windows(sequences.owner[sequences.shots], sequences.shots, sequences.shots + 1)
    count = np.maximum(0, -(-(sequences.train_end - sequences.start[:-1] - least) // targets))
    user = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    first = sequences.start[user] + least + targets * number
    return Windows(user, first, np.minimum(first + targets, sequences.train_end[user]))


def check_slates(history: int, negatives: int, targets: int, seed: int) -> None:
    """Refuses numbers that fit no data set; as for `SlateMaker`.

    Raises:
        InputError: `targets` exceeds the history, or a number is negative.
    """
    if not 1 <= targets <= history:
        raise InputError(
            f"data.targets_per_window is {targets}, must be 1 to {history} (data.train_history, by default"
            " protocol.history)"
        )
    if negatives < 0:
        raise InputError(f"data.train_negatives is {negatives}, must be 0 to the catalogue less one")
    if seed < 0:
        raise InputError(f"data.seed is {seed}, must be at least 0")


class SlateMaker:
    """Makes slates of frozen cases and of training windows.

    Args:
        sequences: all users' events.
        protocol: the rules.
        negatives: sampled negatives beside the target in training.
        targets: targets of a training window; at most `history`.
        seed: of the training negatives; drawn anew each epoch, as a function of (seed, epoch, place).
        shared: all targets of a window are answers to the history before the first of them.
        least: events before a training target.
        choice: which wording a user's windows have in an epoch.
        history: events that a training target is shown at most; by default those of the protocol.
        shown: events that an evaluated prompt shows at most; by default those of the protocol.

    Raises:
        InputError: `targets` exceeds the history, the catalogue is too small for the negatives, or a number is
            negative.
    """

    def __init__(
        self,
        sequences: Sequences,
        protocol: Protocol,
        negatives: int,
        targets: int,
        seed: int,
        *,
        shared: bool = False,
        least: int = 1,
        choice: Mixture | None = None,
        history: int | None = None,
        shown: int | None = None,
    ) -> None:
        self.history, self.shown = history or protocol.history, min(shown or protocol.history, protocol.history)
        check_slates(self.history, negatives, targets, seed)
        if negatives >= len(sequences.item_ids):
            raise InputError(
                f"data.train_negatives is {negatives}, must be 0 to {len(sequences.item_ids) - 1} (the catalogue less one)"
            )
        self.sequences, self.protocol = sequences, protocol
        self.negatives, self.seed, self.shared = negatives, seed, shared
        self.windows = make_windows(sequences, targets, least)
        self.choice = choice

    def evaluation(self, cases: Cases, case: int) -> Slate:
        """The slate of a frozen case."""
        user, place = int(cases.user[case]), int(cases.target[case])
        end = int(cases.shown[case])
        begin = max(int(self.sequences.start[user]), end - self.shown)
        candidates = self.sequences.candidate_items(cases, case, self.protocol.exclude_seen)
        return replace(self._slate(case, user, begin, end, place, candidates), whole=cases.candidates is None)

    def training(self, window: int, epoch: int) -> list[Slate]:
        """The slates of one window: successive targets of one user under one history, growing or shared.

        It begins where the target that sees most of it sees exactly as many events as the history allows.
        """
        user, first, last = (int(of[window]) for of in (self.windows.user, self.windows.first, self.windows.last))
        most = first if self.shared else last - 1
        begin = max(int(self.sequences.start[user]), most - self.history)
        # Only what training may know: held-out items of the user stay possible negatives, or their absence would leak.
        own = set(self.sequences.item[self.sequences.start[user] : self.sequences.train_end[user]].tolist())
        made = [
            self._slate(-1, user, begin, min(place, most), place, self._draw(user, own, place, epoch))
            for place in range(first, last)
        ]
        if self.choice is None:
            return made
        wording = self.choice.of(self.sequences.user_ids[user], epoch)
        return [replace(slate, wording=wording) for slate in made]

    def _slate(self, case: int, user: int, begin: int, end: int, place: int, candidates: Ints) -> Slate:
        """The case of the event at `place` after those from `begin` to before `end`."""
        threshold = self.protocol.like_threshold
        return Slate(
            case=case,
            user=self.sequences.user_ids[user],
            history=self.sequences.item[begin:end],
            liked=self.sequences.rating[begin:end] >= threshold,
            candidates=candidates,
            target=int(self.sequences.item[place]),
            target_liked=bool(self.sequences.rating[place] >= threshold),
            begin=begin,
            place=place,
        )

    def _draw(self, user: int, own: set[int], place: int, epoch: int) -> Ints:
        """`[C]` the target at a place and negatives that are not the user's own, in random order."""
        target = self.sequences.item[place]
        if self.negatives == 0:
            return np.array([target])
        rng = np.random.default_rng((self.seed, epoch, place))
        chosen: dict[int, None] = {}
        for _ in range(100):
            drawn = rng.integers(len(self.sequences.item_ids), size=2 * self.negatives).tolist()
            chosen |= dict.fromkeys(item for item in drawn if item not in own)
            if len(chosen) >= self.negatives:
                return rng.permutation(np.array([target, *list(chosen)[: self.negatives]]))
        raise InputError(f"user {self.sequences.user_ids[user]!r} leaves too few items for data.train_negatives")
