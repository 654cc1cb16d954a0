"""Slates as text: what is asked of a model in a case, and the columns that every batch holds of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from datamodules.contract.errors import InputError
from datamodules.instructions.preferences import Explicit
from datamodules.instructions.slates import Slate, SlateMaker
from datamodules.instructions.templates import Demonstration, Instruction, InstructionTemplate
from datamodules.items.base import clean_title


class Shape(NamedTuple):
    """All that decides a prompt's text beside the titles and texts in it.

    Attributes:
        history: number of titles in the history.
        marks: for each of them whether the user liked it, or its rating; empty where the prompt does not say.
        listed: number of candidates in the prompt.
        asked: whether the prompt asks about one title.
    """

    history: int
    marks: tuple[bool | str, ...]
    listed: int
    asked: bool

    @property
    def titles(self) -> int:
        """Number of titles in the prompt."""
        return self.history + self.listed + self.asked


@dataclass(frozen=True)
class SlateText:
    """Turns slates into instructions and into what every batch holds of them.

    Attributes:
        titles: `[I]` titles by item code.
        template: the wording.
        words: the domain's nouns and verbs in the template's language.
        item_ids: `[I]` ids by item code, for messages.
        explicit: makes preferences and intentions in words; None where no prompt tells any.
        ratings: `[E]` ratings by place, where a prompt tells them or asks for one.
        others: the other wordings of a mixture, numbered from 1.
        token_start: what vectors of items start from, where each is one token of its own; None where items are titles.
    """

    titles: list[str]
    template: InstructionTemplate
    words: dict[str, str]
    item_ids: Sequence[str] = ()
    explicit: Explicit | None = None
    ratings: NDArray[np.float64] | None = None
    others: tuple[SlateText, ...] = ()
    token_start: str | None = None

    def of(self, slate: Slate) -> SlateText:
        """The wording that a slate has."""
        return self.others[slate.wording - 1] if slate.wording else self

    def instruction(self, slate: Slate) -> Instruction:
        """The rendered instruction of a slate."""
        return replace(self.question(slate), answers=self.answers(slate))

    def question(self, slate: Slate) -> Instruction:
        """The instruction of a slate, whose answers are left out where the prompt does not list them."""
        titles = [self.titles[item] for item in self.shown(slate)]
        return self.prompt(self.shape(slate), [*titles, *self.texts(slate)])

    def candidates(self, slate: Slate) -> NDArray[np.int64]:
        """`[C]` item codes that answer: all candidates, or the right one and the first other of a pair."""
        if self.template.form != "pairwise" or len(slate.candidates) <= 2:
            return slate.candidates
        wrong = np.flatnonzero(slate.candidates != slate.target)[:1]
        right = np.flatnonzero(slate.candidates == slate.target)
        return slate.candidates[np.sort(np.concatenate((wrong, right)))]

    def answers(self, slate: Slate) -> tuple[str, ...]:
        """The answers to be scored, as they are encoded."""
        if self.template.answer:
            return self.template.render(
                self.words,
                history=[self.titles[item] for item in slate.history],
                target=self.titles[slate.target],
                preference=self._preference(slate),
                intention=self._intention(slate),
            ).answers
        titles = (clean_title(self.titles[item]) for item in self.candidates(slate))
        return self.template.answers or tuple(map(self.template.written, titles))

    def shape(self, slate: Slate) -> Shape:
        """What decides the prompt's text beside the titles of `shown` and the texts of `texts`."""
        shows = self.template.shows
        count = len(slate.history) if shows & {"history", "rated"} else 0
        listed = len(self.candidates(slate)) if "candidates" in shows else 0
        marks: tuple[bool | str, ...] = ()
        if "rated" in shows:
            marks = self._stars(slate) if self.template.form == "rating" else tuple(slate.liked.tolist())
        return Shape(count, marks, listed, "target" in shows)

    def _stars(self, slate: Slate) -> tuple[str, ...]:
        if self.ratings is None or slate.begin < 0:
            raise InputError("this task needs ratings, and the history has none")
        return tuple(f"{stars:g}" for stars in self.ratings[slate.begin : slate.begin + len(slate.history)].tolist())

    def shown(self, slate: Slate) -> list[int]:
        """Items whose titles the prompt shows: the history, listed candidates, and the one that is asked about."""
        shows = self.template.shows
        items: list[int] = slate.history.tolist() if shows & {"history", "rated"} else []
        if "candidates" in shows:
            items += self.candidates(slate).tolist()
        if "target" in shows:
            items.append(slate.target)
        return items

    @property
    def told(self) -> tuple[str, ...]:
        """What the prompt tells in words."""
        return tuple(name for name in ("preference", "intention") if name in self.template.shows)

    def texts(self, slate: Slate) -> tuple[str, ...]:
        """The texts of `told`, as they stand in the prompt."""
        made = {"preference": self._preference, "intention": self._intention}
        return tuple(clean_title(made[name](slate)) or self.template.unknown for name in self.told)

    def _preference(self, slate: Slate) -> str:
        return self.explicit.preference(slate) if self.explicit else slate.preference

    def _intention(self, slate: Slate) -> str:
        by_preference = self.template.searches_preference
        return self.explicit.intention(slate, by_preference=by_preference) if self.explicit else slate.intention

    def prompt(self, shape: Shape, shown: Sequence[str]) -> Instruction:
        """The instruction of a shape with any titles in the places of `shown`, and behind them the texts of `told`."""
        rest = shown[shape.history : shape.titles]
        return self.template.render(
            self.words,
            history=shown[: shape.history],
            marks=shape.marks,
            candidates=rest[: shape.listed],
            target=rest[-1] if shape.asked else "",
            **dict(zip(self.told, shown[shape.titles :], strict=True)),
        )

    def name(self, item: int) -> str:
        """An item by title and id, for messages."""
        return f"{self.titles[item]!r} (item {self.item_ids[item] if self.item_ids else item})"

    def branches(self, slate: Slate) -> tuple[ArrayLike, ArrayLike]:
        """Item code (or answer number) and gain of each branch."""
        if self.template.form == "like":
            return [0, 1], [slate.target_liked, not slate.target_liked]
        if self.template.form == "rating":
            return range(len(self.template.answers)), self._rating_gains(slate)
        if self.template.answer:
            return [slate.target], [1.0]
        candidates = self.candidates(slate)
        return candidates, candidates == slate.target

    def _rating_gains(self, slate: Slate) -> list[float]:
        """Gains whose mean answer is the rating: a half star lies between two answers."""
        if self.ratings is None:
            raise InputError("this task needs ratings, and the data has none")
        rating = float(self.ratings[slate.place])
        return [max(0.0, 1 - abs(rating - stars)) for stars in range(1, len(self.template.answers) + 1)]


def shared_fields(text: SlateText, slates: Sequence[Slate]) -> dict[str, Any]:
    """The columns of `datamodules.contract.batch.Batch` for slates in order."""
    branches = [text.of(slate).branches(slate) for slate in slates]
    items = [np.asarray(item, dtype=np.int64) for item, _ in branches]
    gains = [np.asarray(gain, dtype=np.float32) for _, gain in branches]
    return {
        "case": torch.tensor([slate.case for slate in slates]),
        "branch_case": torch.from_numpy(np.repeat(np.arange(len(slates)), [len(item) for item in items])),
        "branch_item": torch.from_numpy(np.concatenate(items)),
        "relevance": torch.from_numpy(np.concatenate(gains)),
        "answers": {"like": "fixed", "rating": "ratings"}.get(text.template.form, "candidates"),
        "rule": tuple(slate.rule for slate in slates) if any(slate.rule for slate in slates) else (),
    }


# Demonstrations: solved cases of training users at the beginning of every prompt (in-context learning, k-shot).


def draw_demonstrations(slates: SlateMaker, text: SlateText, shots: int, seed: int) -> list[Demonstration]:
    """The last training target of users that a seed draws, as solved cases; the same for every prompt (Brown et al. 2020).

    Held-out events are never shown. Users of evaluated cases are drawn only where there are too few others; of them,
    too, only training events are shown.

    Raises:
        InputError: there are fewer users with a training target.
    """
    last = {int(user): window for window, user in enumerate(slates.windows.user)}
    users = np.array(sorted(last), dtype=np.int64)
    if shots > len(users):
        raise InputError(f"model.shots is {shots}, and the data has {len(users)} users with training targets; lower it")
    cases = (slates.sequences.validation, slates.sequences.test)
    others = np.setdiff1d(users, np.concatenate([each.user for each in cases]))
    pool = others if len(others) >= shots else users
    drawn = np.random.default_rng((seed, 0x5407)).choice(pool, size=shots, replace=False) if shots else pool[:0]
    made = []
    for user in drawn.tolist():
        slate = slates.training(last[user], 0)[-1]
        instruction = text.instruction(slate)
        gain = np.asarray(text.branches(slate)[1], dtype=np.float64)
        made.append(Demonstration(instruction, instruction.answers[int(gain.argmax())], slate.user))
    return made
